"""com.microsoft's GroupQueryAttention, and products of quantised matrices that give floats."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute, each, run
from polytool.backends.native.cuda.lower_attention_general import split_heads
from polytool.backends.native.cuda.lower_contractions import as_tensor, shaped
from polytool.backends.native.cuda.lower_quantized import dynamic_scale, integer_product
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_UNUSED = range(10, 17)  # a bias, sinks, quantised caches, norms of queries and keys
_ATTRIBUTES = ("smooth_softmax", "sliding_window_cache", "kv_cache_bit_width", "qk_output")


@lowering("GroupQueryAttention")
def group_query_attention(rec: Recorder, layer: Layer) -> None:
    """Rotation, the caches, then ONNX's Attention over what they hold."""
    (node,) = layer.nodes
    query, key, value, past_k, past_v, lengths, total, cos, sin, ids = [
        *node.inputs,
        *([None] * 5),
    ][:10]
    y, *present = [*node.outputs, None, None][:3]
    extra = [t for i, t in enumerate(node.inputs) if i in _UNUSED and t is not None]
    if extra or any(node.attrs.get(k, 0) for k in _ATTRIBUTES) or not node.attrs.get("causal", 1):
        raise UnsupportedError("a grouped attention with more than a cache, rotation and a window")
    if len([t for t in node.outputs if t is not None]) > 3 or query is None or y is None:
        raise UnsupportedError("a grouped attention that returns its probabilities")
    heads, shared = (int(node.attrs[k]) for k in ("num_heads", "kv_num_heads"))
    whole = int(rec.attribute(total).reshape(-1)[0])
    parts = _heads(rec, query, key, value, heads, shared)
    length = parts[0].shape[2]
    prompt = whole == length
    assert lengths is not None
    batch = parts[0].shape[0]
    totals, starts = View.new(DType.INT64, (batch,)), View.new(DType.INT64, (batch,))
    body = f"""
        totals[unit] = (i64)k[unit] + 1;
        starts[unit] = {int(prompt)} ? 0 : (i64)k[unit] + 1 - length;"""
    compute(
        rec, "cache_lengths", (batch,), {"k": shaped(rec, rec.view(lengths), (batch,))},
        {"totals": totals, "starts": starts}, body, length=length,
    )  # fmt: skip
    if node.attrs.get("do_rotary", 0):
        if cos is None or sin is None:
            raise UnsupportedError("a rotation without its tables")
        positions = _positions(rec, starts, ids, length, prompt)
        for i in range(2):
            parts[i] = _rotated(rec, node, parts[i], cos, sin, positions)
    q, k, v = parts
    caches = [
        _cached(rec, past, new, starts, whole, result)
        for past, new, result in ((past_k, k, present[0]), (past_v, v, present[1]))
    ]
    held = [c.sliced(2, 0, whole) for c in caches]
    result = rec.temporary(y.dtype, (*q.shape[:3], v.shape[3]), "heads")
    inputs: list[Tensor | None] = [as_tensor(rec, t) for t in (q, *held)]
    if not prompt:
        inputs += [None, None, None, as_tensor(rec, totals)]
    attrs: dict[str, Any] = {"is_causal": 1}
    if node.attrs.get("scale"):
        attrs["scale"] = float(node.attrs["scale"])
    if node.attrs.get("softcap"):
        attrs["softcap"] = float(node.attrs["softcap"])
    if int(node.attrs.get("local_window_size", -1)) > 0:
        attrs["left_window_size"] = int(node.attrs["local_window_size"]) - 1
    run(rec, node, "Attention", inputs, result, 24, **attrs)
    rec.define(y, shaped(rec, rec.view(result).permuted((0, 2, 1, 3)), rec.shape(y)))


def _heads(
    rec: Recorder, query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, shared: int
) -> list[View]:
    x = rec.view(query)
    if key is not None and value is not None:
        return [
            split_heads(rec, view, n)
            for view, n in ((x, heads), (rec.view(key), shared), (rec.view(value), shared))
        ]
    size, start, parts = x.shape[2] // (heads + 2 * shared), 0, []
    for n in (heads, shared, shared):
        parts.append(split_heads(rec, x.sliced(2, start, n * size), n))
        start += n * size
    return parts


