"""com.microsoft: the caches of GroupQueryAttention, whole or of a window, quantised or not.

A cache is (batch, heads, rows, width). Quantised, its elements are int8, or two of 4 bits in a
byte, the first one low and 8 more than what it means.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Array


def quantised(xp: Any, x: Array, scale: Array, bits: int) -> Array:
    """New rows as the cache stores them."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    steps = xp.clip(xp.rint(x / _spread(scale, x)), low, high)
    if bits == 8:
        return steps.astype(np.int8)
    pairs = (steps + 8).astype(np.uint8)
    return pairs[..., ::2] | pairs[..., 1::2] << 4


def dequantised(xp: Any, cache: Array, scale: Array, bits: int, dtype: Any) -> Array:
    """What the rows of a cache mean."""
    if bits == 4:
        pairs = xp.stack([cache & 15, cache >> 4], axis=-1)
        cache = pairs.reshape(*cache.shape[:3], -1).astype(np.int8) - np.int8(8)
    values = cache.astype(dtype)
    return values * _spread(scale.astype(dtype), values)


def _spread(scale: Array, x: Array) -> Array:
    """One scale, or one a head and column."""
    return scale.reshape(1, 1, 1, 1) if scale.size == 1 else scale.reshape(1, x.shape[1], 1, -1)


def cached(
    xp: Any, past: Array | None, new: Array, before: Array, valid: Array, total: int
) -> Array:
    """A buffer as long as the past one or the total: rows `before` of the past, then new ones."""
    batch, heads, _, size = new.shape
    capacity = max(total, 0 if past is None else past.shape[2])
    buffer = xp.zeros((batch, heads, capacity, size), dtype=new.dtype)
    for index in range(batch):
        start, count = int(before[index]), int(valid[index])
        if past is not None:
            buffer[index, :, :start] = past[index, :, :start]
        buffer[index, :, start : start + count] = new[index, :, :count]
    return buffer


def resident(xp: Any, total: Array, capacity: int, window: int) -> Array:
    """How many of `total` positions, the newest, a cache of `capacity` rows holds.

    Where it is full, so many are given up at once that the window just stays, as ONNX Runtime's
    documentation of the operator says: G = C - W + 1, L = T - G * ceil((T - C) / G).
    """
    step = capacity - window + 1
    return total - step * xp.maximum(0, -((capacity - total) // step))


def newest(xp: Any, rows: Array, end: Array, kept: Array, capacity: int) -> Array:
    """A cache of `capacity` rows that begins with the `kept` rows before `end`."""
    cache = xp.zeros((*rows.shape[:2], capacity, rows.shape[3]), dtype=rows.dtype)
    for index in range(len(rows)):
        last, count = int(end[index]), int(kept[index])
        cache[index, :, :count] = rows[index, :, last - count : last]
    return cache
