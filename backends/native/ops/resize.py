"""Resize and its predecessor Upsample.

Interpolation is separable: each axis that changes is a table of source positions and weights.
Coordinates are float32 throughout, as in ONNX Runtime: a nearest neighbour that hangs on the last
bit must fall to the same side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, flops, op, shape, upgrade
from polytool.errors import ModelError, RunnerError

Ints = Sequence[int]
_F = np.float32


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized; `length` is `scale * size` before it is rounded down to `out`."""

    size: int
    out: int
    scale: Any
    length: Any
    start: Any
    end: Any


@op("Resize", since=11, host=(1, 2, 3))
def resize(
    xp: Any,
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Every output element is a weighted sum of neighbours of its place in the input."""
    plan = _plan(x.shape, roi, scales, sizes, axes, keep_aspect_ratio_policy)
    if 0 in x.shape or any(a.out == 0 for a in plan.values()):
        return xp.zeros(_resized(x.shape, plan), dtype=x.dtype)
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    coordinates = {k: _coordinates(a, coordinate_transformation_mode) for k, a in plan.items()}
    if mode == "nearest":
        y = x
        for axis, a in plan.items():
            index = _nearest(coordinates[axis], nearest_mode, a)
            y = xp.take(y, xp.asarray(np.clip(index, 0, a.size - 1)), axis=axis)
    else:
        support = {"linear": 1, "cubic": 2}.get(mode)
        if support is None:
            raise ModelError(f"Resize has no mode {mode!r}: nearest, linear, cubic")
        y = x.astype(np.float32) if x.dtype.kind in "iub" else x
        for axis, a in plan.items():
            if a.size == a.out and np.array_equal(coordinates[axis], np.arange(a.size)):
                continue
            index, weights = _taps(
                coordinates[axis],
                a,
                support,
                cubic_coeff_a,
                antialias=bool(antialias),
                exclude_outside=bool(exclude_outside),
            )
            y = _apply(xp, y, axis, index, weights)
        if x.dtype.kind in "iub":
            y = _to_integers(xp, y, x.dtype, rounds=bool(antialias))
    return _extrapolate(xp, y, plan, coordinates, extrapolation_value) if crops else y


def _plan(
    dims: Ints,
    roi: Array | None,
    scales: Array | None,
    sizes: Array | None,
    axes: Ints | None,
    policy: str = "stretch",
) -> dict[int, _Axis]:
    """What happens to each axis that `axes` names."""
    chosen = [a % len(dims) for a in axes] if axes else list(range(len(dims)))
    count = len(chosen)
    starts, ends = [_F(0)] * count, [_F(1)] * count
    if roi is not None and np.size(roi):
        starts, ends = [_F(v) for v in roi[:count]], [_F(v) for v in roi[count:]]
    if sizes is not None and np.size(sizes):
        outs = [int(s) for s in sizes]
        factors = [_F(o) / _F(dims[a] or 1) for o, a in zip(outs, chosen, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * count
            outs = [int(np.floor(factor * _F(dims[a]) + _F(0.5))) for a in chosen]
        lengths = [_F(o) for o in outs]
    elif scales is not None and np.size(scales):
        factors = [_F(s) for s in scales]
        lengths = [f * _F(dims[a]) for f, a in zip(factors, chosen, strict=True)]
        outs = [int(length) for length in lengths]
    else:
        raise ModelError("Resize has neither scales nor sizes")
    if min(outs, default=0) < 0:
        raise RunnerError(f"Resize cannot make axes of sizes {outs}")
    return {
        axis: _Axis(dims[axis], out, factor, length, start, end)
        for axis, out, factor, length, start, end in zip(
            chosen, outs, factors, lengths, starts, ends, strict=True
        )
    }


def _resized(dims: Ints, plan: dict[int, _Axis]) -> tuple[int, ...]:
    return tuple(plan[axis].out if axis in plan else size for axis, size in enumerate(dims))


def _coordinates(a: _Axis, mode: str) -> Array:
    """Where each output position lies in the input, float32 (out,)."""
    x, last = np.arange(a.out, dtype=np.float32), _F(a.size - 1)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and a.out > 1):
        return (x + _F(0.5)) / a.scale - _F(0.5)
    if mode == "half_pixel_symmetric":
        offset = _F(a.size) / _F(2) * (_F(1) - _F(a.out) / (a.scale * _F(a.size)))
        return offset + (x + _F(0.5)) / a.scale - _F(0.5)
    if mode == "asymmetric":
        return x / a.scale
    if mode == "tf_half_pixel_for_nn":
        return (x + _F(0.5)) / a.scale
    if mode == "pytorch_half_pixel" or (mode == "align_corners" and a.out == 1):
        return np.zeros_like(x)
    if mode == "align_corners":
        return x * last / (a.length - _F(1))  # not rounded down: the conformance suite's reading
    if mode == "tf_crop_and_resize":
        if a.out > 1:
            return a.start * last + x * (a.end - a.start) * last / _F(a.out - 1)
        return np.full_like(x, _F(0.5) * (a.start + a.end) * last)
    raise ModelError(f"Resize has no coordinate_transformation_mode {mode!r}")


def _nearest(x: Array, mode: str, a: _Axis) -> Array:
    """The index of the neighbour that `mode` prefers, not yet clipped."""
    if mode == "before_11":  # what versions without the attribute did
        mode = "ceil" if a.scale < 1 else "floor"
    if mode == "round_prefer_floor":
        rounded = np.ceil(x - _F(0.5))
    elif mode == "round_prefer_ceil":
        rounded = np.floor(x + _F(0.5))
    elif mode in ("floor", "ceil"):
        rounded = np.floor(x) if mode == "floor" else np.ceil(x)
    else:
        raise ModelError(f"Resize has no nearest_mode {mode!r}")
    return rounded.astype(np.int64)


def _taps(
    x: Array, a: _Axis, support: int, cubic: float, *, antialias: bool, exclude_outside: bool
) -> tuple[Array, Array]:
    """Source positions and weights, (out, taps) each. Antialiasing widens the filter."""
    stretch = min(a.scale, _F(1)) if antialias else _F(1)
    reach = int(np.ceil(support / stretch))
    base = np.floor(x)
    index = base.astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(np.arange(1 - reach, reach + 1, dtype=np.float32) - (x - base)[:, None])
    weights = _filter(distance * stretch, support, _F(cubic))
    outside = (index < 0) | (index >= a.size)
    if exclude_outside:
        weights = np.where(outside, _F(0), weights)
    if exclude_outside or stretch < 1:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, a.size - 1), weights


def _filter(d: Array, support: int, a: Any) -> Array:
    """The linear (support 1) or Keys' cubic kernel (support 2) at distances `d` >= 0."""
    if support == 1:
        return np.maximum(_F(1) - d, _F(0))
    return keys_cubic(np, d, a)


def keys_cubic(xp: Any, d: Array, a: Any) -> Array:
    """Keys' cubic convolution kernel at distances `d` >= 0."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return xp.where(d <= 1, near, xp.where(d < 2, far, xp.zeros_like(far)))


def _apply(xp: Any, x: Array, axis: int, index: Array, weights: Array) -> Array:
    """The weighted sum of neighbours along `axis`."""
    ones = (1,) * (x.ndim - axis - 1)
    result = None
    for tap in range(index.shape[1]):
        column = weights[:, tap]
        if not column.any():
            continue
        factor = xp.asarray(column.astype(x.dtype)).reshape(-1, *ones)
        part = xp.take(x, xp.asarray(index[:, tap]), axis=axis) * factor
        result = part if result is None else xp.add(result, part, out=result)
    return result


def _to_integers(xp: Any, y: Array, dtype: Any, *, rounds: bool) -> Array:
    if rounds and dtype.kind != "b":
        limits = np.iinfo(dtype)
        y = xp.clip(xp.rint(y), limits.min, limits.max)
    return y.astype(dtype)


def _extrapolate(
    xp: Any, y: Array, plan: dict[int, _Axis], coordinates: dict[int, Array], value: float
) -> Array:
    """Replace what was sampled outside the input."""
    for axis, a in plan.items():
        outside = (coordinates[axis] < 0) | (coordinates[axis] > a.size - 1)
        if outside.any():
            mask = xp.asarray(outside).reshape(-1, *[1] * (y.ndim - axis - 1))
            y = xp.where(mask, y.dtype.type(value), y)
    return y


def resize_tables(
    dims: Ints,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: Ints | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> list[tuple[Array, Array]]:
    """For each dimension the positions and weights (out, taps) that a result is the sum of.

    A position of -1 says that the result lies outside of the image.
    """
    plan = _plan(dims, roi, scales, sizes, axes, keep_aspect_ratio_policy)
    tables = []
    for axis, size in enumerate(dims):
        a = plan.get(axis)
        if a is None:
            tables.append((np.arange(size)[:, None], np.ones((size, 1), _F)))
            continue
        places = _coordinates(a, coordinate_transformation_mode)
        if mode == "nearest":
            index = np.clip(_nearest(places, nearest_mode, a), 0, a.size - 1)[:, None]
            weights = np.ones(index.shape, _F)
        elif a.size == a.out and np.array_equal(places, np.arange(a.size)):
            index, weights = np.arange(size)[:, None], np.ones((size, 1), _F)
        else:
            index, weights = _taps(
                places,
                a,
                {"linear": 1, "cubic": 2}[mode],
                cubic_coeff_a,
                antialias=bool(antialias),
                exclude_outside=bool(exclude_outside),
            )
        if coordinate_transformation_mode == "tf_crop_and_resize":
            outside = (places < 0) | (places > a.size - 1)
            index = np.where(outside[:, None], -1, index)
        tables.append((index, weights))
    return tables


@shape("Resize")
def resize_shape(
    x: Arg,
    roi: Arg | None = None,
    scales: Arg | None = None,
    sizes: Arg | None = None,
    *,
    axes: Ints | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    **_: Any,
) -> tuple[int, ...] | None:
    """What the values of scales or sizes say."""
    given = [a for a in (scales, sizes) if a is not None and a.shape != (0,)]
    if not given or given[0].value is None:
        return None
    factors, lengths = (None if a is None else a.value for a in (scales, sizes))
    plan = _plan(x.shape, None, factors, lengths, axes, keep_aspect_ratio_policy)
    return _resized(x.shape, plan)


@flops("Resize")
def resize_flops(
    x: Arg, *_: Arg | None, mode: str = "nearest", outputs: list[tuple[int, ...]], **__: Any
) -> int:
    """Two or four multiply-adds an axis; none for nearest neighbours."""
    taps = {"linear": 2, "cubic": 4}.get(mode, 0)
    changed = sum(a != b for a, b in zip(x.shape, outputs[0], strict=True))
    return int(2 * taps * changed * math.prod(outputs[0]))


_BEFORE_11 = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "before_11"}


@upgrade("Resize", since=10)
def resize_scales_only(node: Node) -> Node:
    """Resize-10 has inputs X and scales, and knows one way to find coordinates."""
    return node.raised(inputs=[node.inputs[0], None, node.inputs[1]], attrs=node.attrs | _BEFORE_11)


@upgrade("Upsample", since=9)
def upsample_to_resize(node: Node) -> Node:
    """Upsample-9 is Resize-10."""
    mode = {"bilinear": "linear"}.get(node.attrs.get("mode", "nearest"), node.attrs.get("mode"))
    return node.raised(op="Resize", version=10, attrs={"mode": mode or "nearest"})


@upgrade("Upsample", since=7)
def upsample_scales_to_input(node: Node) -> Node:
    """Upsample-7 has its scales as an attribute."""
    scales = np.array(node.attrs["scales"], dtype=np.float32)
    return node.raised(inputs=[node.inputs[0], scales], attrs=node.without("scales"))


@upgrade("Upsample", since=1)
def upsample_height_and_width(node: Node) -> Node:
    """Upsample-1 has one scale for height and one for width."""
    scales = [1.0, 1.0, node.attrs["height_scale"], node.attrs["width_scale"]]
    attrs = node.without("height_scale", "width_scale")
    return node.raised(attrs=attrs | {"scales": scales})
