"""A residual Add joins the normalisation of its sum, which it sees unrounded."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from polytool import NativeRunner
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.parser import parse
from polytool.backends.native.passes.fuse_epilogue import fuse_epilogues
from polytool.backends.native.passes.fuse_residual_norm import fuse_residual_norms
from polytool.model import load

RNG = np.random.default_rng(0)
WEIGHTS = {
    "g": RNG.uniform(0.5, 2, 16),
    "b": RNG.standard_normal(16),
    "wide": RNG.uniform(0.5, 2, (5, 16)),
    "one": RNG.standard_normal((5, 16)),
    "m": RNG.standard_normal((16, 16)) / 4,
    "up": RNG.standard_normal((16, 32)) / 4,
    "down": RNG.standard_normal((32, 16)) / 5,
}
TWO = "float[N,5,16] x, float[N,5,16] r"
OUT_LARGE = "float[{0},16] y, float[{0},16] s"
NORM = "s = Add(x, r) y = LayerNormalization(s, g, b)"


def build(body: str, inputs: str = TWO, outputs: str = "float[N,5,16] y", opset: int = 17):
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    for name, value in WEIGHTS.items():
        if any(name in node.input for node in proto.graph.node):
            array = value.astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def feeds_of(proto: onnx.ModelProto, batch: int = 3) -> dict[str, np.ndarray]:
    shapes = {
        i.name: [d.dim_value or batch for d in i.type.tensor_type.shape.dim]
        for i in proto.graph.input
    }
    rng = np.random.default_rng(1)  # the same in whatever order tests run
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def layers_of(proto: onnx.ModelProto, **options):
    """Kinds and nodes of the layers; in fp32 the outputs must be ONNX Runtime's."""
    runner = NativeRunner(proto, device="cpu", **options)
    if not options:
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        feeds = feeds_of(proto)
        for got, expected in zip(
            runner.infer(feeds).values(), session.run(None, feeds), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    return [(x.kind, [n.op for n in x.nodes]) for x in runner.engine.network.layers]


def refusals(proto: onnx.ModelProto) -> list[str]:
    return fuse_residual_norms(parse(load(proto)), BuilderConfig()).refused


FUSED = ("residual_norm", ["Add", "LayerNormalization"])


@pytest.mark.parametrize(
    "norm",
    [
        "LayerNormalization(s, g, b)",
        "LayerNormalization(s, g)",
        "LayerNormalization<axis = 2>(s, g)",
        "LayerNormalization<axis = 1>(s, wide)",
        "LayerNormalization<axis = -2, epsilon = 0.1>(s, wide, one)",
        "SimplifiedLayerNormalization(s, g)",
    ],
)
def test_the_two_are_one_layer(norm):
    proto = build(f"s = Add(x, r) y = {norm}")
    assert layers_of(proto) == [("residual_norm", ["Add", norm.split("(")[0].split("<")[0]])]
    assert not refusals(proto)


def test_rms_normalization_joins():
    proto = build("s = Add(x, r) y = RMSNormalization(s, g)", opset=23)
    runner = NativeRunner(proto, device="cpu")
    feeds = feeds_of(proto)
    assert [x.kind for x in runner.engine.network.layers] == ["residual_norm"]
    total = feeds["x"].astype(np.float64) + feeds["r"]
    expected = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["g"]
    np.testing.assert_allclose(runner.infer(feeds)["y"], expected, rtol=1e-5)


def test_a_written_out_normalisation_joins():
    body = """s = Add(x, r) u = ReduceMean<axes = [-1]>(s) d = Sub(s, u) q = Mul(d, d)
    v = ReduceMean<axes = [-1]>(q) e = Constant<value_float = 0.00001>() w = Add(v, e)
    t = Sqrt(w) n = Div(d, t) k = Mul(n, g) y = Add(k, b)"""
    assert layers_of(build(body)) == [FUSED]


def test_the_product_keeps_its_bias_and_its_activation():
    body = """h = MatMul(x, up) a = Gelu(h) d = MatMul(a, down) k = Add(d, b) s = Add(k, x)
    n = LayerNormalization(s, g, b) z = MatMul(n, m) w = Add(z, b) t = Add(s, w)
    y = LayerNormalization(t, g, b)"""
    proto = build(body, "float[N,5,16] x", opset=20)
    found = [kind for kind, _ in layers_of(proto)]
    assert found == ["gemm", "gemm", "residual_norm", "gemm", "residual_norm"]


def test_layer_scale_stays_with_its_product():
    body = "h = MatMul(x, m) k = Add(h, b) c = Mul(g, k) s = Add(r, c)"
    found = layers_of(build(f"{body} y = LayerNormalization(s, g, b)"))
    assert found == [("gemm", ["MatMul", "Add", "Mul"]), FUSED]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_sum_that_is_read_elsewhere_is_stored(precision):
    proto = build(f"{NORM} z = Neg(s)", outputs="float[N,5,16] y, float[N,5,16] z")
    runner = NativeRunner(proto, precision=precision, device="cpu")
    (layer,) = (x for x in runner.engine.network.layers if x.kind == "residual_norm")
    stored = [t.value_of.tensor for t in layer.outputs if t.value_of is not None]
    assert stored == ["s", "y"]
    feeds = feeds_of(proto)
    exact = NativeRunner(proto, precision="fp64", optimize=False).infer(feeds)
    bound = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}[precision]
    for name, value in runner.infer(feeds).items():
        error = np.linalg.norm(value - exact[name]) / np.linalg.norm(exact[name])
        assert error < bound


