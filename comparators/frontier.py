"""What decides about every pair of tolerances, so that the arrays need not be kept.

The condition |e| <= atol + rtol |r| for all elements is one on max(|e| - rtol |r|): a convex,
piecewise linear function of rtol, to which only a few elements contribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any


def required_atol(frontier: Sequence[tuple[float, float]], rtol: float) -> float:
    """The smallest atol for which |e| <= atol + rtol |r| holds everywhere."""
    return max((e - rtol * r for r, e in frontier), default=0.0)


def frontier_of(
    error: Array, size: Array, more: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float]]:
    """The points (size, error) that decide max(error - t size) for some t >= 0.

    They are the corners of the upper left of the convex hull, found by quickhull: every pass
    throws away the points below the line between two corners.
    """
    if more:
        error = np.concatenate([error, [e for _, e in more]])
        size = np.concatenate([size, [s for s, _ in more]])
    keep = error > 0
    error, size = error[keep], size[keep]
    if not error.size:
        return []
    top = error.max()
    right = (float(size[error == top].min()), float(top))
    least = size.min()
    left = (float(least), float(error[size == least].max()))
    corners = {left, right}
    pending = [(left, right, size, error)]
    while pending:
        (x0, y0), (x1, y1), x, y = pending.pop()
        if x1 <= x0 or y1 <= y0:
            continue
        above = (y - y0) * (x1 - x0) - (x - x0) * (y1 - y0)
        outside = above > 1e-12 * (x1 - x0) * y1
        if not outside.any():
            continue
        x, y = x[outside], y[outside]
        best = int(above[outside].argmax())
        corner = (float(x[best]), float(y[best]))
        if corner in corners:
            continue
        corners.add(corner)
        pending += [((x0, y0), corner, x, y), (corner, (x1, y1), x, y)]
    return sorted(corners)
