"""Convolutions, matrix products and attention, each with its epilogue in the same kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.lower_pointwise import epilogue_operands, pointwise, tree_of
from polytool.backends.native.cuda.lower_rows import NHWC, explicit_pads
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels import attention as attention_kernels
from polytool.backends.native.kernels.direct import Direct, Geometry, Product
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.gemm import (
    Convolution,
    Epilogue,
    Matrix,
    Problem,
    candidates,
)
from polytool.backends.native.kernels.source import Candidate
from polytool.backends.native.kernels.transpose import PackImage
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

Array = np.ndarray[Any, Any]

_TENSOR_CORE = (DType.FLOAT16, DType.BFLOAT16)
_PACKED = 8  # channels that a tensor-core convolution wants at least


def _on_tensor_cores(node: Node, dtype: DType) -> bool:
    return dtype in _TENSOR_CORE or (dtype is DType.FLOAT and node.precision == "tf32")


def _epilogue(
    rec: Recorder, layer: Layer, bias: Tensor | None, channel: int, order: Sequence[int] | None,
    factor: float = 1.0,
) -> tuple[Epilogue, list[View]]:  # fmt: skip
    """The nodes after the product, with its bias, over the accumulator.

    Args:
        channel: the output dimension that is the columns of the product.
        order: how the output lies.
        factor: what the product is multiplied with first.
    """
    node = layer.nodes[0]
    (product,) = node.writes()
    (output,) = layer.outputs
    shape = rec.shape(output)
    if rec.shapes.shape(product) not in (None, shape):
        raise UnsupportedError("an epilogue that enlarges the product")
    tree, operands = tree_of(rec, layer.nodes[1:], {product: DType.FLOAT})
    kinds, views = epilogue_operands(rec, operands, shape, channel, lambda v: rec.dense(v, order))
    return _scaled(rec, tree, kinds, views, bias, factor, output)


def _scaled(
    rec: Recorder, tree: Tree, kinds: list[str], views: list[View], bias: Tensor | None,
    factor: float, output: Tensor,
) -> tuple[Epilogue, list[View]]:  # fmt: skip
    """Put the factor and the bias before the tree's steps."""
    first: list[Step] = []
    inputs = list(tree.inputs)
    if bias is not None:
        view = rec.dense(rec.view(bias))
        inputs.insert(1, view.dtype)
        kinds, views = ["column" if view.count > 1 else "scalar", *kinds], [view, *views]
    count, current = len(inputs), 0
    if factor != 1.0:
        first.append(Step.of("Constant", dtype=DType.FLOAT, value=factor))
        first.append(Step.of("Mul", current, count, dtype=DType.FLOAT))
        current = count + 1
    if bias is not None:
        first.append(Step.of("Add", current, 1, dtype=DType.FLOAT))
        current = count + len(first) - 1
    moved = _renumbered(tree, current, len(inputs), len(first), 1 if bias is not None else 0)
    steps = (*first, *moved)
    assert output.dtype is not None
    whole = Tree(tuple(inputs), steps)
    if not steps or whole.output_dtypes[0] is not output.dtype:
        last = len(inputs) + len(steps) - 1 if steps else 0
        whole = Tree(tuple(inputs), (*steps, Step.of("Cast", last, dtype=output.dtype)))
    return Epilogue(whole, tuple(kinds)), views


def _renumbered(tree: Tree, current: int, count: int, before: int, inserted: int) -> list[Step]:
    """The tree's steps after `inserted` inputs and `before` steps were put in front of them."""
    old = len(tree.inputs)

    def number(value: int | None) -> int | None:
        if value is None:
            return None
        if value == 0:
            return current
        return value + inserted if value < old else value - old + count + before

    return [Step(s.op, tuple(number(a) for a in s.args), s.dtype, s.attrs) for s in tree.steps]


def _in_two(rec: Recorder, layer: Layer, lower: Callable[[Recorder, Layer], None]) -> None:
    """The product alone, stored in float32, then what follows as a pointwise kernel."""
    anchor = layer.nodes[0]
    (product,) = anchor.writes()
    wide = Tensor(f"{product.name}:sums", DType.FLOAT, product.shape)
    rec.shapes.shapes[wide] = rec.shape(product)
    lower(rec, Layer(layer.kind, [dataclasses.replace(anchor, outputs=[wide])], [wide]))
    rest = [
        dataclasses.replace(n, inputs=[wide if t is product else t for t in n.inputs])
        for n in layer.nodes[1:]
    ]
    pointwise(rec, Layer("pointwise", rest, layer.outputs))


