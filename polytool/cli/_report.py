"""How `run` shows what it found: the verdict first, one table, then what to do next."""

from __future__ import annotations

import importlib.util
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polytool.cli.output import result, table, verdict
from polytool.tensors import format_shape

if TYPE_CHECKING:
    from polytool.agreement import Request, Session
    from polytool.cli._comparing import Comparing
    from polytool.comparators.comparison import Comparison, OutputResult, Pair
    from polytool.results import RunResults

MOST_ROWS = 20  # outputs that are shown; the worst come first where there are more


def describe(session: Session, comparison: Comparison, request: Request) -> str:
    """The whole answer of a comparison as text."""
    parts = [_headline(comparison, session.results)]
    parts += [_pair(pair, len(comparison.pairs) > 1) for pair in comparison.pairs]
    parts.append("\n".join(_facts(session)))
    if comparison.verdict == "differ":
        parts.append(_next_step(request))
    return "\n\n".join(part for part in parts if part)


def _headline(comparison: Comparison, results: RunResults) -> str:
    outputs = comparison.outputs
    wrong = [o for o in outputs.values() if o.verdict == "differ"]
    skipped = [o for o in outputs.values() if o.verdict == "not_compared"]
    names = " and ".join(dict.fromkeys(p.a for p in comparison.pairs))
    against = comparison.pairs[0].b
    what = f"{names} against {against}"
    count = _count(len(outputs), "output")
    iterations = max(len(run) for run in results.values())
    if iterations > 1:
        count += f" over {iterations} iterations"
    if wrong:
        count = f"{len(wrong)} of {count}"
    line = f"{verdict(comparison.verdict)}  {what}: {count}"
    if any(o.judgement.unstable for o in outputs.values() if o.agreed):
        line += ", within the model's own instability"
    return line + (f"; {len(skipped)} not compared" if skipped else "")


def _pair(pair: Pair, several: bool) -> str:
    from polytool.comparators.comparison import iterate

    outputs = list(pair.outputs.values())
    hidden = len(outputs) - MOST_ROWS
    shown = outputs if hidden <= 0 else list(iterate(pair.outputs))[:MOST_ROWS]
    lines = [f"{pair.a} against {pair.b}"] if several else []
    lines.append(_table(shown))
    if hidden > 0:
        rest = [o.verdict for o in list(iterate(pair.outputs))[MOST_ROWS:]]
        counts = ", ".join(f"{rest.count(v)} {v.replace('_', ' ')}" for v in dict.fromkeys(rest))
        lines.append(f"... and {hidden} more: {counts}")
    for output in shown:
        if not output.agreed:
            lines += list(_explain(output, pair))
    return "\n".join(lines)


def _table(outputs: Sequence[OutputResult]) -> str:
    several = any(len(o.iterations) > 1 for o in outputs)
    headers = ["output", "verdict", "type", "max abs", "max rel", "rel L2", "tolerance"]
    rows = [_row(o, several) for o in outputs]
    align = "lllrrrl"
    if several:
        headers.insert(2, "worst at")
        align = "lllrrrrl"[:2] + "r" + "lrrrl"
    return table(rows, headers, align=align)


def _row(output: OutputResult, several: bool) -> list[str]:
    numbers = output.metrics
    row = [output.name, verdict(output.verdict), _type(output)]
    if several:
        row.insert(2, f"#{output.worst_iteration}")
    row += [_number(numbers.get(name)) for name in ("max_abs", "max_rel", "rel_l2")]
    return [*row, _tolerance(output.judgement.tolerance)]


def _type(output: OutputResult) -> str:
    worst = output.worst
    if not worst.dtypes[0]:
        return ""
    return f"{worst.dtypes[1]}{format_shape(worst.shapes[1])}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _tolerance(asked: Mapping[str, Any]) -> str:
    """What was asked, in a few words."""
    if not asked:
        return ""
    source = str(asked.get("source", ""))
    if "relative_l2" in asked:
        return f"rel L2 {asked['relative_l2']:.1g}: {source}"
    if "rtol" in asked:
        check = "" if asked["check"] == "elemwise" else f"{asked['check']}: "
        return f"{check}rtol {asked['rtol']:g}, atol {asked['atol']:g}"
    if "threshold" in asked:
        return f"{asked['check']} {asked['threshold']:g}"
    if "limit" in asked:
        return f"{asked['limit']} values: {source}" if asked["limit"] else source
    return source


def _explain(output: OutputResult, pair: Pair) -> Iterator[str]:
    """Why an output does not agree, and where it is worst."""
    errors, reason = output.worst.errors, output.judgement.reason
    where = output.name + output.worst.path
    yield f"{where}: {reason or 'differs'}"
    if errors is not None and errors.worst is not None:
        a, b = errors.values
        yield f"  largest error at {list(errors.worst)}: {a} in {pair.a}, {b} in {pair.b}"
    if errors is not None and 0 < errors.mismatched < errors.count:
        yield f"  {errors.mismatched} of {errors.count} values are not equal"


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


def _next_step(request: Request) -> str:
    """The command that looks for the layer at fault, once there is one."""
    if importlib.util.find_spec("polytool.cli.debug") is None:
        return ""
    if importlib.util.find_spec("polytool.cli.debug.locate") is None:
        return ""
    if "native" not in request.runners:
        return ""
    words = ["polytool debug locate", shlex.quote(request.model), "--native"]
    precision = request.options.get("native", {}).get("precision", "fp32")
    words += [f"--{precision}"] if precision != "fp32" else []
    words += ["--against onnxrt"] if "onnxrt" in request.runners else []
    for name, sizes in request.shapes.items():
        shape = shlex.quote(f"{name}:[{','.join(map(str, sizes))}]")
        words.append(f"--input-shapes {shape}")
    return f"Which layer did it?  {' '.join(words)}"


def to_json(session: Session) -> dict[str, Any]:
    """The facts about the runs themselves."""
    return {
        "seconds": {name: list(run.seconds) for name, run in session.results.items()},
        "notes": list(session.notes),
    }


def show_single(session: Session, comparing: Comparing, as_json: bool) -> int:
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
    return "\n\n".join([*parts, "\n".join(_facts(session))])


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
