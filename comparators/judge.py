"""One stored tensor of one run, judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.base import LayerOracle, Tap
from polytool.comparators import budget as budgets
from polytool.comparators.findings import EXPECTED, Finding, Range
from polytool.comparators.operands import rounded_operands
from polytool.comparators.reasons import value_range, why, why_not_finite
from polytool.comparators.slices import Slice
from polytool.tensors import DType

Array = np.ndarray[Any, Any]

NOTHING_FINITE = "not judged: its inputs leave nothing finite, in the engine as in the model"
_NOISE = 2.0**-20
_LARGE = 256  # elements from which one draw of noise tells enough
_DRAWS = 24  # of noise, after which a decision that stayed the same is no tie
_TIE = 8.0  # units of roundoff within which a decision is a tie
_TINY = 1e-200  # squares that may have lost digits below the range of float64
_NO_RANGE = Range(0.0, None, 0.0, 0, 0)


@dataclass(frozen=True)
class Judgement:
    """What one look at one tensor found; see `Finding` for the fields.

    Attributes:
        exact: the reference's value, and
        own_delta: what the layer alone added to it; kept for broken and suspicious layers.
    """

    own: float | None
    total: float | None
    inherited: float | None
    budget: float
    excess: float | None
    condition: float
    verdict: str
    reason: str
    iteration: str
    range: Range = _NO_RANGE
    flips: int = 0
    exact: Array | None = None
    own_delta: Array | None = None

    def worse_than(self, other: Judgement) -> bool:
        """Whether this look is the one to report."""
        return _size(self.excess) > _size(other.excess)

    def finding(self, tap: Tap, position: int, mean: float | None, slice_: Slice) -> Finding:
        """The row of the layer."""
        verdict, reason = self.verdict, self.reason
        if slice_.holds_bodies and verdict != EXPECTED:
            verdict, reason = EXPECTED, "computed in bodies, whose layers are judged one by one"
        return Finding(
            layer=tap.layer,
            nodes=slice_.nodes,
            inputs=slice_.inputs,
            patterns=tap.nodes,
            operators=slice_.operators,
            tensors=(tap.tensor,),
            own_error=self.own,
            total_error=self.total,
            inherited_error=self.inherited,
            budget=self.budget,
            excess=self.excess,
            condition=self.condition,
            verdict=verdict,
            reason=reason,
            iteration=self.iteration,
            position=position,
            dtype=tap.spec.dtype.label if tap.spec.dtype is not None else "?",
            precision=tap.precision,
            range=self.range,
            mean_own_error=mean,
            flips=self.flips,
        )


def _size(value: float | None) -> float:
    return math.inf if value is None else value


def relative_l2(value: Any, reference: Any) -> float | None:
    """||value - reference|| / ||reference|| in float64; None when they are not finite alike.

    Elements that are NaN, or the same infinity, on both sides are left out. An all-zero reference
    gives 0 or infinity.
    """
    a, r = np.asarray(value), np.asarray(reference)
    if a.shape != r.shape or a.dtype == object or r.dtype == object:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        return _l2(
            a.astype(np.float64, copy=False).ravel(), r.astype(np.float64, copy=False).ravel()
        )


def _errors(
    engine: Array, alone: Array, exact: Any
) -> tuple[float | None, float | None, float | None]:
    """Own, total and inherited error of float64 arrays of one shape; see `relative_l2`."""
    a, r = engine.ravel(), alone.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        own = _l2(a, r)
        if not _comparable(engine, exact):
            return own, None, None
        e = exact.astype(np.float64, copy=False).ravel()
        return own, _l2(a, e), _l2(r, e)


def _l2(a: Array, r: Array) -> float | None:
    error = a - r
    square, scale = float(error @ error), float(r @ r)
    if not (math.isfinite(square) and math.isfinite(scale)) or scale < _TINY or 0 < square < _TINY:
        return _scaled_l2(a, r)
    return math.sqrt(square / scale)


def _scaled_l2(a: Array, r: Array) -> float | None:
    """The same where a value is not finite, or squares leave the range of float64."""
    both = np.isfinite(a) & np.isfinite(r)
    if not both.all():
        other = ~both
        if not np.array_equal(a[other], r[other], equal_nan=True):
            return None
        a, r = a[both], r[both]
    _, exponent = math.frexp(max(float(np.abs(v).max(initial=0.0)) for v in (a, r)))
    a, r = np.ldexp(a, -exponent), np.ldexp(r, -exponent)
    error, scale = float(np.linalg.norm(a - r)), float(np.linalg.norm(r))
    return error / scale if scale else (math.inf if error else 0.0)


def judge(
    oracle: LayerOracle,
    slice_: Slice,
    tap: Tap,
    value: Any,
    given: Mapping[str, Any],
    exact: Any,
    seed: int,
    where: str,
) -> Judgement:
    """Compare `value`, which the engine stored, with the oracle on the engine's inputs.

    Args:
        given: the engine's values of the slice's inputs.
        exact: the reference's value of the tensor, None when there is none.
        seed: of the noise that the condition is measured with.
        where: the sample, for the report.
    """
    alone = oracle.evaluate(given, [tap.tensor])[tap.tensor]
    if not _comparable(value, alone):
        return _uncomparable(value, alone, where)
    if DType.of(value).is_float:
        return _judge_floats(oracle, slice_, tap, value, given, alone, exact, seed, where)
    return _judge_discrete(oracle, slice_, tap, value, given, alone, exact, seed, where)


def _comparable(value: Any, alone: Any) -> bool:
    arrays = isinstance(value, np.ndarray) and isinstance(alone, np.ndarray)
    return arrays and value.shape == alone.shape and value.dtype != object


def _uncomparable(value: Any, alone: Any, where: str) -> Judgement:
    """Sequences, strings and shapes: equal or not."""
    shapes = np.shape(value), np.shape(alone)
    if isinstance(value, np.ndarray) and isinstance(alone, np.ndarray) and shapes[0] != shapes[1]:
        reason = f"wrong kernel: the shape is {list(shapes[0])}, the model's is {list(shapes[1])}"
        return Judgement(None, None, None, 0.0, None, 0.0, "broken", reason, where)
    same = bool(np.all(np.asarray(value, dtype=object) == np.asarray(alone, dtype=object)))
    if isinstance(value, list):
        same = len(value) == len(alone)
    reason = "equal" if same else "wrong kernel: differs from the model's"
    error = 0.0 if same else None
    return Judgement(
        error, None, None, 0.0, error, 0.0, "expected" if same else "broken", reason, where
    )


def _judge_discrete(
    oracle: LayerOracle,
    slice_: Slice,
    tap: Tap,
    value: Array,
    given: Mapping[str, Any],
    alone: Array,
    exact: Any,
    seed: int,
    where: str,
) -> Judgement:
    """Integers and booleans: what the same inputs must give is exact but for flipped decisions.

    A quantising layer may be one step off, one more where it chooses its own zero point.
    """
    flips = int(np.count_nonzero(value != alone))
    total = relative_l2(value, exact) if exact is not None else None
    turned = int(np.count_nonzero(value != exact)) if _comparable(value, exact) else 0
    if not flips:
        reason = "exact"
        if turned:
            reason = f"exact on its inputs; decides {turned} of {value.size} differently upstream"
        return Judgement(0.0, total, total, 0.0, 0.0, 0.0, EXPECTED, reason, where, flips=turned)
    share = flips / value.size
    steps = np.abs(value.astype(np.float64) - alone.astype(np.float64)).max(initial=0.0)
    if steps <= _steps_allowed(slice_.operators, value):
        reason = f"{flips} of {value.size} values off by {steps:.0f} step(s): rounding ties"
        return Judgement(share, total, total, 0.01, 1.0, 1.0, EXPECTED, reason, where, flips=flips)
    flips = _beyond_ties(oracle, tap, value, given, alone, seed)
    share = flips / value.size
    if not flips:
        reason = "decides differently only where rounding of its inputs decides"
        return Judgement(share, total, total, 0.01, 1.0, 1.0, EXPECTED, reason, where)
    reason = f"decision: flipped in {flips} of {value.size} values, by up to {steps:.4g}"
    if any("Quantize" in op for op in slice_.operators):
        reason = (
            f"quantisation: {flips} of {value.size} values are off by up to {steps:.4g} steps: a "
            f"wrong scale, zero point or rounding"
        )
    excess = 4.0 * share / 0.01
    return Judgement(
        share, total, None, 0.01, excess, 1.0, budgets.verdict(excess), reason, where, flips=flips
    )


def _steps_allowed(operators: tuple[str, ...], value: Array) -> int:
    if value.dtype == np.bool_ or not any("Quantize" in op for op in operators):
        return 0
    return 2 if "DynamicQuantizeLinear" in operators else 1


def _beyond_ties(
    oracle: LayerOracle,
    tap: Tap,
    value: Array,
    given: Mapping[str, Any],
    alone: Array,
    seed: int,
) -> int:
    """How many decisions differ from what the oracle decides with rounding noise, in every draw."""
    floats = [v for v in given.values() if _is_float(v)]
    units = [budgets.unit_roundoff(DType.of(v)) for v in floats] or [2.0**-24]
    noise = _TIE * max(*units, budgets.operand_roundoff(tap.precision))
    wrong = value != alone
    for draw in range(_DRAWS):
        if not wrong.any():
            break
        noisy = oracle.evaluate(given, [tap.tensor], noise=noise, seed=seed + draw)[tap.tensor]
        if _comparable(noisy, value):
            wrong &= value != noisy
    return int(np.count_nonzero(wrong))


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object and DType.of(value).is_float


def _judge_floats(
    oracle: LayerOracle,
    slice_: Slice,
    tap: Tap,
    value: Array,
    given: Mapping[str, Any],
    alone: Array,
    exact: Any,
    seed: int,
    where: str,
) -> Judgement:
    dtype = tap.spec.dtype
    engine, right = value.astype(np.float64), np.asarray(alone, np.float64)
    own, total, inherited = _errors(engine, right, exact)
    values = value_range(engine, right, dtype)
    if own is None:
        reason = why_not_finite(engine, right, values, dtype)
        return Judgement(None, total, inherited, 0.0, None, 0.0, "broken", reason, where, values)
    both = np.isfinite(engine) & np.isfinite(right)
    finite = both.all()
    if not finite and not both.any():
        return Judgement(
            0.0, total, inherited, 0.0, 0.0, 0.0, EXPECTED, NOTHING_FINITE, where, values
        )
    quantises = any("Quantize" in op for op in slice_.operators)
    condition = 1.0  # at least; measured only where an error is more than that explains
    allowed = budgets.budget(dtype, tap.precision, condition, quantises)
    if own > budgets.EXPECTED_UP_TO * allowed:
        condition = _condition(oracle, tap.tensor, given, right, seed)
        allowed = budgets.budget(dtype, tap.precision, condition, quantises)
    excess = own / allowed if allowed else (math.inf if own else 0.0)
    verdict = budgets.verdict(excess)
    if not finite:
        engine, right = np.where(both, engine, 0.0), np.where(both, right, 0.0)
    reason = why(engine, right, values, dtype, condition, excess, slice_.operators)
    if verdict != EXPECTED and reason.startswith(("accumulation", "wrong kernel")):
        reason = rounded_operands(oracle, tap.tensor, given, engine, right) or reason
    found = Judgement(
        own, total, inherited, allowed, excess, condition, verdict, reason, where, values
    )
    if verdict == EXPECTED or exact is None:
        return found
    return dataclasses.replace(found, exact=np.asarray(exact), own_delta=engine - right)


def _condition(
    oracle: LayerOracle, tensor: str, given: Mapping[str, Any], alone: Array, seed: int
) -> float:
    """How much relative noise on every operand and result is amplified, in relative L2.

    Small tensors are measured with several draws, whose root mean square is taken.
    """
    draws = 1 if alone.size >= _LARGE else 8
    squares = []
    for draw in range(draws):
        noisy = oracle.evaluate(given, [tensor], noise=_NOISE, seed=seed + draw)[tensor]
        moved = relative_l2(noisy, alone)
        if moved is not None and math.isfinite(moved):
            squares.append((moved / _NOISE) ** 2)
    return max(1.0, math.sqrt(sum(squares) / len(squares))) if squares else 1.0
