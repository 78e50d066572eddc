"""Tuned transposed convolutions equal the operator in float64."""

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


GEOMETRIES = [  # input, filters, attributes
    ((2, 6, 7, 9), (6, 5, 2, 2), "strides=[2,2]"),
    ((1, 24, 40, 60), (24, 24, 2, 2), "strides=[2,2]"),
    ((1, 24, 40, 61), (24, 40, 3, 3), "strides=[2,2],pads=[1,1,1,1],output_padding=[1,1]"),
    ((2, 6, 7, 9), (6, 5, 3, 2), "strides=[3,2],output_padding=[1,0]"),
    ((2, 6, 7, 9), (6, 5, 3, 3), "dilations=[2,3],pads=[2,0,1,3]"),
    ((2, 6, 7, 9), (6, 5, 4, 4), 'strides=[2,2],auto_pad="SAME_UPPER"'),
    ((2, 6, 7, 9), (6, 5, 4, 4), 'strides=[2,2],auto_pad="SAME_LOWER"'),
    ((2, 6, 7, 9), (6, 5, 3, 3), "strides=[3,3],output_shape=[20,26]"),
    ((2, 6, 7, 9), (6, 5, 1, 1), "strides=[2,2]"),
    ((2, 6, 17), (6, 5, 4), "strides=[2],pads=[1,1]"),
    ((1, 3, 4, 5, 6), (3, 4, 2, 2, 2), "strides=[2,2,2]"),
]


@pytest.mark.parametrize(("shape", "filters", "attributes"), GEOMETRIES)
@pytest.mark.parametrize("tail", ["y = Identity(c)", "s = Sigmoid(c) y = Mul(c, s)"])
def test_geometry(shape, filters, attributes, tail):
    rank = len(shape)
    proto = model(
        f"c = ConvTranspose<{attributes}>(x, w, b) {tail}",
        f"float[{','.join(map(str, shape))}] x",
        f"float[{','.join('?' * rank)}] y",
        {"w": normal(*filters), "b": normal(filters[1])},
    )
    check(proto, {"x": normal(*shape)}, tactic="numpy.deconv", tolerance=3e-6)


def test_groups_and_empty_batches_take_the_operator():
    grouped = model(
        "y = ConvTranspose<group=3>(x, w)",
        "float[1,6,5,5] x",
        "float[1,12,7,7] y",
        {"w": normal(6, 4, 3, 3)},
    )
    check(grouped, {"x": normal(1, 6, 5, 5)}, tactic="numpy.generic", tolerance=3e-6)
    empty = model(
        "y = ConvTranspose(x, w)", "float[N,6,5,5] x", "float[N,4,7,7] y", {"w": normal(6, 4, 3, 3)}
    )
    check(empty, {"x": normal(0, 6, 5, 5)}, {"x": normal(2, 6, 5, 5)}, tactic="numpy.deconv")
