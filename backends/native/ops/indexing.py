"""Reading and writing at indices: Gather, Scatter, Slice, Compress and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, entries, op, shape, upgrade

Dims = tuple[int, ...]
Index = tuple[Any, ...]


@op("Gather", since=1, exact=True)
def gather(xp: Any, x: Array, indices: Array, *, axis: int = 0) -> Array:
    """The entries of `x` at `indices` along `axis`; negative indices count from the end."""
    return xp.asarray(x.take(indices, axis), dtype=x.dtype)


@shape("Gather")
def gather_shape(x: Arg, indices: Arg, *, axis: int = 0) -> Dims:
    """The indices' shape in place of the axis."""
    at = axis % len(x.shape)
    return x.shape[:at] + indices.shape + x.shape[at + 1 :]


@op("GatherElements", since=11, exact=True)
def gather_elements(xp: Any, x: Array, indices: Array, *, axis: int = 0) -> Array:
    """For each element of `indices` the one of `x` in its place, moved along `axis`."""
    return x[_along(xp, indices, axis)]


@shape("GatherElements")
def gather_elements_shape(x: Arg, indices: Arg, *, axis: int = 0) -> Dims:
    """The shape of the indices."""
    return indices.shape


def _along(xp: Any, indices: Array, axis: int) -> Index:
    """The NumPy index that reads or writes at `indices` along `axis`, elsewhere in place."""
    rank = indices.ndim
    index: list[Any] = [_steps(xp, n, i, rank) for i, n in enumerate(indices.shape)]
    index[axis] = indices
    return tuple(index)


def _steps(xp: Any, length: int, axis: int, rank: int) -> Array:
    return xp.arange(length).reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


