"""The engine's GPU program, run on the host: what needs more than a straight line of kernels."""

import numpy as np
import onnx.parser
import pytest

from polytool import NativeRunner
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


def test_what_runs_on_the_host_is_told_with_its_reason(gpu):
    text = "g (float[2,3] x) => (string[2,3] y) { h = Exp(x) y = Cast<to=8>(h) }"
    feeds = {"x": np.zeros((2, 3), np.float32)}
    found, expected, on_host, _ = both(gpu, text, feeds)
    assert on_host == {"y": "strings and sequences live on the host"}
    assert np.array_equal(found["y"], expected["y"])


def _sample(share: int):
    chosen = [c for c in cases(("node", "simple")) if not c.name.startswith("test_training")]
    return np.random.default_rng(0).permutation(np.array(chosen, object))[::share]


@pytest.mark.parametrize("case", _sample(250), ids=lambda c: c.name)
def test_conformance(gpu, case):
    result = run(case, lambda model: NativeRunner(model, device="cuda"))
    assert result.reason is None or "bernoulli" in case.name