def test_a_sum_that_leaves_the_network_is_stored():
    proto = build(NORM, outputs="float[N,5,16] y, float[N,5,16] s")
    assert layers_of(proto) == [FUSED]
    assert [t.tensor for t in NativeRunner(proto, device="cpu").taps()] == ["s", "y"]


def test_a_sum_that_nothing_else_reads_is_not_stored():
    assert [t.tensor for t in NativeRunner(build(NORM), device="cpu").taps()] == ["y"]


def test_of_several_normalisations_of_a_sum_the_first_joins():
    proto = build(
        f"{NORM} z = LayerNormalization(s, b, g)", outputs="float[N,5,16] y, float[N,5,16] z"
    )
    assert layers_of(proto) == [FUSED, ("LayerNormalization", ["LayerNormalization"])]


def test_a_later_reader_of_the_sum_may_stand_in_front_of_the_normalisation():
    proto = build(
        "s = Add(x, r) z = Abs(s) y = LayerNormalization(s, g, b)",
        outputs="float[N,5,16] y, float[N,5,16] z",
    )
    assert layers_of(proto) == [FUSED, ("Abs", ["Abs"])]


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (build(NORM, "float[N,5,16] x, float[1,5,16] r"), "the addends are not surely"),
        (build(NORM, "float[N,5,16] x, float[16] r"), "the addends are not surely"),
        (build(NORM, "float[N,5,16] x, float[M,5,16] r", "float[K,5,16] y"), "the addends are not"),
        (
            build("s = Add(x, one) y = LayerNormalization(s, g, b)", "float[N,5,16] x"),
            "an addend is a constant",
        ),
        (
            build(
                "s = Add(x, r) y, u = LayerNormalization(s, g, b)",
                outputs="float[N,5,16] y, float[N,5,1] u",
            ),
            "the normalisation also returns mean or deviation",
        ),
        (
            build(
                "s = Add(x, r) y = LayerNormalization<axis = 0>(x, s)",
                "float[5,16] x, float[5,16] r",
                "float[5,16] y",
            ),
            "the sum is the scale of the normalisation",
        ),
        (
            build("s = Add(x, r) a = Abs(k) y = LayerNormalization(s, a)", TWO + ", float[16] k"),
            "the scale of the normalisation is computed later",
        ),
    ],
)
def test_what_stays_apart_has_a_reason(proto, reason):
    assert all(len(ops) == 1 for _, ops in layers_of(proto))
    (refusal,) = refusals(proto)
    assert refusal.startswith(f"s: {reason}")


