"""Pooling: MaxPool, AveragePool, LpPool, their global forms, and MaxUnpool."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.normalization import mean
from polytool.backends.native.ops.registry import Arg, Array, flops, op, shape
from polytool.backends.native.ops.windows import Windows, pad_spatial, reduce_windows, windows

Ints = Sequence[int]


@op("MaxPool", since=1, exact=True)
def max_pool(
    xp: Any,
    x: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
    n_outputs: int = 1,
) -> Array | tuple[Array, Array]:
    """The largest element of each window, and where it stands in the flattened input."""
    where = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    padded = pad_spatial(xp, x, where.before, where.reach, _lowest(x.dtype))
    if n_outputs == 1:
        return reduce_windows(padded, where, xp.maximum)
    index = _flat_index(xp, x.shape, column_major=bool(storage_order))
    index = pad_spatial(xp, index, where.before, where.reach, -1)
    return _max_with_index(xp, padded, index, where)


def _lowest(dtype: Any) -> Any:
    """The value that is never the larger one."""
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).min
    return -np.inf


def _flat_index(xp: Any, dims: Ints, *, column_major: bool) -> Array:
    order = dims[2:][::-1] if column_major else dims[2:]
    index = xp.arange(prod(dims), dtype=np.int64).reshape(*dims[:2], *order)
    return index.transpose(0, 1, *range(len(dims) - 1, 1, -1)) if column_major else index


def _max_with_index(xp: Any, x: Array, index: Array, where: Windows) -> tuple[Array, Array]:
    for axis in reversed(range(len(where.kernel))):
        lead = (slice(None),) * (2 + axis)
        cut = (*lead, where.slice(axis, 0))
        best, at = x[cut], index[cut]
        for tap in range(1, where.kernel[axis]):
            cut = (*lead, where.slice(axis, tap))
            value, there = x[cut], index[cut]
            larger = (value > best) | (value != value)
            best, at = xp.where(larger, value, best), xp.where(larger, there, at)
        x, index = best, at
    return x, index


@op("AveragePool", since=1)
def average_pool(
    xp: Any,
    x: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """The mean of each window over the elements that count."""
    where = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    total = reduce_windows(pad_spatial(xp, x, where.before, where.reach), where, xp.add)
    return total / window_sizes(xp, where, x.dtype, pads_count=bool(count_include_pad))


def window_sizes(xp: Any, where: Windows, dtype: Any, *, pads_count: bool) -> Array:
    """How many elements of each window count, (*out), at least one."""
    counts = where.covered(pads_count=pads_count)
    sizes = reduce(np.multiply.outer, (np.array(c, dtype=np.int64) for c in counts))
    return xp.asarray(np.maximum(sizes, 1).astype(dtype))


@op("LpPool", since=1)
def lp_pool(
    xp: Any,
    x: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    p: float = 2,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """The p-norm of each window."""
    where = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    powers = pad_spatial(xp, xp.abs(x) ** p, where.before, where.reach)
    return reduce_windows(powers, where, xp.add) ** (1 / p)


@shape("MaxPool", "AveragePool", "LpPool")
def pool_shape(
    x: Arg,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
    **_: Any,
) -> list[tuple[int, ...]]:
    """(N, C, *out), twice for MaxPool's indices."""
    where = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    return [(*x.shape[:2], *where.out)] * 2


@flops("MaxPool", "AveragePool", "LpPool")
def pool_flops(x: Arg, *, kernel_shape: Ints, outputs: list[tuple[int, ...]], **_: Any) -> int:
    """One operation an element of each window."""
    return prod(outputs[0]) * prod(kernel_shape)


@op("GlobalMaxPool", since=1, exact=True)
def global_max_pool(xp: Any, x: Array) -> Array:
    """The largest element of each channel."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


@op("GlobalAveragePool", since=1)
def global_average_pool(xp: Any, x: Array) -> Array:
    """The mean of each channel."""
    return mean(x, range(2, x.ndim))


@op("GlobalLpPool", since=1)
def global_lp_pool(xp: Any, x: Array, *, p: float = 2) -> Array:
    """The p-norm of each channel."""
    total = (xp.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return total ** (1 / p)


@shape("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def global_pool_shape(x: Arg, **_: Any) -> tuple[int, ...]:
    """(N, C, 1, ...)."""
    return (*x.shape[:2], *[1] * (len(x.shape) - 2))


@op("MaxUnpool", since=9, exact=True, host=(2,))
def max_unpool(
    xp: Any,
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Put `x` where MaxPool took it from, zero elsewhere.

    The indices count in the output that the attributes imply; a larger `output_shape` pads that
    one behind.
    """
    natural = _unpooled(x.shape, kernel_shape, pads, strides)
    y = xp.zeros(prod(natural), dtype=x.dtype)
    y[indices.reshape(-1)] = x.reshape(-1)
    y = y.reshape(natural)
    if output_shape is None or tuple(output_shape) == natural:
        return y
    larger = xp.zeros(tuple(int(d) for d in output_shape), dtype=x.dtype)
    part = tuple(slice(0, min(a, b)) for a, b in zip(natural, larger.shape, strict=True))
    larger[part] = y[part]
    return larger


def _unpooled(dims: Ints, kernel: Ints, pads: Ints | None, strides: Ints | None) -> tuple[int, ...]:
    rank = len(kernel)
    pads, strides = pads or [0] * (2 * rank), strides or [1] * rank
    spatial = (
        (n - 1) * s + k - pads[axis] - pads[rank + axis]
        for axis, (n, k, s) in enumerate(zip(dims[2:], kernel, strides, strict=True))
    )
    return (*dims[:2], *spatial)


@shape("MaxUnpool")
def max_unpool_shape(
    x: Arg,
    indices: Arg,
    output_shape: Arg | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> tuple[int, ...] | None:
    """What the attributes imply, or `output_shape`."""
    if output_shape is None:
        return _unpooled(x.shape, kernel_shape, pads, strides)
    if output_shape.value is None:
        return None
    return tuple(int(d) for d in output_shape.value)
