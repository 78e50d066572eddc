"""Pooling over regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, op, shape, upgrade


@op("RoiAlign", since=16)
def roi_align(
    xp: Any,
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    """Bilinear samples on a regular grid in each bin of each region, averaged or the largest."""
    half = coordinate_transformation_mode == "half_pixel"
    corners = rois * spatial_scale - (0.5 if half else 0.0)
    y = xp.zeros((rois.shape[0], x.shape[1], output_height, output_width), dtype=x.dtype)
    for index in range(rois.shape[0]):
        left, top, right, bottom = (float(v) for v in corners[index])
        rows = _samples(top, bottom, output_height, sampling_ratio, least=0.0 if half else 1.0)
        columns = _samples(left, right, output_width, sampling_ratio, least=0.0 if half else 1.0)
        image = x[int(batch_indices[index])]
        y[index] = _bins(xp, image, rows, columns, output_height, output_width, mode)
    return y


def _samples(start: float, end: float, bins: int, ratio: int, *, least: float) -> Array:
    """The sampling positions on one axis, (bins * samples a bin)."""
    length = max(end - start, least) if least else end - start
    count = ratio if ratio > 0 else int(np.ceil(length / bins))
    within = (np.arange(count) + 0.5) / max(count, 1)
    return (start + (np.arange(bins)[:, None] + within) * (length / bins)).reshape(-1)


def _axis(positions: Array, size: int) -> list[tuple[Array, Array]]:
    """The two neighbours of each position and their weights; zero where it is off the image."""
    valid = (positions >= -1) & (positions <= size)
    place = np.clip(positions, 0, None)
    low = np.minimum(np.floor(place).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = np.where(low >= size - 1, 0, place - low)
    return [(low, np.where(valid, 1 - part, 0)), (high, np.where(valid, part, 0))]


def _bins(
    xp: Any, image: Array, rows: Array, columns: Array, height: int, width: int, mode: str
) -> Array:
    """One region: (C, height, width)."""
    if rows.size == 0 or columns.size == 0:
        return xp.zeros((image.shape[0], height, width), dtype=image.dtype)
    total: Array = None
    for i, row_weight in _axis(rows, image.shape[1]):
        for j, column_weight in _axis(columns, image.shape[2]):
            weight = xp.asarray((row_weight[:, None] * column_weight).astype(image.dtype))
            part = image[:, xp.asarray(i)[:, None], xp.asarray(j)] * weight
            if total is None:
                total = part
            elif mode == "max":  # as ONNX defines it: the largest weighted neighbour
                total = xp.maximum(total, part)
            else:
                total = total + part
    grid = total.reshape(image.shape[0], height, -1, width, columns.size // width)
    return grid.max(axis=(2, 4)) if mode == "max" else grid.mean(axis=(2, 4))


@upgrade("RoiAlign", since=10)
def roi_align_without_shift(node: Node) -> Node:
    """RoiAlign-10 does not shift by half a pixel."""
    mode = {"coordinate_transformation_mode": "output_half_pixel"}
    return node.raised(attrs=node.attrs | mode)


@shape("RoiAlign")
def roi_align_shape(
    x: Arg, rois: Arg, *_: Arg, output_height: int = 1, output_width: int = 1, **__: Any
) -> tuple[int, ...]:
    """(regions, C, height, width)."""
    return (rois.shape[0], x.shape[1], output_height, output_width)


@op("MaxRoiPool", since=1)
def max_roi_pool(
    xp: Any, x: Array, rois: Array, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Array:
    """The largest element of each bin of each region (image, x1, y1, x2, y2); zero if empty."""
    height, width = pooled_shape
    y = xp.zeros((rois.shape[0], x.shape[1], height, width), dtype=x.dtype)
    for index in range(rois.shape[0]):
        image = x[int(rois[index, 0])]
        left, top, right, bottom = (
            int(np.floor(float(v) * spatial_scale + 0.5)) for v in rois[index, 1:]
        )
        rows = _edges(top, bottom, height, image.shape[1])
        columns = _edges(left, right, width, image.shape[2])
        for i, (y0, y1) in enumerate(rows):
            for j, (x0, x1) in enumerate(columns):
                if y0 < y1 and x0 < x1:
                    y[index, :, i, j] = image[:, y0:y1, x0:x1].max(axis=(1, 2))
    return y


def _edges(start: int, end: int, bins: int, size: int) -> list[tuple[int, int]]:
    """Where each bin of a region begins and ends on one axis, cut to the image."""
    step = np.float32(max(end - start + 1, 1)) / np.float32(bins)
    edges = []
    for i in range(bins):
        low = int(np.floor(np.float32(i) * step)) + start
        high = int(np.ceil(np.float32(i + 1) * step)) + start
        edges.append((min(max(low, 0), size), min(max(high, 0), size)))
    return edges


@shape("MaxRoiPool")
def max_roi_pool_shape(
    x: Arg, rois: Arg, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> tuple[int, ...]:
    """(regions, C, *pooled_shape)."""
    return (rois.shape[0], x.shape[1], *pooled_shape)
