"""The engine's GPU program, run on the host: what needs more than a straight line of kernels."""

import numpy as np
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.passes import fuse_norm_gemm, fuse_residual_norm
from scripts.conformance import cases, run
from scripts.emulated_gpu import emulated_gpu


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    with emulated_gpu(tmp_path_factory.mktemp("kernels")) as fake:
        yield fake


def both(gpu, text, feeds, **options):
    """What GPU and CPU compute, what ran on the host, and the outputs that were observed."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    taps = {}
    with NativeRunner(proto, device="cuda", **options) as runner:
        runner.infer(feeds, observe=lambda tap, value: taps.setdefault(tap.tensor, value.shape))
        found = runner.infer(feeds)
        on_host = runner.context._program.on_host
    return found, NativeRunner(proto, device="cpu", **options).infer(feeds), on_host, taps


LOOP = """g (int64 n, bool go, float[4,8] x) => (float[4,8] y, float[N,4,8] rows) {
    h = Exp(x)
    z, rows = Loop (n, go, h) <body = b (int64 i, bool c, float[4,8] v) =>
        (bool again, float[4,8] w, float[4,8] r) { again = Identity(c) w = Sqrt(v) r = Add(w, x) }>
    y = Softmax(z)
}"""


@pytest.mark.parametrize("count", [0, 3])
def test_loops_run_their_bodies_on_the_device(gpu, count):
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    feeds = {"n": np.array(count), "go": np.array(True), "x": x}
    found, expected, on_host, taps = both(gpu, LOOP, feeds)
    assert not on_host
    assert found["rows"].shape == (count, 4, 8)
    np.testing.assert_allclose(found["rows"], expected["rows"], rtol=1e-6)
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)
    assert {"h", "z", "y"} <= set(taps)


def test_values_that_the_device_computes_decide_shapes(gpu):
    text = """g (float[2,3] x, int64[2] s) => (float[a,b] y) {
        t = Neg(s) u = Neg(t) z = Reshape(x, u) y = Exp(z) }"""
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array([3, 2])}
    found, expected, on_host, _ = both(gpu, text, feeds)
    assert not on_host
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)


def test_only_the_row_that_is_read_is_computed(gpu):
    text = """g (float[3,5,8] x, float[8,16] up, float[16,8] down, float[8] s) => (float[3,8] y) {
        h = LayerNormalization<axis=-1>(x, s) u = MatMul(h, up) t = Tanh(u) d = MatMul(t, down)
        r = Add(x, d) n = LayerNormalization<axis=-1>(r, s) last = Constant<value = int64 {-1}>()
        y = Gather<axis=1>(n, last) }"""
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 5, 8), "up": (8, 16), "down": (16, 8), "s": (8,)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found, expected, on_host, taps = both(gpu, text, feeds)
    assert not on_host and taps["t"] == (3, 1, 16) and taps["n"] == (3, 1, 8)
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-5)


def test_what_runs_on_the_host_is_told_with_its_reason(gpu):
    text = "g (float[2,3] x) => (string[2,3] y) { h = Exp(x) y = Cast<to=8>(h) }"
    feeds = {"x": np.zeros((2, 3), np.float32)}
    found, expected, on_host, _ = both(gpu, text, feeds)
    assert on_host == {"y": "strings and sequences live on the host"}
    assert np.array_equal(found["y"], expected["y"])


HALVES = "Split<axis = 2, num_outputs = 2>(r)"
RESIDUAL = {  # shapes of the addends, where the second one comes from, axis and shape of the scale
    "dense": ((2, 3, 24), (2, 3, 24), "n = Abs(r)", -1, (24,)),
    "transposed": ((2, 3, 24), (3, 2, 24), "n = Transpose<perm = [1,0,2]>(r)", -1, (24,)),
    "first half of rows": ((2, 3, 24), (2, 3, 48), f"n, o = {HALVES}", -1, (24,)),
    "second half of rows": ((2, 3, 24), (2, 3, 48), f"o, n = {HALVES}", -1, (24,)),
    "short rows": ((2, 3, 12), (2, 3, 24), f"o, n = {HALVES}", -1, (12,)),
    "unaligned": ((2, 3, 8), (2, 3, 12), "o, n = Split<axis = 2>(r, parts)", -1, (8,)),
    "along columns": ((2, 3, 24), (2, 24, 3), "n = Transpose<perm = [0,2,1]>(r)", -1, (24,)),
    "rows of two axes": ((2, 3, 8), (3, 2, 8), "n = Transpose<perm = [1,0,2]>(r)", 1, (3, 8)),
    "the whole": ((2, 3, 8), (2, 3, 8), "n = Abs(r)", 0, (2, 3, 8)),
    "a scale that broadcasts": ((2, 3, 8), (2, 3, 8), "n = Abs(r)", 1, (8,)),  # node by node
}


@pytest.mark.parametrize(
    ("precision", "where"), [("fp32", "second half of rows"), *(("fp16", w) for w in RESIDUAL)]
)
def test_residual_normalisations_read_addends_where_they_lie(gpu, precision, where):
    first, second, move, axis, scale = RESIDUAL[where]
    inputs = f"float{list(first)} x, float{list(second)} r"
    text = f"""g ({inputs}) => (float[a,b,c] y, float[a,b,c] z) {{
        {move} s = Add(x, n) m = LayerNormalization<axis = {axis}>(s, two, one)
        y = Neg(m) z = Neg(s) }}"""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    one = np.ones(scale, np.float32)
    constants = {"one": one, "two": 2 * one, "parts": np.array([4, 8])}
    for name, value in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    rng = np.random.default_rng(0)
    offset = 512 if precision == "fp16" else 0  # where float16 has two numbers between integers
    feeds = {
        "x": (rng.standard_normal(first) + offset).astype(np.float32),
        "r": rng.standard_normal(second).astype(np.float32),
    }
    with NativeRunner(proto, device="cuda", precision=precision) as runner:
        found = runner.infer(feeds)
        assert not runner.context._program.on_host
        (norm,) = (x for x in runner.engine.network.layers if x.kind == "residual_norm")
        assert len(norm.outputs) == 2
    expected = NativeRunner(proto, device="cpu", precision=precision).infer(feeds)
    tolerance = 1e-5 if precision == "fp32" else 2e-3
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [(8,), (3, 8)], ids=["node by node", "one kernel"])
def test_three_addends_are_summed_without_rounding(gpu, scale):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2,3,8] x, float[2,3,8] a, float[2,3,8] b) => (float[2,3,8] y, float[2,3,8] z)
        { s = Add(x, a) m = LayerNormalization<axis = 1>(s, g) n = Abs(m) k = Transpose(b)
          l = Transpose(k) u = Add(l, n) t = Add(u, s)
          w = LayerNormalization<axis = 1>(t, g) y = Neg(w) z = Neg(t) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(scale, np.float32), "g"))
    feeds = {n: np.random.default_rng(i).standard_normal((2, 3, 8)) for i, n in enumerate("xab")}
    feeds["a"] += 512
    feeds = {n: v.astype(np.float32) for n, v in feeds.items()}
    with NativeRunner(proto, device="cuda", precision="fp16") as runner:
        found = runner.infer(feeds)
        assert not runner.context._program.on_host
        norms = [x for x in runner.engine.network.layers if x.kind == "residual_norm"]
        assert [len(x.outputs) for x in norms] == [1, 2]
    expected = NativeRunner(proto, device="cpu", precision="fp16").infer(feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("norm", ["LayerNormalization(s, g, b)", "RMSNormalization(s, g)"])
def test_products_take_in_the_normalisation_of_what_they_read(gpu, monkeypatch, norm):
    for module in (fuse_norm_gemm, fuse_residual_norm):
        monkeypatch.setattr(module, "LARGE", 0)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 23]>
        g (float[512,128] x) => (float[512,192] y, float[512,128] z)
        {{ h = MatMul(x, up) i = MatMul(h, down) j = Add(i, d) s = Add(x, j) n = {norm}
          p = MatMul(n, up) q = Add(p, c) y = Gelu(q) z = Neg(s) }}"""
    )
    rng = np.random.default_rng(0)
    weights = {
        "g": rng.uniform(0.01, 30, 128), "b": rng.standard_normal(128),
        "up": rng.standard_normal((128, 192)) / 11, "down": rng.standard_normal((192, 128)) / 14,
        "c": rng.standard_normal(192), "d": np.zeros(128),
    }  # fmt: skip
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype("f4"), name))
    x = (rng.standard_normal((512, 128)) * rng.uniform(0.1, 9, (512, 1)) + 1).astype(np.float32)
    x[7] = 0  # a row without deviation
    options = {"precision": "fp16", "builder_optimization_level": 0}  # the first candidates
    with NativeRunner(proto, device="cuda", **options) as runner:
        found = runner.infer({"x": x})
        assert not runner.context._program.on_host
        launches = runner.context._program.whole()._launches
        plans = [s.plans[0].name for s, _ in launches if s.layer.kind in ("gemm", "norm_gemm")]
    assert [name.split()[0] for name in plans] == ["gemm", "gemm_wide", "gemm_wide"]
    expected = NativeRunner(proto, device="cpu", precision="fp16").infer({"x": x})
    assert np.isfinite(found["y"]).all()
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) < 1e-3 * np.linalg.norm(value)


