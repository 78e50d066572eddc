"""Pointwise operators join the layer before them, and nothing changes but the number of layers."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
    "b": RNG.standard_normal(4).astype(np.float32),
    "scale": RNG.standard_normal((4, 1, 1)).astype(np.float32),
    "m": RNG.standard_normal((8, 8)).astype(np.float32),
    "v": RNG.standard_normal(8).astype(np.float32),
}


def layers_of(body: str, inputs: str = "float[N,3,8,8] x", output: str = "float[N,4,8,8] y"):
    """The kinds and nodes of the fused layers; fused and unfused results must agree."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{ {body} }}'
    )
    for name, value in WEIGHTS.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = {}
    for info in proto.graph.input:
        dims = [d.dim_value or 2 for d in info.type.tensor_type.shape.dim]
        feeds[info.name] = RNG.standard_normal(dims).astype(np.float32)
    fused, plain = NativeRunner(proto), NativeRunner(proto, optimize=False)
    expected = plain.infer(feeds)
    for name, value in fused.infer(feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-5)
    return [(layer.kind, [n.op for n in layer.nodes]) for layer in fused.engine.network.layers]


CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)"


def test_activation_joins_convolution():
    assert layers_of(f"{CONV} y = Relu(c)") == [("conv", ["Conv", "Relu"])]


def test_silu_branches_and_joins_again():
    found = layers_of(f"{CONV} s = Sigmoid(c) y = Mul(c, s)")
    assert found == [("conv", ["Conv", "Sigmoid", "Mul"])]


def test_residual_of_the_same_shape_joins():
    found = layers_of(f"{CONV} r = Add(c, z) y = Relu(r)", "float[N,3,8,8] x, float[N,4,8,8] z")
    assert found == [("conv", ["Conv", "Add", "Relu"])]


def test_residual_through_a_strided_branch_is_known_to_agree_by_probing():
    found = layers_of(
        "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w)"
        "d = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w, b)"
        " y = Add(a, d)",
        "float[N,3,H,W] x",
        "float[N,4,P,Q] y",
    )
    assert sorted(len(ops) for _, ops in found) == [1, 2]


def test_a_broadcast_that_enlarges_is_refused():
    found = layers_of(
        "c = Conv(x, w) y = Mul(c, z)", "float[N,3,3,3] x, float[N,4,5,5] z", "float[N,4,5,5] y"
    )
    assert [kind for kind, _ in found] == ["conv", "Mul"]


def test_a_tensor_that_leaves_is_stored():
    found = layers_of(f"{CONV} r = Relu(c) y = Neg(r)", output="float[N,4,8,8] y, float[N,4,8,8] r")
    assert [ops for _, ops in found] == [["Conv", "Relu"], ["Neg"]]


def test_gemm_takes_bias_and_gelu():
    found = layers_of(
        "p = MatMul(x, m) q = Add(p, v) y = Gelu(q)", "float[N,5,8] x", "float[N,5,8] y"
    )
    assert found == [("gemm", ["MatMul", "Add", "Gelu"])]


def test_pointwise_chains_are_one_layer():
    found = layers_of("a = Abs(x) c = Sqrt(a) y = Neg(c)", output="float[N,3,8,8] y")
    assert found == [("pointwise", ["Abs", "Sqrt", "Neg"])]


def test_stored_tensors_keep_the_onnx_tensor_that_they_equal():
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2,3] x) => (float[2,3] y)'
        "{ a = Abs(x) c = Sqrt(a) y = Softmax(c) }"
    )
    taps = NativeRunner(proto).taps()
    assert [t.tensor for t in taps] == ["c", "y"]
    assert taps[0].nodes == ("Abs:a", "Sqrt:c")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fusion_does_not_cross_precisions(precision):
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2,3] x) => (float[2,3] y)'
        "{ a = Abs(x) c = Sqrt(a) y = Exp(c) }"
    )
    runner = NativeRunner(proto, precision=precision, layer_precisions={"op:Sqrt": "fp32"})
    for layer in runner.engine.network.layers:
        assert len({n.precision for n in layer.nodes if n.sources}) <= 1
