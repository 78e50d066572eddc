"""Whether a blamed layer is wrong, or our operator is: ask a second layer oracle.

The native oracle shares the operators of the native engine, ONNX Runtime does not. Where both
differ on the same inputs, that is the finding, whoever the engine agrees with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, LayerOracle, Observable, Tap
from polytool.comparators import budget as budgets
from polytool.comparators.findings import EXPECTED, Finding
from polytool.comparators.judge import relative_l2
from polytool.comparators.rows import RowOracle
from polytool.errors import PolytoolError
from polytool.tensors import DType

_MOST = 3  # layers that are asked about
_FEW = 0.001  # of discrete values that may differ by ties

Names = tuple[str, str]


def with_second_opinion(
    findings: Sequence[Finding],
    runner: Observable,
    samples: Sequence[Feeds],
    oracle: RowOracle,
    second: LayerOracle,
    names: Names,
) -> list[Finding]:
    """The findings, with another reason for those about which the oracles differ.

    Args:
        findings: in execution order.
        runner: active.
        samples: the inputs.
        oracle: the one that judged.
        second: the other one.
        names: what they are called in a sentence.
    """
    blamed = [f for f in findings if f.verdict != EXPECTED and "." not in f.iteration]
    first = min(blamed, key=lambda f: f.position, default=None)
    chosen = {f.position: f for f in sorted(blamed, key=lambda f: f.rank)[:_MOST]}
    if first is not None:
        chosen[first.position] = first
    reasons: dict[int, str] = {}
    for position, finding in chosen.items():
        number = int(finding.iteration)
        values = _values(runner, samples[number], finding)
        oracles = oracle.of_sample(number), oracle.of_sample(number, second)
        reason = _difference(finding, values, oracles, names)
        if reason is not None:
            reasons[position] = reason
    return [
        dataclasses.replace(f, reason=reasons[f.position]) if f.position in reasons else f
        for f in findings
    ]


def _values(runner: Observable, sample: Feeds, finding: Finding) -> dict[str, Any]:
    """What the runner has in the layer's inputs and in what it stores."""
    wanted = {*finding.inputs, *finding.tensors}
    values = {name: value for name, value in sample.items() if name in wanted}

    def keep(tap: Tap, value: Any) -> None:
        if tap.tensor in wanted:
            values[tap.tensor] = np.array(value) if isinstance(value, np.ndarray) else value

    runner.infer(sample, observe=keep)
    return values


def _difference(
    finding: Finding,
    values: Mapping[str, Any],
    oracles: tuple[LayerOracle, LayerOracle],
    names: Names,
) -> str | None:
    (tensor,) = finding.tensors
    given = {name: values[name] for name in finding.inputs}
    try:
        one, other = (np.asarray(o.evaluate(given, [tensor])[tensor]) for o in oracles)
    except PolytoolError:
        return None  # the second one cannot run this layer, so that it has no opinion
    apart = _apart(one, other)
    if apart <= _allowed(one, finding.condition):
        return None
    operators = "+".join(dict.fromkeys(finding.operators)) or "the layer"
    near = _apart(values[tensor], one), _apart(values[tensor], other)
    agrees = names[0] if near[0] < near[1] else names[1]
    return (
        f"operator: {operators} of {names[0]} and of {names[1]} differ on the same inputs by "
        f"{apart:.2g}; the engine is nearer to {agrees} ({min(near):.2g}, {max(near):.2g})"
    )


def _apart(a: Any, b: Any) -> float:
    """Relative L2, or the share of discrete values that differ; infinite where shapes differ."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return math.inf
    if a.dtype == object or not DType.of(a).is_float:
        return float(np.mean(a != b)) if a.size else 0.0
    found = relative_l2(a, b)
    return math.inf if found is None else found


def _allowed(value: Any, condition: float) -> float:
    """How far two sound implementations in float32 may be apart."""
    if value.dtype == object or not DType.of(value).is_float:
        return _FEW
    return budgets.SUSPICIOUS_UP_TO * budgets.budget(DType.FLOAT, "fp32", max(1.0, condition))
