"""Running one model on ONNX Runtime, on our engine with and without fusion, and on the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import polytool

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
    except Exception:  # it raises types of its own; whatever it says, it is no reference here
        return None
    return dict(zip((o.name for o in session.get_outputs()), results, strict=True))


def native(model: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> dict[str, Any]:
    with polytool.runner("native", model, **options) as runner:
        return runner.infer(feeds)


def agree(model: onnx.ModelProto, feeds: dict[str, Any]) -> bool:
    """Check every output of both plans; False where there is nothing to compare with."""
    expected = onnxruntime(model, feeds)
    if expected is None:
        return False
    exact = native(model, feeds, precision="fp64", optimize=False)
    for label, got in (
        ("fused", native(model, feeds)),
        ("unfused", native(model, feeds, optimize=False)),
    ):
        for name, want in expected.items():
            assert_close(f"{label} {name}", got[name], want, exact[name])
    return True


def reduced_agree(model: onnx.ModelProto, feeds: dict[str, Any], precision: str) -> None:
    """Check that fusion does not add to the error of a reduced precision.

    Both plans are held against float64. Where the exact value is beyond what the type holds,
    they may differ: fusion keeps intermediate values that a plan of single nodes stores. What may
    be rounded elsewhere, as weights into which a BatchNormalization is folded, is in proportion to
    the largest value that an output is computed from: a Clip after it does not make it small.
    """
    exact = native(model, feeds, precision="fp64", optimize=False)
    unfused = native(model, feeds, precision=precision, optimize=False)
    fused = native(model, feeds, precision=precision)
    step = 2.0**-11 if precision == "fp16" else 2.0**-8
    sizes = {n: np.abs(w).max(initial=0) for n, w in exact.items() if w.dtype.kind == "f"}
    before_it = _computed_from(model)
    for name, want in exact.items():
        assert fused[name].shape == want.shape and fused[name].dtype == unfused[name].dtype
        if want.dtype.kind != "f" or not want.size:
            continue
        with np.errstate(all="ignore"):
            if not (np.isfinite(unfused[name]).all() and np.abs(want).max() < 1e4):
                continue
            scale = max(1.0, *(sizes[n] for n in before_it.get(name, {name}) if n in sizes))
            before = np.abs(unfused[name].astype(float) - want).max()
            after = np.abs(fused[name].astype(float) - want).max()
        assert after <= 3 * before + 8 * step * scale, f"{name}: {after}, unfused {before}"


def _computed_from(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Every tensor of the main graph, with those that it is computed from and itself."""
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        inner = (n for a in node.attribute for n in a.g.node)
        read = {name for n in (node, *inner) for name in n.input}
        before = set().union(*(found.get(name, {name}) for name in read))
        found |= {name: before | {name} for name in node.output}
    return found


def assert_close(name: str, got: Any, want: Any, exact: Any) -> None:
    """Equal but for roundings: as near to ONNX Runtime as that is to the exact value, or nearer.

    Where the exact value is huge or not finite, the results need only both be so or both not.
    """
    assert got.shape == want.shape, f"{name} has shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype, f"{name} is {got.dtype}, not {want.dtype}"
    if want.dtype not in (np.float32, np.float64):
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    with np.errstate(all="ignore"):
        sound = np.isfinite(exact) & (np.abs(exact) < HUGE) & np.isfinite(want)
        scale = np.abs(exact[sound]).max(initial=1.0)
        allowed = 2e-5 * scale + 20 * np.abs(want[sound] - exact[sound])
        wrong = ~(np.abs(got[sound].astype(float) - exact[sound]) <= allowed)
    assert not wrong.any(), f"{name}: {got[sound][wrong]} instead of {want[sound][wrong]}"
