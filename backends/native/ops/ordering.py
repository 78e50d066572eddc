"""Operators that sort: TopK and Unique."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, op, shape, upgrade
from polytool.errors import RunnerError

Dims = tuple[int, ...]


@op("TopK", since=10, exact=True, host=(1,))
def top_k(
    xp: Any, x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The k extreme values along `axis`, in order, and where they lie; first come first."""
    count = int(k.item())
    last = axis in (-1, x.ndim - 1)
    rows = x if last else xp.moveaxis(x, axis, -1)
    length = rows.shape[-1]
    if count > length:
        raise RunnerError(f"TopK cannot take {count} of {length} elements along axis {axis}")
    places = None
    if xp is np and length > 64 and count * 8 <= length:
        places = _selected(np.ascontiguousarray(rows).reshape(-1, length), count, bool(largest))
    if places is None:
        places = _order(xp, rows, bool(largest))[..., :count]
    places = places.reshape(*rows.shape[:-1], count)
    values = xp.take_along_axis(rows, places, -1)
    if last:
        return values, places
    return xp.moveaxis(values, -1, axis), xp.moveaxis(places, -1, axis)


def _order(xp: Any, x: Array, largest: bool) -> Array:
    """Indices that sort the last axis, equal values by index; negation would overflow integers."""
    if not largest:
        return xp.argsort(x, -1, kind="stable")
    return x.shape[-1] - 1 - xp.argsort(x[..., ::-1], -1, kind="stable")[..., ::-1]


def _selected(x: Array, count: int, largest: bool) -> Array | None:
    """The same for the first `count` of long rows: cut at the k-th value, sort only what is left.

    Returns None where NaN takes part.
    """
    if count == 0 or x.shape[0] == 0:
        return np.zeros((x.shape[0], count), np.int64)
    nth = x.shape[-1] - count if largest else count - 1
    edge = np.partition(x, nth, -1)[:, nth, None]
    better = x > edge if largest else x < edge
    tied = x == edge
    room = count - better.sum(-1, keepdims=True)
    chosen = better | (tied & (tied.cumsum(-1) <= room))
    found: Array = np.nonzero(chosen)[1]
    if found.size != x.shape[0] * count:
        return None
    found = found.reshape(-1, count)
    inner = _order(np, np.take_along_axis(x, found, -1), largest)
    return np.take_along_axis(found, inner, -1)


@shape("TopK")
def top_k_shape(
    x: Arg, k: Arg, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> list[Dims] | None:
    """The input's shape with `k` along the axis, twice."""
    if k.value is None:
        return None
    dims = list(x.shape)
    dims[axis] = int(k.value.item())
    return [tuple(dims)] * 2


@upgrade("TopK", since=1)
def top_k_attribute_to_input(node: Node) -> Node:
    """Version 1 has k as an attribute."""
    k = np.array([node.attrs["k"]], np.int64)
    return node.raised(inputs=[node.inputs[0], k], attrs=node.without("k"))


@op("Unique", since=11, exact=True)
def unique(
    xp: Any, x: Array, *, axis: int | None = None, sorted: int = 1
) -> tuple[Array, Array, Array, Array]:
    """The distinct entries, where each is first, which one each entry is, and how often."""
    values, first, inverse, counts = xp.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = xp.argsort(first)
        rank = xp.argsort(order)
        values = values.take(order, 0 if axis is None else axis)
        first, inverse, counts = first[order], rank[inverse], counts[order]
    return values, first, inverse, counts


@shape("Unique")
def unique_shape(x: Arg, *, axis: int | None = None, sorted: int = 1) -> None:
    """Only the data decide."""
