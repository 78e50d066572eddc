"""What the tests of tuned kernels share: a small model run tuned and, in float64, as written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from polytool import NativeRunner
from polytool.backends.native.tactics import choose

Arrays = Mapping[str, np.ndarray[Any, Any]]


def model(
    body: str, inputs: str, outputs: str, weights: Arrays, opset: int = 20
) -> onnx.ModelProto:
    """A model from the text of its nodes, with `weights` as initializers."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
        f"g ({inputs}) => ({outputs}) {{ {body} }}"
    )
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def tactics_of(runner: NativeRunner) -> list[str]:
    """The tactic of every layer, in order."""
    engine = runner.engine
    return [choose(layer, engine.mode).name for layer in engine.network.layers]


def check(proto: onnx.ModelProto, *feeds: Arrays, tactic: str, tolerance: float = 2e-6) -> None:
    """Every output within `tolerance` of its largest magnitude, and `tactic` did the work."""
    with (
        NativeRunner(proto, precision="fp32") as tuned,
        NativeRunner(proto, precision="fp64", optimize=False) as exact,
    ):
        assert tactic in tactics_of(tuned)
        for feed in feeds:
            expected = exact.infer(feed)
            for name, value in tuned.infer(feed).items():
                assert_close(value, expected[name], tolerance)


def assert_close(
    value: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float
) -> None:
    """Same shape, same dtype but for float64, and close relative to the largest magnitude."""
    assert value.shape == expected.shape
    if value.dtype.kind != "f":
        np.testing.assert_array_equal(value, expected)
        return
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance * scale)
