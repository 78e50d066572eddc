"""Operators that change shape and order but no value."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, entries, op, shape, upgrade
from polytool.errors import RunnerError

Dims = tuple[int, ...]
_VIEW_FROM = 4096  # elements up to which copying is cheaper than making a broadcast view


@op("Identity", since=1, exact=True)
def identity(xp: Any, x: Any) -> Any:
    """`x`, which may be a sequence or an optional."""
    return x


@shape("Identity")
def identity_shape(x: Arg) -> Dims:
    """The shape of the input."""
    return x.shape


@op("Reshape", since=5, exact=True, host=(1,))
def reshape(xp: Any, x: Array, dims: Array, *, allowzero: int = 0) -> Array:
    """The same elements in another shape; 0 keeps a dimension, -1 is what is left."""
    return x.reshape(_resolved(x.shape, entries(dims), allowzero))


@shape("Reshape")
def reshape_shape(x: Arg, dims: Arg, *, allowzero: int = 0) -> Dims | None:
    """The shape that the second input gives."""
    if dims.value is None:
        return None
    return _resolved(x.shape, entries(dims.value), allowzero)


def _resolved(old: Dims, new: list[int], allowzero: int) -> Dims:
    kept = () if allowzero else tuple(i for i, d in enumerate(new) if d == 0)
    if kept:
        new = [old[i] if i in kept else d for i, d in enumerate(new)]
    if -1 in new:  # kept dimensions cancel, also where they are zero
        have = math.prod(d for i, d in enumerate(old) if i not in kept)
        rest = math.prod(d for i, d in enumerate(new) if d != -1 and i not in kept)
        new = [(have // rest if rest else 0) if d == -1 else d for d in new]
    return tuple(new)


@upgrade("Reshape", since=1)
def reshape_attribute_to_input(node: Node) -> Node:
    """Version 1 has the shape as an attribute."""
    dims = np.array(node.attrs.get("shape", []), np.int64)
    return node.raised(inputs=[node.inputs[0], dims], attrs={})


@op("Flatten", since=1, exact=True)
def flatten(xp: Any, x: Array, *, axis: int = 1) -> Array:
    """A matrix: the axes before `axis` are its rows."""
    return x.reshape(_matrix(x.shape, axis))


@shape("Flatten")
def flatten_shape(x: Arg, *, axis: int = 1) -> Dims:
    """Rows and columns."""
    return _matrix(x.shape, axis)


def _matrix(dims: Dims, axis: int) -> Dims:
    if axis < 0:
        axis += len(dims)
    return math.prod(dims[:axis]), math.prod(dims[axis:])


@op("Squeeze", since=13, exact=True, host=(1,))
def squeeze(xp: Any, x: Array, axes: Array | None = None) -> Array:
    """`x` without the axes of length one, or without the given ones."""
    return x.reshape(_squeezed(x.shape, axes))


@shape("Squeeze")
def squeeze_shape(x: Arg, axes: Arg | None = None) -> Dims | None:
    """The dimensions that stay."""
    if axes is not None and axes.value is None:
        return None
    return _squeezed(x.shape, None if axes is None else axes.value)


def _squeezed(dims: Dims, axes: Array | None) -> Dims:
    if axes is None:
        return tuple(d for d in dims if d != 1)
    gone = {a % len(dims) for a in axes.reshape(-1).tolist()} if len(dims) else set()
    if wrong := [a for a in sorted(gone) if dims[a] != 1]:
        raise RunnerError(f"Squeeze cannot remove axes {wrong} of shape {list(dims)}: not one long")
    return tuple(d for i, d in enumerate(dims) if i not in gone)


@op("Unsqueeze", since=13, exact=True, host=(1,))
def unsqueeze(xp: Any, x: Array, axes: Array) -> Array:
    """`x` with axes of length one put in; `axes` count in the result."""
    return x.reshape(_unsqueezed(x.shape, axes))


@shape("Unsqueeze")
def unsqueeze_shape(x: Arg, axes: Arg) -> Dims | None:
    """The dimensions with ones put in."""
    return None if axes.value is None else _unsqueezed(x.shape, axes.value)


def _unsqueezed(dims: Dims, axes: Array) -> Dims:
    new = axes.reshape(-1).tolist()
    rank = len(dims) + len(new)
    places = {a % rank for a in new}
    old = iter(dims)
    return tuple(1 if i in places else next(old) for i in range(rank))


def _axes_to_input(node: Node) -> Node:
    """Before version 13 `axes` is an attribute."""
    axes = node.attrs.get("axes")
    inputs = node.inputs[:1] + ([] if axes is None else [np.array(axes, np.int64)])
    return node.raised(inputs=inputs, attrs=node.without("axes"))


upgrade("Squeeze", since=1)(_axes_to_input)
upgrade("Unsqueeze", since=1)(_axes_to_input)


@op("Transpose", since=1, exact=True)
def transpose(xp: Any, x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """`x` with its axes in the order `perm`; reversed without it."""
    return x.transpose(perm)


@shape("Transpose")
def transpose_shape(x: Arg, *, perm: Sequence[int] | None = None) -> Dims:
    """The dimensions in the order `perm`."""
    return x.shape[::-1] if perm is None else tuple(x.shape[i] for i in perm)


@op("Expand", since=8, exact=True, host=(1,))
def expand(xp: Any, x: Array, dims: Array) -> Array:
    """`x` broadcast with `dims`; a read-only view where it grows large."""
    wanted = _expanded(x.shape, entries(dims))
    if wanted == x.shape:
        return x
    if math.prod(wanted) > _VIEW_FROM:
        return xp.broadcast_to(x, wanted)
    result = xp.empty(wanted, x.dtype)
    result[...] = x
    return result


@shape("Expand")
def expand_shape(x: Arg, dims: Arg) -> Dims | None:
    """The two shapes broadcast."""
    return None if dims.value is None else _expanded(x.shape, entries(dims.value))


def _expanded(old: Dims, new: list[int]) -> Dims:
    lead = len(new) - len(old)
    if lead < 0:
        new = [1] * -lead + new
        lead = 0
    full = (1,) * lead + old
    wanted = tuple(d if n == 1 else n for d, n in zip(full, new, strict=True))
    if any(d not in (1, w) for d, w in zip(full, wanted, strict=True)):
        raise RunnerError(f"Expand cannot broadcast shape {list(old)} with {new}")
    return wanted


@op("Tile", since=6, exact=True, host=(1,))
def tile(xp: Any, x: Array, repeats: Array) -> Array:
    """`x` repeated along each axis."""
    return _tiled(xp, x, entries(repeats))


def _tiled(xp: Any, x: Array, repeats: list[int]) -> Array:
    if len(repeats) != x.ndim:
        raise RunnerError(f"Tile needs {x.ndim} repeats for shape {list(x.shape)}, not {repeats}")
    dims = [d * r for d, r in zip(x.shape, repeats, strict=True)]
    if math.prod(dims) * x.itemsize > sys.maxsize:  # NumPy's product overflows, and it crashes
        raise RunnerError(f"Tile cannot make a tensor of shape {dims}: no memory is so large")
    return xp.tile(x, repeats)


@shape("Tile")
def tile_shape(x: Arg, repeats: Arg, axis: Arg | None = None) -> Dims | None:
    """Each dimension times its repeats; in version 1 only one."""
    if repeats.value is None or (axis is not None and axis.value is None):
        return None
    if axis is not None:
        dims = list(x.shape)
        dims[int(axis.value.item())] *= int(repeats.value.item())
        return tuple(dims)
    return tuple(d * r for d, r in zip(x.shape, entries(repeats.value), strict=True))


@op("Tile", since=1, exact=True, host=(1, 2))
def tile_1(xp: Any, x: Array, tiles: Array, axis: Array) -> Array:
    """Version 1 repeats along one axis."""
    repeats = [1] * x.ndim
    repeats[int(axis.item())] = int(tiles.item())
    return _tiled(xp, x, repeats)


@op("Concat", since=4, exact=True)
def concat(xp: Any, *inputs: Array, axis: int) -> Array:
    """The inputs one after the other along `axis`."""
    return inputs[0] if len(inputs) == 1 else xp.concatenate(inputs, axis)


@shape("Concat")
def concat_shape(*inputs: Arg, axis: int) -> Dims:
    """The dimensions along `axis` added up."""
    dims = list(inputs[0].shape)
    dims[axis] = sum(x.shape[axis] for x in inputs)
    return tuple(dims)


@upgrade("Concat", since=1)
def concat_default_axis(node: Node) -> Node:
    """Version 1 joins along axis 1 unless told otherwise."""
    return node.raised(attrs={"axis": 1} | node.attrs)


@op("Split", since=13, exact=True, host=(1,))
def split(
    xp: Any,
    x: Array,
    sizes: Array | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Array, ...]:
    """Views of `x` cut along `axis` into `sizes`, or into equal parts, the last one shorter."""
    given = None if sizes is None else entries(sizes)
    lengths = _parts(x.shape[axis], given, num_outputs or n_outputs, n_outputs)
    return cut(x, lengths[:n_outputs], axis)


@shape("Split")
def split_shape(
    x: Arg,
    sizes: Arg | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int = 1,
) -> list[Dims] | None:
    """The shape of each part."""
    if sizes is not None and sizes.value is None:
        return None
    given = None if sizes is None else entries(sizes.value)
    lengths = _parts(x.shape[axis], given, num_outputs or n_outputs, n_outputs)
    at = axis % len(x.shape)
    return [(*x.shape[:at], n, *x.shape[at + 1 :]) for n in lengths[:n_outputs]]


def cut(x: Array, lengths: Iterable[int], axis: int) -> tuple[Array, ...]:
    """Views of `x` of these lengths along `axis`."""
    at = axis % x.ndim
    before = (slice(None),) * at
    parts, start = [], 0
    for length in lengths:
        parts.append(x[(*before, slice(start, start + length))])
        start += length
    return tuple(parts)


def _parts(length: int, sizes: list[int] | None, count: int, wanted: int) -> list[int]:
    """The first `wanted` of `count` lengths."""
    if sizes is None:
        step = -(-length // count)
        return [max(0, min(step, length - i * step)) for i in range(min(count, wanted))]
    if sum(sizes) != length or len(sizes) < count:
        raise RunnerError(f"Split cannot cut an axis of {length} into {count} parts of {sizes}")
    return sizes


@upgrade("Split", since=1)
def split_attribute_to_input(node: Node) -> Node:
    """Before version 13 the sizes are an attribute; version 1 may have them as input."""
    sizes = node.attrs.get("split")
    inputs = node.inputs if sizes is None else [node.inputs[0], np.array(sizes, np.int64)]
    return node.raised(inputs=inputs, attrs=node.without("split"))


@op("DepthToSpace", since=1, exact=True)
def depth_to_space(xp: Any, x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels moved into blocks of height and width."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        blocks = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // (b * b), h * b, w * b)


@shape("DepthToSpace")
def depth_to_space_shape(x: Arg, *, blocksize: int, mode: str = "DCR") -> Dims:
    """Fewer channels, larger height and width."""
    n, c, h, w = x.shape
    return n, c // (blocksize * blocksize), h * blocksize, w * blocksize


@op("SpaceToDepth", since=1, exact=True)
def space_to_depth(xp: Any, x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of height and width moved into channels."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    blocks = x.reshape(n, c, h // b, b, w // b, b).transpose(order)
    return blocks.reshape(n, c * b * b, h // b, w // b)


@shape("SpaceToDepth")
def space_to_depth_shape(x: Arg, *, blocksize: int, mode: str = "DCR") -> Dims:
    """More channels, smaller height and width."""
    n, c, h, w = x.shape
    return n, c * blocksize * blocksize, h // blocksize, w // blocksize
