"""Random graphs give the same on our engine, fused or not, and on ONNX Runtime.

The long form: `pytest tests/property --hypothesis-profile=long -m slow`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, note, settings

import polytool
from tests.property.random_graphs import graphs

pytestmark = pytest.mark.ort

SLOW_START = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=SLOW_START
)
ORDINARY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW_START
)
HUGE = 1e20


def onnxruntime(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any] | None:
    """Its outputs without any optimisation; None where it refuses the model."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
        results = session.run(None, feeds)
    except Exception as err:  # it raises types of its own
        note(f"onnxruntime: {err}")
        return None
    return dict(zip((o.name for o in session.get_outputs()), results, strict=True))


def native(model: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> dict[str, Any]:
    with polytool.runner("native", model, **options) as runner:
        return runner.infer(feeds)


def check(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    note(onnx.printer.to_text(model))
    expected = onnxruntime(model, feeds)
    assume(expected is not None)
    assert expected is not None
    exact = native(model, feeds, precision="fp64", optimize=False)
    for label, got in (
        ("fused", native(model, feeds)),
        ("unfused", native(model, feeds, optimize=False)),
    ):
        for name, want in expected.items():
            assert_close(f"{label} {name}", got[name], want, exact[name])


def assert_close(name: str, got: Any, want: Any, exact: Any) -> None:
    """Equal but for roundings: as near to ONNX Runtime as that is to the exact value, or nearer.

    Where the exact value is huge or not finite, the results need only both be so or both not.
    """
    assert got.shape == want.shape, f"{name} has shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype, f"{name} is {got.dtype}, not {want.dtype}"
    if want.dtype != np.float32:
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    with np.errstate(all="ignore"):
        sound = np.isfinite(exact) & (np.abs(exact) < HUGE) & np.isfinite(want)
        scale = np.abs(exact[sound]).max(initial=1.0)
        allowed = 2e-5 * scale + 20 * np.abs(want[sound] - exact[sound])
        wrong = ~(np.abs(got[sound].astype(float) - exact[sound]) <= allowed)
    assert not wrong.any(), f"{name}: {got[sound][wrong]} instead of {want[sound][wrong]}"


@ORDINARY
@given(graphs())
def test_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)


@pytest.mark.slow
@settings(parent=settings.default, deadline=None, suppress_health_check=SLOW_START)
@given(graphs(most=25))
def test_larger_random_graphs_agree(case: tuple[onnx.ModelProto, dict[str, Any]]) -> None:
    check(*case)
