"""What `bench` asks of an engine on the GPU: parts of an inference, layers with their kernels,
inputs that stay there, memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from polytool import NativeRunner
from polytool.stopwatch import Stopwatch

FEEDS = {"x": np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)}


@pytest.fixture(params=["software", pytest.param("device", marks=pytest.mark.gpu)])
def runner(request: pytest.FixtureRequest) -> Iterator[NativeRunner]:
    if request.param == "software":
        request.getfixturevalue("software_gpu")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[N,24] x) => (float[24,N] y) '
        "<float[24] w> { a = Abs(x) b = Mul(a, w) s = Softmax(b) t = Transpose<perm=[1,0]>(s) "
        "y = Softmax(t) }"
    )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.arange(24, dtype=np.float32), "w")
    )
    made = NativeRunner(model, device="cuda")
    made.activate()
    yield made
    made.deactivate()
    made.engine.weights.close()


def test_the_parts_of_an_inference(runner: NativeRunner) -> None:
    (phases,) = Stopwatch(runner, [FEEDS]).phases(1)
    assert set(phases) == {"h2d", "compute", "d2h", "enqueue"}
    assert all(seconds >= 0 for seconds in phases.values())
    assert phases["compute"] > 0


def test_layers_by_the_clock_of_the_device_with_their_kernels(runner: NativeRunner) -> None:
    before = runner.infer(FEEDS)
    layers = runner.profile(FEEDS, 3)
    on_device = [layer for layer in layers if layer.seconds]
    assert {layer.layer for layer in layers} <= {x.name for x in runner.engine.network.layers}
    assert len(on_device) == 3
    assert all(len(layer.spans) == 3 for layer in on_device)
    assert all(layer.kernels and all(layer.kernels) for layer in on_device)
    starts = [layer.spans[0][0] for layer in on_device]
    assert starts == sorted(starts)
    after = runner.infer(FEEDS)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_inputs_that_stay_on_the_device(runner: NativeRunner) -> None:
    expected = runner.infer(FEEDS)
    there = runner.resident(FEEDS)
    assert any(there[name] is not FEEDS[name] for name in FEEDS)
    for name, value in runner.infer(there).items():
        assert np.array_equal(value.numpy(), expected[name])
    assert set(runner.phases(there)) == {"compute", "enqueue"}


def test_streams_run_in_threads_of_their_own(runner: NativeRunner) -> None:
    watch = Stopwatch(runner, [FEEDS], streams=3)
    watch.first()
    assert {i.stream for i in watch.turn(0.0, 9).inferences} == {0, 1, 2}
    watch.close()


def test_memory_on_the_device(runner: NativeRunner) -> None:
    runner.infer(FEEDS)
    memory = runner.device_memory()
    assert memory["weights"] > 0 and memory["arena"] > 0
