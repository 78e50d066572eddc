"""Operators that only move elements: views where they can be, copies where they must."""

from __future__ import annotations

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels.gather import Gather
from polytool.backends.native.kernels.pointwise import copy
from polytool.backends.native.network import Layer
from polytool.errors import UnsupportedError
from polytool.tensors import DType


def _source(rec: Recorder, layer: Layer) -> View:
    tensor = layer.nodes[0].inputs[0]
    assert tensor is not None
    return rec.view(tensor)


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
def reshape(rec: Recorder, layer: Layer) -> None:
    """A view; a dense copy first where the elements do not lie in order."""
    source, (output,) = _source(rec, layer), layer.outputs
    shape = rec.shape(output)
    view = source.reshaped(shape)
    if view is None:
        view = rec.dense(source).reshaped(shape)
        assert view is not None
    rec.define(output, view)


@lowering("Transpose")
def transpose(rec: Recorder, layer: Layer) -> None:
    """A view: whoever needs the elements in order copies them."""
    source = _source(rec, layer)
    perm = layer.nodes[0].attrs.get("perm") or list(range(len(source.shape)))[::-1]
    rec.define(layer.outputs[0], source.permuted(perm))


@lowering("Expand")
def expand(rec: Recorder, layer: Layer) -> None:
    """A view that repeats."""
    rec.define(layer.outputs[0], _source(rec, layer).broadcast(rec.shape(layer.outputs[0])))


@lowering("Slice")
def slice_(rec: Recorder, layer: Layer) -> None:
    """A view with other strides."""
    view = _source(rec, layer)
    starts, ends, axes, steps = (
        rec.attribute(t) for t in [*layer.nodes[0].inputs[1:], None, None][:4]
    )
    count = len(starts)
    axes = np.arange(count) if axes is None else axes
    steps = np.ones(count, np.int64) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where = int(axis) % len(view.shape)
        chosen = range(view.shape[where])[slice(int(start), _end(int(end), int(step)), int(step))]
        view = view.sliced(where, chosen.start, len(chosen), chosen.step)
    rec.define(layer.outputs[0], view)


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end <= -(1 << 31) else end


@lowering("Split")
def split(rec: Recorder, layer: Layer) -> None:
    """Views."""
    node, view = layer.nodes[0], _source(rec, layer)
    axis = int(node.attrs.get("axis", 0)) % len(view.shape)
    start = 0
    for tensor in node.outputs:
        if tensor is None:
            raise UnsupportedError("a Split with an unused part")
        size = rec.shape(tensor)[axis]
        rec.define(tensor, view.sliced(axis, start, size))
        start += size


@lowering("Concat")
def concat(rec: Recorder, layer: Layer) -> None:
    """Each input is copied into its part of the result, which lies like the first of them."""
    node, (output,) = layer.nodes[0], layer.outputs
    views = [rec.view(t) for t in node.inputs if t is not None]
    like = next((v for v in views if v.is_packed and v.count > 1), None)
    result = rec.output(output, like.order if like is not None else None)
    axis = int(node.attrs["axis"]) % len(result.shape)
    start = 0
    for view in views:
        part = result.sliced(axis, start, view.shape[axis])
        start += view.shape[axis]
        if view.count:
            plan = copy(view.dtype).plan(view.shape, [view.operand], [part.operand])
            rec.launch([plan], [view.whole, result])


@lowering("Gather")
def gather(rec: Recorder, layer: Layer) -> None:
    """Rows by index; one index that is known is a view."""
    node, (output,) = layer.nodes[0], layer.outputs
    data, index = node.inputs
    assert data is not None and index is not None
    view = rec.view(data)
    axis = int(node.attrs.get("axis", 0)) % len(view.shape)
    known = rec.shapes.value(index)
    if known is not None and np.size(known) == 1:
        at = int(np.reshape(known, -1)[0]) % view.shape[axis]
        part = view.sliced(axis, at, 1).reshaped(rec.shape(output))
        if part is not None:
            rec.define(output, part)
            return
    where = rec.view(index)
    if where.dtype not in (DType.INT32, DType.INT64):
        raise UnsupportedError(f"indices of type {where.dtype.label}")
    data_view, where = rec.dense(view), rec.dense(where)
    plan = Gather("Gather", view.dtype, where.dtype).plan(view.shape, where.shape, axis=axis)
    rec.launch([plan], [data_view, where, rec.output(output)])
