"""How a comparison is shown: the verdict first, one table, then why outputs do not agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from polytool.tensors import format_shape
from polytool.text import shorten, table, verdict

if TYPE_CHECKING:
    from polytool.comparators.comparison import Comparison, OutputResult, Pair

MOST_ROWS = 20  # outputs that are shown; the worst come first where there are more
MOST_EXPLAINED = 5
_WIDTH = 100
_NAMES = (40, 32, 24, 16, 12)  # characters of names and types; the middle of longer ones goes


def describe(comparison: Comparison) -> str:
    """The whole comparison as text, at most 100 columns wide."""
    parts = [_headline(comparison)]
    parts += [_pair(pair, len(comparison.pairs) > 1) for pair in comparison.pairs]
    return "\n\n".join(part for part in parts if part)


def _headline(comparison: Comparison) -> str:
    if not comparison.pairs:
        return f"{verdict(comparison.verdict)}  nothing was compared"
    outputs = comparison.outputs
    wrong = [o for o in outputs.values() if o.verdict == "differ"]
    skipped = [o for o in outputs.values() if o.verdict == "not_compared"]
    names = " and ".join(dict.fromkeys(p.a for p in comparison.pairs))
    count = f"{len(outputs)} output{'' if len(outputs) == 1 else 's'}"
    iterations = max((len(o.iterations) for o in outputs.values()), default=0)
    if iterations > 1:
        count += f" over {iterations} iterations"
    if wrong:
        count = f"{len(wrong)} of {count}"
    line = f"{verdict(comparison.verdict)}  {names} against {comparison.pairs[0].b}: {count}"
    if any(o.judgement.unstable for o in outputs.values() if o.agreed):
        line += ", within the model's own instability"
    return line + (f"; {len(skipped)} not compared" if skipped else "")


def _pair(pair: Pair, several: bool) -> str:
    from polytool.comparators.comparison import iterate

    ranked = list(iterate(pair.outputs))
    hidden = ranked[MOST_ROWS:]
    shown = ranked[:MOST_ROWS] if hidden else list(pair.outputs.values())
    lines = [f"{pair.a} against {pair.b}"] if several else []
    lines.append(_table(shown))
    if hidden:
        verdicts = [o.verdict for o in hidden]
        counts = [f"{verdicts.count(v)} {v.replace('_', ' ')}" for v in dict.fromkeys(verdicts)]
        lines.append(f"... and {len(hidden)} more: {', '.join(counts)}")
    lines += _sources(shown)
    wrong = [o for o in shown if not o.agreed]
    for output in wrong[:MOST_EXPLAINED]:
        lines += list(_explain(output, pair))
    if wrong:
        lines += [f"they ran with other settings: {note}" for note in pair.notes]
    return "\n".join(lines)


def _table(outputs: Sequence[OutputResult]) -> str:
    """As wide as names need, but not wider than a terminal."""
    for width in _NAMES:
        text = _table_of(outputs, width)
        if max(len(click.unstyle(line)) for line in text.splitlines()) <= _WIDTH:
            break
    return text


def _table_of(outputs: Sequence[OutputResult], width: int) -> str:
    headers = ["output", "verdict", "type", "max abs", "of scale", "rel L2", "tolerance"]
    align = "lllrrrl"
    rows = [_row(o, width) for o in outputs]
    if any(len(o.iterations) > 1 for o in outputs):
        headers.insert(3, "worst at")
        align = "lllrrrrl"
        for row, output in zip(rows, outputs, strict=True):
            row.insert(3, f"#{output.worst_iteration}")
    return table(rows, headers, align=align)


def _row(output: OutputResult, width: int) -> list[str]:
    numbers = [_number(output.metrics.get(k)) for k in ("max_abs", "max_scaled", "rel_l2")]
    name, kind = shorten(output.name, width), shorten(_type(output), width)
    limit = _limit(output.judgement.tolerance)
    return [name, verdict(output.verdict), kind, *numbers, limit]


def _type(output: OutputResult) -> str:
    worst = output.worst
    if not worst.dtypes[0]:
        return ""
    return f"{worst.dtypes[1]}{format_shape(worst.shapes[1])}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _limit(asked: Mapping[str, Any]) -> str:
    """What was asked, as a number."""
    if "absolute" in asked:
        return f"max abs {asked['absolute']:.1g}"
    if "relative_l2" in asked:
        return f"rel L2 {asked['relative_l2']:.1g}"
    if "rtol" in asked:
        check = "" if asked["check"] == "elemwise" else f"{asked['check']}: "
        return f"{check}rtol {asked['rtol']:g}, atol {asked['atol']:g}"
    if "threshold" in asked:
        return f"{asked['check']} {asked['threshold']:g}"
    if "limit" in asked:
        return f"{asked['limit']} values" if asked["limit"] else "exact"
    return ""


def _sources(outputs: Sequence[OutputResult]) -> Iterator[str]:
    """Where the tolerances come from, once each."""
    found: dict[str, list[str]] = {}
    for output in outputs:
        source = output.judgement.tolerance.get("source")
        if source and source not in ("given", "exact"):
            found.setdefault(source, []).append(shorten(output.name, 24))
    for source, names in found.items():
        whose = "" if len(found) == 1 else f" of {', '.join(names[:3])}"
        whose += " ..." if len(found) > 1 and len(names) > 3 else ""
        yield f"tolerance{whose}: {source}"


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
