"""What `locate` finds: one row a layer, and the verdict on the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

BROKEN, SUSPICIOUS, EXPECTED = "broken", "suspicious", "expected"
CAUSES = (
    "overflow",  # exact values beyond the largest number of the type, stored or on the way
    "underflow",  # exact values below the smallest normal number of the type
    "not finite",  # NaN or Inf that no range explains
    "cancellation",  # rounding of the inputs, amplified
    "operands",  # inputs rounded to a smaller type than the layer's
    "accumulation",  # a sum that loses bits
    "quantisation",  # a wrong scale, zero point or rounding to integers
    "decision",  # a discrete decision that fell otherwise
    "wrong kernel",  # other values, other places, another computation
    "operator",  # our operator differs from ONNX Runtime's
    "race",  # other bits when nobody observes
)
_ORDER = {BROKEN: 0, SUSPICIOUS: 1, EXPECTED: 2}


@dataclass(frozen=True)
class Range:
    """The values that a layer stores.

    Attributes:
        absmax: largest finite magnitude.
        headroom: factor to the largest number of the stored type; below 1 the exact value
            overflows. None for types without a limit that matters.
        subnormal: share of the non-zero exact values that are below the smallest normal number.
        nan, inf: how many values are NaN or Inf.
    """

    absmax: float
    headroom: float | None
    subnormal: float
    nan: int
    inf: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "absmax": _number(self.absmax),
            "headroom": _number(self.headroom),
            "subnormal": self.subnormal,
            "nan": self.nan,
            "inf": self.inf,
        }


@dataclass(frozen=True)
class Finding:
    """One layer.

    Attributes:
        layer: the runner's name of the layer.
        nodes: the ONNX nodes that it computes.
        tensors: the ONNX tensors that it stores and that were compared.
        own_error: relative L2 against the layer oracle fed with the engine's inputs: what this
            layer alone did; None where a value is not finite on one side.
        total_error: relative L2 against the reference; None inside bodies of If, Loop and Scan.
        inherited_error: what the oracle's layer makes of the engine's inputs, against the
            reference.
        budget: the own error to expect from the layer's types and condition.
        excess: own_error / budget; None where own_error is.
        condition: how much the layer amplifies relative noise of its inputs; 1 where its error
            needs no such explanation.
        contribution: relative L2 change of the final outputs that this layer's own error alone
            causes; None where it was not measured.
        verdict: `broken`, `suspicious` or `expected`.
        reason: why, in words.
        iteration: the worst sample (and the iteration of a body, as `sample.iteration`).
        mean_own_error: over all samples.
        flips: elements that a discrete operator decided differently.
        reproducer: the command or file that reproduces this layer alone, once it exists.
        inputs: the ONNX tensors that it was judged on.
        patterns: the names by which the runner knows its nodes, as `layer_precisions` takes them.
        operators: the ONNX operators between its inputs and what it stores.
        position: place in execution order.
    """

    layer: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    own_error: float | None
    total_error: float | None
    inherited_error: float | None
    budget: float
    excess: float | None
    condition: float
    verdict: str
    reason: str
    iteration: str
    position: int
    dtype: str
    precision: str
    range: Range
    contribution: float | None = None
    mean_own_error: float | None = None
    flips: int = 0
    reproducer: str | None = None
    inputs: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def cause(self) -> str | None:
        """The kind of reason, one of `reasons.CAUSES`; None for a layer that is as it should be."""
        cause, colon, _ = self.reason.partition(":")
        return cause if colon and cause in CAUSES else None

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sorts by verdict, then by excess, then by execution order."""
        excess = math.inf if self.excess is None else self.excess
        return _ORDER[self.verdict], -excess, self.position

    def with_contribution(self, contribution: float | None) -> Finding:
        """The same row with what its error does to the outputs."""
        return self if contribution is None else replace(self, contribution=contribution)

    def racing(self) -> Finding:
        """The same row of a layer that computes other bits when nobody observes it."""
        reason = (
            "race: the same inputs give other bits, from run to run or where no layer waits for "
            "another: it reads before its inputs are written, is not run at all, or reads what "
            "nothing has stored"
        )
        return replace(self, verdict=BROKEN, excess=None, reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that JSON lacks are null."""
        return {
            "layer": self.layer,
            "nodes": list(self.nodes),
            "tensors": list(self.tensors),
            "inputs": list(self.inputs),
            "own_error": _number(self.own_error),
            "total_error": _number(self.total_error),
            "inherited_error": _number(self.inherited_error),
            "budget": _number(self.budget),
            "excess": _number(self.excess),
            "condition": _number(self.condition),
            "contribution": _number(self.contribution),
            "verdict": self.verdict,
            "reason": self.reason,
            "cause": self.cause,
            "iteration": self.iteration,
            "mean_own_error": _number(self.mean_own_error),
            "flips": self.flips,
            "reproducer": self.reproducer,
            "position": self.position,
            "dtype": self.dtype,
            "precision": self.precision,
            "range": self.range.to_json(),
        }


@dataclass(frozen=True)
class Location:
    """The answer of `locate`.

    Attributes:
        verdict: `broken`, `suspicious`, `expected`, or `race` when observing, or running again,
            changed an output.
        findings: one row a layer, in execution order.
        outputs: relative L2 of each network output against the reference, worst sample.
        not_checked: what was not compared, and why.
        settings: what the runner and the oracle computed with.
        fix: the layers to keep in higher precision, where they were searched.
        pictures: by output, what its error looks like in the worst sample (see `pictures.draw`),
            where that was asked for; no part of the JSON.
    """

    verdict: str
    findings: tuple[Finding, ...]
    outputs: dict[str, float | None]
    not_checked: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    fix: dict[str, Any] | None = None
    pictures: dict[str, Any] = field(default_factory=dict)

    @property
    def ranking(self) -> list[Finding]:
        """The findings, the worst first."""
        return sorted(self.findings, key=lambda f: f.rank)

    @property
    def first_broken(self) -> Finding | None:
        """The first broken layer in execution order."""
        broken = [f for f in self.findings if f.verdict == BROKEN]
        return min(broken, key=lambda f: f.position) if broken else None

    def to_json(self) -> dict[str, Any]:
        """The object that `debug locate --json` prints."""
        first = self.first_broken
        return {
            "verdict": self.verdict,
            "first_broken": first.to_json() if first is not None else None,
            "ranking": [f.to_json() for f in self.ranking],
            "outputs": {name: _number(e) for name, e in self.outputs.items()},
            "fix": self.fix,
            "not_checked": list(self.not_checked),
            "settings": self.settings,
        }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