@pytest.mark.parametrize(("rows", "product"), [(512, "gemm_wide"), (64, "gemm")])
def test_products_of_the_same_normalised_rows_are_one(gpu, monkeypatch, rows, product):
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 0)
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 23]>
        g (float16[{rows},64] x) => (float16[a,b] y, float16[c,d] z, float16[e,f] w)
        {{ n = LayerNormalization(x, g, b) h = MatMul(n, p) y = Add(h, b) i = MatMul(n, p2)
          z = Add(i, c) j = MatMul(n, p3) w = Add(j, g) }}"""
    )
    rng = np.random.default_rng(0)
    weights = {"g": rng.uniform(0.5, 2, 64), "b": rng.standard_normal(64)}
    weights |= {"c": rng.standard_normal(64)}
    weights |= {n: rng.standard_normal((64, 64)) / 8 for n in ("p", "p2", "p3")}
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype("f2"), name))
    x = (rng.standard_normal((rows, 64)) * 3 + 1).astype("f2")
    with NativeRunner(proto, device="cuda", builder_optimization_level=0) as runner:
        found = runner.infer({"x": x})
        launches = runner.context._program.whole()._launches
        # moments or the normalisation, the product, and what copies its parts to the outputs
        assert [s.plans[0].name.split()[0] for s, _ in launches[:2]] == ["generated", product]
        assert len(launches) == 5
    expected = NativeRunner(proto, device="cpu").infer({"x": x})
    for name, value in expected.items():
        difference = found[name].astype("f4") - value.astype("f4")
        assert np.linalg.norm(difference) < 2e-3 * np.linalg.norm(value.astype("f4"))


def test_rows_of_equal_values_are_normalised_to_nothing(gpu, monkeypatch):
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 0)
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 23]> g (float[512,256] x) => (float[512,128] y)
        { n = LayerNormalization(x, g, b) y = MatMul(n, m) }"""
    )
    rng = np.random.default_rng(0)
    weights = {
        "g": rng.uniform(0.5, 2, 256), "b": np.ones(256), "m": rng.standard_normal((256, 128)) / 16,
    }  # fmt: skip
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype("f4"), name))
    x = np.repeat(rng.uniform(-2, 2, (512, 1)), 256, 1).astype(np.float32)
    options = {"precision": "fp16", "builder_optimization_level": 0}
    with NativeRunner(proto, device="cuda", **options) as runner:
        found = runner.infer({"x": x})["y"]
        assert [x.kind for x in runner.engine.network.layers if x.kind == "norm_gemm"]
    shift = weights["m"].sum(0)
    assert np.abs(found - shift).max() < 4e-3 * np.abs(shift).max()


def _sample(share: int):
    chosen = [c for c in cases(("node", "simple")) if not c.name.startswith("test_training")]
    return np.random.default_rng(0).permutation(np.array(chosen, object))[::share]


@pytest.mark.parametrize("case", _sample(250), ids=lambda c: c.name)
def test_conformance(gpu, case):
    result = run(case, lambda model: NativeRunner(model, device="cuda"))
    assert result.reason is None or "bernoulli" in case.name
