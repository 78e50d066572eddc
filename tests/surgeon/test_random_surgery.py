"""Random graphs give the same on ONNX Runtime before and after everything that simplify does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, note, settings

from polytool.surgeon import simplify
from tests.property.agreement import onnxruntime
from tests.property.random_graphs import graphs

pytestmark = pytest.mark.ort

SLOW_START = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
Case = tuple[onnx.ModelProto, dict[str, Any]]


def check(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    note(onnx.printer.to_text(model))
    expected = onnxruntime(model, feeds)
    assume(expected is not None)
    assert expected is not None
    got = onnxruntime(simplify(model).to_proto(), feeds)
    assert got is not None, "onnxruntime refuses the result"
    for name, want in expected.items():
        assert got[name].dtype == want.dtype
        assert got[name].shape == want.shape
        if want.dtype.kind == "f":
            finite = np.isfinite(want)
            np.testing.assert_array_equal(finite, np.isfinite(got[name]))
            largest = np.abs(want[finite]).max(initial=1e-3)
            np.testing.assert_allclose(
                got[name][finite], want[finite], rtol=1e-3, atol=1e-4 * largest
            )
        else:
            np.testing.assert_array_equal(got[name], want)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW_START)
@given(graphs())
def test_random_graphs_stay_the_same(case: Case) -> None:
    check(*case)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=SLOW_START)
@given(graphs(most=25))
def test_larger_random_graphs_stay_the_same(case: Case) -> None:
    check(*case)