def _with_epilogue(rec: Recorder, layer: Layer, lower: Callable[[Recorder, Layer], None]) -> None:
    """`layer` in one kernel, or in two where its epilogue does not fit the product's."""
    steps, views = len(rec.steps), dict(rec.views)
    try:
        lower(rec, layer)
    except UnsupportedError:
        if len(layer.nodes) == 1:
            raise
        del rec.steps[steps:]
        rec.views = views
        _in_two(rec, layer, lower)


@lowering("Conv")
def convolution(rec: Recorder, layer: Layer) -> None:
    """An implicit product on NHWC images; depthwise and float32 ones directly."""
    _with_epilogue(rec, layer, _convolution)


def _convolution(rec: Recorder, layer: Layer) -> None:
    node = layer.nodes[0]
    x, w, bias = [*node.inputs, None][:3]
    assert x is not None and w is not None
    (output,), (product,) = layer.outputs, node.writes()
    shape, weights = rec.shape(x), rec.shape(w)
    if len(shape) != 4 or w.constant is None or output.dtype is None or x.dtype is None:
        raise UnsupportedError("a convolution that is not two-dimensional, or computes its weights")
    out = rec.shape(product)
    g = _geometry(node, shape, weights, out)
    pads = explicit_pads(node.attrs, g.kernel, g.strides, g.dilations, shape, out)
    epilogue, views = _epilogue(rec, layer, bias, 1, NHWC)
    if _on_tensor_cores(node, x.dtype) and not g.depthwise:
        try:
            _implicit(rec, layer, g, pads, epilogue, views)
            return
        except UnsupportedError:
            pass  # channels that are not aligned: the direct form takes them
    source = rec.dense(rec.view(x), NHWC)
    if g.depthwise:
        op = Direct.depthwise(x.dtype, epilogue, g)
        packed = (
            _packed(rec, w, (weights[2] * weights[3], g.out), "taps", _taps)
            if op.vector > 1
            else rec.view(w)
        )
    else:
        op, packed = Direct(x.dtype, epilogue, channels_last=True), rec.view(w)
    rec.launch([op.plan(g)], [source, packed, *views, rec.output(output, NHWC)])


def _geometry(
    node: Node, shape: tuple[int, ...], weights: tuple[int, ...], out: tuple[int, ...]
) -> Geometry:
    a = node.attrs
    kernel = tuple(weights[2:])
    strides = tuple(a.get("strides") or (1, 1))
    dilations = tuple(a.get("dilations") or (1, 1))
    pads = explicit_pads(a, kernel, strides, dilations, shape, out)
    return Geometry(
        shape[0], shape[1], weights[0], shape[2:], out[2:], kernel, strides, pads[:2], dilations,
        int(a.get("group", 1)),
    )  # fmt: skip