@op("GatherND", since=11, exact=True)
def gather_nd(xp: Any, x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """The entries or blocks of `x` that the last axis of `indices` names."""
    return xp.asarray(x[_tuples(xp, indices, batch_dims)], dtype=x.dtype)


@shape("GatherND")
def gather_nd_shape(x: Arg, indices: Arg, *, batch_dims: int = 0) -> Dims:
    """The indices' shape without its last axis, then the dimensions that are not named."""
    return indices.shape[:-1] + x.shape[batch_dims + indices.shape[-1] :]


def _tuples(xp: Any, indices: Array, batch_dims: int = 0) -> Index:
    rank = indices.ndim - 1
    batch = (_steps(xp, indices.shape[i], i, rank) for i in range(batch_dims))
    return (*batch, *(indices[..., i] for i in range(indices.shape[-1])))


@op("ScatterElements", since=11)
def scatter_elements(
    xp: Any, x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """A copy of `x` with each update at its own place, moved along `axis` to its index."""
    return _written(xp, x, _along(xp, indices, axis), updates, reduction)


@op("ScatterND", since=11)
def scatter_nd(
    xp: Any, x: Array, indices: Array, updates: Array, *, reduction: str = "none"
) -> Array:
    """A copy of `x` with the entries or blocks that the last axis of `indices` names updated."""
    return _written(xp, x, _tuples(xp, indices), updates, reduction)


def _written(xp: Any, x: Array, index: Index, updates: Array, reduction: str) -> Array:
    result = x.copy()
    if reduction == "none":
        result[index] = updates
    else:
        names = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}
        getattr(xp, names[reduction]).at(result, index, updates)
    return result


@shape("ScatterElements", "ScatterND", "TensorScatter")
def scatter_shape(x: Arg, *_: Arg | None, **__: Any) -> Dims:
    """The shape of what is written to."""
    return x.shape


@upgrade("Scatter", since=9)
def scatter_renamed(node: Node) -> Node:
    """Scatter became ScatterElements in version 11."""
    return node.raised(op="ScatterElements", version=11)


@op("TensorScatter", since=24, exact=True)
def tensor_scatter(
    xp: Any,
    past: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Array:
    """A copy of the cache with `update` written along `axis` from each sample's index on."""
    batch, length, rank = past.shape[0], past.shape[axis], past.ndim
    at = axis % rank
    start = xp.zeros(batch, np.int64) if write_indices is None else write_indices
    places = start[:, None] + xp.arange(update.shape[axis])
    if mode == "circular":
        places %= length
    result = past.copy()
    target = xp.moveaxis(result, at, 1)
    target[xp.arange(batch)[:, None], places] = xp.moveaxis(update, at, 1)
    return result


@op("Slice", since=10, exact=True, host=(1, 2, 3, 4))
def slice_(
    xp: Any,
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    """A view of `x` from `starts` to `ends` along `axes`."""
    return x[_slices(x.shape, starts, ends, axes, steps)]


@shape("Slice")
def slice_shape(
    x: Arg, starts: Arg, ends: Arg, axes: Arg | None = None, steps: Arg | None = None
) -> Dims | None:
    """The length of each slice."""
    given = (starts, ends, axes, steps)
    if any(a is not None and a.value is None for a in given):
        return None
    index = _slices(x.shape, *(None if a is None else a.value for a in given))
    return tuple(len(range(*s.indices(d))) for s, d in zip(index, x.shape, strict=True))


def _slices(
    dims: Dims, starts: Any, ends: Any, axes: Array | None, steps: Array | None
) -> tuple[slice, ...]:
    """Python's slices clamp as ONNX does, but for a backward start before the first element."""
    index = [slice(None)] * len(dims)
    first, last = entries(starts), entries(ends)
    along = range(len(first)) if axes is None else entries(axes)
    strides = [1] * len(first) if steps is None else entries(steps)
    for axis, start, end, step in zip(along, first, last, strides, strict=True):
        length = dims[axis]
        if step < 0 and start < -length:
            start = -length
        to_front = step < 0 and end < -length
        index[axis] = slice(start, None if to_front else end, step)
    return tuple(index)


@upgrade("Slice", since=1)
def slice_attributes_to_inputs(node: Node) -> Node:
    """Version 1 has starts, ends and axes as attributes."""
    names = ("starts", "ends", "axes")
    given = [np.array(node.attrs[n], np.int64) for n in names if n in node.attrs]
    return node.raised(inputs=[node.inputs[0], *given], attrs={})


@op("Compress", since=9, exact=True)
def compress(xp: Any, x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """The entries along `axis`, or of the flattened `x`, where the condition holds."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.take(xp.flatnonzero(condition), axis)


@op("NonZero", since=9, exact=True)
def non_zero(xp: Any, x: Array) -> Array:
    """The indices of elements that are not zero, one column each."""
    if x.ndim == 0:
        return xp.zeros((0, int(x != 0)), np.int64)
    return xp.stack(xp.nonzero(x)).astype(np.int64, copy=False)


@shape("Compress", "NonZero")
def data_dependent_shape(*_: Arg, **__: Any) -> None:
    """Only the data decide."""


@op("ReverseSequence", since=10, exact=True)
def reverse_sequence(
    xp: Any, x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0
) -> Array:
    """`x` with the first `lengths` steps of each batch entry in reverse order."""
    steps = xp.arange(x.shape[time_axis])
    limits = lengths[:, None]
    places = xp.where(steps < limits, limits - 1 - steps, steps)
    moved = xp.moveaxis(x, (batch_axis, time_axis), (0, 1))
    result = moved[xp.arange(x.shape[batch_axis])[:, None], places]
    return xp.moveaxis(result, (0, 1), (batch_axis, time_axis))


@shape("ReverseSequence")
def reverse_sequence_shape(
    x: Arg, lengths: Arg, *, batch_axis: int = 1, time_axis: int = 0
) -> Dims:
    """The shape of the input."""
    return x.shape


@op("OneHot", since=9, exact=True, host=(1,))
def one_hot(xp: Any, indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """The second value at each index along a new axis of length `depth`, else the first."""
    count = int(depth.item())
    places = xp.expand_dims(indices, axis)
    places = xp.where(places < 0, places + count, places)
    at = axis % places.ndim
    return xp.where(places == _steps(xp, count, at, places.ndim), values[1], values[0])


@shape("OneHot")
def one_hot_shape(indices: Arg, depth: Arg, values: Arg, *, axis: int = -1) -> Dims | None:
    """The indices' shape with one more axis."""
    if depth.value is None:
        return None
    at = axis % (len(indices.shape) + 1)
    return (*indices.shape[:at], int(depth.value.item()), *indices.shape[at:])


@op("Trilu", since=14, exact=True, host=(1,))
def trilu(xp: Any, x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """The upper or lower triangle of the last two axes, from the k-th diagonal; else zero."""
    diagonal = 0 if k is None else int(k.item())
    rows, columns = x.shape[-2:]
    kept = xp.arange(columns) - xp.arange(rows)[:, None]
    inside = kept >= diagonal if upper else kept <= diagonal
    return xp.where(inside, x, x.dtype.type(0))


@shape("Trilu")
def trilu_shape(x: Arg, k: Arg | None = None, *, upper: int = 1) -> Dims:
    """The shape of the input."""
    return x.shape
