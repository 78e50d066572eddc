"""Comparing results: `compare(a, b)` says whether two runs, or two dicts of arrays, agree.

comparison = polytool.compare(results["native"], results["onnxrt"])
comparison.agreed                          # True only if everything was compared and agrees
comparison.outputs["logits"].metrics       # max_abs, rel_l2, cosine_similarity ...
comparison.to_json()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polytool.comparators.comparison import Comparison, Finding, OutputResult, Pair, average
from polytool.comparators.leaves import Leaf, dtype_of, fit, leaves
from polytool.comparators.metrics import Errors, measure
from polytool.comparators.response import MORE, Measure, Response
from polytool.comparators.settings import differing_settings
from polytool.comparators.tolerances import (
    Criteria,
    Floor,
    Named,
    OfScale,
    criteria_of,
    floor_of,
    precisions_of,
)
from polytool.comparators.verdicts import DIFFER, NOT_COMPARED, Judgement, Reaction, judge
from polytool.errors import UsageError
from polytool.patterns import lookup
from polytool.tensors import DType

__all__ = ["Comparison", "compare", "compare_all"]

_DEFAULT_QUANTILE = 0.99


def compare(
    a: Any,
    b: Any,
    *,
    rtol: float | Named | None = None,
    atol: float | Named | None = None,
    metrics: Sequence[str] | Mapping[str, Any] | None = None,
    criteria: Criteria | None = None,
    response: Measure | None = None,
    grains: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare two runs, `b` being the reference.

    Args:
        a: results of one runner, a list of dicts of arrays (one an iteration), or one such dict.
        b: the reference, likewise.
        rtol: elements agree when |a - b| <= atol + rtol |b|; a number, or a mapping by output name
            or pattern. Without rtol and atol the default rule holds; see `tolerances`.
        atol: see `rtol`.
        metrics: further numbers to check; see `tolerances.criteria_of`.
        criteria: everything that can be asked, in place of the three arguments above.
        response: measures the model's own response to noise; called only when the floor of the
            default rule fails, and then with 1, and perhaps with 10 times the noise.
        grains: by output name, the absolute error that the operator which makes it may have, or
            one relative to the largest value as `tolerances.OfScale`.

    Raises:
        UsageError: an argument has no meaning, or names no output.
    """
    if criteria is None:
        criteria = criteria_of(rtol, atol, metrics)
    one, other = _Run.of(a, "a"), _Run.of(b, "b")
    pair = _compare_runs(one, other, criteria, _Responses(response), grains or {})
    settings = {r.name: dict(r.settings) for r in (one, other) if r.settings}
    return Comparison((pair,), settings)


def compare_all(
    results: Mapping[str, Any],
    *,
    reference: str | None = None,
    criteria: Criteria | None = None,
    response: Measure | None = None,
    grains: Mapping[str, float] | None = None,
    precisions: Sequence[str] = (),
) -> Comparison:
    """Compare every run in `results` with one of them, by default the first.

    Args:
        results: name to run.
        reference: the name of that one.
        criteria: what agreement means.
        response: see `compare`.
        grains: see `compare`.
        precisions: those that the model itself asks for, beside those that the runs' settings name.

    Raises:
        UsageError: there is only one run, or no run of that name.
    """
    names = list(results)
    if len(names) < 2:
        raise UsageError("one run alone cannot be compared: choose a second runner or load outputs")
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise UsageError(f"there is no run {reference!r} to compare with; there are {names}")
    responses = _Responses(response)
    base = _Run.of(results[reference], reference)
    pairs = tuple(
        _compare_runs(
            _Run.of(results[n], n),
            base,
            criteria or Criteria(),
            responses,
            grains or {},
            precisions,
        )
        for n in names
        if n != reference
    )
    settings = {n: dict(getattr(results[n], "settings", {}) or {}) for n in names}
    return Comparison(pairs, settings)


