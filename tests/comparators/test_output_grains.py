"""Which outputs are made by an operator that rounds at the scale of 1."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from polytool.comparators.compare import compare
from polytool.comparators.tolerances import OfScale
from polytool.output_grains import GRAIN, output_grains


def model(body):
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]>\n'
        f"g (float[2,8] x, bool c, int64 n) => (float[a,b] y) {{ {body} }}"
    )


MADE = [
    "y = Sigmoid(x)",
    "s = Sigmoid(x) y = Transpose(s)",
    "s = Sigmoid(x) t = Sigmoid(s) y = Mul(s, t)",
    "s = Sigmoid(x) t = Clip(s) y = Concat<axis=0>(t, s)",
    "s = Sigmoid(x) y = If(c) < then_branch = t () => (float[a,b] p) { p = Identity(s) },"
    " else_branch = e () => (float[a,b] q) { q = Relu(x) } >",
    "l, y = Loop(n, c, x) < body = b (int64 i, bool k, float[2,8] v)"
    " => (bool k2, float[2,8] v2, float[2,8] o) { k2 = Identity(k) v2 = Relu(v) o = Sigmoid(v) } >",
]
NOT_MADE = [
    "y = Relu(x)",
    "y = Softmax(x)",
    "s = Sigmoid(x) y = Concat<axis=0>(s, x)",
    "s = Sigmoid(x) y = Log(s)",
    "y = Identity(x)",
    "y, l = Loop(n, c, x) < body = b (int64 i, bool k, float[2,8] v)"
    " => (bool k2, float[2,8] v2, float[2,8] o) { k2 = Identity(k) v2 = Relu(v) o = Sigmoid(v) } >",
]


@pytest.mark.parametrize("body", MADE)
def test_values_of_sigmoids_have_a_grain(body):
    assert output_grains(model(body)) == {"y": GRAIN}


@pytest.mark.parametrize("body", NOT_MADE)
def test_other_outputs_have_none(body):
    assert output_grains(model(body)) == {}


def test_a_long_chain_needs_no_recursion():
    chain = "".join(f"t{i + 1} = Identity(t{i}) " for i in range(3000))
    assert output_grains(model(f"t0 = Sigmoid(x) {chain} y = Identity(t3000)"))


@pytest.mark.ort
def test_the_grain_covers_onnxruntime():
    import onnxruntime

    session = onnxruntime.InferenceSession(model("y = Sigmoid(x)").SerializeToString())
    x = np.linspace(-30, 30, 160_000, dtype=np.float32).reshape(2, -1)
    x = np.concatenate([x, -x], 1)[:, : 8 * (x.shape[1] // 8)]
    worst = 0.0
    for part in np.split(x, x.shape[1] // 8, 1)[::50]:
        (y,) = session.run(None, {"x": part, "c": np.array(True), "n": np.array(1)})
        worst = max(worst, np.abs(y - 1 / (1 + np.exp(-part.astype(float)))).max())
    assert worst < GRAIN


def test_the_grain_is_said_where_it_decides():
    x = np.full(64, 1e-6, np.float32)
    found = compare({"y": x + 1e-7}, {"y": x}, grains={"y": GRAIN}).outputs["y"]
    assert found.agreed
    assert found.judgement.tolerance["source"] == "absolute 2.4e-07, as its operator rounds"
    found = compare({"y": x * 1e6}, {"y": x * 1e6}, grains={"y": GRAIN}).outputs["y"]
    assert found.judgement.tolerance["source"] == "floor of float32"


@pytest.mark.parametrize(
    "body",
    ["s = Sigmoid(x) y = Mul(x, s)", "s = Sigmoid(x) p = Mul(s, x) y = Transpose(p)",
     "s = Sigmoid(x) p = Mul(s, x) y = Concat<axis=0>(p, s)", "y = Swish(x)"],
)  # fmt: skip
def test_products_with_sigmoids_have_a_grain_of_their_scale(body):
    (grain,) = output_grains(model(body)).values()
    assert isinstance(grain, OfScale) and grain == GRAIN


def test_a_grain_of_scale_covers_small_values_beside_large_ones_only():
    large, small = np.float32([[4.0, 1e-6]]), np.float32([[1e-6, 1e-6]])
    for values, verdict in ((large, "agree"), (small, "differ")):
        moved = values + np.float32([0, 5e-7])
        found = compare({"y": moved}, {"y": values}, grains={"y": OfScale(GRAIN)})
        assert found.pairs[0].verdict == verdict
