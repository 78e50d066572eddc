"""Distances that count places: units of the last place, and indices of the largest values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polytool.errors import UsageError
from polytool.tensors import DType

Array = Any


def max_ulp(a: Array, r: Array) -> float | None:
    """The largest distance in representable numbers; None unless both have one real float type."""
    if a.dtype != r.dtype or not DType.of(a).is_float:
        return None
    same = np.isnan(a.astype(np.float64)) & np.isnan(r.astype(np.float64))
    x, y = _ordered(a), _ordered(r)
    with np.errstate(over="ignore"):
        distance = np.where(x > y, x.view(np.uint64) - y.view(np.uint64),
                            y.view(np.uint64) - x.view(np.uint64))  # fmt: skip
    distance = np.where(same.reshape(-1), 0, distance)
    return float(distance.max(initial=0))


def _ordered(array: Array) -> Array:
    """Integers in the order of the floats, one apart where those are neighbours; flat."""
    bits = 8 * array.dtype.itemsize
    codes = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    if bits == 8:  # few enough to rank by value: float4 and e8m0 keep their sign elsewhere
        every = np.arange(256, dtype=np.uint8).view(array.dtype).astype(np.float64)
        ranks = np.searchsorted(np.unique(every[~np.isnan(every)]), every)
        return ranks.astype(np.int64)[codes]
    signed = codes.view(f"i{array.dtype.itemsize}").astype(np.int64)
    lowest = -(1 << (bits - 1))
    return np.where(signed < 0, lowest - signed, signed)


def topk_indices(array: Array, k: int, axis: int = -1) -> Array:
    """The indices of the `k` largest values along `axis`, largest first; ties by index.

    Raises:
        UsageError: the array has no such axis.
    """
    if not -array.ndim <= axis < array.ndim:
        raise UsageError(f"there is no axis {axis} in an array of shape {list(array.shape)}")
    values = array.astype(np.float64) if array.dtype.kind == "V" else array
    order = np.argsort(np.flip(values, axis), axis=axis, kind="stable")
    largest = np.flip(values.shape[axis] - 1 - order, axis)
    return np.take(largest, range(min(k, values.shape[axis])), axis)


def index_distance(a: Array, r: Array) -> float:
    """How far the rows of `a` are from being those of `r`, in places.

    Each value of a row of `a` is looked up in the same row of `r`; inf when one is not there.
    """
    if a.shape != r.shape or not a.size:
        return math.inf if a.shape != r.shape else 0.0
    worst = 0
    width = a.shape[-1] if a.ndim else 1
    for x, y in zip(a.reshape(-1, width), r.reshape(-1, width), strict=True):
        places = {value: place for place, value in reversed(list(enumerate(y.tolist())))}
        for place in np.flatnonzero(x != y):
            found = places.get(x[place].item())
            if found is None:
                return math.inf
            worst = max(worst, abs(int(place) - found))
    return float(worst)
