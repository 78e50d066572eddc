"""Tuned normalisations, Softmax and global averages equal the operators in float64."""

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(13)
SHAPES = [(3, 5, 40), (2, 700, 333), (1, 1, 1), (4, 1, 6625), (0, 3, 7)]


def normal(*shape):
    return (3 * RNG.standard_normal(shape) + 1).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "body",
    [
        "y = LayerNormalization(x, s, b)",
        "y = LayerNormalization<epsilon=0.01>(x, s)",
        "y = SimplifiedLayerNormalization(x, s)",
    ],
)
def test_normalisation(shape, body):
    weights = {"s": normal(shape[-1])}
    if " b)" in body:
        weights["b"] = normal(shape[-1])
    kind = f"float[{','.join(map(str, shape))}]"
    tactic = "numpy.normalize"
    check(model(body, f"{kind} x", f"{kind} y", weights), {"x": normal(*shape)}, tactic=tactic)


def test_normalisation_over_several_axes():
    weights = {"s": normal(5, 8), "b": normal(5, 8)}
    body = "y = LayerNormalization<axis=-2>(x, s, b)"
    proto = model(body, "float[3,5,8] x", "float[3,5,8] y", weights)
    check(proto, {"x": normal(3, 5, 8)}, tactic="numpy.normalize")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", ["x, z, s", "x, z, s, b", "x, z, s, b, v"])
def test_skip_normalisation(shape, given):
    weights = {n: normal(shape[-1]) for n in ("s", "b", "v") if f" {n}" in given}
    kind = f"float[{','.join(map(str, shape))}]"
    body = f"y = com.microsoft.SkipLayerNormalization({given})"
    proto = model(body, f"{kind} x, {kind} z", f"{kind} y", weights)
    feeds = {"x": normal(*shape), "z": normal(*shape)}
    if shape[-1] == 1:  # the deviation of one number is zero: all that is left is rounding
        feeds = {name: np.ones(shape, np.float32) for name in feeds}
    check(proto, feeds, tactic="numpy.skip_normalize", tolerance=4e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [-1, 2, 1])
def test_softmax(shape, axis):
    kind = f"float[{','.join(map(str, shape))}]"
    proto = model(f"y = Softmax<axis={axis}>(x)", f"{kind} x", f"{kind} y", {})
    check(proto, {"x": normal(*shape)}, tactic="numpy.softmax", tolerance=3e-6)


def test_softmax_of_masked_rows():
    x = normal(2, 3, 8)
    x[0, 1, 3:] = -np.inf
    x[1, 2] = -np.inf
    proto = model("y = Softmax(x)", "float[2,3,8] x", "float[2,3,8] y", {})
    check(proto, {"x": x}, tactic="numpy.softmax")


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 64, 160, 120), (3, 4, 11), (1, 2, 3, 4, 5)])
def test_global_average(shape):
    kind = f"float[{','.join(map(str, shape))}]"
    out = f"float[{','.join('?' * len(shape))}] y"
    proto = model("y = GlobalAveragePool(x)", f"{kind} x", out, {})
    check(proto, {"x": normal(*shape)}, tactic="numpy.global_average")
