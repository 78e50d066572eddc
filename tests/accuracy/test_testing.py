"""`polytool.testing` as users call it, and the pytest option that records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from polytool import NativeRunner
from polytool.comparators.golden import sketch
from polytool.testing import UPDATE, assert_accuracy
from scripts import made_models

FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 16), np.float32)}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return made_models.deep(blocks=3)


def with_other_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = next(t for t in other.graph.initializer if t.name == "b1/w1")
    value = onnx.numpy_helper.to_array(weight) * np.float32(1.02)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    return other


def test_an_exact_engine_passes(model):
    assert_accuracy(model, FEEDS, target="snr>=100")
    assert_accuracy(model, FEEDS, precision="fp16", target=["snr>=50", "cosine>=0.999"])
    assert_accuracy(model, shapes={"x": (4, 16)}, precision="bf16", target="snr>=30")


@pytest.mark.ort
def test_onnxruntime_can_be_tested_and_can_be_the_reference(model):
    assert_accuracy(model, FEEDS, reference="onnxrt", target="rel_l2<=1e-5")
    assert_accuracy(model, FEEDS, runner="onnxrt", target="rel_l2<=1e-5")


def test_a_failure_is_the_answer_of_locate(model, tmp_path):
    onnx.save(model, tmp_path / "sound.onnx")
    with pytest.raises(AssertionError) as failure:
        assert_accuracy(
            with_other_weight(model), FEEDS, reference=tmp_path / "sound.onnx", target="snr>=60"
        )
    text = str(failure.value)
    assert "sample 0 misses snr>=60" in text and "y: snr" in text
    assert "first broken" in text and "b1/MatMul_m0" in text
    assert "\x1b" not in text


def test_a_precision_that_is_too_low_fails(model):
    with pytest.raises(AssertionError, match="misses snr>=90"):
        assert_accuracy(model, FEEDS, precision="bf16", target="snr>=90")


def test_golden_results_are_recorded_and_compared(model, tmp_path, monkeypatch):
    golden = tmp_path / "golden.safetensors"
    with pytest.raises(AssertionError, match="no golden results"):
        assert_accuracy(model, FEEDS, reference=golden)
    monkeypatch.setenv(UPDATE, "1")
    assert_accuracy(model, FEEDS, reference=golden)
    monkeypatch.delenv(UPDATE)
    assert_accuracy(model, FEEDS, reference=golden, target="rel_l2<=1e-6")
    with pytest.raises(AssertionError) as failure:
        assert_accuracy(with_other_weight(model), FEEDS, reference=golden, target="rel_l2<=1e-6")
    assert "layers that moved, in execution order: b1/g0 by 0.0" in str(failure.value)
    with pytest.raises(AssertionError, match="precision: bf16 here, fp32 there"):
        assert_accuracy(model, FEEDS, reference=golden, precision="bf16")


def test_a_layer_that_moves_fails_where_the_outputs_hide_it(tmp_path, monkeypatch):
    def model(weight):
        return onnx.parser.parse_model(
            f"""<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
            <float w = {{{weight}}}> {{ h = Mul(x, w) s = Softmax(h) y = Round(s) }}"""
        )

    feeds = {"x": np.float32([[1, 9, 2, 3]])}
    golden = tmp_path / "golden.safetensors"
    monkeypatch.setenv(UPDATE, "1")
    assert_accuracy(model("2"), feeds, reference=golden)
    monkeypatch.delenv(UPDATE)
    with pytest.raises(AssertionError, match="layers that moved"):
        assert_accuracy(model("2.1"), feeds, reference=golden)


def test_a_baseline_holds_errors_and_fails_when_they_grow(model, tmp_path, monkeypatch):
    baseline = tmp_path / "baseline.json"
    monkeypatch.setenv(UPDATE, "1")
    for precision in ("fp32", "bf16"):
        assert_accuracy(model, FEEDS, precision=precision, baseline=baseline)
    monkeypatch.delenv(UPDATE)
    stored = json.loads(baseline.read_text())
    assert set(stored) == {"native fp32", "native bf16"} and 1e-4 < stored["native bf16"]["y"] < 0.1
    assert_accuracy(model, FEEDS, precision="bf16", baseline=baseline)
    stored["native bf16"]["y"] /= 3
    baseline.write_text(json.dumps(stored))
    with pytest.raises(AssertionError, match="up to 2 times that is allowed"):
        assert_accuracy(model, FEEDS, precision="bf16", baseline=baseline)
    with pytest.raises(AssertionError, match="no baseline of 'native fp16'"):
        assert_accuracy(model, FEEDS, precision="fp16", baseline=baseline)


def test_the_option_of_pytest_records(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "test_it.py").write_text(
        "from polytool.testing import assert_accuracy\n"
        "def test_it():\n"
        "    assert_accuracy('m.onnx', shapes={'x': (4, 16)}, reference='golden.safetensors')\n"
    )

    def run(*more: str) -> int:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert run() == 1
    assert run("--polytool-update") == 0 and Path(tmp_path / "golden.safetensors").exists()
    assert run() == 0


def test_a_sketch_tells_how_far_tensors_are_apart():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(50_000)
    b = a + 1e-3 * rng.standard_normal(a.size)
    apart = np.linalg.norm(sketch(a) - sketch(b)) / np.linalg.norm(sketch(a))
    assert 0.7e-3 < apart < 1.4e-3


def test_a_runner_that_is_made_takes_no_options(model):
    from polytool.errors import UsageError

    with NativeRunner(model) as runner, pytest.raises(UsageError, match="already made"):
        assert_accuracy(model, FEEDS, runner=runner, precision="fp16")
