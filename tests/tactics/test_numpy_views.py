"""Tuned Reshape and its kin, and ScatterElements by rows, equal the operators."""

import numpy as np
import pytest

from polytool import NativeRunner
from tests.tactics.tuned import assert_close, check, model, tactics_of

RNG = np.random.default_rng(17)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Reshape(x, d)", {"d": np.array([0, -1], np.int64)}),
        ("y = Reshape(x, d)", {"d": np.array([-1, 2], np.int64)}),
        ("y = Unsqueeze(x, d)", {"d": np.array([0, -1], np.int64)}),
        ("y = Flatten<axis=2>(x)", {}),
    ],
)
def test_shapes_that_change_from_run_to_run(body, weights):
    proto = model(body, "float[N,M,4] x", "float[] y", weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = [{"x": normal(*s)} for s in ((2, 3, 4), (1, 1, 4), (2, 3, 4), (0, 3, 4), (3, 2, 4))]
    check(proto, *feeds, tactic="numpy.view")


def test_shape_from_an_input():
    proto = model("y = Reshape(x, d)", "int64[R] d, float[N,M] x", "float[] y", {})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = [
        {"x": normal(4, 6), "d": np.array(d, np.int64)}
        for d in ([24], [3, 8], [0, 2, 3], [24], [2, -1])
    ]
    check(proto, *feeds, tactic="numpy.view")


def scatter(reduction):
    return model(
        f'y = ScatterElements<axis=0, reduction="{reduction}">(x, i, u)',
        "float[N,M] x, int64[K,L] i, float[K,L] u",
        "float[N,M] y",
        {},
    )


@pytest.mark.parametrize("reduction", ["add", "max", "min"])
@pytest.mark.parametrize("kind", ["rows", "negative", "mixed", "narrow", "none"])
def test_scatter(reduction, kind):
    rows, width = (0, 12) if kind == "none" else (40, 12)
    columns = 5 if kind == "narrow" else width
    index = RNG.integers(-9 if kind == "negative" else 0, 9, (rows, 1))
    index = np.broadcast_to(index, (rows, columns)).astype(np.int64)
    if kind == "mixed":
        index = RNG.integers(0, 9, (rows, columns))
    feeds = {"x": normal(9, width), "i": index, "u": normal(rows, columns)}
    check(scatter(reduction), feeds, tactic="numpy.scatter")


def test_index_out_of_range_is_an_error_as_in_the_operator():
    feeds = {"x": normal(3, 4), "i": np.full((2, 4), 3), "u": normal(2, 4)}
    with NativeRunner(scatter("add")) as runner:
        with pytest.raises(Exception, match=r"(?i)index|bounds"):
            runner.infer(feeds)
        feeds["i"] = np.full((2, 4), 2)
        expected = feeds["x"].copy()
        expected[2] += feeds["u"].sum(axis=0)
        assert tactics_of(runner) == ["numpy.scatter"]
        assert_close(runner.infer(feeds)["y"], expected, 1e-6)
