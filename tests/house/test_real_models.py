"""The table of real models is sound: each file loads and runs on its own feeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from scripts.models import MODELS, RealModel, names, with_random_weights

RealModels = Callable[[str], RealModel]
SMALL = ["densenet121", "inception_v2", "resnet50", "shufflenet", "squeezenet"]
CASES = [(model.name, variant) for model in MODELS for variant in (None, *model.variants)]


def run_onnxruntime(source: str | bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_names_are_unique() -> None:
    assert len(set(names())) == len(MODELS) == 25


@pytest.mark.ort
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_feed_runs(name: str, variant: str | None, real_model: RealModels) -> None:
    model = real_model(name)
    outputs = run_onnxruntime(str(model.path), model.feeds(variant=variant))
    assert all(np.isfinite(x).all() and x.size for x in outputs)


@pytest.mark.parametrize("name", [model.name for model in MODELS])
def test_feeds_are_reproducible_and_named_as_the_inputs(name: str, real_model: RealModels) -> None:
    model = real_model(name)
    graph = onnx.load(model.path, load_external_data=False).graph
    initializers = {tensor.name for tensor in graph.initializer}
    first, second = model.feeds(seed=3), model.feeds(seed=3)
    assert set(first) == {x.name for x in graph.input} - initializers
    assert all(np.array_equal(first[x], second[x]) for x in first)


@pytest.mark.ort
@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50"])
def test_classifiers_give_what_is_stored_beside_them(name: str, real_model: RealModels) -> None:
    model = real_model(name)
    expected = onnx.TensorProto.FromString((model.folder / str(model.expected)).read_bytes())
    (output,) = run_onnxruntime(str(model.path), model.feeds())
    np.testing.assert_allclose(output, numpy_helper.to_array(expected), rtol=1e-3, atol=1e-7)


@pytest.mark.ort
@pytest.mark.parametrize("name", SMALL)
def test_random_weights_make_outputs_that_tell_inputs_apart(
    name: str, real_model: RealModels
) -> None:
    model = real_model(name)
    made = with_random_weights(onnx.load(model.path), seed=1).SerializeToString()
    (ramp,) = run_onnxruntime(made, model.feeds())
    noise = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (other,) = run_onnxruntime(made, dict.fromkeys(model.feeds(), noise))
    assert np.isfinite(ramp).all()
    assert len(np.unique(ramp)) > 700
    assert np.median(np.abs(ramp - other) / np.abs(ramp)) > 0.02