@pytest.mark.parametrize("one", ["op:Add", "op:LayerNormalization"])
def test_two_precisions_stay_apart(one):
    found = layers_of(build(NORM), precision="fp16", layer_precisions={one: "fp32"})
    assert "residual_norm" not in [kind for kind, _ in found]


STREAM = """s = Add(x, r) n = LayerNormalization(s, g, b) p = MatMul(n, m)
    t = Add(p, s) u = LayerNormalization(t, g, b) q = MatMul(u, m)
    v = Add(t, q) w = LayerNormalization(v, g, b)"""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_second_sum_of_a_residual_stream_is_added_up_again(precision):
    proto = build(f"{STREAM} k = MatMul(w, m) y = Add(k, v)")
    runner = NativeRunner(proto, precision=precision, device="cpu")
    norms = [x for x in runner.engine.network.layers if x.kind == "residual_norm"]
    assert [[n.op for n in x.nodes].count("Add") for x in norms] == [1, 2, 1]
    stored = [[t.value_of.tensor for t in x.outputs if t.value_of] for x in norms]
    assert stored == [["n"], ["t", "u"], ["v", "w"]]
    feeds = feeds_of(proto, 50)
    exact = NativeRunner(proto, precision="fp64", optimize=False).infer(feeds)["y"]
    error = np.linalg.norm(runner.infer(feeds)["y"] - exact) / np.linalg.norm(exact)
    plain = NativeRunner(proto, precision=precision, device="cpu", optimize=False)
    rounded = np.linalg.norm(plain.infer(feeds)["y"] - exact) / np.linalg.norm(exact)
    assert error < 5e-7 if precision == "fp32" else error < 0.95 * rounded


@pytest.mark.parametrize(
    ("more", "outputs"),
    [("", "float[N,5,16] w, float[N,5,16] s"), ("z = Neg(s)", "float[N,5,16] w, float[N,5,16] z")],
)
def test_a_sum_of_the_stream_that_something_else_reads_stays_stored(more, outputs):
    proto = build(f"{STREAM} {more}", outputs=outputs)
    norms = [x for kind, x in layers_of(proto) if kind == "residual_norm"]
    assert [ops.count("Add") for ops in norms] == [1, 1, 2]


def test_an_add_of_another_precision_reads_the_stored_sum():
    runner = NativeRunner(
        build(STREAM, outputs="float[N,5,16] w"),
        precision="fp16",
        layer_precisions=dict.fromkeys(("t", "u"), "fp32"),
        device="cpu",
    )
    norms = [x for x in runner.engine.network.layers if x.kind == "residual_norm"]
    assert all(len({n.precision for n in x.nodes if n.sources}) == 1 for x in norms)
    assert [[n.op for n in x.nodes].count("Add") for x in norms] == [1, 1, 1]


