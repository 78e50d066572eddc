"""What a comparison found: the verdict per output, with numbers, kept so that others can be asked.

`Comparison.save` writes the numbers, not the arrays; `recheck` judges them again by other criteria.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from polytool.comparators.metrics import Errors
from polytool.comparators.tolerances import METRICS, Criteria
from polytool.comparators.verdicts import (
    AGREE,
    DIFFER,
    NOT_COMPARED,
    Judgement,
    judge,
    metric,
    worst_verdict,
)
from polytool.errors import ModelError, UsageError
from polytool.files import StrPath, replacing, write_all
from polytool.patterns import lookup

_FORMAT = {"format": "polytool.comparison", "version": 1}
NUMBERS = (
    "max_abs", "max_rel", "max_scaled", "mean_abs", "mean_rel", "median_abs", "median_rel",
    "quantile_abs", "quantile_rel", "l2", "rel_l2", "cosine_similarity", "snr", "psnr", "max_ulp",
    "index_distance",
)  # fmt: skip
_COUNTS = ("count", "mismatched", "one_sided", "not_finite")
_STORED = [f.name for f in fields(Errors) if f.name != "slices"]


@dataclass(frozen=True)
class Finding:
    """One output in one iteration.

    Attributes:
        judgement: the verdict and its grounds.
        errors: the numbers; None where there were no two arrays to compare.
        path: which array of a sequence or map the numbers are of; "" for a plain output.
        dtypes: the element types of both sides; `shapes` likewise.
    """

    judgement: Judgement
    errors: Errors | None = None
    path: str = ""
    dtypes: tuple[str, str] = ("", "")
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def verdict(self) -> str:
        """`agree`, `differ` or `not_compared`."""
        return self.judgement.verdict


@dataclass(frozen=True)
class OutputResult:
    """One output over all iterations.

    Attributes:
        name: the output.
        iterations: what was found in each.
        average: the judgement on the means over the iterations, where those were asked for.
    """

    name: str
    iterations: tuple[Finding, ...]
    average: Judgement | None = None

    @property
    def worst(self) -> Finding:
        """The iteration that is furthest from agreeing."""
        return max(self.iterations, key=lambda f: f.judgement.rank)

    @property
    def worst_iteration(self) -> int:
        """Its number."""
        return self.iterations.index(self.worst)

    @property
    def judgement(self) -> Judgement:
        """The verdict over all iterations."""
        return self.average or self.worst.judgement

    @property
    def verdict(self) -> str:
        """`agree`, `differ` or `not_compared`."""
        return self.judgement.verdict

    @property
    def agreed(self) -> bool:
        """Whether the output was compared and agrees."""
        return self.verdict == AGREE

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the worst iteration, by name; without those that were not gathered."""
        return _numbers(self.worst.errors)

    def to_json(self) -> dict[str, Any]:
        """The facts in terms of JSON; numbers that are not finite are None."""
        worst, judgement = self.worst, self.judgement
        errors = worst.errors
        return {
            "verdict": self.verdict,
            "reason": judgement.reason,
            **{name: _finite(self.metrics.get(name)) for name in NUMBERS},
            **{name: getattr(errors, name) if errors else None for name in _COUNTS},
            "tolerance": {k: _finite(v) for k, v in judgement.tolerance.items()},
            "excess": _finite(judgement.excess),
            "unstable": judgement.unstable,
            "dtypes": list(worst.dtypes),
            "shapes": [list(s) for s in worst.shapes],
            "path": worst.path,
            "iteration": self.worst_iteration,
            "iterations": [f.verdict for f in self.iterations],
            "worst_index": list(errors.worst) if errors and errors.worst is not None else None,
            "worst_values": list(errors.values) if errors and errors.worst is not None else None,
        }


