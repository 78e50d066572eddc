"""Values at fractional positions: GridSample, AffineGrid and DeformConv."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, flops, op, shape, upgrade
from polytool.backends.native.ops.resize import keys_cubic
from polytool.backends.native.ops.windows import windows
from polytool.errors import ModelError, RunnerError

Ints = Sequence[int]
Fix = Callable[[Array, int], tuple[Array, Array | None]]
"""Maps integer positions on an axis of some length to valid ones, and says which count."""


def interpolate(
    xp: Any, x: Array, coordinates: Sequence[Array], mode: str, fix: Sequence[Fix]
) -> Array:
    """Sample `x` (N, C, *S) at points given by one (N, P) array an axis: (N, C, P)."""
    flat = x.reshape(*x.shape[:2], prod(x.shape[2:]))
    axes = []
    for size, where, valid in zip(x.shape[2:], coordinates, fix, strict=True):
        axes.append([(*valid(i, size), w) for i, w in _neighbours(xp, where, mode)])
    total = None
    for corner in itertools.product(*axes):
        index = reduce(
            lambda a, b: a * b[0] + b[1],
            zip(x.shape[3:], (c[0] for c in corner[1:]), strict=True),
            corner[0][0],
        )
        value = xp.empty((*flat.shape[:2], index.shape[1]), dtype=x.dtype)
        for image, points, target in zip(flat, index, value, strict=True):
            target[...] = image[:, points]
        for _, inside, weight in corner:
            if weight is not None:
                value = value * weight[:, None]
            if inside is not None:
                value = xp.where(inside[:, None], value, xp.zeros_like(value[:1, :1, :1]))
        total = value if total is None else total + value
    return total


def _neighbours(xp: Any, where: Array, mode: str) -> list[tuple[Array, Array | None]]:
    """Positions around `where` on one axis, and their weights."""
    if mode == "nearest":
        return [(xp.rint(where).astype(np.int64), None)]
    base = xp.floor(where)
    first, part = base.astype(np.int64), where - base
    if mode == "linear":
        return [(first, 1 - part), (first + 1, part)]
    if mode == "cubic":
        return [(first + k, keys_cubic(xp, xp.abs(part - k), -0.75)) for k in (-1, 0, 1, 2)]
    raise ModelError(f"there is no interpolation mode {mode!r}: nearest, linear, cubic")


def outside_is_zero(index: Array, size: int) -> tuple[Array, Array | None]:
    """Positions off the axis count as zero."""
    return index.clip(0, size - 1), (index >= 0) & (index < size)


def outside_is_edge(index: Array, size: int) -> tuple[Array, Array | None]:
    """Positions off the axis count as its nearest end."""
    return index.clip(0, size - 1), None


def _reflected(xp: Any, x: Array, low: float, high: float) -> Array:
    """Mirror at `low` and `high` until within."""
    span = high - low
    if span <= 0:
        return xp.full_like(x, low)
    beyond = xp.where(x < low, low - x, x - high)
    turns = xp.floor(beyond / span)
    rest = beyond - turns * span
    near_end = (turns % 2 == 0) == (x < low)
    folded = xp.where(near_end, low + rest, high - rest)
    return xp.where((x < low) | (x > high), folded, x)


def outside_is_mirrored(xp: Any, low: float, high: Callable[[int], float]) -> Fix:
    """Positions off the axis are reflected at its borders."""

    def fix(index: Array, size: int) -> tuple[Array, Array | None]:
        mirrored = _reflected(xp, index.astype(np.float64), low, high(size))
        return mirrored.astype(np.int64).clip(0, size - 1), None

    return fix


@op("GridSample", since=20)
def grid_sample(
    xp: Any,
    x: Array,
    grid: Array,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Array:
    """Sample `x` where `grid` says; -1 and 1 are the ends of an axis, innermost axis first."""
    spatial, lead = x.shape[2:], grid.shape[:-1]
    dims = (*x.shape[:2], *lead[1:])
    if 0 in (*dims, *x.shape):
        return xp.zeros(dims, dtype=x.dtype)
    low = 0.0 if align_corners else -0.5
    coordinates = []
    for axis, size in enumerate(spatial):
        value = grid[..., len(spatial) - 1 - axis].reshape(lead[0], -1)
        place = (value + 1) / 2 * (size - 1) if align_corners else ((value + 1) * size - 1) / 2
        coordinates.append(_within(xp, place, size, low, mode, padding_mode))
    if padding_mode == "reflection":
        fix: Fix = outside_is_mirrored(xp, low, lambda size: size - 1 - low)
    else:
        fix = outside_is_edge if padding_mode == "border" else outside_is_zero
    source = x.astype(grid.dtype) if x.dtype.kind in "iub" and mode != "nearest" else x
    y = interpolate(xp, source, coordinates, mode, [fix] * len(spatial))
    return y.reshape(dims).astype(x.dtype, copy=False)


def _within(xp: Any, place: Array, size: int, low: float, mode: str, padding_mode: str) -> Array:
    """Coordinates beyond the borders brought back, as `padding_mode` says."""
    high = size - 1 - low
    if mode == "nearest":
        place = xp.rint(place)
    if padding_mode == "border":
        if mode == "cubic":  # as in PyTorch, only the neighbours are clipped
            return place
        return xp.where((place < low) | (place > high), xp.clip(place, 0, size - 1), place)
    if padding_mode == "reflection":
        return _reflected(xp, place, low, high)
    if padding_mode != "zeros":
        raise ModelError(f"GridSample has no padding_mode {padding_mode!r}")
    return place


@upgrade("GridSample", since=16)
def grid_sample_mode_names(node: Node) -> Node:
    """GridSample-16 says bilinear and bicubic."""
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.attrs.get("mode", "bilinear")
    return node.raised(attrs=node.attrs | {"mode": names.get(mode, mode)})


@shape("GridSample")
def grid_sample_shape(x: Arg, grid: Arg, **_: Any) -> tuple[int, ...]:
    """(N, C, *grid)."""
    if not 3 <= len(x.shape) == len(grid.shape):
        raise RunnerError(
            f"GridSample takes an input and a grid of equal rank, 3 or more, not of shapes "
            f"{list(x.shape)} and {list(grid.shape)}"
        )
    return (*x.shape[:2], *grid.shape[1:-1])


@flops("GridSample")
def grid_sample_flops(
    x: Arg, *_: Arg, mode: str = "linear", outputs: list[tuple[int, ...]], **__: Any
) -> int:
    """A multiply-add for each neighbour."""
    taps = {"nearest": 0, "cubic": 4}.get(mode, 2)
    return int(2 * prod(outputs[0]) * taps ** (len(x.shape) - 2))


@op("AffineGrid", since=20, host=(1,))
def affine_grid(xp: Any, theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    """Where an affine map sends each position of an output of `size` (N, C, *spatial)."""
    spatial = [int(d) for d in size[2:]]
    axes = []
    for length in spatial:
        step = 2 / max(length - 1, 1) if align_corners else 2 / max(length, 1)
        start = -1 if align_corners else step / 2 - 1
        axes.append(start + step * np.arange(length, dtype=np.float64))
    grids = np.meshgrid(*axes, indexing="ij")[::-1]
    points = np.stack([*grids, np.ones(spatial)], axis=-1).astype(theta.dtype)
    flat = xp.asarray(points.reshape(-1, len(spatial) + 1))
    return (flat @ theta.swapaxes(1, 2)).reshape(theta.shape[0], *spatial, len(spatial))


@shape("AffineGrid")
def affine_grid_shape(theta: Arg, size: Arg, **_: Any) -> tuple[int, ...] | None:
    """(N, *spatial, rank)."""
    if size.value is None:
        return None
    spatial = tuple(int(d) for d in size.value[2:])
    return (theta.shape[0], *spatial, len(spatial))


@op("DeformConv", since=19)
def deform_conv(
    xp: Any,
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Conv whose windows read at learned offsets, each scaled by `mask`."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads)
    n, c, m, rank = x.shape[0], x.shape[1], w.shape[0], x.ndim - 2
    places = prod(where.kernel)
    moves = offset.reshape(n * offset_group, places, rank, *where.out)
    coordinates = []
    for axis in range(rank):
        taps = np.arange(where.kernel[axis]) * where.dilations[axis] - where.before[axis]
        steps = np.arange(where.out[axis]) * where.strides[axis]
        dims = [1] * (2 * rank)
        dims[axis], dims[rank + axis] = len(taps), len(steps)
        grid = (taps[:, None] + steps).reshape(dims)
        grid = np.broadcast_to(grid, (*where.kernel, *where.out)).reshape(places, *where.out)
        place = moves[:, :, axis] + xp.asarray(grid.astype(x.dtype))
        coordinates.append(place.reshape(n * offset_group, places * prod(where.out)))
    image = x.reshape(n * offset_group, c // offset_group, *x.shape[2:])
    columns = interpolate(xp, image, coordinates, "linear", [outside_is_zero] * rank)
    columns = columns.reshape(n, offset_group, c // offset_group, places, prod(where.out))
    if mask is not None:
        columns = columns * mask.reshape(n, offset_group, 1, places, prod(where.out))
    filters = w.reshape(group, m // group, prod(w.shape[1:]))
    y = filters @ columns.reshape(n, group, c // group * places, prod(where.out))
    y = y.reshape(n, m, *where.out)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


@shape("DeformConv")
def deform_conv_shape(x: Arg, w: Arg, offset: Arg, *_: Arg | None, **__: Any) -> tuple[int, ...]:
    """(N, M, *out)."""
    return (x.shape[0], w.shape[0], *offset.shape[2:])


@flops("DeformConv")
def deform_conv_flops(
    x: Arg, w: Arg, *_: Arg | None, outputs: list[tuple[int, ...]], **__: Any
) -> int:
    """The products, and a linear interpolation for everything that a window reads."""
    reads = outputs[0][0] * x.shape[1] * prod(w.shape[2:]) * prod(outputs[0][2:])
    return int(2 * prod(outputs[0]) * prod(w.shape[1:]) + 2 * reads * 2 ** (len(x.shape) - 2))