class _Run:
    """One side of a comparison: a name, settings, and iterations."""

    def __init__(self, name: str, settings: Mapping[str, Any], iterations: Sequence[Any]) -> None:
        self.name, self.settings, self.iterations = name, settings, iterations

    @classmethod
    def of(cls, value: Any, fallback: str) -> _Run:
        if isinstance(value, Mapping) and value and all(map(_is_run, value.values())):
            if len(value) > 1:
                raise UsageError(
                    f"these results hold several runs ({', '.join(value)}): choose one of them, "
                    "as in compare(results['native'], results['onnxrt'])"
                )
            value = next(iter(value.values()))
        if _is_run(value):
            return cls(value.name, value.settings, value)
        if isinstance(value, Mapping):
            return cls(fallback, {}, [value])
        if isinstance(value, Sequence) and all(isinstance(v, Mapping) for v in value):
            return cls(fallback, {}, value)
        raise UsageError(f"results or dicts of arrays can be compared, not {type(value).__name__}")


def _is_run(value: Any) -> bool:
    return isinstance(value, Sequence) and hasattr(value, "settings") and hasattr(value, "name")


class _Responses:
    """The model's response, measured once for each amount of noise, when it is first needed."""

    def __init__(self, measure_: Measure | None) -> None:
        self._measure = measure_
        self._found: dict[float, Response] = {}

    def get(self, times: float) -> Response | None:
        if self._measure is None:
            return None
        if times not in self._found:
            self._found[times] = self._measure(times)
        return self._found[times]

    def react(self, name: str, iteration: int, leaf: Leaf, times: float) -> Reaction | None:
        """How the array at `leaf` reacts to noise; None where that was not measured."""
        response = self.get(times)
        if response is None or iteration >= len(response.clean):
            return None
        clean = response.clean[iteration]
        if name not in clean:
            return None
        found = []
        for seed in response.noisy:
            pairs = {x.path: x for x in leaves(seed[iteration].get(name), clean[name])}
            pair = pairs.get(leaf.path)
            if pair is None or pair.problem or pair.a.size != pair.r.size:
                return Reaction((), response.source)
            shape = pair.r.shape if leaf.a is None or leaf.a.size != pair.r.size else leaf.a.shape
            found.append(measure(pair.a.reshape(shape), pair.r.reshape(shape), slices=True))
        return Reaction(found, response.source)


def _compare_runs(
    a: _Run,
    b: _Run,
    criteria: Criteria,
    responses: _Responses,
    grains: Mapping[str, float],
    declared: Sequence[str] = (),
) -> Pair:
    found: dict[str, list[Finding]] = {}
    precisions = [*precisions_of(a.settings), *precisions_of(b.settings), *declared]
    stopped = False
    for index in range(max(len(a.iterations), len(b.iterations))):
        one = a.iterations[index] if index < len(a.iterations) else None
        other = b.iterations[index] if index < len(b.iterations) else None
        for name in _names(other, one):
            absent = _absent(name, one, other, a.name, b.name)
            if stopped:
                finding = Finding(Judgement(NOT_COMPARED, "stopped at the first difference"))
            elif absent:
                finding = Finding(Judgement(DIFFER, absent, excess=float("inf")))
            else:
                assert one is not None
                assert other is not None
                compared = _Output(name, index, criteria, responses, precisions, grains)
                finding = compared.run(one[name], other[name])
            found.setdefault(name, []).append(finding)
            stopped |= criteria.fail_fast and finding.verdict == DIFFER
    criteria.check_names(list(found))
    outputs = {n: OutputResult(n, tuple(f)) for n, f in found.items()}
    if criteria.average:
        outputs = {
            n: OutputResult(n, o.iterations, average(o, criteria)) for n, o in outputs.items()
        }
    notes = differing_settings(a.settings, b.settings, f"in {a.name}", f"in {b.name}")
    return Pair(a.name, b.name, outputs, tuple(notes))


