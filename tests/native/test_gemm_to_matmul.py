"""A Gemm between Reshapes takes part in fusion as a MatMul, and only where it is one."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner, OnnxrtRunner
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.parser import parse
from polytool.backends.native.passes.gemm_to_matmul import gemm_to_matmul
from polytool.model import load
from scripts import made_models

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 12)).astype(np.float32),
    "wt": RNG.standard_normal((12, 8)).astype(np.float32),
    "b": RNG.standard_normal(12).astype(np.float32),
    "row": RNG.standard_normal((1, 12)).astype(np.float32),
    "one": RNG.standard_normal((1,)).astype(np.float32),
    "many": RNG.standard_normal((10, 12)).astype(np.float32),
    "column": RNG.standard_normal((10, 1)).astype(np.float32),
    "rows": np.int64([-1, 8]),
    "s": np.int64([2, 5, 12]),
    "open": np.int64([-1, 5, 12]),
    "end": np.int64([2, 5, -1]),
    "other": np.int64([5, 2, 12]),
    "four": np.int64([2, 5, 3, 4]),
    "zero": np.int64([0]),
    "n12": np.int64([12]),
}
FLAT = "f = Reshape(x, rows) g = Gemm(f, w, b)"


def model(body: str, x: str = "float[2,5,8] x", y: str = "float[2,5,12] y") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({x}) => ({y}) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in WEIGHTS.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def layers_of(proto: onnx.ModelProto, shape=(2, 5, 8), **options) -> list[list[str]]:
    """The nodes of the layers on the device; the results must be those of ONNX Runtime."""
    feeds = {"x": RNG.standard_normal(shape).astype(np.float32)}
    if len(proto.graph.input) > 1:
        feeds["z"] = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    with NativeRunner(proto, **options) as native, OnnxrtRunner(proto) as reference:
        expected = reference.infer(feeds)
        tolerance = 1e-5 if not options else 2e-2
        for name, value in native.infer(feeds).items():
            assert value.shape == expected[name].shape
            np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance)
        layers = native.engine.network.layers
        return [[n.op for n in x.nodes] for x in layers if x.outputs[0].place != "host"]


@pytest.mark.parametrize("shape", ["s", "open", "end"])
@pytest.mark.parametrize("added", ["b", "row", "one"])
def test_restored_dimensions_make_it_a_matmul(shape, added):
    body = f"f = Reshape(x, rows) g = Gemm(f, w, {added}) r = Reshape(g, {shape}) y = Relu(r)"
    assert layers_of(model(body)) == [["MatMul", "Add", "Relu"]]


def test_without_anything_added():
    body = "f = Reshape(x, rows) g = Gemm(f, w) y = Reshape(g, s)"
    assert layers_of(model(body)) == [["MatMul"]]


def test_weights_with_their_columns_first():
    body = "f = Reshape(x, rows) g = Gemm<transB=1>(f, wt, b) r = Reshape(g, s) y = Tanh(r)"
    assert layers_of(model(body)) == [["FusedMatMul", "Add", "Tanh"]]


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"precision": "bf16"}])
def test_a_residual_joins(options):
    proto = model(f"{FLAT} r = Reshape(g, s) y = Add(z, r)", "float[2,5,8] x, float[2,5,12] z")
    found = [ops for ops in layers_of(proto, **options) if ops != ["Cast"]]
    assert found == [["MatMul", "Add", "Add"]]


def test_leading_dimensions_that_were_never_there_are_made_before_the_product():
    proto = model("g = Gemm(x, w, b) r = Reshape(g, s) y = Relu(r)", "float[10,8] x")
    assert layers_of(proto, (10, 8)) == [["Reshape"], ["MatMul", "Add", "Relu"]]


def test_other_leading_dimensions_are_made_before_the_product():
    proto = model("f = Reshape(x, rows) g = Gemm(f, w, b) r = Reshape(g, other) y = Relu(r)",
                  y="float[5,2,12] y")  # fmt: skip
    assert layers_of(proto) == [["Reshape"], ["Reshape"], ["MatMul", "Add", "Relu"]]


def test_products_of_the_same_rows_share_them():
    proto = model("g = Gemm(x, w, b) r = Reshape(g, s) p = Relu(r) "
                  "h = Gemm(x, w) q = Reshape(h, s) t = Tanh(q) y = Add(p, t)",
                  "float[10,8] x")  # fmt: skip
    assert [ops for ops in layers_of(proto, (10, 8)) if ops == ["Reshape"]] == [["Reshape"]]


SIZES = "t = Shape(x) n = Gather(t, zero) m = Shape<start=1, end=2>(x)"


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 3, 8), (7, 1, 8)])
def test_dimensions_that_are_open(shape):
    body = f"{SIZES} {FLAT} d = Concat<axis=0>(n, m, n12) r = Reshape(g, d) y = Relu(r)"
    proto = model(body, "float[N,S,8] x", "float[N,S,12] y")
    assert layers_of(proto, shape) == [["MatMul", "Add", "Relu"]]


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 3, 8)])
def test_dimensions_that_are_open_and_exchanged(shape):
    body = f"{SIZES} {FLAT} d = Concat<axis=0>(m, n, n12) r = Reshape(g, d) y = Relu(r)"
    proto = model(body, "float[N,S,8] x", "float[S,N,12] y")
    assert layers_of(proto, shape)[-1] == ["MatMul", "Add", "Relu"]


@pytest.mark.parametrize(
    ("body", "y", "reason"),
    [
        (f"{FLAT} r = Reshape(g, four) y = Relu(r)", "float[2,5,3,4] y", "last dimension"),
        (f"{FLAT} r = Reshape(g, s) y = Relu(r)", "float[2,5,12] y, float[10,12] g", "elsewhere"),
        (f"{FLAT} r = Reshape(g, s) a = Abs(g) q = Reshape(a, s) y = Mul(r, q)", None, "elsewhere"),
        ("f = Reshape(x, rows) g = Gemm(f, w, many) r = Reshape(g, s) y = Relu(r)", None, "rows"),
        ("f = Reshape(x, rows) g = Gemm(f, w, column) r = Reshape(g, s) y = Relu(r)", None, "rows"),
        ("f = Reshape(x, rows) g = Gemm<alpha=2.0>(f, w, b) r = Reshape(g, s) y = Relu(r)", None,
         "scales"),
        ("f = Reshape(x, rows) g = Gemm<beta=0.5>(f, w, b) r = Reshape(g, s) y = Relu(r)", None,
         "scales"),
        ("f = Reshape(x, rows) t = Transpose(f) u = Exp(t) g = Gemm<transA=1>(u, w, b) "
         "r = Reshape(g, s) y = Relu(r)", None, "transposes"),
        (f"{FLAT} y = Reshape(g, other)", "float[5,2,12] y", "nothing gains"),
    ],
)  # fmt: skip
def test_what_must_stay_a_gemm(body, y, reason):
    proto = model(body, y=y or "float[2,5,12] y")
    network = parse(load(onnx.shape_inference.infer_shapes(proto, data_prop=True)))
    result = gemm_to_matmul(network, BuilderConfig())
    assert result.changed == 0
    (refusal,) = result.refused
    assert reason in refusal
    assert ["Gemm"] in [ops[:1] for ops in layers_of(proto)]


def test_an_entry_that_copies_the_size_which_changes():
    """Of a Gemm's result, the second 0 in a shape stands for the columns; before it, for depth."""
    proto = model("g = Gemm(x, w, b) r = Reshape(g, copy) y = Relu(r)", "float[12,8] x",
                  "float[1,12,12] y")  # fmt: skip
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([1, 0, 12]), "copy"))
    assert layers_of(proto, (12, 8))[0][0] == "Gemm"


