"""The verdict on one pair of arrays, from their `Errors` and what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.comparators.frontier import required_atol
from polytool.comparators.metrics import Errors
from polytool.comparators.response import MORE
from polytool.comparators.tolerances import (
    METRICS,
    RESPONSE_FACTOR,
    SMALL_SLICE,
    UNSTABLE,
    UNSTABLE_FACTOR,
    UNSTABLE_SPREAD,
    Criteria,
    Floor,
)
from polytool.patterns import lookup

AGREE, DIFFER, NOT_COMPARED = "agree", "differ", "not_compared"
_WORSE = {AGREE: 0, NOT_COMPARED: 1, DIFFER: 2}


@dataclass(frozen=True)
class Judgement:
    """A verdict with its grounds.

    Attributes:
        verdict: `agree`, `differ` or `not_compared`.
        reason: one phrase.
        tolerance: what was asked: the kind of check, its limits, and where they come from.
        excess: error over limit where both are numbers: at most 1 when they agree.
        unstable: the model's own response is above 1 % of scale.
    """

    verdict: str
    reason: str = ""
    tolerance: Mapping[str, Any] = field(default_factory=dict)
    excess: float = 0.0
    unstable: bool = False

    @property
    def rank(self) -> tuple[int, float]:
        """The worst comes last."""
        return _WORSE[self.verdict], math.inf if math.isnan(self.excess) else self.excess


@dataclass(frozen=True)
class Reaction:
    """How one array reacts to noise: its errors for each seed, or a change of its shape.

    Attributes:
        errors: one for each seed; empty where the outputs changed their shape.
        source: who was measured.
    """

    errors: Sequence[Errors]
    source: str


React = Callable[[float], "Reaction | None"]
"""Measures how the array at hand reacts to that many times the noise."""


def worst_verdict(verdicts: Sequence[str]) -> str:
    """`differ` beats `not_compared` beats `agree`; nothing is not compared."""
    return max(verdicts, key=_WORSE.__getitem__, default=NOT_COMPARED)


def judge(
    errors: Errors, criteria: Criteria, output: str, floor: Floor | None, grain: float, react: React
) -> Judgement:
    """The verdict on one pair of arrays.

    Args:
        errors: how far they are apart.
        criteria: what is asked.
        output: the output's name.
        floor: of a float type; None for integers, booleans and strings.
        grain: the absolute error that the operator which makes the output may have by design.
        react: measures the model's response at this place; None where nobody can.
    """
    special = _specials(errors, criteria)
    if special is not None:
        return special
    checks = []
    if criteria.simple:
        tolerances = criteria.tolerances(output)
        statistic = lookup(criteria.statistic, output)
        if tolerances is None and statistic is None:
            checks.append(_default(errors, floor, grain, react))
        else:
            checks.append(_tolerance(errors, statistic or "elemwise", tolerances or (0.0, 0.0)))
    checks += [metric(errors, n, t) for n, t in criteria.thresholds(output).items()]
    return max(checks, key=lambda j: j.rank)


def _specials(errors: Errors, criteria: Criteria) -> Judgement | None:
    if errors.one_sided:
        reason = f"{errors.one_sided} of {errors.count} values are NaN or Inf on one side only"
        return Judgement(DIFFER, reason, excess=math.inf)
    if errors.not_finite and criteria.require_finite:
        reason = f"{errors.not_finite} of {errors.count} values are NaN or Inf on both sides"
        return Judgement(DIFFER, reason, excess=math.inf)
    if errors.count and errors.not_finite == errors.count:
        return Judgement(NOT_COMPARED, "every value is NaN or Inf on both sides")
    return None


def metric(errors: Errors, name: str, threshold: float) -> Judgement:
    """Check one metric by name."""
    kind = METRICS[name]
    value = getattr(errors, kind.field)
    tolerance = {"check": name, "threshold": threshold, "source": "given"}
    if value is None:
        return Judgement(NOT_COMPARED, f"{name} has no meaning for this type", tolerance)
    sign = ">=" if kind.higher_is_better else "<="
    reason = f"{name} {value:.6g}{kind.unit}, asked {sign} {threshold:g}{kind.unit}"
    passed = kind.passes(value, threshold)
    return Judgement(AGREE if passed else DIFFER, reason, tolerance, 0.0 if passed else math.inf)


def _tolerance(errors: Errors, statistic: str, tolerances: tuple[float, float]) -> Judgement:
    rtol, atol = tolerances
    tolerance = {"check": statistic, "rtol": rtol, "atol": atol, "source": "given"}
    if statistic == "elemwise":
        needed = required_atol(errors.frontier, rtol)
        passed = needed <= atol
        reason = "" if passed else f"needs atol {needed:.3g} beside rtol {rtol:g}"
        return Judgement(_verdict(passed), reason, tolerance, _over(needed, atol))
    absolute = getattr(errors, f"{statistic}_abs")
    relative = getattr(errors, f"{statistic}_rel")
    if absolute is None or relative is None:
        return Judgement(NOT_COMPARED, f"no {statistic} error was recorded", tolerance)
    passed = absolute <= atol or relative <= rtol
    reason = f"{statistic} error {absolute:.3g}, relative {relative:.3g}"
    return Judgement(_verdict(passed), reason, tolerance,
                     min(_over(absolute, atol), _over(relative, rtol)))  # fmt: skip


def _verdict(passed: bool) -> str:
    return AGREE if passed else DIFFER


def _over(value: float, limit: float) -> float:
    if value <= 0:
        return 0.0
    return value / limit if limit else math.inf


@dataclass(frozen=True)
class _Limits:
    """Absolute limits of the three numbers of the default rule."""

    l2: float
    largest: float
    slices: tuple[Any, ...]

    def excess(self, errors: Errors) -> tuple[float, str]:
        """The largest error over its limit, and which it is."""
        found = [(_over(errors.l2, self.l2), "norm of the error"),
                 (_over(errors.max_abs, self.largest), "largest error")]  # fmt: skip
        for norms, limit in zip(errors.slices, self.slices, strict=True):
            ratios = _ratios(norms.error, limit)
            at = int(ratios.argmax())
            found.append((float(ratios[at]), f"slice {at} along axis {norms.axis}"))
        return max(found)


def _ratios(error: Any, limit: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / limit)


def _floor_limits(errors: Errors, floor: Floor, grain: float) -> _Limits:
    root = math.sqrt(max(errors.count, 1))
    rms = errors.reference_l2 / root
    slices = tuple(
        np.maximum(
            floor.largest * np.maximum(s.reference, SMALL_SLICE * rms * math.sqrt(s.size)),
            grain * math.sqrt(s.size),
        )
        for s in errors.slices
    )
    return _Limits(
        max(floor.l2 * errors.reference_l2, grain * root),
        max(floor.largest * errors.scale, grain),
        slices,
    )


def _default(errors: Errors, floor: Floor | None, grain: float, react: React) -> Judgement:
    """The default rule; ever more is measured as long as the arrays seem to differ."""
    if floor is None:
        return _discrete(errors, react)
    base = _floor_limits(errors, floor, grain)
    source = f"floor of {floor.name}"
    if grain > floor.largest * errors.scale:
        source = f"absolute {grain:.2g}, as its operator rounds"
    verdict = _float_verdict(errors, base, source)
    once: list[Errors] = []
    more: list[Errors] = []
    for times, known in ((1.0, once), (MORE, more)):
        if verdict.verdict == AGREE:
            return verdict
        reaction = react(times)
        if reaction is None:
            return verdict if once else _unmeasured(errors, floor, grain, source)
        if not reaction.errors:
            return _shapeless(reaction)
        known += reaction.errors
        limits, unstable = _response_limits(errors, base, once, more)
        factor = UNSTABLE_FACTOR if unstable else RESPONSE_FACTOR / times
        who = "response" if factor == 1 else f"{factor:g} x response"
        verdict = _float_verdict(errors, limits, f"{who} ({reaction.source})", unstable)
    return verdict


def _unmeasured(errors: Errors, floor: Floor, grain: float, source: str) -> Judgement:
    if floor.unmeasured > 1:
        source += f" x {floor.unmeasured:g}, as the model's response was not measured"
    return _float_verdict(errors, _floor_limits(errors, floor.alone(), grain), source)


def _shapeless(reaction: Reaction) -> Judgement:
    tolerance = {"check": "default", "source": reaction.source}
    return Judgement(NOT_COMPARED, "its shape changes under noise", tolerance, unstable=True)


def _response_limits(
    errors: Errors, floor: _Limits, once: Sequence[Errors], more: Sequence[Errors]
) -> tuple[_Limits, bool]:
    """The higher of the floor and what noise does; and whether the model is unstable.

    Args:
        errors: what is judged.
        floor: the limits of the floor.
        once: the response to the noise, of which ten times is allowed ...
        more: ... and to ten times the noise; may be empty.
    """
    weighted = [(RESPONSE_FACTOR, r) for r in once] + [(1.0, r) for r in more]
    l2 = max(f * r.l2 for f, r in weighted)
    if l2 <= UNSTABLE * errors.reference_l2:
        largest = max(f * r.max_abs for f, r in weighted)
        slices = tuple(
            np.maximum(limit, np.max([f * r.slices[i].error for f, r in weighted], 0))
            for i, limit in enumerate(floor.slices)
        )
        return _Limits(max(floor.l2, l2), max(floor.largest, largest), slices), False
    l2 = UNSTABLE_FACTOR * max(r.l2 for _, r in weighted)
    largest = UNSTABLE_SPREAD * max(r.max_abs for _, r in weighted)
    return (
        _Limits(
            max(floor.l2, UNSTABLE * errors.reference_l2, l2),
            max(floor.largest, UNSTABLE * errors.scale, largest),
            tuple(np.full(len(limit), np.inf) for limit in floor.slices),
        ),
        True,
    )


def _float_verdict(
    errors: Errors, limits: _Limits, source: str, unstable: bool = False
) -> Judgement:
    excess, which = limits.excess(errors)
    tolerance: dict[str, Any] = {"check": "default"}
    if source.startswith("absolute"):
        tolerance["absolute"] = limits.largest
    else:
        tolerance["relative_l2"] = _over(limits.l2, errors.reference_l2)
        tolerance["max_scaled"] = _over(limits.largest, errors.scale)
    tolerance["source"] = source
    if excess <= 1:
        reason = "agrees within the model's own instability" if unstable else ""
        return Judgement(AGREE, reason, tolerance, excess, unstable)
    reason = f"{which} is {excess:.3g} x the tolerance"
    return Judgement(DIFFER, reason, tolerance, excess, unstable)


def _discrete(errors: Errors, react: React) -> Judgement:
    """Integers, booleans and strings: exact, unless noise changes them too."""
    exact = {"check": "default", "limit": 0, "source": "exact"}
    if not errors.mismatched:
        return Judgement(AGREE, "", exact)
    what = f"{errors.mismatched} of {errors.count} values differ"
    verdict = Judgement(DIFFER, what, exact, math.inf)
    for times in (1.0, MORE):
        reaction = react(times)
        if reaction is None:
            return verdict
        if not reaction.errors:
            return _shapeless(reaction)
        flips = UNSTABLE_SPREAD * max(r.mismatched for r in reaction.errors)
        norm = UNSTABLE_SPREAD * max(r.l2 for r in reaction.errors)
        excess = max(_over(errors.mismatched, flips), _over(errors.l2, norm))
        limit = min(int(flips), errors.count)
        source = f"{UNSTABLE_SPREAD:g} x response ({reaction.source})" if limit else "exact"
        tolerance = {"check": "default", "limit": limit, "source": source}
        if excess <= 1:
            reason = f"{what}, within the model's own instability"
            return Judgement(AGREE, reason, tolerance, excess, True)
        verdict = Judgement(DIFFER, what, tolerance, excess, bool(limit))
    return verdict
