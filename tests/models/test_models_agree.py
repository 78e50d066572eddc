"""The main job on every real model: native engine against ONNX Runtime, through the CLI."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from polytool.cli import main
from scripts.models import MODELS, with_random_weights

pytestmark = pytest.mark.ort

QUICK = {"ppocr-cls", "silero", "silero-sequence", "t5-encoder", "khmersm", "lac", "squeezenet"}
CASES = [(model.name, variant) for model in MODELS for variant in (None, *model.variants)]
CNNS = [model.name for model in MODELS if model.package == "onnx"]


def marked(names):
    return [
        pytest.param(*name, marks=[] if name[0] in QUICK else [pytest.mark.slow]) for name in names
    ]


def run(capfd, *args):
    capfd.readouterr()
    code = main(["run", *map(str, args), "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else err


@pytest.mark.parametrize(("name", "variant"), marked(CASES))
def test_every_model_agrees_on_default_data(real_model, capfd, name, variant):
    model = real_model(name)
    shapes = ["--input-shapes", *model.input_shapes(variant)] if model.dynamic else []
    code, facts = run(capfd, model.path, "--native", "--onnxrt", *shapes)
    assert code == 0, facts
    outputs = facts["pairs"][0]["outputs"].values()
    assert all(model.quantized or not output["unstable"] for output in outputs)


@pytest.mark.parametrize(("name", "variant"), marked(CASES))
def test_every_model_agrees_on_data_that_make_sense_for_it(
    real_model, capfd, tmp_path, name, variant
):
    model = real_model(name)
    np.savez(tmp_path / "feeds.npz", **model.feeds(variant=variant))
    inputs = ["--load-inputs", tmp_path / "feeds.npz"]
    code, facts = run(capfd, model.path, "--native", "--onnxrt", *inputs)
    assert code == 0, facts


@pytest.mark.parametrize("name", marked([(name,) for name in CNNS]))
def test_the_classifiers_agree_with_random_weights(real_model, capfd, tmp_path, name):
    proto = with_random_weights(onnx.load(real_model(name).path))
    onnx.save(proto, tmp_path / "m.onnx")
    code, facts = run(capfd, tmp_path / "m.onnx", "--native", "--onnxrt")
    assert code == 0, facts


@pytest.mark.parametrize("name", marked([(name,) for name in CNNS]))
def test_the_classifiers_agree_with_their_stored_outputs(real_model, name):
    from polytool import NativeRunner

    model = real_model(name)
    stored = onnx.TensorProto.FromString((model.folder / model.expected).read_bytes())
    wanted = onnx.numpy_helper.to_array(stored)
    (output,) = NativeRunner(model.path, device="cpu").infer(model.feeds()).values()
    np.testing.assert_allclose(output, wanted, rtol=1e-3, atol=1e-5)
