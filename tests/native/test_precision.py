"""Lowering to reduced precisions: typed, explicit, by name."""

import json

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.errors import UsageError
from polytool.tensors import DType

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8)).astype(np.float32)
W = RNG.standard_normal((8, 8)).astype(np.float32)


def model(body: str, inputs: str = "float[N,8] x", output: str = "float[N,8] y", **constants):
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => ({output}) {{ {body} }}'
    )
    for name, value in {"w": W, **constants}.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def types(runner: NativeRunner) -> dict[str, DType | None]:
    return {tap.tensor: tap.spec.dtype for tap in runner.taps()}


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_a_layer_computes_in_float32_on_rounded_operands_and_rounds_once(precision, kind):
    y = NativeRunner(model("y = MatMul(x, w)"), precision=precision).infer({"x": X})["y"]
    operands = X.astype(kind).astype(np.float32) @ W.astype(kind).astype(np.float32)
    assert y.dtype == np.float32  # the network's own output type is kept
    step = np.spacing(np.abs(operands).astype(np.float16 if precision == "fp16" else np.float32))
    slack = step.astype(np.float32) if precision == "fp16" else np.abs(operands) * 2**-7
    assert (np.abs(y - operands.astype(kind).astype(np.float32)) <= slack).all()
    assert np.array_equal(y, y.astype(kind).astype(np.float32))


def test_tf32_rounds_the_operands_of_products_only():
    y = NativeRunner(model("y = MatMul(x, w)"), precision="tf32").infer({"x": X})["y"]
    error = np.linalg.norm(y - X @ W) / np.linalg.norm(X @ W)
    assert 5e-5 < error < 1e-3
    added = NativeRunner(model("y = Add(x, x)"), precision="tf32").infer({"x": X})["y"]
    assert np.array_equal(added, X + X)


def test_overflow_gives_infinity_and_subnormals_are_kept():
    runner = NativeRunner(model("y = Mul(x, x)"), precision="fp16")
    x = np.float32([[300, 2**-10, 2**-12, 2**-13, 1, 2, 3, 4]])
    y = runner.infer({"x": x})["y"][0]
    assert np.isinf(y[0]) and y[1] == 2**-20 and y[2] == 2**-24 and y[3] == 0


def test_layer_precisions_match_names_operators_and_wildcards_the_last_one_wins():
    body = "a = MatMul(x, w) b = Tanh(a) c = Sqrt(b) y = Exp(c)"
    runner = NativeRunner(
        model(body),
        precision="fp16",
        layer_precisions={"*": "fp16", "op:Tanh": "fp32", "Sqrt:?": "fp32", "c": "bf16"},
        optimize=False,
    )
    found = types(runner)
    assert found["a"] is DType.FLOAT16 and found["b"] is DType.FLOAT
    assert found["c"] is DType.BFLOAT16 and found["y"] is DType.FLOAT16


def test_an_exact_name_with_brackets_is_no_pattern():
    proto = model("y = Tanh(x)")
    proto.graph.node[0].name = "layer[0]/tanh"
    runner = NativeRunner(proto, precision="fp16", layer_precisions={"layer[0]/tanh": "fp32"})
    assert types(runner)["y"] is DType.FLOAT


def test_a_pattern_that_matches_nothing_is_told():
    runner = NativeRunner(model("y = Tanh(x)"), layer_precisions={"ghost*": "fp16"})
    assert any("ghost*" in note for note in runner.engine.notes)


def test_layer_precisions_come_from_a_file(tmp_path):
    path = tmp_path / "fix.json"
    path.write_text(json.dumps({"layer_precisions": {"op:Tanh": "fp32"}}))
    runner = NativeRunner(model("y = Tanh(x)"), precision="fp16", layer_precisions=path)
    assert types(runner)["y"] is DType.FLOAT
    path.write_text("[]")
    with pytest.raises(UsageError, match="must hold"):
        NativeRunner(model("y = Tanh(x)"), layer_precisions=path)


