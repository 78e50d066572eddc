"""Of what only one row is read only that row is computed, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner, OnnxrtRunner
from polytool.agreement import Request, perform
from scripts import made_models

pytestmark = pytest.mark.ort

RNG = np.random.default_rng(0)
W = {name: RNG.standard_normal((8, 8)).astype(np.float32) / 3 for name in ("wq", "wk", "wv", "wo")}
W |= {
    "up": RNG.standard_normal((8, 16)).astype(np.float32) / 3,
    "ub": RNG.standard_normal(16).astype(np.float32),
    "down": RNG.standard_normal((16, 8)).astype(np.float32) / 3,
    "head": RNG.standard_normal((3, 8)).astype(np.float32),
    "places": RNG.standard_normal((5, 8)).astype(np.float32),
    "column": RNG.standard_normal((1, 5, 1)).astype(np.float32),
    "s": 1 + RNG.standard_normal(8).astype(np.float32) / 9,
    "b": RNG.standard_normal(8).astype(np.float32) / 9,
    "five": 1 + RNG.standard_normal((5, 8)).astype(np.float32) / 9,
    "scale": np.float32(0.05),
    "scale0": np.int8(3),
    "many": np.float32([0.05, 0.04, 0.06, 0.05, 0.03]),
    "many0": np.zeros(5, np.int8),
    "packed": RNG.integers(0, 256, (4, 1, 8)).astype(np.uint8),
    "scales": np.float32([0.1, 0.2, 0.3, 0.4]),
    "flat": np.int64([-1, 40]),
    "back": np.int64([-1, 5, 8]),
    "heads": np.int64([0, 5, 2, 4]),
    "merged": np.int64([0, 0, 8]),
    "first": np.int64(0),
    "last": np.int64(-1),
    "fourth": np.int64(4),
    "third": np.int64(3),
    "one_first": np.int64([0]),
    "zero": np.int64([0]),
    "one": np.int64([1]),
    "minus": np.int64([-1]),
    "end": np.int64([np.iinfo(np.int64).max]),
}
ATTEND = """n = LayerNormalization<axis=-1>(x, s, b)
    q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) kt = Transpose<perm=[0, 2, 1]>(k)
    sc = MatMul(q, kt) p = Softmax<axis=-1>(sc) m = MatMul(p, v) o = MatMul(m, wo) r = Add(x, o)"""
FEED = """h = LayerNormalization<axis=-1>(r, s, b) u = MatMul(h, up) ub1 = Add(u, ub)
    g = Tanh(ub1) d = MatMul(g, down) r2 = Add(r, d) f = LayerNormalization<axis=-1>(r2, s, b)"""
GATHER = "c = Gather<axis=1>(f, first)"
HEAD = "y = Gemm<transB=1>(c, head)"
SMALLER = {"q", "sc", "p", "m", "o", "r", "h", "u", "ub1", "g", "d", "r2", "f"}


def model(body: str, y: str = "float[N,3] y", x: str = "float[N,5,8] x") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]> '
        f"g ({x}) => ({y}) {{ {body} }}"
    )
    used = {name for node in proto.graph.node for name in node.input}
    for attribute in (a for node in proto.graph.node for a in node.attribute):
        used |= {name for node in attribute.g.node for name in node.input}
    for name, value in W.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def feeds_of(proto: onnx.ModelProto, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((batch, 5, 8)).astype(np.float32)}
    return feeds | ({"go": np.bool_(True)} if len(proto.graph.input) > 1 else {})


def rows(proto: onnx.ModelProto, batch: int = 2, **options) -> set[str]:
    """The tensors that are computed for one row only; the results must be ONNX Runtime's."""
    feeds = feeds_of(proto, batch)
    with NativeRunner(proto, device="cpu", **options) as native, OnnxrtRunner(proto) as reference:
        expected = reference.infer(feeds)
        tolerance = 1e-5 if not options else 3e-2
        for name, value in native.infer(feeds).items():
            assert value.shape == expected[name].shape
            np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance)
        network = native.engine.network
    return {
        t.value_of.tensor
        for g in (network, *network.bodies()) for layer in g.layers for n in layer.nodes
        for t in n.writes() if n.sources and t.name.endswith(":row")
    }  # fmt: skip