def test_whole_numbers_stay():
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (int32[2,5,8] x) => (int32[2,5,12] y) '
        "<int64[2] rows = {-1, 8}, int64[3] s = {2, 5, 12}> "
        "{ w = ConstantOfShape<value=int32[1] {3}>(k) f = Reshape(x, rows) g = Gemm(f, w) "
        "r = Reshape(g, s) y = Neg(r) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([8, 12]), "k"))
    x = np.arange(80, dtype=np.int32).reshape(2, 5, 8)
    with NativeRunner(proto) as runner:
        assert "Gemm" in {n.op for layer in runner.engine.network.layers for n in layer.nodes}
        np.testing.assert_array_equal(
            runner.infer({"x": x})["y"],
            np.broadcast_to(-3 * x.sum(-1, keepdims=True), (2, 5, 12)),
        )


def test_the_precision_of_a_gemm_is_still_given_by_its_name():
    proto = model(f"{FLAT} r = Reshape(g, s) y = Relu(r)")
    with NativeRunner(proto, precision="fp16", layer_precisions={"op:Gemm": "fp32"}) as runner:
        product = next(
            n for x in runner.engine.network.layers for n in x.nodes if n.op in ("Gemm", "MatMul")
        )
    assert product.precision == "fp32"


def test_stored_tensors_equal_those_of_the_model():
    proto = made_models.gpt2(sizes=(2, 8))
    feeds = {"ids": RNG.integers(0, 100, (2, 8))}
    seen: dict[str, np.ndarray] = {}
    with NativeRunner(proto) as runner:
        runner.infer(feeds, observe=lambda tap, array: seen.setdefault(tap.tensor, array))
        products = [x.origin for x in runner.engine.network.layers if x.kind == "gemm"]
    gemms = [n.name for n in proto.graph.node if n.op_type == "Gemm"]
    assert [[name for name in origin if "Gemm" in name] for origin in products] == [
        [name] for name in gemms
    ]
    names = [name for name in seen if name not in ("ids", "y")]
    assert len(names) > 30
    marked = onnx.shape_inference.infer_shapes(proto)
    known = {info.name: info for info in marked.graph.value_info}
    marked.graph.output.extend(known[name] for name in names)
    with OnnxrtRunner(marked) as reference:
        expected = reference.infer(feeds)
    for name in names:
        np.testing.assert_allclose(seen[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def _first(layers):
    return next(layer for layer in layers if layer.kind == "gemm")


@pytest.mark.parametrize("sizes", [(2, 8), ("batch", "sequence")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_layers_of_gpt2(sizes, precision):
    proto = made_models.gpt2(sizes=sizes)
    with NativeRunner(proto, precision=precision) as runner, OnnxrtRunner(proto) as reference:
        layers = runner.engine.network.layers
        products = [[n.op for n in x.nodes] for x in layers if x.kind == "gemm"]
        linear = ["MatMul", "Add"]
        assert products == [linear, linear, [*linear, "Gelu"], linear] * 2
        assert sum(x.kind == "residual_norm" for x in layers) == 4
        assert not any(x.kind in ("Gelu", "Add") for x in layers[layers.index(_first(layers)) :])
        for shape in [(2, 8)] if sizes == (2, 8) else [(2, 8), (1, 13), (3, 1)]:
            feeds = {"ids": RNG.integers(0, 100, shape)}
            found, expected = runner.infer(feeds)["y"], reference.infer(feeds)["y"]
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < (1e-6 if precision == "fp32" else 2e-3)
