"""What two runs computed with is named where it is not the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.parser import parse_model

import polytool
from polytool.comparators.settings import differing_settings
from polytool.results import Iteration, Run, RunResults

NATIVE = {"runner": "native", "precision": "fp32", "device": "cpu", "numpy": "2.1"}
ORT = {"backend": "onnxruntime", "version": "1.32.0", "device": "cpu", "threads": "default"}


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (NATIVE, NATIVE, []),
        (NATIVE, {**NATIVE, "numpy": "2.2"}, ["numpy: 2.1 here, 2.2 there"]),
        (NATIVE, {**NATIVE, "precision": "tf32"}, ["precision: fp32 here, tf32 there"]),
        (ORT, {**ORT, "version": "1.30.0"}, ["version: 1.32.0 here, 1.30.0 there"]),
        (
            ORT,
            {**ORT, "provider_options": {"cpu": {"a": "1"}}},
            ["provider_options: None here, {'cpu': {'a': '1'}} there"],
        ),
        (NATIVE, ORT, []),
        ({**NATIVE, "precision": "fp16"}, ORT,
         ["float32 is computed as float16 here, as float32 there"]),
        (NATIVE, {**ORT, "device": "cuda", "tf32": True},
         ["device: cpu here, cuda there", "float32 is computed as float32 here, as TF32 there"]),
        ({**NATIVE, "precision": "tf32"}, {**ORT, "tf32": True}, []),
        (NATIVE, {**ORT, "float16_in": "float32"},
         ["float16 is computed as float16 here, as float32 there"]),
        ({**NATIVE, "precision": "fp64"}, {**ORT, "float16_in": "float32"}, []),
        (NATIVE, {}, []),
    ],
)  # fmt: skip
def test_differences_in_words(a: dict[str, str], b: dict[str, str], said: list[str]) -> None:
    assert differing_settings(a, b) == said


def test_they_are_named_when_outputs_differ() -> None:
    x = np.ones(4, np.float32)
    runs = RunResults(
        [
            Run("native", [Iteration({"y": 2 * x})], {**NATIVE, "precision": "fp16"}),
            Run("onnxrt", [Iteration({"y": x})], ORT),
        ]
    )
    text = str(polytool.compare(runs["native"], runs["onnxrt"]))
    said = "float32 is computed as float16 in native, as float32 in onnxrt"
    assert f"they ran with other settings: {said}" in text


@pytest.mark.ort
def test_onnxruntime_says_that_its_cpu_computes_float16_in_float32() -> None:
    head = '<ir_version: 9, opset_import: ["": 18]> g '
    half = parse_model(head + "(float16[2,2] x) => (float16[2,2] y) { y = MatMul(x, x) }")
    full = parse_model(head + "(float[2,2] x) => (float[2,2] y) { y = MatMul(x, x) }")
    assert polytool.OnnxrtRunner(half).settings["float16_in"] == "float32"
    assert "float16_in" not in polytool.OnnxrtRunner(full).settings


def test_settings_of_a_callable_are_kept() -> None:
    from polytool.backends.callables import as_runner

    class Module:
        def __init__(self) -> None:
            self.settings = {"backend": "mine", "tf32": True}

        def __call__(self, feeds: dict[str, object]) -> dict[str, object]:
            return feeds

    assert as_runner(Module(), "mine").settings == {"backend": "mine", "tf32": True}
