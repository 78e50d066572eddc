"""Random graphs give the same on our engine, fused or not, and on ONNX Runtime.

The long form: `pytest tests/property --hypothesis-profile=long -m slow`.
"""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, assume, given, note, settings

from tests.property.agreement import agree
from tests.property.random_graphs import graphs

pytestmark = pytest.mark.ort

SLOW_START = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=SLOW_START
)
ORDINARY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW_START
)


def check(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    note(onnx.printer.to_text(model))
    assume(agree(model, feeds))


@ORDINARY
@given(graphs())
def test_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)


@pytest.mark.slow
@settings(parent=settings.default, deadline=None, suppress_health_check=SLOW_START)
@given(graphs(most=25))
def test_larger_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)
