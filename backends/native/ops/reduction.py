"""Reductions along axes, positions of extremes, and running sums and products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, entries, op, shape, upgrade

_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


def axes_to_input(node: Node) -> Node:
    """Before version 18 (ReduceSum: 13) `axes` is an attribute."""
    axes = node.attrs.get("axes")
    inputs = node.inputs[:1] + ([] if axes is None else [np.array(axes, np.int64)])
    return node.raised(inputs=inputs, attrs=node.without("axes"))


for _name in _REDUCTIONS:
    upgrade(_name, since=1)(axes_to_input)


def chosen(axes: Array | None, noop: int) -> tuple[int, ...] | None:
    """The axes as NumPy takes them: None for all, an empty tuple for none."""
    if axes is None or len(axes) == 0:
        return () if noop else None
    return tuple(entries(axes))


Axes = tuple[int, ...] | None
Reduction = Callable[[Any, Array, Axes, bool], Any]


def reduction(
    name: str, *, since: int = 18, exact: bool = False
) -> Callable[[Reduction], Reduction]:
    """Register `function(xp, x, axes, keepdims)`, with axes as NumPy takes them."""

    def register(function: Reduction) -> Reduction:
        @op(name, since=since, host=(1,), exact=exact)
        def reduce(
            xp: Any,
            x: Array,
            axes: Array | None = None,
            *,
            keepdims: int = 1,
            noop_with_empty_axes: int = 0,
        ) -> Array:
            return xp.asarray(function(xp, x, chosen(axes, noop_with_empty_axes), bool(keepdims)))

        reduce.__doc__ = function.__doc__
        return function

    return register


@reduction("ReduceSum", since=13)
def reduce_sum(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The sum along `axes`; integers wrap around."""
    return x.sum(axis=axes, keepdims=keepdims, dtype=x.dtype)