def _implicit(
    rec: Recorder, layer: Layer, g: Geometry, pads: tuple[int, ...], epilogue: Epilogue,
    views: list[View],
) -> None:  # fmt: skip
    x, w = layer.nodes[0].inputs[:2]
    assert x is not None and w is not None and x.dtype is not None
    channels, view = g.channels, rec.view(x)
    if channels % _PACKED and g.groups == 1:
        channels = -(-channels // _PACKED) * _PACKED
        source = View.new(x.dtype, (g.batch, channels, *g.sizes), NHWC)
        plan = PackImage(x.dtype, channels).plan((g.batch, g.channels, *g.sizes))  # type: ignore[arg-type]  # two sizes
        rec.launch([plan], [rec.dense(view), source])
    else:
        source = rec.dense(view, NHWC)
    inner = channels // g.groups
    shape = (g.out, *g.kernel, inner)
    packed = _packed(rec, w, shape, f"nhwc{inner}", lambda a: _nhwc_weights(a, inner))
    (height, width), (kernel_h, kernel_w) = g.sizes, g.kernel
    (stride_h, stride_w), (dilation_h, dilation_w) = g.strides, g.dilations
    top, left, bottom, right = pads
    image = Convolution(
        g.batch,
        height,
        width,
        channels,
        g.out,
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (top, left, bottom, right),
        (dilation_h, dilation_w),
        g.groups,
    )
    result = rec.output(layer.outputs[0], NHWC)
    problem: Problem = image.as_matrix() or image
    _multiply(rec, x.dtype, epilogue, problem, [source, packed, *views, result])


def _multiply(
    rec: Recorder, dtype: DType, epilogue: Epilogue, problem: Problem, views: Sequence[View]
) -> None:
    """Record every tile shape worth timing."""
    # what was there before the inference may be read before the launches in front have finished
    early = [
        views[1],
        *(v for v, k in zip(views[2:], epilogue.operands, strict=False) if k == "column"),
    ]
    constant = all(v.storage.make is not None for v in early)
    found = candidates(dtype, epilogue, problem, constant=constant)
    if not found:
        raise UnsupportedError("no tile shape fits the product")
    plans: list[Candidate] = [gemm.plan(problem, split) for gemm, split in found]
    signature = f"gemm {dtype.label} {problem!r} {epilogue!r} {constant}"
    rec.launch(plans, views, signature=signature)


def _packed(
    rec: Recorder, w: Tensor, shape: tuple[int, ...], name: str, change: Callable[[Array], Array]
) -> View:
    """A constant in another layout; `name` tells the layout."""
    constant = w.constant
    assert constant is not None

    def make() -> Array:
        return np.ascontiguousarray(change(constant.array()))

    return rec.constant(make, shape, constant.dtype, (constant, name))


def _nhwc_weights(value: Array, inner: int) -> Array:
    """[out, in, kh, kw] to [out, kh, kw, inner], zeros in the channels that are added."""
    moved = value.transpose(0, 2, 3, 1)
    return np.pad(moved, [(0, 0)] * 3 + [(0, inner - moved.shape[3])])


def _taps(value: Array) -> Array:
    """[out, 1, kh, kw] to [kh * kw, out]."""
    return value.reshape(value.shape[0], -1).T


@lowering("MatMul", "Gemm", "FusedMatMul")
def product(rec: Recorder, layer: Layer) -> None:
    """A product on tensor cores where types and alignment allow, else a generic one."""
    _with_epilogue(rec, layer, _matrix_product)


def _matrix_product(rec: Recorder, layer: Layer) -> None:
    node = layer.nodes[0]
    a, b = rec.view(_given(node, 0)), rec.view(_given(node, 1))
    attrs = node.attrs
    bias, factor = None, float(attrs.get("alpha", 1.0))
    if node.op == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (float(attrs.get("beta", 1.0)) != 1.0 or len(rec.shape(bias)) != 1):
            raise UnsupportedError("a Gemm with a matrix or a factor to add")
    if attrs.get("transBatchA") or attrs.get("transBatchB"):
        raise UnsupportedError("a product with transposed batches")
    a, b = _turned(a, attrs.get("transA", 0)), _turned(b, attrs.get("transB", 0))
    if min(len(a.shape), len(b.shape)) < 2:
        raise UnsupportedError("a product with a vector")
    (output,) = layer.outputs
    epilogue, views = _epilogue(rec, layer, bias, len(rec.shape(output)) - 1, None, factor)
    if _on_tensor_cores(node, a.dtype) and a.dtype is b.dtype:
        try:
            _tensor_core_product(rec, node, a, b, epilogue, views, output)
            return
        except UnsupportedError:
            pass  # rows that are not aligned: the generic product takes them
    _generic_product(rec, a, b, epilogue, views, output)


def _given(node: Node, index: int) -> Tensor:
    tensor = node.inputs[index]
    assert tensor is not None
    return tensor


def _turned(view: View, turn: int) -> View:
    rank = len(view.shape)
    return view.permuted((*range(rank - 2), rank - 1, rank - 2)) if turn else view


def _tensor_core_product(
    rec: Recorder, node: Node, a: View, b: View, epilogue: Epilogue, views: list[View],
    output: Tensor,
) -> None:  # fmt: skip
    k, n = b.shape[-2:]
    if len(b.shape) == 2:
        rows = rec.dense(a)
        columns = _columns(rec, node, b)
        problem = Matrix(math.prod(a.shape[:-1]), n, k)
        _multiply(rec, a.dtype, epilogue, problem, [rows, columns, *views, rec.output(output)])
        return
    batch = a.shape[:-2]
    if b.shape[:-2] != batch:
        raise UnsupportedError("a batched product with broadcast batches")
    m = a.shape[-2]
    rows = rec.dense(a)
    turned = rec.dense(_turned(b, 1))
    problem = Matrix(
        m, n, k, math.prod(batch), batch_a=m * k, batch_b=n * k, batch_d=m * n, col_batch=0
    )
    _multiply(rec, a.dtype, epilogue, problem, [rows, turned, *views, rec.output(output)])


def _columns(rec: Recorder, node: Node, b: View) -> View:
    """The second matrix with its depth contiguous: packed at build where it is a constant."""
    tensor = _given(node, 1)
    constant = tensor.constant
    if constant is None:
        return rec.dense(_turned(b, 1))
    turn = bool(node.attrs.get("transB", 0))
    if turn:
        return rec.view(tensor)
    return _packed(rec, tensor, b.shape[::-1], "columns", lambda value: value.T)


def _generic_product(
    rec: Recorder, a: View, b: View, epilogue: Epilogue, views: list[View], output: Tensor
) -> None:
    k, n = b.shape[-2:]
    m = a.shape[-2]
    batch = rec.shape(output)[:-2]
    if "full" in epilogue.operands and len(batch) > 7:
        raise UnsupportedError("a product of more than nine dimensions")
    wide_a, wide_b = a.broadcast((*batch, m, k)), b.broadcast((*batch, k, n))
    if a.offset or b.offset:
        wide_a, wide_b = rec.dense(wide_a), rec.dense(wide_b)
    *batch_a, a_row, a_column = wide_a.steps
    *batch_b, b_row, b_column = wide_b.steps
    plan = Product(a.dtype, b.dtype, epilogue).plan(
        m,
        n,
        k,
        a=(a_row, a_column),
        b=(b_row, b_column),
        batch=batch,
        batch_a=batch_a,
        batch_b=batch_b,
    )
    rec.launch([plan], [wide_a, wide_b, *views, rec.output(output)])


@lowering("Attention")
def attention(rec: Recorder, layer: Layer) -> None:
    """Fused attention over views of any strides; the result lies as [batch, row, head, element]."""
    (node,) = layer.nodes
    q, k, v = (rec.view(_given(node, i)) for i in range(3))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    unknown = set(node.attrs) - {"scale", "is_causal"}
    if unknown or len(node.inputs) > 4 or len(layer.outputs) > 1 or len(q.shape) != 4:
        raise UnsupportedError("an attention with more than a scale, a mask and causality")
    q, k, v = (_rows_contiguous(rec, t) for t in (q, k, v))
    batch, heads, rows, size = q.shape
    if v.shape[3] != size:
        raise UnsupportedError("an attention whose values have another size than its queries")
    output = rec.output(layer.outputs[0], (0, 2, 1, 3))
    views = [q, k, v]
    mask_steps, mask_rows = (0, 0, 0, 0), True
    mask_dtype: DType | None = None
    if mask is not None:
        m = rec.view(mask).broadcast((batch, heads, rows, k.shape[2]))
        by_batch, by_head, by_row, by_column = m.steps
        mask_steps = (by_batch, by_head, by_row, by_column)
        mask_dtype, mask_rows = m.dtype, by_row != 0
        views.append(m)
    scale = float(node.attrs.get("scale") or 1.0 / math.sqrt(size))
    in_rows = [(t.steps[0], t.steps[1], t.steps[2]) for t in (q, k, v, output)]
    layout = attention_kernels.Layout(
        batch,
        heads,
        k.shape[1],
        rows,
        k.shape[2],
        scale,
        q=in_rows[0],
        k=in_rows[1],
        v=in_rows[2],
        o=in_rows[3],
        mask=mask_steps,
    )
    causal = bool(node.attrs.get("is_causal", 0))
    plans = [
        attention_kernels.Attention(q.dtype, size, mask_dtype, causal, form, mask_rows).plan(layout)
        for form in attention_kernels.FORMS
    ]
    signature = f"attention {q.dtype.label} {layout!r} {mask_dtype} {causal}"
    rec.launch(plans, [*views, output], signature=signature)


def _rows_contiguous(rec: Recorder, view: View) -> View:
    """A view whose rows are contiguous and start at multiples of 16 bytes."""
    item = 8
    if view.steps[3] == 1 and not view.offset % item and all(s % item == 0 for s in view.steps[:3]):
        return view
    return rec.dense(view)
