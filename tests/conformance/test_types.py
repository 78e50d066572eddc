"""Operators take every element type that the specification allows."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import polytool
from polytool.errors import PolytoolError
from polytool.tensors import DType
from scripts.conformance import compare
from scripts.type_cases import TypeCase, retyped

pytestmark = pytest.mark.ort

EXCEPT = {
    "Bernoulli": "random, and of the type that it is given",
    "BitCast": "between types of one size only",
    "EyeLike": "of the type that it is given",
    "OptionalGetElement": "of the type that it is given",
    "DequantizeLinear": "of the type of the scale",
    "LinearAttention": "two variables that the schema lets differ, but one type",
    "Resize": "ONNX Runtime scales by the rounded size; strings cannot be interpolated",
    "GridSample": "strings cannot be interpolated",
    "Col2Im": "strings cannot be added",
    "MaxUnpool": "ONNX Runtime ignores output_shape",
    "STFT": "ONNX Runtime is off by 6e-6 where the exact value is zero",
}
# ONNX Runtime's Gather of strings takes other rows than it is asked for (1.32).
WRONG_STRINGS = {"Gather"}
# The schema lets element and sequence differ; a sequence of numbers takes no text.
NO_STRINGS = {"SequenceInsert"}
COARSE = {DType.FLOAT16: 2e-3, DType.BFLOAT16: 2e-2}


def problems(cases: Iterable[TypeCase]) -> list[str]:
    found = []
    for case in cases:
        if case.op in EXCEPT or (case.op in NO_STRINGS and case.dtype is DType.STRING):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with polytool.runner("native", case.model) as runner:
                    got = runner.infer(case.feeds)
            check(case, got)
        except (PolytoolError, AssertionError) as err:
            found.append(f"{case.name}: {err}")
    return found


def check(case: TypeCase, got: dict[str, Any]) -> None:
    for info in case.model.graph.output:
        value = got[info.name]
        if info.type.HasField("tensor_type") and isinstance(value, np.ndarray):
            kind = DType(info.type.tensor_type.elem_type)
            assert value.dtype == kind.numpy, f"{info.name} is {value.dtype}, not {kind.label}"
    want = onnxruntime(case)
    if want is None or (case.op in WRONG_STRINGS and case.dtype is DType.STRING):
        return
    rtol = COARSE.get(case.dtype, case.rtol)
    for name, value in want.items():
        compare(name, got[name], value, rtol, COARSE.get(case.dtype, case.atol))


def onnxruntime(case: TypeCase) -> dict[str, Any] | None:
    """Its outputs; None where it has no kernel, or no way to take such arrays."""
    ort = pytest.importorskip("onnxruntime")
    if any(getattr(v, "dtype", np.dtype(bool)).kind == "V" for v in case.feeds.values()):
        return None
    if any(0 < DType.of(v).bits < 8 for v in case.feeds.values() if isinstance(v, np.ndarray)):
        return None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options)
        results = session.run(None, case.feeds)
    except Exception:  # it raises types of its own; whatever it says, it is no reference here
        return None
    return dict(zip((o.name for o in session.get_outputs()), results, strict=True))


def test_a_tenth_of_the_types() -> None:
    cases = list(retyped())
    assert len(cases) > 2000
    wrong = problems(random.Random(1).sample(cases, len(cases) // 10))
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_type() -> None:
    wrong = problems(retyped())
    assert not wrong, "\n".join(wrong)
