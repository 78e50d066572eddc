"""Operators of com.microsoft, in terms of ONNX's own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute, run
from polytool.backends.native.cuda.lower_attention_general import appended, split_heads
from polytool.backends.native.cuda.lower_contractions import as_tensor, shaped, sums_dtype
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.network import Constant, Layer, Node, Tensor
from polytool.backends.native.ops.microsoft_weights import block_weights
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_DOMAIN = "com.microsoft"


def _sum(rec: Recorder, node: Node, parts: list[Tensor | None], output: Tensor | None) -> Tensor:
    """The sum of those that are there; in float32 where nobody asks for it."""
    there = [p for p in parts if p is not None]
    dims = np.broadcast_shapes(*(rec.shape(p) for p in there))
    if output is None:
        dtype = sums_dtype(there[0].dtype or DType.FLOAT)
        output = rec.temporary(dtype, tuple(dims), "sum")
    run(rec, node, "Sum", list(there), output, 13)
    return output


@lowering("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(rec: Recorder, layer: Layer) -> None:
    """The sum, which may be asked for, then its normalisation."""
    node = layer.nodes[0]
    y, mean, inverse, total = [*node.outputs, *([None] * 3)][:4]
    x, skip, gamma, *rest = [*node.inputs, None, None][:5]
    plain = node.op == "SkipLayerNormalization"
    beta, bias = rest if plain else (None, rest[0])
    if y is None or mean is not None or inverse is not None:
        raise UnsupportedError("a skip normalisation that also returns mean or deviation")
    summed = _sum(rec, node, [x, skip, bias], total)
    attrs = {"axis": -1, "epsilon": float(node.attrs.get("epsilon", 1e-12))}
    inputs = [summed, gamma, beta] if beta is not None else [summed, gamma]
    op, version = ("LayerNormalization", 17) if plain else ("RMSNormalization", 23)
    run(rec, node, op, inputs, y, version, **attrs)


@lowering("EmbedLayerNormalization")
def embed_layer_normalization(rec: Recorder, layer: Layer) -> None:
    """Three gathers, their sum, its normalisation; the lengths of the masks."""
    node = layer.nodes[0]
    ids, segments, words, places, parts, gamma, beta, mask, positions = [
        *node.inputs,
        *([None] * 3),
    ][:9]
    y, lengths, total = [*node.outputs, None, None][:3]
    assert ids is not None and words is not None and places is not None and y is not None
    batch, length = rec.shape(ids)
    width = rec.shape(words)[1]
    if positions is None:
        steps = rec.temporary(DType.INT64, (1, length), "positions")
        rec.define(steps, _constant(rec, np.arange(length, dtype=np.int64)[None]))
        positions = steps
    dtype = words.dtype
    found: list[Tensor | None] = []
    for table, index in ((words, ids), (places, positions), (parts, segments)):
        if table is None or index is None:
            continue
        rows = rec.temporary(dtype, (*rec.shape(index), width), "rows")
        run(rec, node, "Gather", [table, index], rows, 13, axis=0)
        found.append(rows)
    summed = _sum(rec, node, found, total)
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    run(rec, node, "LayerNormalization", [summed, gamma, beta], y, 17, axis=-1, epsilon=epsilon)
    if lengths is not None:
        views = {} if mask is None else {"mask": rec.view(mask)}
        count = "total += mask[unit * steps + i] == 1;" if mask is not None else ""
        body = f"int total = 0; for (i64 i = 0; i < steps; i++) {{ {count} }} y[unit] = total;"
        compute(
            rec, "mask_lengths", (batch,), views, {"y": rec.output(lengths)}, body, steps=length
        )


def _constant(rec: Recorder, value: np.ndarray[Any, Any]) -> View:
    key = ("host", value.dtype.str, value.shape, value.tobytes())
    return rec.constant(lambda: value, value.shape, DType.of(value), key)


_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}


def _activated(
    rec: Recorder, node: Node, product: Node, rest: list[Node], parameters: list[float]
) -> None:
    """A product and what follows it as one fused layer."""
    name = str(node.attrs.get("activation", "") or "")
    last = rest[-1] if rest else product
    (output,) = node.outputs
    assert output is not None
    if name:
        held = last.outputs[0]
        inputs: list[Tensor | None] = [held]
        if name == "Clip":
            for value in parameters[:2]:
                array = np.asarray(value, np.float32)
                bound = Tensor(f"{output.name}:bound", DType.FLOAT, ())
                bound.constant = Constant.of(array)
                inputs.append(bound)
        attrs = dict(zip(_PARAMETERS.get(name, ()), parameters, strict=False))
        rest = [
            *rest,
            dataclasses.replace(
                node, op=name, domain="", version=16, inputs=inputs, outputs=[output], attrs=attrs
            ),
        ]
    else:
        last.outputs[0] = output
    rec.lower(Layer("conv" if product.op == "Conv" else "gemm", [product, *rest], [output]))


@lowering("FusedConv")
def fused_conv(rec: Recorder, layer: Layer) -> None:
    """Conv, a summand, an activation."""
    (node,), (output,) = layer.nodes, layer.outputs
    x, w, b, z = [*node.inputs, None, None][:4]
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    shape = rec.shape(output)
    sums = rec.temporary(output.dtype, shape, "conv")
    conv = dataclasses.replace(
        node, op="Conv", domain="", version=11, inputs=[x, w] + ([b] if b is not None else []),
        outputs=[sums], attrs=attrs,
    )  # fmt: skip
    rest: list[Node] = []
    if z is not None:
        added = rec.temporary(output.dtype, shape, "sum")
        rest.append(
            dataclasses.replace(
                node, op="Add", domain="", version=14, inputs=[sums, z], outputs=[added], attrs={}
            )
        )
    _activated(rec, node, conv, rest, [float(p) for p in node.attrs.get("activation_params") or ()])


@lowering("FusedGemm")
def fused_gemm(rec: Recorder, layer: Layer) -> None:
    """Gemm and an activation."""
    (node,), (output,) = layer.nodes, layer.outputs
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    sums = rec.temporary(output.dtype, rec.shape(output), "gemm")
    gemm = dataclasses.replace(node, op="Gemm", domain="", version=13, outputs=[sums], attrs=attrs)
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    given_values = [float(node.attrs[n]) for n in names if node.attrs.get(n) is not None]
    _activated(rec, node, gemm, [], given_values)


@lowering("BiasSplitGelu")
def bias_split_gelu(rec: Recorder, layer: Layer) -> None:
    """The first half times the GELU of the second."""
    (node,), (output,) = layer.nodes, layer.outputs
    x, bias, shape = rec.view(given(node, 0)), rec.view(given(node, 1)), rec.shape(output)
    body = """
        const i64 row = (i64)at[0] * 2 * width, c = at[1];
        const R_x left = widen(x[row + c]) + widen(b[c]);
        const R_x right = widen(x[row + width + c]) + widen(b[width + c]);
        y[unit] = narrow<T_y>(left * gelu_erf(right));"""
    rows = (math.prod(shape[:-1]), shape[-1])
    compute(
        rec, node.op, rows, {"x": x, "b": bias}, {"y": rec.output(output)}, body, width=shape[-1]
    )


class _FewBits(Constant):
    """Weights of a few bits as numbers, [K, N]; equal to others from the same constants."""

    __slots__ = ("_sources",)

    def __init__(self, sources: tuple[Constant | None, ...], dtype: DType, node: Node) -> None:
        k, n = int(node.attrs["K"]), int(node.attrs["N"])
        bits, size = int(node.attrs.get("bits", 4)), int(node.attrs["block_size"])

        def unpack() -> np.ndarray[Any, Any]:
            b, scales, zeros, groups = (None if c is None else c.array() for c in sources)
            assert scales is not None
            wide = scales if dtype is DType.DOUBLE else scales.astype(np.float32)
            found = block_weights(np, b, wide, zeros, groups, k, n, bits, size)
            return np.ascontiguousarray(found.T).astype(dtype.numpy)

        super().__init__(dtype, (k, n), unpack)
        self._sources = sources

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FewBits) and (self._sources, self.dtype) == (
            other._sources,
            other.dtype,
        )

    def __hash__(self) -> int:
        return hash((self._sources, self.dtype))


@lowering("MatMulNBits")
def matmul_n_bits(rec: Recorder, layer: Layer) -> None:
    """The weights are unpacked when the engine is loaded; then a product."""
    (node,), (output,) = layer.nodes, layer.outputs
    a, b, scales, zeros, groups, bias = [*node.inputs, *([None] * 3)][:6]
    assert a is not None and b is not None and scales is not None
    sources = [None if t is None else t.constant for t in (b, scales, zeros, groups)]
    if any(t is not None and t.constant is None for t in (b, scales, zeros, groups)):
        raise UnsupportedError("weights of a few bits that are computed")
    dtype = a.dtype or DType.FLOAT
    weights = Tensor(f"{b.name}:unpacked", dtype, (int(node.attrs["K"]), int(node.attrs["N"])))
    weights.constant = _FewBits(tuple(sources), dtype, node)
    if bias is None:
        run(rec, node, "MatMul", [a, weights], output, 13)
        return
    sums = rec.temporary(dtype, rec.shape(output), "product")
    product = dataclasses.replace(
        node, op="MatMul", domain="", version=13, inputs=[a, weights], outputs=[sums], attrs={}
    )
    added = dataclasses.replace(
        node, op="Add", domain="", version=14, inputs=[sums, bias], outputs=[output], attrs={}
    )
    rec.lower(Layer("gemm", [product, added], [output]))


@lowering("RotaryEmbedding", domain=_DOMAIN)
def rotary_embedding(rec: Recorder, layer: Layer) -> None:
    """ONNX's, with the positions given for each sequence, or where to start."""
    (node,), (output,) = layer.nodes, layer.outputs
    x, positions, cos, sin = (given(node, i) for i in range(4))
    if node.attrs.get("is_packed_batching", 0) or float(node.attrs.get("scale", 1.0)) != 1.0:
        raise UnsupportedError("a rotary embedding of packed batches, or with a scale")
    shape = rec.shape(x)
    length = shape[1] if len(shape) == 3 else shape[2]
    width = 2 * rec.shape(cos)[1]
    places = rec.view(positions)
    if len(places.shape) == 1:
        start = View.new(DType.INT64, (shape[0], length))
        body = "y[unit] = (i64)start[0] + at[1];"
        compute(rec, "positions", start.shape, {"start": places}, {"y": start}, body)
        places = start
    attrs = {
        "interleaved": int(node.attrs.get("interleaved", 0)),
        "rotary_embedding_dim": int(node.attrs.get("rotary_embedding_dim", 0)) or width,
    }
    if len(shape) == 3:
        attrs["num_heads"] = int(node.attrs.get("num_heads", 0)) or shape[2] // width
    inputs: list[Tensor | None] = [x, cos, sin, as_tensor(rec, places)]
    run(rec, node, "RotaryEmbedding", inputs, output, 23, **attrs)


