"""What random graphs found, kept as cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import polytool
from tests.property.agreement import agree

pytestmark = pytest.mark.ort
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')


@pytest.mark.parametrize(("shape", "dims"), [((), ""), ((1,), "[1]"), ((1,), "[M]")])
def test_a_mask_that_broadcasts_over_the_keys(shape: tuple[int, ...], dims: str) -> None:
    """Attention reads a mask that ends before the last key as -inf from there on."""
    graph = f"""g (float[2,3,4,5] q, float[2,3,5,6] k, float[2,3,6,4] v, float{dims} m)
        => (float[2,3,4,4] y)
        {{ s = MatMul(q, k) a = Add(s, m) p = Softmax(a) y = MatMul(p, v) }}"""
    feeds = {"q": normal(2, 3, 4, 5), "k": normal(2, 3, 5, 6), "v": normal(2, 3, 6, 4)}
    assert agree(model(graph), feeds | {"m": normal(*shape)})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sequences_keep_their_type_in_reduced_precision(precision: str) -> None:
    graph = "g (float[3] x) => (seq(float[3]) s) { y = Exp(x) s = SequenceConstruct(y, x) }"
    x = normal(3)
    with polytool.runner("native", model(graph), precision=precision) as runner:
        first, second = runner.infer({"x": x})["s"]
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_allclose(first, np.exp(x), 1e-2)
    np.testing.assert_array_equal(second, x)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_read_in_float32_before_a_body_captures_it(precision: str) -> None:
    """The body found nothing where the tensor was to be in float32 again."""
    graph = """g (float[3] x, bool c) => (float[3] y, float[3] v) {
        h = Relu(x)
        v = Loop(n, , h) <body = b (int64 i, bool go, float[3] a) => (bool on, float[3] r) {
            on = Identity(go) r = Neg(a) }>
        y = If(c) <then_branch = t () => (float[3] p) { p = Mul(h, h) },
                   else_branch = e () => (float[3] q) { q = Neg(h) }>
    }"""
    proto = model(graph)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "n"))
    x = normal(3)
    with polytool.runner("native", proto, precision=precision, optimize=False) as runner:
        y = runner.infer({"x": x, "c": np.array(True)})["y"]
    np.testing.assert_allclose(y, np.maximum(x, 0) ** 2, 2e-2)


def test_an_input_of_unknown_rank_takes_any() -> None:
    proto = model("g (float[3] x) => (float[3] y) { y = Neg(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with polytool.runner("native", proto) as runner:
        assert runner.infer({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization"])
@pytest.mark.parametrize("optimize", [True, False])
def test_equal_values_are_normalised_to_zero(op: str, optimize: bool) -> None:
    """The rounding of their mean was left, divided by the root of epsilon."""
    weights = "w" if op == "LayerNormalization" else "v, z"
    graph = f"""g (float[8,4,771] x) => (float[8,4,771] y)
        <float[4] v = {{1, 1, 1, 1}}, float[4] z = {{0, 0, 0, 0}}>
        {{ y = {op} <epsilon: float = 1e-5> (x, {weights}) }}"""
    proto = model(graph)
    ones = onnx.numpy_helper.from_array(np.ones(771, np.float32), "w")
    proto.graph.initializer.append(ones)
    x = np.broadcast_to(10 * normal(8, 4, 1), (8, 4, 771))
    with polytool.runner("native", proto, optimize=optimize) as runner:
        y = runner.infer({"x": np.ascontiguousarray(x)})["y"]
    assert np.abs(y).max() < 1e-6