@reduction("ReduceMean")
def reduce_mean(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The mean along `axes`; integers truncate toward zero."""
    total = x.sum(axis=axes, keepdims=keepdims)
    count = math.prod(x.shape if axes is None else [x.shape[a] for a in axes])
    if x.dtype.kind == "f":
        return total / x.dtype.type(count)
    return xp.asarray(xp.trunc(total / count)).astype(x.dtype)


@reduction("ReduceProd")
def reduce_prod(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The product along `axes`; integers wrap around."""
    return x.prod(axis=axes, keepdims=keepdims, dtype=x.dtype)


@reduction("ReduceMax", exact=True)
def reduce_max(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The maximum along `axes`; the lowest value of the type where there is nothing."""
    if x.size:
        return x.max(axis=axes, keepdims=keepdims)
    return xp.full(_reduced(x.shape, axes, keepdims), _bounds(x)[0], x.dtype)


@reduction("ReduceMin", exact=True)
def reduce_min(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The minimum along `axes`; the highest value of the type where there is nothing."""
    if x.size:
        return x.min(axis=axes, keepdims=keepdims)
    return xp.full(_reduced(x.shape, axes, keepdims), _bounds(x)[1], x.dtype)


def _bounds(x: Array) -> tuple[Any, Any]:
    if x.dtype.kind == "f":
        return -math.inf, math.inf
    if x.dtype.kind == "b":
        return False, True
    info = np.iinfo(x.dtype)
    return info.min, info.max


@reduction("ReduceL1")
def reduce_l1(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The sum of absolute values along `axes`."""
    return xp.abs(x).sum(axis=axes, keepdims=keepdims, dtype=x.dtype)


@reduction("ReduceSumSquare")
def reduce_sum_square(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The sum of squares along `axes`."""
    return xp.square(x).sum(axis=axes, keepdims=keepdims, dtype=x.dtype)


@reduction("ReduceL2")
def reduce_l2(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The Euclidean norm along `axes`; integers truncate."""
    kept = x if x.dtype.kind == "f" else x.astype(np.float64)
    total = xp.square(kept).sum(axis=axes, keepdims=keepdims)
    return xp.asarray(xp.sqrt(total)).astype(x.dtype, copy=False)


@reduction("ReduceLogSum")
def reduce_log_sum(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The logarithm of the sum along `axes`; integers truncate."""
    total = xp.log(x.sum(axis=axes, keepdims=keepdims))
    return xp.asarray(total).astype(x.dtype, copy=False)


@reduction("ReduceLogSumExp")
def reduce_log_sum_exp(xp: Any, x: Array, axes: Axes, keepdims: bool) -> Any:
    """The logarithm of the sum of exponentials along `axes`, without overflow."""
    kept = x if x.dtype.kind == "f" else x.astype(np.float64)
    if not x.size:
        return xp.full(_reduced(x.shape, axes, keepdims), -math.inf, kept.dtype).astype(x.dtype)
    top = kept.max(axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, kept.dtype.type(0))
    total = xp.exp(kept - top).sum(axis=axes, keepdims=True)
    result = xp.log(total) + top
    if not keepdims:
        result = result.reshape(_reduced(x.shape, axes, 0))
    return result.astype(x.dtype, copy=False)


@shape(*_REDUCTIONS)
def reduced_shape(
    x: Arg, axes: Arg | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> tuple[int, ...] | None:
    """The shape with the axes gone, or one where they are kept."""
    if axes is None:
        return _reduced(x.shape, chosen(None, noop_with_empty_axes), keepdims)
    if axes.value is None:
        return None
    return _reduced(x.shape, chosen(axes.value, noop_with_empty_axes), keepdims)


def _reduced(dims: tuple[int, ...], axes: Axes, keepdims: int) -> tuple[int, ...]:
    rank = len(dims)
    gone = set(range(rank)) if axes is None else {a % rank for a in axes}
    if keepdims:
        return tuple(1 if i in gone else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in gone)


@op("ArgMax", since=1, exact=True)
def arg_max(
    xp: Any, x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Array:
    """Where the maximum along `axis` lies: the first one, or the last."""
    return _position(xp, x, xp.argmax, axis, keepdims, select_last_index)


@op("ArgMin", since=1, exact=True)
def arg_min(
    xp: Any, x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Array:
    """Where the minimum along `axis` lies: the first one, or the last."""
    return _position(xp, x, xp.argmin, axis, keepdims, select_last_index)


def _position(xp: Any, x: Array, find: Any, axis: int, keepdims: int, last: int) -> Array:
    place = find(xp.flip(x, axis) if last else x, axis=axis)
    if last:
        place = x.shape[axis] - 1 - place
    place = xp.asarray(place, dtype=np.int64)
    return xp.expand_dims(place, axis) if keepdims else place


@shape("ArgMax", "ArgMin")
def position_shape(
    x: Arg, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> tuple[int, ...]:
    """The shape with the axis gone, or one where it is kept."""
    return _reduced(x.shape, (axis,), keepdims)


@op("CumSum", since=11, host=(1,))
def cum_sum(xp: Any, x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sums along `axis`."""
    return _running(xp, x, int(axis.item()), xp.cumsum, 0, exclusive, reverse)


@op("CumProd", since=26, host=(1,))
def cum_prod(xp: Any, x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running products along `axis`."""
    return _running(xp, x, int(axis.item()), xp.cumprod, 1, exclusive, reverse)


def _running(
    xp: Any, x: Array, axis: int, accumulate: Any, neutral: int, exclusive: int, reverse: int
) -> Array:
    if reverse:
        x = xp.flip(x, axis)
    result = accumulate(x, axis=axis, dtype=x.dtype)
    if exclusive:
        before, after = [slice(None)] * x.ndim, [slice(None)] * x.ndim
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        moved = xp.full_like(result, neutral)
        moved[tuple(after)] = result[tuple(before)]
        result = moved
    return xp.flip(result, axis) if reverse else result


@shape("CumSum", "CumProd")
def running_shape(x: Arg, axis: Arg, *, exclusive: int = 0, reverse: int = 0) -> tuple[int, ...]:
    """The shape of the input."""
    return x.shape
