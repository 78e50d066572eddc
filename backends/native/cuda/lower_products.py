"""Matrix products, each with its epilogue in the same kernel."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.epilogues import (
    epilogue_of,
    multiply,
    on_tensor_cores,
    packed_constant,
    with_epilogue,
)
from polytool.backends.native.cuda.normalized import measured_product
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.direct import Product
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.gemm import (
    Matrix,
)
from polytool.backends.native.network import Constant, Layer, Node, Tensor
from polytool.errors import UnsupportedError

Array = np.ndarray[Any, Any]
_ALIGNED = 8  # elements: 16 bytes of the 16-bit types, 32 of float32


@lowering("MatMul", "Gemm", "FusedMatMul")
def product(rec: Recorder, layer: Layer) -> None:
    """A product on tensor cores where types and alignment allow, else a generic one."""
    siblings = rec.siblings(layer, _family)
    if len(siblings) > 1:
        try:
            with rec.attempt():
                joined(rec, siblings)
            return
        except UnsupportedError:
            pass  # they differ in more than their weights: one by one
    with_epilogue(rec, layer, _matrix_product)


def _family(layer: Layer) -> Hashable:
    """Equal for products that may be done as one: the same input, constants, the same epilogue."""
    node = layer.nodes[0]
    if given(node, 1).constant is None or any(
        node.attrs.get(f"transBatch{operand}", 0) for operand in "AB"
    ):
        return None
    attrs = tuple(sorted((k, v) for k, v in node.attrs.items() if isinstance(v, int | float)))
    ops = tuple(n.op for n in layer.nodes)
    return (node.op, attrs, ops, given(node, 0), layer.outputs[0].dtype, node.precision)


def joined(rec: Recorder, layers: Sequence[Layer]) -> None:
    """One product with all weights side by side; each layer's output is a part of its columns."""
    node = layers[0].nodes[0]
    a = _turned(rec.view(given(node, 0)), node.attrs.get("transA", 0))
    turn = bool(node.attrs.get("transB", 0))
    weights = [_constant(given(layer.nodes[0], 1)) for layer in layers]
    widths = [w.shape[0 if turn else 1] for w in weights]
    if not on_tensor_cores(node, a.dtype) or any(n % _ALIGNED for n in widths):
        raise UnsupportedError("products that do not fit beside one another")
    epilogues, columns = [], []
    for layer in layers:
        rec.shapes.run([layer])
        bias, factor = _bias(rec, layer.nodes[0])
        rank = len(rec.shape(layer.outputs[0]))
        epilogue, views = epilogue_of(rec, layer, bias, rank - 1, None, factor)
        epilogues.append(epilogue)
        columns.append(views)
    if len(set(epilogues)) > 1 or set(epilogues[0].operands) - {"column"}:
        raise UnsupportedError("epilogues that differ, or read more than a vector")
    k = a.shape[-1]
    packed = rec.constant(
        lambda: np.concatenate([w.array() if turn else w.array().T for w in weights]),
        (sum(widths), k),
        weights[0].dtype,
        ("joined", turn, *weights),
    )
    beside = [_side_by_side(rec, vectors) for vectors in zip(*columns, strict=True)]
    rows, lda = _rows(rec, a)
    problem = Matrix(math.prod(a.shape[:-1]), sum(widths), k, lda=lda)
    whole = View.new(epilogues[0].dtype, (*a.shape[:-1], sum(widths)))
    multiply(rec, a.dtype, epilogues[0], problem, [rows, packed, *beside, whole])
    start = 0
    for layer, width in zip(layers, widths, strict=True):
        rec.define(layer.outputs[0], whole.sliced(len(whole.shape) - 1, start, width))
        start += width


def _constant(tensor: Tensor) -> Constant:
    constant = tensor.constant
    if constant is None or len(constant.shape) != 2:
        raise UnsupportedError("a product with something else than a constant matrix")
    return constant