def _positions(
    rec: Recorder, starts: View, ids: Tensor | None, length: int, prompt: bool
) -> Tensor:
    """The position of each new token; of given ones a prompt counts the first."""
    if ids is not None and not prompt:
        return ids
    result = View.new(DType.INT64, (starts.shape[0], length))
    views = {"start": starts} | ({} if ids is None else {"ids": rec.view(ids)})
    first = " + ids[0]" if ids is not None else ""
    body = f"y[unit] = start[at[0]] + at[1]{first};"
    compute(rec, "positions", result.shape, views, {"y": result}, body)
    return as_tensor(rec, result)


def _rotated(
    rec: Recorder, node: Node, view: View, cos: Tensor, sin: Tensor, positions: Tensor
) -> View:
    result = rec.temporary(view.dtype, view.shape, "rotated")
    attrs = {
        "interleaved": int(node.attrs.get("rotary_interleaved", 0)),
        "rotary_embedding_dim": 2 * rec.shape(cos)[1],
    }
    inputs: list[Tensor | None] = [as_tensor(rec, view), cos, sin, positions]
    run(rec, node, "RotaryEmbedding", inputs, result, 23, **attrs)
    return rec.view(result)


def _cached(
    rec: Recorder, past: Tensor | None, new: View, starts: View, total: int, present: Tensor | None
) -> View:
    """The past, then what is new at its place, then zeros."""
    batch, heads, length, size = new.shape
    views = {"fresh": new, "start": starts}
    room = 0
    if past is not None:
        views["past"] = rec.view(past)
        room = views["past"].shape[2]
    shape = (batch, heads, max(total, room), size)
    result = View.new(new.dtype, shape) if present is None else rec.output(present)
    old = "past[(line * room + t) * size + at[3]]" if room else "T_y()"
    body = f"""
        const i64 t = at[2], line = (i64)at[0] * heads + at[1], own = t - start[at[0]];
        if (own >= 0 && own < length) y[unit] = fresh[(line * length + own) * size + at[3]];
        else if (own < 0 && t < room) y[unit] = {old};
        else y[unit] = T_y();"""
    compute(
        rec, "cache", shape, views, {"y": result}, body,
        heads=heads, length=length, size=size, room=room,
    )  # fmt: skip
    return result


@lowering("MatMulIntegerToFloat")
def matmul_integer_to_float(rec: Recorder, layer: Layer) -> None:
    """MatMulInteger, rescaled."""
    (node,), (output,) = layer.nodes, layer.outputs
    a, b, a_scale, b_scale = (rec.view(given(node, i)) for i in range(4))
    a_zero, b_zero, bias = [*node.inputs[4:], *([None] * 3)][:3]
    if len(a_scale.shape) == 1 and a_scale.count > 1:
        a_scale = shaped(rec, a_scale, (a_scale.count, 1))
    _rescaled(rec, node, a, b, (a_zero, b_zero), a_scale, b_scale, bias, output)


@lowering("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(rec: Recorder, layer: Layer) -> None:
    """The first operand quantised by its range, then the same."""
    (node,), (output,) = layer.nodes, layer.outputs
    a, b, b_scale = (rec.view(given(node, i)) for i in range(3))
    b_zero, bias = [*node.inputs[3:], None, None][:2]
    values = View.new(DType.UINT8, a.shape)
    scale, zero = View.new(DType.FLOAT, ()), View.new(DType.UINT8, ())
    dynamic_scale(rec, a, values, scale, zero)
    zeros = (as_tensor(rec, zero), b_zero)
    _rescaled(rec, node, values, b, zeros, scale, b_scale, bias, output)


def _rescaled(
    rec: Recorder, node: Node, a: View, b: View, zeros: tuple[Tensor | None, Tensor | None],
    a_scale: View, b_scale: View, bias: Tensor | None, output: Tensor,
) -> None:  # fmt: skip
    shape = rec.shape(output)
    extra, terms = {}, []
    for name, view in (("a_scale", a_scale), ("b_scale", b_scale)):
        extra[name], at = each(rec, view, shape)
        terms.append(f"widen({name}[{at}])")
    added = ""
    if bias is not None:
        extra["bias"], at = each(rec, rec.view(bias), shape)
        added = f" + widen(bias[{at}])"
    result = f"narrow<T_y>((R_y)sum * ({' * '.join(terms)}){added})"
    integer_product(rec, node, a, b, zeros, extra, output, result, "int")