@pytest.mark.parametrize("batch", [0, 1, 70, 900])
def test_any_size_is_computed_right(batch):
    proto = build(f"{STREAM} y = Neg(w) z = Neg(t)", outputs="float[N,5,16] y, float[N,5,16] z")
    feeds = {n: RNG.standard_normal((batch, 5, 16)).astype(np.float32) for n in "xr"}
    plain = NativeRunner(proto, device="cpu", optimize=False).infer(feeds)
    for name, value in NativeRunner(proto, device="cpu").infer(feeds).items():
        np.testing.assert_allclose(value, plain[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_cast_of_an_output_joins_and_nothing_is_rounded_before_it(precision):
    proto = build(NORM)
    assert layers_of(proto, precision=precision)[-1] == (
        "residual_norm",
        ["Add", "LayerNormalization", "Cast"],
    )
    for constant in proto.graph.initializer:
        ones = np.ones(constant.dims, np.float32)  # which every grid has
        constant.CopyFrom(onnx.numpy_helper.from_array(ones, constant.name))
    feeds = {n: RNG.integers(-64, 64, (3, 5, 16)).astype(np.float32) / 8 for n in "xr"}
    exact = NativeRunner(proto, precision="fp64", optimize=False).infer(feeds)["y"]
    got = NativeRunner(proto, precision=precision, device="cpu").infer(feeds)["y"]
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_error_is_smaller_than_with_a_rounded_sum(precision):
    proto = build(f"{NORM} z = Neg(s)", outputs="float[N,5,16] y, float[N,5,16] z")
    feeds = feeds_of(proto, 200)
    exact = NativeRunner(proto, precision="fp64", optimize=False).infer(feeds)["y"]

    def error(**options):
        runner = NativeRunner(proto, precision=precision, device="cpu", **options)
        return float(np.linalg.norm(runner.infer(feeds)["y"] - exact))

    assert error() < 0.9 * error(optimize=False)


def test_an_engine_file_keeps_the_layer(tmp_path):
    proto = build(NORM, outputs="float[N,5,16] y, float[N,5,16] s")
    runner, feeds = NativeRunner(proto, precision="fp16", device="cpu"), feeds_of(proto)
    path = tmp_path / "m.engine"
    runner.engine.save(path)
    loaded = NativeRunner(path, device="cpu")
    kinds = [x.kind for x in loaded.engine.network.layers]
    assert kinds == [x.kind for x in runner.engine.network.layers]
    for name, value in runner.infer(feeds).items():
        assert np.array_equal(loaded.infer(feeds)[name], value)


def test_bodies_are_rewritten_too():
    proto = build(
        """y = If (c) <then_branch = t () => (float[N,5,16] o)
        { s = Add(x, r) o = LayerNormalization(s, g, b) },
        else_branch = e () => (float[N,5,16] p) { p = Identity(x) }>""",
        "bool c, " + TWO,
    )
    for name in ("g", "b"):
        array = onnx.numpy_helper.from_array(WEIGHTS[name].astype(np.float32), name)
        if all(i.name != name for i in proto.graph.initializer):
            proto.graph.initializer.append(array)
    network = NativeRunner(proto, device="cpu").engine.network
    assert "residual_norm" in [layer.kind for _, layer in network.walk()]


@pytest.mark.parametrize(("width", "kinds"), [(1 << 18, ["gemm", "LayerNormalization"]),
                                              (1 << 17, ["gemm", "residual_norm"])])  # fmt: skip
def test_a_large_sum_that_is_stored_stays_with_its_product(width, kinds):
    body = "p = MatMul(x, m) q = Add(p, b) s = Add(r, q) y = LayerNormalization(s, g, b)"
    proto = build(body, f"float[{width},16] x, float[{width},16] r", OUT_LARGE.format(width))
    network = parse(load(proto))
    result = fuse_residual_norms(network, BuilderConfig())
    fuse_epilogues(network, BuilderConfig())
    assert [layer.kind for layer in network.layers] == kinds
    assert result.changed == (kinds[1] == "residual_norm")


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, m) s = Add(r, p) y = LayerNormalization(s, g, b)",  # nobody else reads it
        "p = Relu(x) s = Add(r, p) y = LayerNormalization(s, g, b) t = Neg(s)",  # no product
        "p = MatMul(x, m) s = Add(r, p) y = LayerNormalization(s, g, b) t = Add(s, p)",
    ],
)
def test_a_large_sum_joins_its_norm_where_no_product_could_store_it(body):
    outputs = "float[262144,16] y" + (", float[262144,16] t" if "t =" in body else "")
    network = parse(load(build(body, "float[262144,16] x, float[262144,16] r", outputs)))
    assert fuse_residual_norms(network, BuilderConfig()).changed == 1