def _side_by_side(rec: Recorder, views: Sequence[View]) -> View:
    """Constant vectors as one."""
    makes = [v.storage.make for v in views]
    known = [m for m in makes if m is not None]
    if len(known) < len(makes):
        raise UnsupportedError("vectors that are computed")

    def make() -> Array:
        return np.concatenate([m().reshape(-1) for m in known])

    keys = tuple(v.storage.key for v in views)
    return rec.constant(make, (sum(v.count for v in views),), views[0].dtype, ("joined", keys))


def _rows(rec: Recorder, view: View) -> tuple[View, int | None]:
    """`view` as the left operand and the distance of its rows, copied where these do not fit."""
    width = view.shape[-1]
    flat = view.reshaped((view.count // max(width, 1), width))
    if flat is not None and flat.steps[1] == 1 and not flat.offset % _ALIGNED:
        step = flat.steps[0]
        if flat.shape[0] > 1 and step >= width and not step % _ALIGNED:
            return view, step
    return rec.dense(view), None


def _matrix_product(rec: Recorder, layer: Layer) -> None:
    node = layer.nodes[0]
    a, b = rec.view(given(node, 0)), rec.view(given(node, 1))
    attrs = node.attrs
    bias, factor = _bias(rec, node)
    if attrs.get("transBatchA") or attrs.get("transBatchB"):
        raise UnsupportedError("a product with transposed batches")
    a, b = _turned(a, attrs.get("transA", 0)), _turned(b, attrs.get("transB", 0))
    if min(len(a.shape), len(b.shape)) < 2:
        raise UnsupportedError("a product with a vector")
    (output,) = layer.outputs
    epilogue, views = epilogue_of(rec, layer, bias, len(rec.shape(output)) - 1, None, factor)
    if on_tensor_cores(node, a.dtype) and a.dtype is b.dtype:
        try:
            with rec.attempt():
                _tensor_core_product(rec, node, a, b, epilogue, views, output)
            return
        except UnsupportedError:
            pass  # rows that are not aligned: the generic product takes them
    _generic_product(rec, a, b, epilogue, views, output)


def _bias(rec: Recorder, node: Node) -> tuple[Tensor | None, float]:
    """The vector that the operator itself adds, and the factor of its product."""
    factor = float(node.attrs.get("alpha", 1.0))
    bias = node.inputs[2] if node.op == "Gemm" and len(node.inputs) > 2 else None
    beta = float(node.attrs.get("beta", 1.0))
    if bias is not None and (beta != 1.0 or len(rec.shape(bias)) != 1):
        raise UnsupportedError("a Gemm with a matrix or a factor to add")
    return bias, factor


def _turned(view: View, turn: int) -> View:
    rank = len(view.shape)
    return view.permuted((*range(rank - 2), rank - 1, rank - 2)) if turn else view


def _tensor_core_product(
    rec: Recorder, node: Node, a: View, b: View, epilogue: Epilogue, views: list[View],
    output: Tensor,
) -> None:  # fmt: skip
    k, n = b.shape[-2:]
    if len(b.shape) == 2:
        rows, lda = _rows(rec, a)
        columns = _columns(rec, node, b)
        problem = Matrix(math.prod(a.shape[:-1]), n, k, lda=lda)
        operands = [rows, columns, *views, rec.output(output)]
        if not measured_product(rec, epilogue, problem, operands, output):
            multiply(rec, a.dtype, epilogue, problem, operands)
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
    multiply(rec, a.dtype, epilogue, problem, [rows, turned, *views, rec.output(output)])


def _columns(rec: Recorder, node: Node, b: View) -> View:
    """The second matrix with its depth contiguous: packed at build where it is a constant."""
    tensor = given(node, 1)
    constant = tensor.constant
    if constant is None:
        return rec.dense(_turned(b, 1))
    turn = bool(node.attrs.get("transB", 0))
    if turn:
        return rec.view(tensor)
    return packed_constant(rec, tensor, b.shape[::-1], "columns", lambda value: value.T)


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
