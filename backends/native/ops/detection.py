"""Non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Array, op, shape


@op("NonMaxSuppression", since=10, exact=True, host=(0, 1, 2, 3, 4))
def non_max_suppression(
    xp: Any,
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> Array:
    """(batch, class, box) of each box that no better one overlaps by more than the threshold."""
    limit = int(max_output_boxes_per_class.item()) if max_output_boxes_per_class is not None else 0
    overlap = float(iou_threshold.item()) if iou_threshold is not None else 0.0
    least = float(score_threshold.item()) if score_threshold is not None else None
    selected: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0] if scores.size else 0):
        corners = _corners(boxes[batch], bool(center_point_box))
        for kind in range(scores.shape[1]):
            kept = _select(corners, scores[batch, kind], limit, overlap, least)
            selected += [(batch, kind, index) for index in kept]
    return np.array(selected, dtype=np.int64).reshape(-1, 3)


def _corners(boxes: Array, centred: bool) -> Array:
    """(boxes, 4): smaller y, smaller x, larger y, larger x."""
    if centred:
        x, y, width, height = boxes.T
        boxes = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _select(
    corners: Array, scores: Array, limit: int, overlap: float, least: float | None
) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        iou = _intersection_over_union(corners, areas, best, order)
        order = order[~(iou > overlap)]
    return kept


def _intersection_over_union(corners: Array, areas: Array, best: int, others: Array) -> Array:
    """Of one box with others; zero where nothing overlaps or a box has no area."""
    low = np.maximum(corners[best, :2], corners[others, :2])
    high = np.minimum(corners[best, 2:], corners[others, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    union = areas[best] + areas[others] - common
    valid = (areas[best] > 0) & (areas[others] > 0) & (union > 0)
    return np.where(valid, common / np.where(valid, union, 1), 0)


@shape("NonMaxSuppression")
def non_max_suppression_shape(*_: Any, **__: Any) -> None:
    """None: data decides."""
