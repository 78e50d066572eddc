"""How `run` shows what it found: the verdict first, one table, then what to do next."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytool.cli import options
from polytool.cli.output import result, table, verdict
from polytool.comparators import comparison_text
from polytool.tensors import format_shape

if TYPE_CHECKING:
    from polytool.agreement import Request, Session
    from polytool.cli._comparing import Comparing
    from polytool.comparators.comparison import Comparison
    from polytool.postprocess import Step

MOST_ROWS = 20  # outputs that are shown


def describe(session: Session, comparison: Comparison, request: Request) -> str:
    """The whole answer of a comparison as text."""
    facts = [*_verdict_on_each(comparison), *_changes(session), *_facts(session)]
    parts = [comparison_text.describe(comparison), "\n".join(facts)]
    if comparison.verdict == "differ":
        parts.append(_next_step(session, request))
    return "\n\n".join(part for part in parts if part)


def _verdict_on_each(comparison: Comparison) -> Iterator[str]:
    """Which of several runs is off, where the truth was asked."""
    from polytool.comparators.blame import who_is_off

    said = who_is_off(comparison)
    if said is not None and all(pair.b == "oracle" for pair in comparison.pairs):
        yield f"rel L2  {said}"


def _changes(session: Session) -> Iterator[str]:
    """Outputs that are not the same when the same is run again."""
    for runner, output, difference in session.changed:
        much = "" if difference is None else f", by up to {difference:.2g}"
        what = f"{output} of {runner} changes between identical runs{much}"
        yield f"{verdict('not_repeatable')}  {what}"


def _facts(session: Session) -> Iterator[str]:
    """How long an inference took, without building and loading."""
    runs = session.results.values()
    times = [f"{run.name} {_time(statistics.median(run.seconds))}" for run in runs if run.seconds]
    if times:
        yield f"time  {', '.join(times)}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# What both commands take, but what has no part in looking for a layer.
_NOT_REPEATED = ("--json", "--report", "--save-inputs", "-v", "-q", "--verbose", "--quiet",
                 "--log-file")  # fmt: skip


def _next_step(session: Session, request: Request) -> str:
    """The command that looks for the layer at fault, on the same data and engine."""
    if "native" not in request.runners:
        return ""
    from polytool.cli.debug.locate import locate

    words = ["polytool", "debug", "locate", request.model]
    words += options.words_for(locate, without=_NOT_REPEATED)
    if "oracle" not in request.runners and "onnxrt" in request.runners:
        words += ["--against", "onnxrt"]
    for name, sizes in session.shapes.items():
        if name not in request.shapes:  # it comes from an optimization profile
            words += ["--input-shapes", f"{name}:[{','.join(map(str, sizes))}]"]
    return f"Which layer did it?  {shlex.join(words)}"


def to_json(session: Session) -> dict[str, Any]:
    """The facts about the runs themselves."""
    facts: dict[str, Any] = {
        "seconds": {name: list(run.seconds) for name, run in session.results.items()},
        "notes": list(session.notes),
        "changed": {},
    }
    for runner, output, difference in session.changed:
        facts["changed"].setdefault(runner, {})[output] = difference
    if session.bounds is not None:
        facts["bounds"] = [check.to_json() for check in session.bounds]
    return facts


def save(
    path: str,
    model: str,
    comparison: Comparison,
    session: Session,
    facts: Mapping[str, Any],
    steps: Sequence[Step] = (),
) -> None:
    """Write the HTML report, which draws the arrays that were compared."""
    from polytool.postprocess import postprocessed
    from polytool.reporting import save_report

    results = session.results
    for step in steps:
        results = postprocessed(results, step)
    save_report(path, comparison, model=model, facts=facts, results=results)


def show_single(
    session: Session, comparing: Comparing, as_json: bool, report: str | None = None
) -> int:
    """Print what one run alone gave, and return the exit code: 1 for NaN with --validate."""
    ((name, run),) = session.results.items()
    broken = {output for i in run for output, value in i.items() if _not_finite(value)}
    failed = bool(broken) and comparing.criteria.require_finite
    text = describe_run(session)
    if failed:
        text += f"\n\nNaN or Inf in {', '.join(sorted(broken))}"
    facts = {
        "verdict": "not_compared",
        "pairs": [],
        "settings": {name: dict(run.settings)},
        "not_finite": sorted(broken),
        **to_json(session),
    }
    if report is not None:
        from polytool.comparators.comparison import Comparison

        model = session.model.path if session.model is not None else None
        save(report, model or name, Comparison(()), session, facts)
    result(as_json, text, facts)
    return 1 if failed else 0


def _not_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_not_finite, value))
    return _range(value)[2] not in ("", "0")


def describe_run(session: Session) -> str:
    """What one run alone gave: there is nothing to compare it with."""
    name, run = next(iter(session.results.items()))
    rows = [
        [output, _value(value), *_range(value)]
        for output, value in (run[0].items() if len(run) else ())
    ]
    headers = ("output", "type", "min", "max", "NaN or Inf")
    text = f"{verdict('not_compared')}  {name} alone: {_count(len(rows), 'output')}"
    if len(run) > 1:
        text += f" over {len(run)} iterations, of which the first is shown"
    shown, hidden = rows[:MOST_ROWS], len(rows) - MOST_ROWS
    parts = [text, table(shown, headers, align="llrrr")]
    if hidden > 0:
        parts[-1] += f"\n... and {hidden} more"
    return "\n\n".join([*parts, "\n".join([*_changes(session), *_facts(session)])])


def _value(value: Any) -> str:
    from polytool.tensors import DType

    if value is None:
        return "absent"
    if isinstance(value, list | tuple):
        return f"sequence of {len(value)}"
    if isinstance(value, Mapping):
        return f"map of {len(value)}"
    return f"{DType.of(value).label}{format_shape(value.shape)}"


def _range(value: Any) -> tuple[str, str, str]:
    """Smallest and largest finite value, and how many are not finite."""
    import numpy as np

    if not isinstance(value, np.ndarray) or value.dtype == object or not value.size:
        return "", "", ""
    if value.dtype.kind == "c":
        return "", "", str(int((~np.isfinite(value)).sum()))
    wide = value if value.dtype.kind in "iub" else value.astype(np.float64)
    finite = wide[np.isfinite(wide)] if wide.dtype.kind == "f" else wide
    if not finite.size:
        return "", "", str(wide.size)
    return f"{finite.min():.4g}", f"{finite.max():.4g}", str(wide.size - finite.size)