def _padding(
    rec: Recorder, node: Node, mask: Tensor | None, extra: Tensor | None, dims: tuple[int, ...],
    past: int, causal: bool,
) -> Tensor | None:  # fmt: skip
    """Masks of every form, a bias, and causality behind a past, as one bias of the scores.

    Args:
        dims: batch, heads, queries, keys.
    """
    if mask is None and extra is None and not (causal and past):
        return None
    batch, heads, queries, keys = dims
    views, terms = {}, []
    if mask is not None:
        view = views["mask"] = rec.dense(rec.view(mask))
        rank, size = len(view.shape), view.shape[-1]
        if rank == 1:
            allowed = "at[3] < mask[at[0]]"
            if view.shape[0] == 2 * batch:
                allowed += f" && at[3] >= mask[{batch} + at[0]]"
        elif rank == 2:
            allowed = "mask[(i64)at[0] * size + at[3]] > 0"
        elif rank == 3:
            allowed = "mask[((i64)at[0] * queries + at[2]) * size + at[3]] > 0"
        else:
            allowed = "mask[((i64)at[0] * size + keys - queries + at[2]) * size + at[3]] > 0"
        terms.append(f"if (!({allowed})) bias += filter;")
    else:
        size = keys
    if extra is not None:
        bias = views["extra"] = rec.dense(rec.view(extra))
        scalars = tuple(0 if n == 1 else s for n, s in zip(bias.shape, bias.steps, strict=True))
    else:
        scalars = (0, 0, 0, 0)
    wide_heads = heads if extra is not None and scalars[1] else 1
    if extra is not None:
        places = " + ".join(f"(i64)at[{d}] * by.step[{d}]" for d in range(4))
        terms.append(f"bias += widen(extra[{places}]);")
    if causal:
        terms.append("if ((i64)at[3] > (i64)at[2] + past) bias = -INFINITY;")
    result = View.new(DType.FLOAT, (batch, wide_heads, queries, keys))
    body = f"double bias = 0; {' '.join(terms)} y[unit] = (float)bias;"
    compute(
        rec, "attention_bias", result.shape, views, {"y": result}, body,
        filter=float(node.attrs.get("mask_filter_value", -10000.0)), size=size, queries=queries,
        keys=keys, past=past, by=scalars,
    )  # fmt: skip
    return as_tensor(rec, result, "bias")


