"""Pooling by blocks of channels equals the operator."""

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(31)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 40, 70, 81), (1, 3, 9, 9), (1, 300, 1, 1200), (0, 4, 9, 9)])
@pytest.mark.parametrize(
    "body",
    [
        "y = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)",
        "y = MaxPool<kernel_shape=[1,4],dilations=[1,2],ceil_mode=1>(x)",
        "y = AveragePool<kernel_shape=[1,3],pads=[0,1,0,1],count_include_pad=1>(x)",
        "y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[1,2]>(x)",
        "y = LpPool<kernel_shape=[1,2]>(x)",
    ],
)
def test_pooling(shape, body):
    kind = f"float[{','.join(map(str, shape))}] x"
    check(model(body, kind, "float[?,?,?,?] y", {}), {"x": normal(*shape)}, tactic="numpy.pooling")


def test_indices_take_the_operator():
    proto = model(
        "y, i = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)",
        "float[1,40,90,90] x",
        "float[?,?,?,?] y, int64[?,?,?,?] i",
        {},
    )
    check(proto, {"x": normal(1, 40, 90, 90)}, tactic="numpy.generic", tolerance=0)


@pytest.mark.parametrize("shape", [(2, 6, 30, 31), (1, 64, 56, 56), (3, 6)])
@pytest.mark.parametrize("tail", ["y = Identity(n)", "y = Relu(n)"])
def test_batch_normalisation_that_no_convolution_took(shape, tail):
    c = shape[1]
    weights = {
        "s": normal(c),
        "b": normal(c),
        "m": normal(c),
        "v": np.abs(normal(c)) + np.float32(0.1),
    }
    kind = f"float[{','.join(map(str, shape))}]"
    proto = model(
        f"n = BatchNormalization(x, s, b, m, v) {tail}", f"{kind} x", f"{kind} y", weights
    )
    check(proto, {"x": normal(*shape)}, tactic="numpy.pointwise", tolerance=4e-6)
