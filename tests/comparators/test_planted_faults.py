"""The default verdict on real models: sound ones agree, faulty ones differ.

A fault counts when it changes a bit of an output on the data of the run; one in a branch that is
not taken cannot be seen by anybody.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from polytool.agreement import Request, perform
from polytool.feeds import make_feeds, save_feeds
from polytool.results import Iteration, Run, RunResults
from scripts.models import MODELS, get
from tests.comparators.planted import FAULTS

pytestmark = pytest.mark.ort

NAMES = [m.name for m in MODELS if m.package != "onnx"]
CASES = 40
QUICK = range(0, CASES, 10)
ASKED = 0.9  # of the cases must be called different


def shapes(name):
    """What `--input-shapes` says in the test of all models."""
    return {k: v.shape for k, v in get(name).feeds().items()}


def on_onnxruntime(model, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options)
    outputs = session.run(None, feed)
    return {o.name: v for o, v in zip(session.get_outputs(), outputs, strict=True)}


def same(a, b):
    return all(
        x.shape == y.shape and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(a.values(), b.values(), strict=True)
    )


def plant(name, index, feed, sound):
    """The faulty model of a case and what was done to it."""
    model = onnx.load(get(name).path)
    for attempt in range(4 * len(FAULTS)):
        fault = FAULTS[(index * 4 + index // len(FAULTS) + attempt) % len(FAULTS)]
        faulty = onnx.ModelProto()
        faulty.CopyFrom(model)
        what = fault(faulty, np.random.default_rng([index, attempt]))
        if what is None:
            continue
        try:
            outputs = on_onnxruntime(faulty, feed)
        except Exception:  # onnxruntime refuses it: not a fault that a comparison has to find
            continue
        if not same(outputs, sound):
            return faulty, what
    raise AssertionError(f"no fault can be planted in {name}")


def verdict(index, real_model, folder):
    """Plant the fault of a case; the verdict on it, and what it is."""
    name = NAMES[index % len(NAMES)]
    path = str(real_model(name).path)
    feeds = make_feeds(path, shapes=shapes(name), seed=index)
    feed = next(iter(feeds))
    sound = on_onnxruntime(path, feed)
    faulty, what = plant(name, index, feed, sound)
    onnx.save(faulty, folder / "faulty.onnx")
    save_feeds(feeds, folder / "in.bin")
    RunResults([Run("sound", [Iteration(sound)])]).save(folder / "sound.bin")
    session = perform(
        Request(
            str(folder / "faulty.onnx"),
            runners=("native",),
            files=[str(folder / "in.bin")],
            load_outputs=[str(folder / "sound.bin")],
        )
    )
    comparison = session.compare()
    numbers = {n: o.metrics.get("rel_l2") for n, o in comparison.outputs.items()}
    return comparison.verdict, f"{name}: {what}: {comparison.verdict} {numbers}"


@pytest.mark.parametrize("index", QUICK)
def test_some_planted_faults_are_found(index, real_model, tmp_path):
    found, what = verdict(index, real_model, tmp_path)
    assert found == "differ", what


@pytest.mark.slow
def test_nine_in_ten_planted_faults_are_found(real_model, tmp_path):
    cases = [verdict(index, real_model, tmp_path) for index in range(CASES)]
    missed = [what for found, what in cases if found != "differ"]
    assert len(missed) <= (1 - ASKED) * CASES, missed


def sound_verdict(name, seed, real_model):
    path = str(real_model(name).path)
    session = perform(Request(path, runners=("native", "onnxrt"), shapes=shapes(name), seed=seed))
    comparison = session.compare()
    found = {n: (o.judgement.reason, o.metrics) for n, o in comparison.outputs.items()}
    return comparison.verdict, f"{name}, seed {seed}: {found}"


@pytest.mark.parametrize("name", NAMES[::5])
def test_some_sound_models_agree(name, real_model):
    found, what = sound_verdict(name, 0, real_model)
    assert found == "agree", what


@pytest.mark.slow
@pytest.mark.parametrize("name", [m.name for m in MODELS])
def test_sound_models_agree_on_any_data(name, real_model):
    for seed in range(5):
        found, what = sound_verdict(name, seed, real_model)
        assert found == "agree", what
