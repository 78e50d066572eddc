"""Every real model in float16: onnxruntime runs it, and it is what the engine computes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from polytool import NativeRunner, OnnxrtRunner, convert_precision
from polytool.cli import main
from polytool.model import load, nodes
from scripts.models import MODELS, with_random_weights
from tests.accuracy.test_fix import chain

pytestmark = pytest.mark.ort

QUICK = {"ppocr-cls", "silero", "khmersm", "magika", "lac"}
FLOATS = {1, 10}
NAMES = [pytest.param(m.name, marks=[] if m.name in QUICK else [pytest.mark.slow]) for m in MODELS]


def error(found, expected):
    """Relative L2 over all float outputs; infinite where what is finite is so on one side only."""
    worst = 0.0
    for name, value in expected.items():
        got = np.asarray(found[name])
        assert got.dtype == value.dtype
        assert got.shape == value.shape
        if value.dtype.kind == "f":
            scale = max(float(np.linalg.norm(value.astype(np.float64))), 1e-30)
            one = float(np.linalg.norm(got.astype(np.float64) - value)) / scale
            worst = max(worst, one if np.isfinite(one) else np.inf)
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_runs_every_model_in_float16(real_model, name):
    model = real_model(name)
    source = load(model.path)
    if model.package == "onnx":
        source = load(with_random_weights(onnx.load(model.path)))
    feeds = model.feeds()
    made = convert_precision(source, feeds=[feeds])
    assert made.done["nodes in float16"] > 5
    assert_minimal(made.model.to_proto())
    exact = OnnxrtRunner(source).infer(feeds)
    found = OnnxrtRunner(made.model).infer(feeds)
    if model.quantized:  # a change of 1e-6 already moves these by up to 12 %
        for output, value in exact.items():
            assert np.corrcoef(value.ravel(), found[output].ravel())[0, 1] > 0.9
        return
    assert error(found, exact) < 0.03
    engine = NativeRunner(source, precision="fp16", device="cpu").infer(feeds)
    if not any(kept.reaches for kept in made.kept):
        assert error(found, engine) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_every_model_in_bfloat16_is_what_the_engine_computes(real_model, name):
    model = real_model(name)
    source = load(model.path)
    if source.opsets[""] < 13 or model.quantized:
        return
    feeds = model.feeds()
    made = convert_precision(source, "bf16")
    onnx.checker.check_model(made.model.to_proto())
    exact = OnnxrtRunner(source).infer(feeds)
    bound = max(3 * error(NativeRunner(source, precision="bf16").infer(feeds), exact), 0.03)
    assert error(NativeRunner(made.model).infer(feeds), exact) < bound


def assert_minimal(proto):
    """No value is cast twice to a type, and none to a float type and back."""
    casts = [n for n in nodes(proto.graph.node) if n.name.startswith("Cast_")]
    made = {n.output[0]: n.attribute[0].i for n in casts if n.attribute[0].i in FLOATS}
    assert not [n.name for n in casts if n.input[0] in made]
    asked = [(n.input[0], n.attribute[0].i) for n in casts]
    assert len(asked) == len(set(asked))


def test_a_fix_of_locate_is_written_as_casts_and_onnxruntime_meets_its_target(tmp_path, capfd):
    proto = chain(2)
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(1002).standard_normal((4, 24), np.float32)}
    np.savez(tmp_path / "x.npz", **feeds)
    exact = NativeRunner(proto, precision="fp64", device="cpu").infer(feeds)["y"]

    def converted(*more):
        out = tmp_path / "half.onnx"
        args = ["convert", tmp_path / "m.onnx", "-o", out, "--fp-to-bf16", *more, "--json"]
        assert main([str(a) for a in args]) == 0
        facts = json.loads(capfd.readouterr().out)
        found = NativeRunner(out, device="cpu").infer(feeds)["y"]
        return facts, -20 * np.log10(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    _, before = converted()
    target = round(before + 3, 1)
    args = ["debug", "locate", tmp_path / "m.onnx", "--native", "--bf16", "--load-inputs",
            tmp_path / "x.npz", "--target", f"snr>={target}", "--fix", tmp_path / "fix.json",
            "--device", "cpu"]  # fmt: skip
    main([str(a) for a in args])
    capfd.readouterr()
    facts, after = converted("--layer-precisions", tmp_path / "fix.json")
    assert facts["notes"] == []
    assert facts["done"]["nodes in float32"] > 0
    assert before < target <= after + 0.5


def test_locate_and_convert_mend_a_model_that_overflows(real_model, tmp_path, capfd):
    """From the finding to a file that other runtimes run, with commands alone."""
    model = real_model("magika")
    feeds = {name: value[:1] for name, value in model.feeds().items()}
    np.savez(tmp_path / "x.npz", **feeds)
    exact = OnnxrtRunner(model.path).infer(feeds)
    half, fix = tmp_path / "half.onnx", tmp_path / "fix.json"

    def converted(*more):
        """Errors on the native engine, and on onnxruntime, which skips casts on a CPU."""
        args = ["convert", model.path, "-o", half, "--fp-to-fp16", "--no-check-ranges", *more]
        assert main([str(a) for a in args]) == 0
        runners = NativeRunner(half, device="cpu"), OnnxrtRunner(half)
        return [error(runner.infer(feeds), exact) for runner in runners]

    assert converted()[0] > 0.5  # a sum of 117,000 overflows
    args = ["debug", "locate", model.path, "--native", "--fp16", "--device", "cpu",
            "--load-inputs", tmp_path / "x.npz", "--target", "snr>=40", "--fix", fix]  # fmt: skip
    assert main([str(a) for a in args]) == 1
    capfd.readouterr()
    assert max(converted("--layer-precisions", fix)) < 0.01
    assert "matches no node" not in capfd.readouterr().err
