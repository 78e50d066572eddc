"""A normalisation joins the product that reads it, where both are large and of 16 bits."""

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from polytool import NativeRunner
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.passes import fuse_norm_gemm, fuse_residual_norm
from polytool.backends.native.passes.fuse_norm_gemm import fuse_norm_gemms
from tests.native.test_fuse_residual_norm import feeds_of

RNG = np.random.default_rng(0)
WEIGHTS = {
    "g": RNG.uniform(0.5, 2, 64),
    "b": RNG.standard_normal(64),
    "m": RNG.standard_normal((64, 128)) / 8,
    "other": RNG.standard_normal((64, 128)) / 8,
    "back": RNG.standard_normal((128, 64)) / 11,
    "c": RNG.standard_normal(128),
    "odd": RNG.standard_normal((40, 8)),
    "short": RNG.uniform(0.5, 2, 40),
}
IN, OUT = "float[N,5,64] x", "float[N,5,n] y"
BLOCK = "n = LayerNormalization(x, g, b) h = MatMul(n, m) i = Add(h, c) y = Gelu(i)"


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 0)
    monkeypatch.setattr(fuse_residual_norm, "LARGE", 0)


def build(body: str, inputs: str = IN, outputs: str = OUT):
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for name, value in WEIGHTS.items():
        if any(name in node.input for node in proto.graph.node):
            array = value.astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def kinds(proto, precision="fp16", **options):
    runner = NativeRunner(proto, device="cpu", precision=precision, **options)
    return [x.kind for x in runner.engine.network.layers if x.kind != "Cast"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "norm",
    ["LayerNormalization(x, g, b)", "LayerNormalization<axis = 2>(x, g)", "RMSNormalization(x, g)"],
)
def test_they_are_one_layer(norm, precision):
    assert kinds(build(BLOCK.replace("LayerNormalization(x, g, b)", norm)), precision) == [
        "norm_gemm"
    ]


@pytest.mark.parametrize("product", ["Gemm(n, m, c)", "Gemm<transB = 1>(n, turned, c)"])
def test_a_gemm_with_a_bias_joins(product):
    proto = build(
        f"n = LayerNormalization(x, g, b) y = {product}", "float[N,64] x", "float[N,128] y"
    )
    if "turned" in product:
        array = WEIGHTS["m"].T.astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "turned"))
    assert kinds(proto) == ["norm_gemm"]
    feeds = feeds_of(proto)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    found = NativeRunner(proto, device="cpu", precision="fp16").infer(feeds)["y"]
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_products_of_the_same_rows_have_a_copy_each():
    body = """n = LayerNormalization(x, g, b) p = MatMul(n, m) q = Add(p, c) r = MatMul(n, other)
        y = Concat<axis = 2>(q, r)"""
    proto = build(body)
    assert kinds(proto) == ["norm_gemm", "norm_gemm", "Concat"]
    feeds = feeds_of(proto)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    found = NativeRunner(proto, device="cpu", precision="fp16").infer(feeds)["y"]
    assert np.linalg.norm(found - expected) < 3e-3 * np.linalg.norm(expected)


def test_a_transformer_block_has_two():
    body = """n = LayerNormalization(x, g, b) h = MatMul(n, m) i = Add(h, c) j = Gelu(i)
        k = MatMul(j, back) s = Add(x, k) o = LayerNormalization(s, g, b) p = MatMul(o, m)
        q = Relu(p) r = MatMul(q, back) y = Add(s, r)"""
    assert kinds(build(body)) == ["norm_gemm", "gemm", "norm_gemm", "gemm"]


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_nothing_is_rounded_between_the_two(precision, bits):
    proto = build("n = LayerNormalization(x, g, b) y = MatMul(n, m)")
    grid = np.float16 if precision == "fp16" else ml_dtypes.bfloat16

    def rounded(x):
        return x.astype(grid).astype(np.float64)

    x = RNG.standard_normal((2, 5, 64)).astype(np.float32)
    x, g, b, m = (rounded(v) for v in (x, *(WEIGHTS[n] for n in "gbm")))
    centred = x - x.mean(-1, keepdims=True)
    normalized = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    exact = (normalized * g + b) @ m
    found = NativeRunner(proto, device="cpu", precision=precision).infer({"x": x.astype("f4")})["y"]
    ulp = 2.0 ** (np.floor(np.log2(np.abs(exact))) + 1 - bits)
    assert (np.abs(found - exact) <= ulp * 0.501 + 1e-6).all()


def test_results_stay_those_of_onnxruntime():
    proto = build(BLOCK)
    feeds = feeds_of(proto)
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    for precision, tolerance in (("fp16", 2e-3), ("bf16", 2e-2)):
        found = NativeRunner(proto, device="cpu", precision=precision).infer(feeds)["y"]
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("n = LayerNormalization(x, g, b) y = MatMul(n, m) z = Neg(n)", IN,
         OUT + ", float[N,5,64] z"),
        ("n = LayerNormalization(x, g, b) y = MatMul(n, m)", IN, OUT + ", float[N,5,64] n"),
        ("n = LayerNormalization(x, g, b) y = MatMul(n, w)", IN + ", float[64,8] w", OUT),
        ("n = LayerNormalization(x, s, b) y = MatMul(n, m)", IN + ", float[64] s", OUT),
        ("n = LayerNormalization(x, g, b) h = MatMul(n, m) y = Add(h, r)",
         IN + ", float[N,5,128] r", OUT),
        ("n = LayerNormalization(x, short) y = MatMul(n, odd)", "float[N,5,40] x", OUT),
        ("n, k = LayerNormalization(x, g, b) y = MatMul(n, m) z = Neg(k)", IN,
         OUT + ", float[N,5,1] z"),
    ],
    ids=["read twice", "an output", "weights are computed", "a scale that is computed", "an addend",
         "odd rows", "the mean is read"],
)  # fmt: skip
def test_others_stay_apart(body, inputs, outputs):
    assert "norm_gemm" not in kinds(build(body, inputs, outputs))


def test_two_precisions_stay_apart():
    assert "norm_gemm" not in kinds(build(BLOCK), layer_precisions={"h": "fp32"})
    assert "norm_gemm" not in kinds(build(BLOCK), "fp32")


def test_small_tensors_stay_apart(monkeypatch):
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 1 << 22)
    assert kinds(build(BLOCK)) == ["LayerNormalization", "gemm"]
    runner = NativeRunner(build(BLOCK), device="cpu", precision="fp16")
    reasons = fuse_norm_gemms(runner.engine.network, BuilderConfig()).refused
    assert reasons == ["n: the tensor is small"]