SELECTIONS = {
    "a scalar": GATHER,
    "the last": "c = Gather<axis=-2>(f, last)",
    "the last, counted from the first": "c = Gather<axis=1>(f, fourth)",
    "a vector": "c1 = Gather<axis=1>(f, one_first) c = Squeeze(c1, one)",
    "a slice": "c1 = Slice(f, zero, one, one) c = Squeeze(c1, one)",
    "the last as a slice": "c1 = Slice(f, minus, end, one, one) c = Squeeze(c1, one)",
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_only_the_row_that_is_read_is_computed(selection, batch):
    assert rows(model(f"{ATTEND} {FEED} {SELECTIONS[selection]} {HEAD}"), batch) == SMALLER


def test_a_selection_may_be_the_output():
    proto = model(f"{ATTEND} {FEED} y = Slice(f, zero, one, one)", "float[N,1,8] y")
    assert rows(proto) == SMALLER


def test_shapes_have_one_row_and_what_is_needed_whole_has_all():
    runner = NativeRunner(model(f"{ATTEND} {FEED} {GATHER} {HEAD}"), device="cpu")
    shapes = {tap.tensor: tap.spec.shape[1] for tap in runner.taps() if tap.tensor not in "cy"}
    assert {shapes[n] for n in ("n", "v")} == {5} and {shapes[n] for n in ("q", "o", "f")} == {1}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_do_not_change_what_is_computed(precision):
    body = f"{ATTEND} {FEED} {GATHER} {HEAD}"
    assert rows(model(body), precision=precision) == SMALLER
    with_all = model(f"{body} all = Identity(f)", "float[N,3] y, float[N,5,8] all")
    feeds = feeds_of(with_all)
    few, all_ = (
        NativeRunner(m, device="cpu", precision=precision).infer(feeds)["y"]
        for m in (model(body), with_all)
    )
    np.testing.assert_allclose(few, all_, rtol=1e-2, atol=1e-2)


THROUGH = {
    "positions": "a = Add(x, places) f = MatMul(a, wq)",
    "a column": "a = Mul(column, x) f = MatMul(a, wq)",
    "heads split and merged": "a = Reshape(x, heads) t = Transpose<perm=[0,2,1,3]>(a) "
    "u = Sqrt(t) w = Transpose<perm=[0,2,1,3]>(u) z = Reshape(w, merged) f = MatMul(z, wq)",
    "unsqueezed": "a = Unsqueeze(x, zero) m = MatMul(a, wq) f = Squeeze(m, zero)",
    "joined": "m = MatMul(x, wq) f = Concat<axis=-1>(m, x)",
    "cut": "m = MatMul(x, up) f = Slice(m, zero, one, minus)",
}


@pytest.mark.parametrize("case", THROUGH)
def test_it_moves_through(case):
    proto = model(f"{THROUGH[case]} y = Gather<axis=1>(f, last)", "float y")
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    made = {node.output[0] for node in proto.graph.node if node.op_type == "MatMul"}
    assert made <= rows(proto)


@pytest.mark.parametrize("leaving", ["c", "c2"])
def test_it_moves_through_fused_operators_of_onnxruntime(leaving):
    """Both the normalised sum and the sum itself are read."""
    proto = model(f"""q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        m = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)
        f, f1, f2, t = com.microsoft.SkipLayerNormalization(m, x, s, b)
        o = MatMul(f, wo)
        f3, f4, f5, t2 = com.microsoft.SkipLayerNormalization(o, t, s, b)
        c = Gather<axis=1>(f3, first) c2 = Gather<axis=1>(t2, first)
        y = Gemm<transB=1>({leaving}, head)""")
    assert rows(proto) >= {"q", "m", "f", "t", "o", "f3", "t2"}


def test_it_moves_through_a_gate_that_is_split_off():
    proto = model("""u = MatMul(x, up) a, g = Split<axis=-1>(u) e = Sigmoid(g) f = Mul(a, e)
        c = Gather<axis=1>(f, first) y = Gemm<transB=1>(c, head)""")
    assert rows(proto) == {"u", "a", "g", "e", "f"}


@pytest.mark.parametrize("scale", ["scale", "many"])
def test_it_moves_through_quantisation_with_one_scale(scale):
    proto = model(f"""m = MatMul(x, wq) i = QuantizeLinear<axis=1>(m, {scale}, {scale}0)
        d = DequantizeLinear<axis=1>(i, {scale}, {scale}0) f = MatMul(d, wk)
        c = Gather<axis=1>(f, first) y = Gemm<transB=1>(c, head)""")
    assert rows(proto) == ({"m", "i", "d", "f"} if scale == "scale" else {"f"})


def test_it_moves_through_weights_of_four_bits():
    proto = model("""f = com.microsoft.MatMulNBits<K=8, N=4, bits=4, block_size=16>(
            x, packed, scales)
        y = Gather<axis=1>(f, last)""", "float[N,4] y")  # fmt: skip
    assert rows(proto) == {"f"}


KEPT = {
    "another element": f"{ATTEND} {FEED} c = Gather<axis=1>(f, third) {HEAD}",
    "positions that a Concat moves": f"{ATTEND} f = Concat<axis=1>(r, x) {GATHER} {HEAD}",
    "rows that a norm mixes": f"{ATTEND} f = LayerNormalization<axis=1>(r, five) {GATHER} {HEAD}",
    "rows that a softmax mixes": f"{ATTEND} f = Softmax<axis=1>(r) {GATHER} {HEAD}",
    "rows that a shape mixes": f"{ATTEND} a = Reshape(r, flat) f0 = Relu(a) "
    f"f = Reshape(f0, back) {GATHER} {HEAD}",
    "no product": f"f = Relu(x) {GATHER} {HEAD}",
}


@pytest.mark.parametrize("case", KEPT)
def test_all_rows_are_computed_where_they_are_needed(case):
    assert not rows(model(KEPT[case]))


def test_what_something_else_reads_stays_whole():
    proto = model(f"{ATTEND} {FEED} {GATHER} {HEAD} z = ReduceMean<axes=[1]>(r2)",
                  "float[N,3] y, float[N,1,8] z")  # fmt: skip
    assert not rows(proto)


def test_an_output_stays_whole():
    proto = model(f"{ATTEND} {FEED} {GATHER} {HEAD}", "float[N,3] y, float[N,5,8] r")
    assert rows(proto) == {"h", "u", "ub1", "g", "d", "r2", "f"}


def test_two_selections_of_one_row_share_it_and_of_two_rows_do_not():
    twice = "c = Gather<axis=1>(f, first) e = Gather<axis=1>(f, first) t = Add(c, e)"
    proto = model(f"{ATTEND} {FEED} {twice} y = Gemm<transB=1>(t, head)")
    assert rows(proto) == SMALLER
    proto = model(
        f"{ATTEND} {FEED} {twice.replace('first', 'last', 1)} y = Gemm<transB=1>(t, head)"
    )
    assert not rows(proto)


CAUSAL = """<ir_version: 10, opset_import: ["" : 23]> g (float[N,2,5,4] x) => (float[N,2,4] y) {
    q = Relu(x) a = Attention<is_causal=CAUSAL>(q, x, x)
    zero = Constant<value = int64 {0}>() y = Gather<axis=2>(a, zero) }"""


@pytest.mark.parametrize("causal", [0, 1])
def test_causal_attention_keeps_its_positions(causal):
    proto = onnx.parser.parse_model(CAUSAL.replace("CAUSAL", str(causal)))
    x = RNG.standard_normal((2, 2, 5, 4)).astype(np.float32)
    with NativeRunner(proto, device="cpu") as few:
        plain = NativeRunner(proto, device="cpu", optimize=False).infer({"x": x})["y"]
        np.testing.assert_allclose(few.infer({"x": x})["y"], plain, rtol=1e-5, atol=1e-6)
        taps = {tap.tensor: tap.rows for tap in few.taps()}
    assert taps["a"] == (() if causal else ((2, 0),))


def test_bodies_too():
    body = f"{ATTEND} {FEED} {GATHER} {HEAD}".replace("y =", "t =")
    other = "w = Gather<axis=1>(x, first) e = Gemm<transB=1>(w, head)"
    proto = model(
        f"""y = If (go) <then_branch = a () => (float[N,3] t) {{ {body} }},
        else_branch = o () => (float[N,3] e) {{ {other} }}>""",
        x="float[N,5,8] x, bool go",
    )
    assert {name.rsplit("/", 1)[-1] for name in rows(proto)} == SMALLER


def test_an_engine_file_keeps_it(tmp_path):
    proto = made_models.vit(2, 64, 4, 32, 8, 10)
    feeds = {"x": RNG.standard_normal((3, 3, 32, 32)).astype(np.float32)}
    built = NativeRunner(proto, device="cpu")
    built.engine.save(tmp_path / "m.engine")
    loaded = NativeRunner(tmp_path / "m.engine", device="cpu")
    assert loaded.taps() == built.taps() and any(tap.rows for tap in loaded.taps())
    with built, loaded, OnnxrtRunner(proto) as reference:
        expected = reference.infer(feeds)["y"]
        np.testing.assert_allclose(built.infer(feeds)["y"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(loaded.infer(feeds)["y"], built.infer(feeds)["y"])


def test_a_vision_transformer_computes_one_token_of_its_last_block():
    taps = NativeRunner(made_models.vit(2, 64, 4, 32, 8, 10), device="cpu").taps()
    ops = [tap.nodes[-1].split("_")[0] for tap in taps if tap.rows]
    assert "/LayerNormalization" in ops and sum(len(t.nodes) > 1 for t in taps if t.rows) >= 6


def test_a_run_that_shows_every_tensor_agrees(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(made_models.vit(2, 64, 4, 32, 8, 10), path)
    request = Request(str(path), runners=("native", "onnxrt"), outputs=("mark", "all"))
    assert perform(request).compare().verdict == "agree"
