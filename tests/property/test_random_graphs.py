"""Random graphs give the same on our engine, fused or not, and on ONNX Runtime.

The long form: `pytest tests/property --hypothesis-profile=long --hypothesis-seed=N -m slow`,
N = 1, 2, 3 ..., for as many rounds as there is time for.
"""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from tests.property.agreement import agree, reduced_agree
from tests.property.random_graphs import graphs

pytestmark = pytest.mark.ort

ORDINARY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def check(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    note(onnx.printer.to_text(model))
    assume(agree(model, feeds))


@ORDINARY
@given(graphs())
def test_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)


@pytest.mark.slow
@settings(parent=settings.default, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(most=25))
def test_larger_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)


@settings(ORDINARY, max_examples=40)
@given(graphs(decide=False), st.sampled_from(["fp16", "bf16"]))
def test_fusion_adds_no_error_in_reduced_precision(
    case: tuple[onnx.ModelProto, dict[str, Any]], precision: str
) -> None:
    note(onnx.printer.to_text(case[0]))
    reduced_agree(*case, precision)


@pytest.mark.slow
@settings(parent=settings.default, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(most=20, decide=False), st.sampled_from(["fp16", "bf16"]))
def test_fusion_adds_no_error_in_reduced_precision_long(
    case: tuple[onnx.ModelProto, dict[str, Any]], precision: str
) -> None:
    note(onnx.printer.to_text(case[0]))
    reduced_agree(*case, precision)
