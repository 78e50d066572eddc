"""Whatever the trap, a sanitized model is valid, loads, and gives the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import polytool
from polytool.feeds import make_feeds
from polytool.model import Model
from polytool.surgeon import sanitize
from tests.surgeon import test_fold, test_loops, test_noops, test_scopes, test_weights
from tests.surgeon.function_traps import FUNCTIONS
from tests.surgeon.surgery import assert_equivalent, parse
from tests.surgeon.traps import TRAPS

pytestmark = pytest.mark.ort


UNKNOWN_TO_ONNXRUNTIME = ("dropout in its first form", "broadcast by attribute")


INVALID_BEFORE = (
    "an output without a shape",
    "nested captures out of order",
    "nodes in reverse",
    "a dead node out of order",
)


def trap(name: str) -> onnx.ModelProto:
    opset, text, *changes = TRAPS[name]
    proto = parse(text, opset=opset)
    for change in changes:
        change(proto)
    return proto


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_changes_nothing(name: str) -> None:
    proto = trap(name)
    result = sanitize(proto)
    assert result.verdict.agree is not False
    if name in UNKNOWN_TO_ONNXRUNTIME:
        assert_natively_equivalent(proto, result.model)
    elif name in INVALID_BEFORE:
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(proto)
        assert_equivalent(proto, result.model)
    else:
        onnx.checker.check_model(proto)
        assert_equivalent(proto, result.model)


def assert_natively_equivalent(before: onnx.ModelProto, after: Model) -> None:
    onnx.checker.check_model(after.to_proto())
    feed = next(iter(make_feeds(before)))
    with polytool.runner("native", before) as old, polytool.runner("native", after) as new:
        expected, got = old.infer(feed), new.infer(feed)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, got[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trap_in_a_function_changes_nothing(name: str) -> None:
    attributes, body, calls = FUNCTIONS[name]
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]> '
        f"g (float[2] x) => (float[2] y) {{{calls}}} "
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F {attributes}(a) => (b) {{{body}}}'
    )
    result = sanitize(proto)
    assert result.verdict.agree is not False
    assert_equivalent(proto, result.model)


def test_the_suite_is_large() -> None:
    """With the cases whose operators are counted beside, of rewrites that do happen or do not."""
    counted = (test_fold.CASES, test_noops.CASES, test_scopes.CASES, test_loops.CASES)
    weights = (test_weights.FOLDED, test_weights.KEPT, test_weights.CHAINS)
    assert len(TRAPS) + len(FUNCTIONS) >= 80
    assert sum(map(len, (*counted, *weights, TRAPS, FUNCTIONS))) >= 250
