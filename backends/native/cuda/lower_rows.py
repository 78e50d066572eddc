"""Softmax and normalisations of rows, reductions, pooling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pool import Pool, Window
from polytool.backends.native.kernels.reduce import KINDS, Reduce
from polytool.backends.native.kernels.rows import RowOp
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.passes.fuse_residual_norm import residual_parts
from polytool.errors import UnsupportedError
from polytool.tensors import DType

NHWC = (0, 2, 3, 1)
_VECTOR = 8  # elements that a thread of a normalisation reads at once
_RANK = 8  # leading dimensions that a kernel walks


@lowering("Softmax", "LogSoftmax")
def softmax(rec: Recorder, layer: Layer) -> None:
    """Over one axis, which is made the last; before version 13 over all from there on."""
    (node,) = layer.nodes
    (x,) = node.inputs
    assert x is not None and x.dtype is not None
    shape = rec.shape(x)
    rank = len(shape)
    old = node.version < 13
    axis = int(node.attrs.get("axis", 1 if old else -1)) % max(rank, 1)
    order = (*(d for d in range(rank) if d != axis), axis) if rank and not old else range(rank)
    width = math.prod(shape[axis:]) if old or not rank else shape[axis]
    log_softmax = RowOp(node.op.lower(), Tree((x.dtype,)), ("full",), Tree((x.dtype,)))
    source, result = rec.dense(rec.view(x), order), rec.output(layer.outputs[0], order)
    if source.count:
        rec.launch([log_softmax.plan(source.count // width, width)], [source, result])


@lowering("LayerNormalization", "RMSNormalization")
def normalization(rec: Recorder, layer: Layer) -> None:
    """Over the last axes, with scale and shift."""
    (node,) = layer.nodes
    if len(layer.outputs) > 1:
        raise UnsupportedError("a normalisation that also returns mean or deviation")
    _normalize(rec, node, node.inputs[:1], layer.outputs[0])


@lowering("residual_norm")
def residual_norm(rec: Recorder, layer: Layer) -> None:
    """The same of a sum of tensors, which may be stored as well."""
    addends, node = residual_parts(layer)
    *total, output = layer.outputs
    _normalize(rec, node, addends, output, *total)


def _normalize(
    rec: Recorder, node: Node, addends: Sequence[Tensor | None], output: Tensor,
    total: Tensor | None = None,
) -> None:  # fmt: skip
    """The normalisation of the sum of `addends`; `total` is where that is stored."""
    x, scale, *rest = node.inputs
    if x is None or scale is None or x.dtype is None:
        raise UnsupportedError("a normalisation without a scale")
    shape = rec.shape(output)
    if any(t is None or rec.shape(t) != shape for t in addends):
        raise UnsupportedError("a sum that broadcasts")
    axis = int(node.attrs.get("axis", -1)) % len(shape)
    width = math.prod(shape[axis:])
    columns: list[Tensor] = [t for t in (scale, *rest) if t is not None]
    if any(math.prod(rec.shape(t)) != width for t in columns):
        raise UnsupportedError("a scale that is broadcast")
    types = [t.dtype or DType.FLOAT for t in columns]
    assert output.dtype is not None
    inputs = (DType.FLOAT, *types)
    steps = [Step.of("Mul", 0, 1, dtype=DType.FLOAT)]
    if len(columns) > 1:
        steps.append(Step.of("Add", len(inputs), 2, dtype=DType.FLOAT))
    if output.dtype is not DType.FLOAT:
        last = len(inputs) + len(steps) - 1
        steps.append(Step.of("Cast", last, dtype=output.dtype))
    mode = "layernorm" if node.op == "LayerNormalization" else "rmsnorm"
    rows = [_rows(rec, rec.view(t), axis) for t in addends if t is not None]
    kinds = tuple("full" if view.is_dense else "outer" for view in rows)
    n = len(rows)
    sums = [Step.of("Add", i and n + i - 1, i + 1, dtype=x.dtype) for i in range(n - 1)]
    before, after = Tree((x.dtype,) * n, tuple(sums)), Tree(inputs, tuple(steps))
    op = RowOp(mode, before, kinds, after, ("column",) * len(columns), total is not None)
    plan = op.plan(
        math.prod(shape[:axis]), width, epsilon=float(node.attrs.get("epsilon", 1e-5)),
        outer=shape[:axis],
        outer_strides=[v.steps[:-1] for v in rows if not v.is_dense],
    )  # fmt: skip
    written = [rec.output(t) for t in (output, total) if t is not None]
    views = [*rows, *(rec.dense(rec.view(t)) for t in columns), *written]
    rec.launch([plan], views, writes=len(written))


def _rows(rec: Recorder, view: View, axis: int) -> View:
    """A view [.., width] whose rows are contiguous and aligned, copied where they are not."""
    shape = (*view.shape[:axis], math.prod(view.shape[axis:]))
    found = view.reshaped(shape)
    if found is not None and axis <= _RANK and (found.steps[-1] == 1 or shape[-1] == 1):
        strides = [] if found.is_dense else found.steps[:-1]
        if all(n % _VECTOR == 0 for n in (found.offset, *strides)) or shape[-1] % _VECTOR:
            return found
    dense = rec.dense(view).reshaped(shape)
    assert dense is not None
    return dense


@lowering(*(op for op in KINDS if op.startswith("Reduce")))
def reduce(rec: Recorder, layer: Layer) -> None:
    """A reduction over any axes, of a tensor that may lie in any order."""
    (node,) = layer.nodes
    x, axes = [*node.inputs, None][:2]
    assert x is not None
    view, (output,) = rec.view(x), layer.outputs
    rank = len(view.shape)
    given = rec.attribute(axes)
    if given is None or not given.size:
        chosen = () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    else:
        chosen = tuple(sorted(int(a) % rank for a in given.reshape(-1)))
    _reduce(rec, node.op, x, output, chosen)


@lowering("GlobalAveragePool", "GlobalMaxPool")
def global_pool(rec: Recorder, layer: Layer) -> None:
    """A reduction over all spatial axes."""
    (node,) = layer.nodes
    (x,) = node.inputs
    assert x is not None
    op = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
    _reduce(rec, op, x, layer.outputs[0], tuple(range(2, len(rec.shape(x)))))


def _reduce(rec: Recorder, op: str, x: Tensor, output: Tensor, axes: tuple[int, ...]) -> None:
    view = rec.view(x)
    if view.offset:
        view = rec.dense(view)
    assert output.dtype is not None
    plan = Reduce(op, view.dtype, output.dtype).plan(view.shape, axes, view.steps)
    rec.launch([plan], [view, rec.output(output)])


@lowering("GlobalLpPool")
def global_lp_pool(rec: Recorder, layer: Layer) -> None:
    """A pooling whose window is the image."""
    (node,) = layer.nodes
    assert node.inputs[0] is not None
    kernel = list(rec.shape(node.inputs[0])[2:])
    whole = {"kernel_shape": kernel, "p": node.attrs.get("p", 2)}
    pool(rec, Layer.single(dataclasses.replace(node, op="LpPool", attrs=whole)))


@lowering("MaxPool", "AveragePool", "LpPool")
def pool(rec: Recorder, layer: Layer) -> None:
    """NHWC where the input lies so, and no indices are asked for."""
    (node,) = layer.nodes
    x, (output, indices) = node.inputs[0], [*node.outputs, None][:2]
    assert x is not None and output is not None and output.dtype is not None
    shape, out, a = rec.shape(x), rec.shape(output), node.attrs
    n = len(shape) - 2
    if n > 3:
        raise UnsupportedError("a pooling over more than three dimensions")
    kernel = tuple(a["kernel_shape"])
    strides = tuple(a.get("strides") or (1,) * n)
    dilations = tuple(a.get("dilations") or (1,) * n)
    window = Window(
        kernel, strides, explicit_pads(a, kernel, strides, dilations, shape, out), dilations
    )
    view = rec.view(x)
    last = n == 2 and view.lies_like(NHWC) and shape[1] > 1 and indices is None
    order = NHWC if last else None
    counted = bool(a.get("count_include_pad", 0)) and node.op == "AveragePool"
    op = Pool(
        node.op, output.dtype, channels_last=last, count_pads=counted, indices=indices is not None
    )
    plan = op.plan(
        shape[0], shape[1], shape[2:], out[2:], window, p=float(a.get("p", 2)),
        column_major=bool(a.get("storage_order", 0)),
    )  # fmt: skip
    results = [rec.output(output, order), *([] if indices is None else [rec.output(indices)])]
    rec.launch([plan], [rec.dense(view, order), *results], writes=len(results))


def explicit_pads(
    attrs: dict[str, Any],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    shape: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[int, ...]:
    """Explicit pads, ONNX's auto_pad resolved."""
    mode = attrs.get("auto_pad", "NOTSET")
    n = len(kernel)
    if mode in ("NOTSET", ""):
        return tuple(attrs.get("pads") or (0,) * 2 * n)
    if mode == "VALID":
        return (0,) * 2 * n
    begins, ends = [], []
    for i in range(n):
        reach = dilations[i] * (kernel[i] - 1) + 1
        whole = max(0, (out[2 + i] - 1) * strides[i] + reach - shape[2 + i])
        less, more = whole // 2, whole - whole // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return (*begins, *ends)
