"""What exporters write out becomes one operator again, and only when it is that operator."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((2, 5, 8)) * 3 + 1).astype(np.float32)
WEIGHTS = {
    "w": (1 + 0.1 * RNG.standard_normal(8)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "root2": np.float32(np.sqrt(2)),
    "rpi": np.float32(np.sqrt(2 / np.pi)),
    "k": np.float32(0.044715),
    "eps": np.float32(1e-5),
    "eps8": np.float32(1e-8),  # zero in float16
    "tiny": np.float32(1e-4),
    "last": np.int64([-1]),
    "first": np.int64([1]),
}


def kinds(body: str, output: str = "y", **options) -> list[str]:
    outputs = ", ".join(f"float[N,5,8] {o}" for o in output.split())
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[N,5,8] x) => ({outputs}) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in WEIGHTS.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    fused = NativeRunner(proto, **options)
    expected = NativeRunner(proto, precision="fp64", optimize=False).infer({"x": X})
    tolerance = 1e-5 if not options else 2e-2
    for name, value in fused.infer({"x": X}).items():
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance)
    return [n.op for layer in fused.engine.network.layers for n in layer.nodes if n.op != "Cast"]


CENTRE = "m = ReduceMean(x, last) d = Sub(x, m)"
ROOT = "v = ReduceMean(q, last) e = Add(v, eps) s = Sqrt(e)"


@pytest.mark.parametrize("square", ["q = Pow(d, two)", "q = Mul(d, d)"])
@pytest.mark.parametrize("quotient", ["n = Div(d, s)", "r = Reciprocal(s) n = Mul(d, r)"])
def test_layer_normalization(square, quotient):
    body = f"{CENTRE} {square} {ROOT} {quotient} c = Mul(n, w) y = Add(c, b)"
    assert kinds(body) == ["LayerNormalization"]


@pytest.mark.parametrize("tail", ["y = Mul(w, n)", "c = Mul(n, w) y = Add(c, eps)", "y = Abs(n)"])
def test_layer_normalization_without_a_scale_or_shift(tail):
    body = f"{CENTRE} q = Pow(d, two) {ROOT} n = Div(d, s) {tail}"
    assert kinds(body)[0] == "LayerNormalization"


def test_rms_normalization():
    body = f"q = Mul(x, x) {ROOT} n = Div(x, s) y = Mul(n, w)"
    assert kinds(body) == ["RMSNormalization"]


def test_another_axis_is_not_layer_normalization():
    body = f"m = ReduceMean(x, first) d = Sub(x, m) q = Pow(d, two) {ROOT} y = Div(d, s)"
    assert "LayerNormalization" not in kinds(body)


def test_an_interior_value_that_leaves_keeps_the_pattern_apart():
    body = f"{CENTRE} q = Pow(d, two) {ROOT} n = Div(d, s) y = Mul(n, w)"
    assert "LayerNormalization" not in kinds(body, "y d")


def test_epsilon_survives_lowering_to_float16():
    centre = "z = Mul(x, tiny) m = ReduceMean(z, last) d = Sub(z, m) q = Pow(d, two)"
    root = "v = ReduceMean(q, last) e = Add(v, eps8) s = Sqrt(e)"
    found = kinds(f"{centre} {root} n = Div(d, s) c = Mul(n, w) y = Add(c, b)", precision="fp16")
    assert "LayerNormalization" in found


def test_two_precisions_are_not_fused():
    body = f"{CENTRE} q = Pow(d, two) {ROOT} n = Div(d, s) c = Mul(n, w) y = Add(c, b)"
    found = kinds(body, precision="bf16", layer_precisions={"op:Pow": "fp32"})
    assert "LayerNormalization" not in found and "Pow" in found


@pytest.mark.parametrize(
    "product",
    [
        "a = Mul(x, p) y = Mul(a, half)",
        "a = Mul(p, x) y = Mul(half, a)",
        "a = Mul(x, half) y = Mul(a, p)",
        "a = Mul(half, p) y = Mul(x, a)",
    ],
)
def test_exact_gelu(product):
    assert kinds(f"i = Div(x, root2) f = Erf(i) p = Add(f, one) {product}") == ["Gelu"]


@pytest.mark.parametrize("cube", ["c = Pow(x, three)", "s = Mul(x, x) c = Mul(x, s)"])
def test_tanh_gelu(cube):
    body = f"{cube} k1 = Mul(c, k) t = Add(x, k1) u = Mul(t, rpi) h = Tanh(u) p = Add(h, one)"
    assert kinds(f"{body} a = Mul(x, p) y = Mul(a, half)") == ["Gelu"]


def test_another_constant_is_not_gelu():
    body = "i = Div(x, two) f = Erf(i) p = Add(f, one) a = Mul(x, p) y = Mul(a, half)"
    assert "Gelu" not in kinds(body)


def test_one_operator_names_every_node_it_stands_for():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[2] x) => (float[2] y)
        <float r = {1.4142135}, float one = {1.0}, float half = {0.5}>
        { i = Div(x, r) f = Erf(i) p = Add(f, one) a = Mul(x, p) y = Mul(a, half) }"""
    )
    (tap,) = NativeRunner(proto).taps()
    assert tap.nodes == ("Div:i", "Erf:f", "Add:p", "Mul:a", "Mul:y")