def _attend(
    rec: Recorder, node: Node, q: View, k: View, v: View, bias: Tensor | None, output: Tensor,
    *, causal: bool,
) -> None:  # fmt: skip
    """ONNX's Attention on heads, merged."""
    shape = (*q.shape[:3], v.shape[3])
    heads = rec.temporary(output.dtype, shape, "heads")
    inputs: list[Tensor | None] = [as_tensor(rec, t) for t in (q, k, v)]
    inputs += [] if bias is None else [bias]
    attrs: dict[str, Any] = {"is_causal": 1} if causal else {}
    if node.attrs.get("scale"):
        attrs["scale"] = float(node.attrs["scale"])
    run(rec, node, "Attention", inputs, heads, 23, **attrs)
    merged = rec.view(heads).permuted((0, 2, 1, 3))
    rec.define(output, shaped(rec, merged, rec.shape(output)))


def _biased(rec: Recorder, view: View, bias: View) -> View:
    """Heads plus a bias for each of their elements."""
    result = View.new(view.dtype, view.shape)
    heads, size = view.shape[1], view.shape[3]
    body = "y[unit] = narrow<T_y>(widen(x[unit]) + widen(b[(i64)at[1] * size + at[3]]));"
    views = {"x": view, "b": shaped(rec, bias, (heads * size,))}
    compute(rec, "head_biases", view.shape, views, {"y": result}, body, size=size)
    return result


