"""GPU memory: what is told, what it is at most, and that nothing leaks."""

import gc

import numpy as np
import pytest

from polytool import BuilderConfig, engine_from_onnx
from polytool.backends.native.liveness import liveness_bound
from polytool.backends.native.memory import Lifetime, lower_bound
from scripts.models import get
from tests.gpu.test_tuning_software import build, model


@pytest.fixture(autouse=True)
def quick(software_gpu):
    software_gpu.kernels = False
    return software_gpu


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_tensors_take_at_most_13_tenths_of_what_lives_at_once_unfused(name):
    real = get(name)
    options = {"precision": "fp16", "builder_optimization_level": 0}
    context = engine_from_onnx(
        real.path, BuilderConfig.of(device="cuda", **options)
    ).create_execution_context()
    feeds = real.feeds()
    context.infer(feeds)
    unfused = engine_from_onnx(
        real.path, BuilderConfig.of(device="cpu", precision="fp16", optimize=False)
    )
    bound = liveness_bound(unfused.network, {n: x.shape for n, x in feeds.items()})
    held = context.device_memory()
    assert 0 < held["arena"] - held["workspace"] <= 1.3 * bound


def test_the_bound_counts_what_is_alive_at_once():
    network = engine_from_onnx(model(4, 64), BuilderConfig.of(device="cpu", optimize=False)).network
    x, wide = 4 * 64 * 4, 4 * 64 * 4
    lives = [Lifetime(x, -1, 0), Lifetime(wide, 0, 1), Lifetime(wide, 1, 2), Lifetime(x, 2, 3)]
    assert liveness_bound(network, {}) == lower_bound(lives) == 2 * x


def test_engines_and_contexts_that_nobody_holds_free_their_memory(quick):
    gc.collect()
    before = quick.in_use
    for _ in range(3):
        engine = build()
        context = engine.create_execution_context()
        outputs = context.infer({"x": np.ones((32, 64), np.float32)})
        assert quick.in_use > before and outputs
        del engine, context, outputs
        gc.collect()
    assert quick.in_use == before