def _names(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> list[str]:
    return list(dict.fromkeys([*(first or ()), *(second or ())]))


def _absent(
    name: str, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, a: str, b: str
) -> str:
    """What to say of an output that one side lacks."""
    if one is None or other is None:
        return f"{a if one is None else b} has fewer iterations"
    if name not in one or name not in other:
        return f"missing in {a if name not in one else b}"
    return ""


class _Output:
    """Compares one output of one iteration."""

    def __init__(
        self,
        name: str,
        index: int,
        criteria: Criteria,
        responses: _Responses,
        precisions: Sequence[str],
        grains: Mapping[str, float],
    ) -> None:
        self.name, self.index, self.criteria = name, index, criteria
        self.responses, self.precisions = responses, precisions
        self.grain = grains.get(name, 0.0)

    def run(self, a: Any, r: Any) -> Finding:
        """The worst finding of the arrays in the output."""
        findings = [self._leaf(leaf) for leaf in leaves(a, r)]
        if not findings:
            return Finding(Judgement("agree", "empty on both sides"))
        return max(findings, key=lambda f: f.judgement.rank)

    def _leaf(self, leaf: Leaf) -> Finding:
        criteria = self.criteria
        fitted = fit(leaf, check_shapes=criteria.check_shapes, check_dtypes=criteria.check_dtypes)
        if fitted.problem:
            return self._unlike(leaf, fitted.problem)
        if fitted.a is None:
            return Finding(Judgement("agree", "absent on both sides"), path=leaf.path)
        dtypes = dtype_of(leaf.a), dtype_of(leaf.r)
        errors = self._measure(fitted)
        grain = self.grain * (errors.scale if isinstance(self.grain, OfScale) else 1.0)
        judgement = judge(
            errors, criteria, self.name, self._floor(dtypes), grain,
            lambda times: self.responses.react(self.name, self.index, fitted, times),
        )  # fmt: skip
        if not errors.count and judgement.verdict == "agree":
            judgement = Judgement("agree", "empty on both sides", judgement.tolerance)
        shapes = leaf.a.shape, leaf.r.shape
        return Finding(judgement, errors, leaf.path, (dtypes[0].label, dtypes[1].label), shapes)

    def _unlike(self, leaf: Leaf, problem: str) -> Finding:
        """Other shapes are no difference if noise changes the shape as well."""
        verdict = Judgement(DIFFER, problem, excess=float("inf"))
        if problem.startswith(("shape", "a sequence")):
            reactions = (
                self.responses.react(self.name, self.index, leaf, times) for times in (1.0, MORE)
            )
            if any(r is not None and not r.errors for r in reactions):
                reason = f"{problem}, and the shape changes under noise too"
                verdict = Judgement(NOT_COMPARED, reason, unstable=True)
        if leaf.a is None or leaf.r is None:
            return Finding(verdict, path=leaf.path)
        labels = dtype_of(leaf.a).label, dtype_of(leaf.r).label
        return Finding(verdict, None, leaf.path, labels, (leaf.a.shape, leaf.r.shape))

    def _measure(self, leaf: Leaf) -> Errors:
        criteria, name = self.criteria, self.name
        asked = set(criteria.metrics)
        statistic = lookup(criteria.statistic, name)
        quantile = lookup(criteria.quantile, name)
        if criteria.full or statistic in ("median", "quantile"):
            quantile = _DEFAULT_QUANTILE if quantile is None else quantile
        else:
            quantile = None
        by_default = criteria.simple and criteria.tolerances(name) is None
        return measure(
            leaf.a,
            leaf.r,
            ulp=criteria.full or "ulp" in asked,
            indices="indices" in asked,
            quantile=quantile,
            slices=by_default,
            frontier=criteria.full or not by_default,
        )

    def _floor(self, dtypes: Sequence[DType]) -> Floor | None:
        """None where values are exact."""
        real = [d for d in dtypes if d.is_float or d.name.startswith("COMPLEX")]
        return floor_of(real, self.precisions) if real else None