@lowering("MultiHeadAttention")
def multi_head_attention(rec: Recorder, layer: Layer) -> None:
    """Packed or apart, with biases, masks and caches."""
    (node,) = layer.nodes
    inputs = [*node.inputs, *([None] * 9)][:10]
    query, key, value, bias, mask, extra, past_k, past_v, *shared = inputs
    y, present_k, present_v, probabilities = [*node.outputs, *([None] * 3)][:4]
    if any(t is not None for t in (*shared, probabilities)) or query is None or y is None:
        raise UnsupportedError("a shared cache, or an attention that returns its probabilities")
    heads = int(node.attrs["num_heads"])
    cached = False
    x = rec.view(query)
    if key is None:
        parts = [_packed(rec, x, i) for i in range(3)]
    elif value is None:
        packed = rec.view(key)
        parts = [split_heads(rec, x, heads), *(_packed(rec, packed, i) for i in range(2))]
    else:
        others = [rec.view(t) for t in (key, value)]
        cached = len(others[0].shape) == 4
        parts = [
            split_heads(rec, x, heads),
            *(t if len(t.shape) == 4 else split_heads(rec, t, heads) for t in others),
        ]
    if bias is not None:
        flat, start = rec.view(bias), 0
        for i, part in enumerate(parts):
            width = heads * part.shape[3]
            if i == 0 or not cached:
                parts[i] = _biased(rec, part, flat.sliced(0, start, width))
            start += width
    q, k, v = parts
    past = 0 if past_k is None else rec.shape(past_k)[2]
    k, v = appended(rec, past_k, k, present_k), appended(rec, past_v, v, present_v)
    causal = bool(node.attrs.get("unidirectional", 0))
    dims = (q.shape[0], heads, q.shape[2], k.shape[2])
    total = _padding(rec, node, mask, extra, dims, past, causal)
    _attend(rec, node, q, k, v, total, y, causal=causal and total is None)


def _packed(rec: Recorder, view: View, index: int) -> View:
    """One of several [batch, length, heads, parts, size]."""
    part = view.sliced(3, index, 1)
    shape = (*view.shape[:3], view.shape[4])
    return shaped(rec, part, shape).permuted((0, 2, 1, 3))


@lowering("Attention", domain=_DOMAIN)
def self_attention(rec: Recorder, layer: Layer) -> None:
    """The projection to queries, keys and values, then attention."""
    (node,) = layer.nodes
    x, weights, bias, mask, past, extra, shared = [*node.inputs, *([None] * 5)][:7]
    y, present = [*node.outputs, None][:2]
    unknown = ("do_rotary", "past_present_share_buffer")
    if shared is not None or any(node.attrs.get(k, 0) for k in unknown) or y is None:
        raise UnsupportedError("an attention with a shared cache or rotation inside")
    if past is not None or present is not None or x is None or weights is None:
        raise UnsupportedError("an attention whose keys and values are cached as one tensor")
    batch, length = rec.shape(x)[:2]
    width, heads = rec.shape(weights)[1], int(node.attrs["num_heads"])
    sums = rec.temporary(x.dtype, (batch, length, width), "projected")
    projected = dataclasses.replace(
        node, op="MatMul", domain="", version=13, inputs=[x, weights], outputs=[sums], attrs={}
    )
    nodes = [projected]
    if bias is not None:
        added = rec.temporary(x.dtype, (batch, length, width), "projected")
        nodes.append(
            dataclasses.replace(
                node,
                op="Add",
                domain="",
                version=14,
                inputs=[sums, bias],
                outputs=[added],
                attrs={},
            )
        )
    (last,) = nodes[-1].outputs
    assert last is not None
    rec.lower(Layer("gemm", nodes, [last]))
    sizes = node.attrs.get("qkv_hidden_sizes") or [width // 3] * 3
    parts, start, view = [], 0, rec.view(last)
    for size in sizes:
        parts.append(split_heads(rec, view.sliced(2, start, int(size)), heads))
        start += int(size)
    causal = bool(node.attrs.get("unidirectional", 0))
    dims = (batch, heads, length, length)
    total = _padding(rec, node, mask, extra, dims, 0, causal)
    q, k, v = parts
    _attend(rec, node, q, k, v, total, y, causal=causal and total is None)
