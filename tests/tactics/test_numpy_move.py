"""Tuned copies equal the operators exactly."""

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(19)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 3, -2])
@pytest.mark.parametrize("size", [3, 60])
def test_concat(axis, size):
    shapes = [[2, 30, size, size] for _ in range(3)]
    shapes[0][axis], shapes[2][axis] = 5, 40
    inputs = ", ".join(f"float[{','.join(map(str, s))}] x{i}" for i, s in enumerate(shapes))
    proto = model(f"y = Concat<axis={axis}>(x0, x1, x2, x1)", inputs, "float[?,?,?,?] y", {})
    feeds = {f"x{i}": normal(*s) for i, s in enumerate(shapes)}
    check(proto, feeds, tactic="numpy.concat", tolerance=0)


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [
        ([1, 1, 2, 2], 'nearest_mode="floor", coordinate_transformation_mode="asymmetric"'),
        ([1, 1, 4, 3], 'nearest_mode="floor", coordinate_transformation_mode="asymmetric"'),
        ([1, 1, 2, 2], ""),
        ([1, 1, 1.5, 2.5], ""),
        ([1, 1, 0.5, 2], ""),
        ([1, 2, 2, 2], ""),
        ([1, 1, 2, 2], 'nearest_mode="ceil", coordinate_transformation_mode="align_corners"'),
    ],
)
def test_resize_to_nearest(scales, attributes):
    attributes = f'mode="nearest"{", " if attributes else ""}{attributes}'
    proto = model(
        f"y = Resize<{attributes}>(x, , scales)",
        "float[N,7,H,W] x",
        "float[?,?,?,?] y",
        {"scales": np.array(scales, np.float32)},
    )
    feeds = [{"x": normal(*s)} for s in ((2, 7, 30, 41), (1, 7, 3, 4), (1, 7, 30, 41))]
    check(proto, *feeds, tactic="numpy.resize_nearest", tolerance=0)
