"""The engine on a GPU computes what it computes on the CPU."""

import threading

import numpy as np
import onnx
import pytest

from polytool import Engine, NativeRunner
from polytool.backends.native.oracle import NativeOracle
from polytool.comparators.locate import locate
from scripts import made_models
from scripts.models import get, with_random_weights

pytestmark = pytest.mark.gpu
FEEDS = {
    "ids": np.random.default_rng(0).integers(0, 500, (2, 16)),
    "mask": np.ones((2, 16), np.int64),
}
MODEL = made_models.transformer(layers=2, width=64, heads=4, vocabulary=500)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_errors_are_those_of_the_emulation(precision):
    exact = NativeRunner(MODEL, precision="fp64", optimize=False, device="cpu").infer(FEEDS)["y"]
    cpu = NativeRunner(MODEL, precision=precision, device="cpu").infer(FEEDS)["y"]
    gpu = NativeRunner(MODEL, precision=precision, device="cuda").infer(FEEDS)["y"]
    assert error(gpu, exact) < 2 * error(cpu, exact) + 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_layer_is_broken_and_nothing_races(precision):
    runner = NativeRunner(MODEL, precision=precision, device="cuda")
    found = locate(runner, NativeOracle(MODEL), [FEEDS, FEEDS])
    assert found.verdict == "expected", found.ranking[0]


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_classifiers_with_random_weights(name):
    model = get(name)
    proto = with_random_weights(onnx.load(model.path))
    for precision, bound in (("fp32", 1e-4), ("fp16", 2e-2)):
        gpu = NativeRunner(proto, precision=precision, device="cuda").infer(model.feeds())
        cpu = NativeRunner(proto, precision="fp32", device="cpu").infer(model.feeds())
        for key, value in gpu.items():
            assert error(value, cpu[key]) < bound


def test_new_shapes_are_recorded_and_old_ones_kept():
    runner = NativeRunner(MODEL, precision="fp16", device="cuda")
    first = runner.infer(FEEDS)["y"]
    small = {k: v[:1, :7] for k, v in FEEDS.items()}
    assert runner.infer(small)["y"].shape == (1, 7, 64)
    assert np.array_equal(runner.infer(FEEDS)["y"], first)


def test_contexts_of_one_engine_run_in_threads():
    engine: Engine = NativeRunner(MODEL, precision="fp16", device="cuda").engine
    expected = engine.create_execution_context().infer(FEEDS)["y"]
    wrong = []

    def work() -> None:
        context = engine.create_execution_context()
        if not all(np.array_equal(context.infer(FEEDS)["y"], expected) for _ in range(5)):
            wrong.append(1)
        context.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_control_flow_and_host_operators_mix_with_the_device():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (int64 n, bool go, float[4,8] x) => (float[4,8] y) {
            h = Exp(x)
            z = Loop (n, go, h) <body = b (int64 i, bool c, float[4,8] v) =>
                (bool again, float[4,8] w) { again = Identity(c) w = Sqrt(v) }>
            y = Softmax(z)
        }"""
    )
    feeds = {
        "n": np.array(2),
        "go": np.array(True),
        "x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32),
    }
    gpu = NativeRunner(proto, device="cuda").infer(feeds)["y"]
    cpu = NativeRunner(proto, device="cpu").infer(feeds)["y"]
    np.testing.assert_allclose(gpu, cpu, rtol=1e-5)