def test_types_of_the_model_are_honoured():
    body = "d = Cast <to = 11> (x) e = Exp(d) f = Cast <to = 1> (e) y = Neg(f)"
    found = types(NativeRunner(model(body), precision="fp16", optimize=False))
    assert found["e"] is DType.DOUBLE and found["y"] is DType.FLOAT16


def test_shape_arithmetic_stays_exact():
    body = """s = Shape(x) f = Cast <to = 1> (s) g = Mul(f, k) h = Cast <to = 7> (g)
              y = Expand(c, h)"""
    proto = model(body, output="float[P,Q] y", k=np.float32([2049, 1]), c=np.float32([1]))
    y = NativeRunner(proto, precision="fp16").infer({"x": np.zeros((1, 8), np.float32)})["y"]
    assert y.shape == (2049, 8)


def test_asking_for_a_shape_casts_nothing():
    body = "a = Exp(x) s = Shape(a) n = Size(a) b = Neg(a) c = Expand(b, s) y = Pow(c, n)"
    runner = NativeRunner(model(body), precision="fp16", optimize=False)
    nodes = [n for layer in runner.engine.network.layers for n in layer.nodes]
    assert sum(n.op == "Cast" for n in nodes) == 2  # of x and of y
    expected = NativeRunner(model(body), precision="fp64").infer({"x": X / 10})["y"]
    np.testing.assert_allclose(runner.infer({"x": X / 10})["y"], expected, rtol=0.2)


def test_bodies_are_lowered_and_keep_their_interface():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (bool c, float[2] x) => (float[2] y) {
            k = Exp(x)
            y = If (c) <then_branch = t () => (float[2] a) { m = Mul(k, x) a = Tanh(m) },
                        else_branch = e () => (float[2] b) { b = Identity(k) }>
        }"""
    )
    x = np.float32([0.1, 0.7])
    runner = NativeRunner(proto, precision="fp16")
    for branch in (True, False):
        got = runner.infer({"c": np.array(branch), "x": x})["y"]
        want = np.tanh(np.exp(x) * x) if branch else np.exp(x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=2e-3)


def test_constants_beyond_the_type_become_its_largest_number_and_are_told():
    lowest = np.float32(np.finfo(np.float32).min)
    runner = NativeRunner(model("y = Mul(x, k)", k=lowest), precision="bf16")
    y = runner.infer({"x": np.zeros((1, 8), np.float32)})["y"]
    assert not np.isnan(y).any()
    assert any("'k'" in note for note in runner.engine.notes)


@pytest.mark.parametrize("value", ['string[1] {"a"}', "int64[1] {100001}", "double[1] {100001}"])
def test_a_filling_of_another_type_is_left_alone(value):
    proto = model(f"s = Shape(x) f = Exp(x) y = ConstantOfShape<value = {value}>(s)", output="y")
    y = NativeRunner(proto, precision="fp16").infer({"x": X})["y"]
    assert (y == ("a" if "a" in value else 100001)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_quantised_products_stay_exact(precision):
    proto = model(
        "q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, b, z)",
        output="int32[N,8] y",
        b=RNG.integers(-127, 127, (8, 8)).astype(np.int8),
    )
    expected = NativeRunner(proto).infer({"x": X})["y"]
    assert np.array_equal(NativeRunner(proto, precision=precision).infer({"x": X})["y"], expected)


def test_fp64_raises_every_float_type_and_rounds_nothing():
    proto = model("h = Cast <to = 10> (x) e = Exp(h) y = Cast <to = 1> (e)", output="float[N,8] y")
    seen = {}
    runner = NativeRunner(proto, precision="fp64", optimize=False)
    runner.infer({"x": X}, observe=lambda tap, a: seen.setdefault(tap.tensor, a))
    assert seen["e"].dtype == np.float64
    assert np.allclose(seen["e"], np.exp(X.astype(np.float64)), rtol=1e-15)
