"""Pad and CenterCropPad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, entries, op, shape, upgrade

Dims = tuple[int, ...]
Pads = list[tuple[int, int]]


@op("Pad", since=11, exact=True, host=(1, 3))
def pad(
    xp: Any,
    x: Array,
    pads: Array,
    constant_value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """`x` with elements added around it, or taken away where a pad is negative."""
    widths = _widths(x.ndim, pads, axes)
    if any(w < 0 for pair in widths for w in pair):
        keep = (slice(max(0, -b), d - max(0, -a)) for d, (b, a) in _sides(x.shape, widths))
        x = x[tuple(keep)]
        widths = [(max(0, b), max(0, a)) for b, a in widths]
    if mode == "constant":
        return _constant(xp, x, widths, 0 if constant_value is None else constant_value)
    for axis, (before, after) in enumerate(widths):
        if before or after:
            x = x.take(_source(xp, x.shape[axis], before, after, mode), axis)
    return x


@shape("Pad")
def pad_shape(
    x: Arg,
    pads: Arg,
    constant_value: Arg | None = None,
    axes: Arg | None = None,
    *,
    mode: str = "constant",
) -> Dims | None:
    """Each dimension with its pads."""
    if pads.value is None or (axes is not None and axes.value is None):
        return None
    widths = _widths(len(x.shape), pads.value, None if axes is None else axes.value)
    return tuple(d + b + a for d, (b, a) in _sides(x.shape, widths))


def _sides(dims: Dims, widths: Pads) -> list[tuple[int, tuple[int, int]]]:
    return list(zip(dims, widths, strict=True))


def _widths(rank: int, pads: Array, axes: Array | None) -> Pads:
    given = entries(pads)
    half = len(given) // 2
    widths = [(0, 0)] * rank
    for i, axis in enumerate(range(rank) if axes is None else entries(axes)):
        widths[axis] = (given[i], given[half + i])
    return widths


def _constant(xp: Any, x: Array, widths: Pads, value: Any) -> Array:
    result = xp.empty([d + b + a for d, (b, a) in _sides(x.shape, widths)], x.dtype)
    result[...] = value
    result[tuple(slice(b, b + d) for d, (b, _) in _sides(x.shape, widths))] = x
    return result


def _source(xp: Any, length: int, before: int, after: int, mode: str) -> Array:
    """For each position along a padded axis, the one that it repeats."""
    places = xp.arange(-before, length + after)
    if mode == "edge":
        return xp.clip(places, 0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(1, 2 * (length - 1))
    folded = places % period
    return xp.minimum(folded, period - folded) if length > 1 else folded * 0


@upgrade("Pad", since=1)
def pad_paddings_renamed(node: Node) -> Node:
    """Version 1 calls the pads paddings."""
    attrs = node.without("paddings") | {"pads": node.attrs["paddings"]}
    return node.raised(attrs=attrs)


@upgrade("Pad", since=2)
def pad_attributes_to_inputs(node: Node) -> Node:
    """Before version 11 pads and value are attributes."""
    value = np.array(node.attrs.get("value", 0.0), np.float32)
    inputs = [node.inputs[0], np.array(node.attrs["pads"], np.int64), value]
    return node.raised(inputs=inputs, attrs=node.without("pads", "value"))


@op("CenterCropPad", since=18, exact=True, host=(1,))
def center_crop_pad(xp: Any, x: Array, dims: Array, *, axes: Sequence[int] | None = None) -> Array:
    """`x` cut or padded with zeros to `dims`, around its centre."""
    wanted = _targets(x.shape, entries(dims), axes)
    crop, widths = [], []
    for have, want in zip(x.shape, wanted, strict=True):
        start = max(0, have - want) // 2
        crop.append(slice(start, start + min(have, want)))
        missing = max(0, want - have)
        widths.append((missing // 2, missing - missing // 2))
    cut = x[tuple(crop)]
    return _constant(xp, cut, widths, 0) if cut.shape != wanted else cut


@shape("CenterCropPad")
def center_crop_pad_shape(x: Arg, dims: Arg, *, axes: Sequence[int] | None = None) -> Dims | None:
    """The dimensions that are asked for."""
    return None if dims.value is None else _targets(x.shape, entries(dims.value), axes)


def _targets(dims: Dims, wanted: list[int], axes: Sequence[int] | None) -> Dims:
    result = list(dims)
    for axis, length in zip(range(len(dims)) if axes is None else axes, wanted, strict=True):
        result[axis] = length
    return tuple(result)
