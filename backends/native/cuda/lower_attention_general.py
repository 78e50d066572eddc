"""Attention with everything that ONNX allows, rotary embeddings, linear attention."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute, store
from polytool.backends.native.cuda.lower_contractions import as_tensor, matmul, shaped
from polytool.backends.native.cuda.lower_statistics import register_dtype
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pointwise import copy
from polytool.backends.native.kernels.rows import RowOp
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.tensors import DType

_FUSED = frozenset({"scale", "is_causal"})
_PLAIN = _FUSED | {"q_num_heads", "kv_num_heads", "softmax_precision"}
_LARGEST_TABLE = 1 << 22  # queries times keys up to which causality is a table


def split_heads(rec: Recorder, view: View, heads: int) -> View:
    """(batch, length, heads * size) as (batch, heads, length, size)."""
    batch, length, width = view.shape
    return shaped(rec, view, (batch, length, heads, width // heads)).permuted((0, 2, 1, 3))


@lowering("Attention", general=True)
def attention(rec: Recorder, layer: Layer) -> None:
    """Flat heads are split and tried as fused attention; else scores, softmax, product."""
    node = layer.nodes[0]
    q, k, v, mask, past_k, past_v, lengths = [*node.inputs, *([None] * 4)][:7]
    assert q is not None and k is not None and v is not None
    views = [rec.view(t) for t in (q, k, v)]
    flat = len(views[0].shape) == 3
    if flat:
        heads, shared = (int(node.attrs[n]) for n in ("q_num_heads", "kv_num_heads"))
        views = [
            split_heads(rec, view, n)
            for view, n in zip(views, (heads, shared, shared), strict=True)
        ]
    y, *rest = [*node.outputs, *([None] * 3)][:4]
    plain = not any(t is not None for t in (past_k, past_v, lengths, *rest))
    if flat and plain and y is not None and _fused(rec, node, views, mask, y):
        return
    keys, values = (
        appended(rec, past, new, present)
        for past, new, present in ((past_k, views[1], rest[0]), (past_v, views[2], rest[1]))
    )
    heads, real = views[0].shape[1], register_dtype(views[0].dtype)
    probabilities = None
    if past_k is None and lengths is None and rest[2] is None:
        probabilities = _plain_probabilities(rec, node, views[0], keys, mask)
    if probabilities is None:
        probabilities = _probabilities(rec, node, views[0], keys, mask, past_k, lengths, rest[2])
    product = matmul(rec, node, probabilities, _per_head(rec, values, heads), real)
    if y is not None:
        turned = product.permuted((0, 2, 1, 3)) if flat else product
        store(rec, turned, y)


def _fused(
    rec: Recorder, node: Node, views: list[View], mask: Tensor | None, output: Tensor
) -> bool:
    """Heads that were flat, through the fused kernel."""
    attrs = {k: v for k, v in node.attrs.items() if k not in ("q_num_heads", "kv_num_heads")}
    if set(attrs) - _FUSED or views[2].shape[3] != views[0].shape[3]:
        return False
    result = rec.temporary(output.dtype, views[0].shape, "heads")
    inputs: list[Tensor | None] = [as_tensor(rec, v) for v in views]
    inputs += [] if mask is None else [mask]
    inner = dataclasses.replace(node, inputs=inputs, outputs=[result], attrs=attrs)
    rec.lower(Layer.single(inner))
    merged = rec.view(result).permuted((0, 2, 1, 3))
    rec.define(output, shaped(rec, merged, rec.shape(output)))
    return True


def appended(rec: Recorder, past: Tensor | None, new: View, present: Tensor | None) -> View:
    """The cache followed by what is new, where it is asked for or needed."""
    if past is None and present is None:
        return new
    old = None if past is None else rec.view(past)
    length = (0 if old is None else old.shape[2]) + new.shape[2]
    shape = (*new.shape[:2], length, new.shape[3])
    result = View.new(new.dtype, shape) if present is None else rec.output(present)
    start = 0
    for view in (old, new):
        if view is None:
            continue
        part = result.sliced(2, start, view.shape[2])
        start += view.shape[2]
        if view.count:
            plan = copy(view.dtype).plan(view.shape, [view.operand], [part.operand])
            rec.launch([plan], [view.whole, result])
    return result


def _per_head(rec: Recorder, view: View, heads: int) -> View:
    """Key or value heads that several query heads share, repeated for each."""
    batch, shared, length, size = view.shape
    if shared == heads:
        return view
    apart = shaped(rec, view, (batch, shared, 1, length, size))
    wide = apart.broadcast((batch, shared, heads // shared, length, size))
    return shaped(rec, wide, (batch, heads, length, size))


def _plain_probabilities(
    rec: Recorder, node: Node, q: View, k: View, mask: Tensor | None
) -> View | None:
    """Scaled scores, a mask, causality: a softmax of rows; None for what it does not know."""
    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    if set(node.attrs) - _PLAIN or queries * keys > _LARGEST_TABLE or not keys:
        return None
    real = register_dtype(q.dtype)
    operands: list[tuple[DType, View]] = []
    if mask is not None:
        view = rec.view(mask)
        if view.shape[-1] != keys:
            return None
        operands.append((view.dtype, rec.dense(view).broadcast((batch, heads, queries, keys))))
    if node.attrs.get("is_causal", 0):
        table = rec.constant(
            lambda: np.triu(np.full((queries, keys), -np.inf, real.numpy), 1),
            (queries, keys), real, ("causal", queries, keys, real),
        )  # fmt: skip
        operands.append((real, table.broadcast((batch, heads, queries, keys))))
    scale = node.attrs.get("scale")
    factor = 1 / math.sqrt(size) if scale is None else float(scale)
    count = 1 + len(operands)
    steps = [
        Step.of("Constant", dtype=real, value=factor),
        Step.of("Constant", dtype=real, value=-math.inf),
        Step.of("Mul", 0, count, dtype=real),
    ]
    for i, (dtype, _) in enumerate(operands, 1):
        last = count + len(steps) - 1
        if dtype is DType.BOOL:
            steps.append(Step.of("Where", i, last, count + 1, dtype=real))
        else:
            steps.append(Step.of("Add", last, i, dtype=real))
    before = Tree((real, *(d for d, _ in operands)), tuple(steps))
    after = Tree((real,), (Step.of("Cast", 0, dtype=q.dtype),))
    op = RowOp("attention", before, ("full", *("outer" for _ in operands)), after)
    raw = matmul(rec, node, q, _per_head(rec, k, heads).permuted((0, 1, 3, 2)), real)
    result = View.new(q.dtype, (batch, heads, queries, keys))
    outer = (batch, heads, queries)
    plan = op.plan(
        batch * heads * queries, keys, outer=outer,
        outer_strides=[v.steps[:3] for _, v in operands],
    )  # fmt: skip
    rec.launch([plan], [rec.dense(raw), *(v for _, v in operands), result])
    return result


def _probabilities(
    rec: Recorder, node: Node, q: View, k: View, mask: Tensor | None, past: Tensor | None,
    lengths: Tensor | None, stage: Tensor | None,
) -> View:  # fmt: skip
    """The softmax of all scores, in the type of the queries."""
    batch, heads, queries, size = q.shape
    keys, a = k.shape[2], node.attrs
    real = register_dtype(q.dtype)
    raw = matmul(rec, node, q, _per_head(rec, k, heads).permuted((0, 1, 3, 2)), real)
    shape = (batch, heads, queries, keys)
    views = {"raw": rec.dense(raw)}
    steps: tuple[int, ...] = (0, 0, 0, 0)
    mask_keys, mask_code = keys, "0"
    if mask is not None:
        m = rec.dense(rec.view(mask))
        views["mask"], mask_keys = m, m.shape[-1]
        steps = m.broadcast((batch, heads, queries, mask_keys)).steps
        read = "mask[" + " + ".join(f"(i64)at[{d}] * by.step[{d}]" for d in range(4)) + "]"
        value = f"({read} ? 0 : -INFINITY)" if m.dtype is DType.BOOL else f"widen({read})"
        mask_code = f"((i64)at[3] < mask_keys ? (double){value} : (double)-INFINITY)"
    if lengths is not None:
        views["lengths"] = rec.view(lengths)
    left, right = (int(a.get(f"{side}_window_size", -1)) for side in ("left", "right"))
    causal = bool(a.get("is_causal", 0))
    if causal:
        right = min(right, 0) if right >= 0 else 0
    before = 0 if past is None else rec.shape(past)[2]
    offset = "before" if lengths is None or past is not None else "lengths[at[0]] - queries"
    scale = a.get("scale")
    softcap = float(a.get("softcap", 0.0))
    capped, masked = View.new(real, shape), View.new(real, shape)
    body = f"""
        R_raw v = raw[unit] * (R_raw)scale;
        scaled[unit] = v;
        if ({int(softcap > 0)}) v = tanh(v / (R_raw)softcap) * (R_raw)softcap;
        capped[unit] = v;
        const i64 distance = (i64)at[3] - ((i64)at[2] + ({offset}));
        double bias = {mask_code};
        if (left >= 0 && distance < -left) bias = -INFINITY;
        if (right >= 0 && distance > right) bias = -INFINITY;
        if ({int(lengths is not None)} && (i64)at[3] >= {"lengths[at[0]]" if lengths else "0"})
            bias = -INFINITY;
        masked[unit] = v + (R_raw)bias;
        none[unit] = bias == -INFINITY;"""
    scaled, none = View.new(real, shape), View.new(DType.BOOL, shape)
    outputs = {"scaled": scaled, "capped": capped, "masked": masked, "none": none}
    compute(
        rec, "attention_scores", shape, views, outputs, body,
        scale=1 / math.sqrt(size) if scale is None else float(scale), softcap=softcap, by=steps,
        mask_keys=mask_keys, before=before, queries=queries, left=left, right=right,
    )  # fmt: skip
    rows = (batch, heads, queries)
    peak, total = View.new(real, rows), View.new(real, rows)
    body = """
        R_peak high = -INFINITY, sum = 0;
        bool open = false;
        for (i64 i = 0; i < keys; i++) {
            high = propagating_max(high, masked[unit * keys + i]);
            open |= !none[unit * keys + i];
        }
        if (high == -INFINITY) high = 0;
        for (i64 i = 0; i < keys; i++) sum += exp(masked[unit * keys + i] - high);
        peak[unit] = high;
        // below zero: it attends nothing
        total[unit] = open ? (sum == 0 ? (R_peak)1 : sum) : (R_peak)-1;"""
    compute(
        rec, "attention_rows", rows, {"masked": masked, "none": none},
        {"peak": peak, "total": total}, body, keys=keys,
    )  # fmt: skip
    result = View.new(q.dtype, shape)
    body = """
        const i64 row = unit / keys;
        const R_peak part = exp(masked[unit] - peak[row]) / total[row];
        y[unit] = narrow<T_y>(total[row] < 0 ? (R_peak)0 : part);"""
    compute(
        rec, "attention_probabilities", shape, {"masked": masked, "peak": peak, "total": total},
        {"y": result}, body, keys=max(keys, 1),
    )  # fmt: skip
    if stage is not None:
        stages = (scaled, capped, masked, result)
        store(rec, stages[int(a.get("qk_matmul_output_mode", 0))], stage)
    return result


@lowering("RotaryEmbedding")
def rotary_embedding(rec: Recorder, layer: Layer) -> None:
    """Pairs of features rotated by an angle that grows with the position."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, cos, sin = (rec.view(given(node, i)) for i in range(3))
    positions = node.inputs[3] if len(node.inputs) > 3 else None
    flat = len(x.shape) == 3
    if flat:  # (batch, length, heads, size)
        heads = int(node.attrs["num_heads"])
        x = shaped(rec, x, (*x.shape[:2], heads, x.shape[2] // heads))
    size = int(node.attrs.get("rotary_embedding_dim", 0)) or x.shape[3]
    time, interleaved = 1 if flat else 2, int(node.attrs.get("interleaved", 0))
    views = {"x": x, "c": cos, "s": sin}
    place = f"(i64)at[0] * length + at[{time}]"
    if positions is not None:
        views["positions"] = rec.view(positions)
        place = f"positions[{place}]"
    body = f"""
        const i64 f = at[3], half = size / 2;
        if (f >= size) {{ y[unit] = x[unit]; break; }}
        const bool second = {interleaved} ? f % 2 : f >= half;
        const i64 pair = {interleaved} ? f / 2 : f % half, apart = {interleaved} ? 1 : half;
        const i64 row = ({place}) * half + pair;
        const auto own = widen(x[unit]), other = widen(x[second ? unit - apart : unit + apart]);
        const auto u = widen(c[row]), v = widen(s[row]);
        y[unit] = narrow<T_y>(second ? v * other + u * own : u * own - v * other);"""
    compute(
        rec, node.op, x.shape, views, {"y": rec.output(output)}, body,
        size=size, length=x.shape[time],
    )  # fmt: skip


@lowering("LinearAttention")
def linear_attention(rec: Recorder, layer: Layer) -> None:
    """A thread owns a column of the state and walks through time."""
    node = layer.nodes[0]
    query, key, value = (rec.view(given(node, i)) for i in range(3))
    past, decay, beta = [*node.inputs[3:], *([None] * 3)][:3]
    heads, shared = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
    batch, length = query.shape[:2]
    d_k, d_v = key.shape[2] // shared, value.shape[2] // shared
    real = register_dtype(query.dtype)
    y, present = [*node.outputs, None][:2]
    views = {"q": query, "k": key, "v": value}
    views |= {n: rec.view(t) for n, t in (("past", past), ("decay", decay), ("beta", beta)) if t}
    gate = "1"
    if decay is not None:
        width = views["decay"].shape[2] // shared
        gate = f"exp(widen(decay[(token * shared + h) * {width} + {'i' if width > 1 else '0'}]))"
    rate = ""
    if beta is not None:
        place = "token * shared + h" if views["beta"].shape[2] > 1 else "token"
        rate = f"fresh = widen(beta[{place}]) * (fresh - known);"
    first = "widen(past[line + i * d_v])" if past is not None else "0"
    body = f"""
        const i64 h = at[1], column = at[2], group = heads / shared;
        const i64 line = ((i64)at[0] * shared + h) * d_k * d_v + column;
        for (i64 i = 0; i < d_k; i++) state[line + i * d_v] = {first};
        for (i64 t = 0; t < length; t++) {{
            const i64 token = (i64)at[0] * length + t;
            const T_k* where = k + (token * shared + h) * d_k;
            R_state fresh = widen(v[(token * shared + h) * d_v + column]), known = 0;
            for (i64 i = 0; i < d_k; i++) {{
                const R_state s = state[line + i * d_v] * (R_state){gate};
                state[line + i * d_v] = s;
                known += s * widen(where[i]);
            }}
            {rate}
            for (i64 i = 0; i < d_k; i++) state[line + i * d_v] += widen(where[i]) * fresh;
            for (i64 n = 0; n < group; n++) {{
                const i64 head = h * group + n;
                R_state sum = 0;
                for (i64 i = 0; i < d_k; i++)
                    sum += widen(q[(token * heads + head) * d_k + i]) * state[line + i * d_v];
                y[(token * heads + head) * d_v + column] = narrow<T_y>(sum * (R_state)scale);
            }}
        }}"""
    state = View.new(real, (batch, shared, d_k, d_v))
    shape = (batch, length, heads * d_v)
    result = rec.output(y) if y is not None else View.new(query.dtype, shape)
    compute(
        rec, node.op, (batch, shared, d_v), views, {"state": state, "y": result}, body,
        heads=heads, shared=shared, d_k=d_k, d_v=d_v, length=length,
        scale=float(node.attrs.get("scale", 0.0)) or 1 / math.sqrt(d_k),
    )  # fmt: skip
    if present is not None:
        store(rec, state, present)