@dataclass(frozen=True)
class Pair:
    """Two runs, compared.

    Attributes:
        a: the name of the run; `b` is that of its reference.
        outputs: by name, in the order of the reference.
        notes: what else may explain a difference, such as other settings.
    """

    a: str
    b: str
    outputs: Mapping[str, OutputResult]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst of the outputs; `not_compared` when there is none."""
        return worst_verdict([o.verdict for o in self.outputs.values()])

    def to_json(self) -> dict[str, Any]:
        """The facts in terms of JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "outputs": {n: o.to_json() for n, o in self.outputs.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Comparison:
    """One or more pairs of runs, compared.

    Attributes:
        pairs: each run against the reference.
        settings: what changes numbers, by run.
    """

    pairs: tuple[Pair, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The verdict and a table, as `polytool run` prints them, without colours."""
        import click

        from polytool.comparators.comparison_text import describe

        return click.unstyle(describe(self))

    @property
    def verdict(self) -> str:
        """`differ` if any pair does, else `not_compared` if any was not, else `agree`."""
        return worst_verdict([p.verdict for p in self.pairs])

    @property
    def agreed(self) -> bool:
        """Whether everything was compared and agrees."""
        return self.verdict == AGREE

    @property
    def exit_code(self) -> int:
        """0: agree; 1: differ; 2: something was not compared."""
        return {AGREE: 0, DIFFER: 1, NOT_COMPARED: 2}[self.verdict]

    @property
    def outputs(self) -> dict[str, OutputResult]:
        """By name; of several pairs, the result that is furthest from agreeing."""
        found: dict[str, OutputResult] = {}
        for pair in self.pairs:
            for name, output in pair.outputs.items():
                known = found.get(name)
                if known is None or output.judgement.rank > known.judgement.rank:
                    found[name] = output
        return found

    def to_json(self) -> dict[str, Any]:
        """The facts in terms of JSON; numbers that are not finite are None."""
        return {
            "verdict": self.verdict,
            "pairs": [p.to_json() for p in self.pairs],
            "settings": dict(self.settings),
        }

    def recheck(self, criteria: Criteria) -> Comparison:
        """The same numbers, judged by other criteria.

        Outputs for which `criteria` states no tolerance and no metric keep their verdict.

        Raises:
            UsageError: a statistic is asked for that was not gathered.
        """
        pairs = []
        for pair in self.pairs:
            criteria.check_names(list(pair.outputs))
            outputs = {n: _recheck(o, criteria) for n, o in pair.outputs.items()}
            pairs.append(replace(pair, outputs=outputs))
        return replace(self, pairs=tuple(pairs))

    def save(self, path: StrPath) -> None:
        """Write everything but the arrays, for `Comparison.load`."""
        content = {
            **_FORMAT,
            "settings": self.settings,
            "pairs": [
                {
                    "a": p.a,
                    "b": p.b,
                    "notes": p.notes,
                    "outputs": [
                        {"name": o.name, "iterations": [_pack(f) for f in o.iterations]}
                        for o in p.outputs.values()
                    ],
                }
                for p in self.pairs
            ],
        }
        with replacing(path) as fd:
            write_all(fd, json.dumps(_no_infinities(content), indent=1).encode())

    @classmethod
    def load(cls, path: StrPath) -> Comparison:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or something else.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except OSError as err:
            raise ModelError(f"{str(path)!r} cannot be read: {err.strerror}") from err
        except ValueError as err:
            raise ModelError(f"{str(path)!r} is no saved comparison, or is cut short") from err
        try:
            if {k: content[k] for k in _FORMAT} != _FORMAT:
                raise ModelError(f"{str(path)!r} is a comparison of another version of polytool")
            pairs = tuple(
                Pair(
                    p["a"],
                    p["b"],
                    {
                        o["name"]: OutputResult(o["name"], tuple(map(_unpack, o["iterations"])))
                        for o in p["outputs"]
                    },
                    tuple(p["notes"]),
                )
                for p in content["pairs"]
            )
            found = cls(pairs, content["settings"])
            found.to_json()  # touches every field
            return found
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as err:
            raise ModelError(
                f"{str(path)!r} is no saved comparison: write one with --save-accuracy-results"
            ) from err


def _numbers(errors: Errors | None) -> dict[str, float]:
    if errors is None:
        return {}
    found = {name: getattr(errors, name) for name in NUMBERS}
    return {name: value for name, value in found.items() if value is not None}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _recheck(output: OutputResult, criteria: Criteria) -> OutputResult:
    name = output.name
    tolerated = criteria.simple and (criteria.tolerances(name) or criteria.statistic)
    if not tolerated and not criteria.metrics:
        return output
    own = criteria if tolerated else replace(criteria, simple=False)
    findings = tuple(
        f if f.errors is None else replace(f, judgement=_rejudge(f.errors, own, name))
        for f in output.iterations
    )
    result = OutputResult(name, findings)
    return replace(result, average=average(result, own)) if criteria.average else result


def _rejudge(errors: Errors, criteria: Criteria, name: str) -> Judgement:
    lacking = [m for m in criteria.metrics if getattr(errors, METRICS[m].field) is None]
    if criteria.simple:
        statistic = lookup(criteria.statistic, name) or "elemwise"
        if statistic == "elemwise":
            absent = not errors.frontier and errors.mismatched > errors.one_sided
        else:
            absent = getattr(errors, f"{statistic}_abs") is None
        lacking += [statistic] if absent else []
    if lacking:
        raise UsageError(
            f"the saved comparison does not hold what {lacking[0]!r} needs for output {name!r}: "
            "compare again from saved outputs (--load-outputs), or ask for something else"
        )
    return judge(errors, criteria, name, None, 0.0, lambda _: None)


def average(output: OutputResult, criteria: Criteria) -> Judgement:
    """The verdict on the means of the metrics over the iterations.

    Raises:
        UsageError: what is asked has no mean: tolerances of each element, or the default rule.
    """
    name = output.name
    if criteria.simple and (criteria.tolerances(name) or not criteria.metrics):
        raise UsageError(
            "--check-average needs metrics to average: choose them with --compare, such as "
            "--compare cosine_similarity"
        )
    without = [f for f in output.iterations if f.errors is None]
    if without:
        return without[0].judgement
    found = []
    for one, threshold in criteria.thresholds(name).items():
        key = METRICS[one].field
        values = [getattr(f.errors, key) for f in output.iterations]
        mean = None if None in values else sum(values) / len(values)
        found.append(metric(_Mean(key, mean), one, threshold))  # type: ignore[arg-type]  # one field
    return max(found, key=lambda j: j.rank)


class _Mean:
    """Stands for Errors with one field."""

    def __init__(self, name: str, value: float | None) -> None:
        setattr(self, name, value)


def _pack(finding: Finding) -> dict[str, Any]:
    errors = finding.errors
    return {
        "judgement": {f.name: getattr(finding.judgement, f.name) for f in fields(Judgement)},
        "errors": None if errors is None else {k: getattr(errors, k) for k in _STORED},
        "path": finding.path,
        "dtypes": finding.dtypes,
        "shapes": finding.shapes,
    }


def _unpack(entry: Mapping[str, Any]) -> Finding:
    judgement = dict(entry["judgement"])
    judgement["excess"] = float(judgement["excess"])
    errors = None
    if entry["errors"] is not None:
        numbers = {k: _restore(v) for k, v in entry["errors"].items() if k != "values"}
        errors = Errors(**numbers, values=tuple(entry["errors"]["values"]))
    shapes = entry["shapes"]
    return Finding(
        Judgement(**judgement),
        errors,
        entry["path"],
        (entry["dtypes"][0], entry["dtypes"][1]),
        (tuple(shapes[0]), tuple(shapes[1])),
    )


def _no_infinities(value: Any) -> Any:
    """JSON has no NaN and Infinity: they become strings that `float` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _no_infinities(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_no_infinities(v) for v in value]
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restore(v) for v in value)
    return float(value) if value in ("nan", "inf", "-inf") else value


def iterate(outputs: Mapping[str, OutputResult]) -> Iterator[OutputResult]:
    """The outputs, the worst first."""
    order: Sequence[OutputResult] = sorted(
        outputs.values(), key=lambda o: o.judgement.rank, reverse=True
    )
    return iter(order)
