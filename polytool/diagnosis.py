"""What `locate` found, in words: one screen for terminals and for failing tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from polytool.text import table, verdict

if TYPE_CHECKING:
    from polytool.comparators.findings import Finding, Location


_GROWS = 4.0  # times, from which on it is worth a line


def show(found: Location, top: int = 5) -> str:
    """The answer on one screen."""
    parts = [_headline(found)]
    first = found.first_broken
    if first is not None:
        parts.append(_culprit(first))
    parts.append(_ranking(found, top))
    parts.append(_outputs(found))
    growth = None if first is not None else _growth(found)
    if growth is not None:
        parts.append(growth)
    if found.fix is not None:
        parts.append(_fix(found))
    return "\n\n".join(parts)


def _headline(found: Location) -> str:
    counts = {
        word: sum(f.verdict == word for f in found.findings)
        for word in ("broken", "suspicious", "expected")
    }
    told = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    if found.verdict == "race":
        return f"{verdict('race')}: the same run gives other bits a second time ({told})"
    meaning = {
        "broken": "a layer computes something that its type does not explain",
        "suspicious": "no layer is surely broken, some are worse than their type explains",
        "expected": "every layer is as exact as its type allows",
    }[found.verdict]
    return f"{verdict(found.verdict)}: {meaning} ({told})"


def _culprit(finding: Finding) -> str:
    rows = [
        ("first broken", click.style(_nodes(finding, 4), bold=True)),
        ("tensor", f"{', '.join(finding.tensors)} ({finding.dtype})"),
        ("why", finding.reason),
        ("own error", _own(finding)),
        ("sample", finding.iteration),
    ]
    if finding.contribution is not None:
        rows.insert(4, ("in the outputs", f"{_error(finding.contribution)} comes from it alone"))
    if finding.reproducer is not None:
        from polytool.reproducers import command

        rows.append(("reproduce", command(finding)))
    else:
        rows.append(("reproduce", "--reproducer DIR saves this layer with its inputs"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)


def _own(finding: Finding) -> str:
    if finding.own_error is None:
        return "not finite"
    if finding.excess is None:
        return _error(finding.own_error)
    return f"{_error(finding.own_error)}, {_times(finding.excess)} what is expected"


def _ranking(found: Location, top: int) -> str:
    rows = [
        (
            verdict(f.verdict),
            _times(f.excess),
            _error(f.own_error),
            _error(f.inherited_error),
            _error(f.total_error),
            _shorten(_nodes(f, 2), 40),
            _shorten(f.reason, 48),
        )
        for f in found.ranking[:top]
    ]
    headers = ("verdict", "excess", "own", "inherited", "total", "nodes", "why")
    left = len(found.findings) - len(rows)
    more = f"\n... and {left} more layers (--top N, --json)" if left > 0 else ""
    return table(rows, headers, align="lrrrrll") + more


def _outputs(found: Location) -> str:
    rows = [(_shorten(name, 60), _error(error)) for name, error in found.outputs.items()]
    return table(rows, ("output", "relative L2"), align="lr") if rows else "no output was compared"


def _growth(found: Location) -> str | None:
    """Where the error of sound layers grows most, if what grows there reaches the outputs."""
    errors = [e for e in found.outputs.values() if e is not None]
    totals = {t: f.total_error for f in found.findings for t in f.tensors}
    grown = []
    for finding in found.findings:
        before = max((totals.get(name) or 0.0 for name in finding.inputs), default=0.0)
        after = finding.inherited_error
        if before and after and after > 0.1 * max(errors, default=0.0):
            grown.append((after / before, finding.position, before, after, finding))
    if not grown or max(grown)[0] < _GROWS:
        return None
    times, _, before, after, finding = max(grown)
    name = click.style(_nodes(finding, 2), bold=True)
    return (
        f"the error grows most at {name}: {before:.1e} in its inputs, {after:.1e} behind it "
        f"({times:.0f} times)"
    )


def _fix(found: Location) -> str:
    fix = found.fix or {}
    if fix.get("layer_precisions") is None:
        return f"no fix: {fix.get('reason')}"
    if not fix["layers"]:
        return f"nothing to fix: the outputs meet {', '.join(fix['targets'])} as they are"
    share = fix["cost"]["flops_share"]
    cost = f", {share:.1%} of the FLOPs" if share is not None else ""
    lines = [
        f"{click.style('fix', fg='green', bold=True)}: keep {len(fix['layers'])} layer(s) in "
        f"higher precision{cost}; meets {', '.join(fix['targets'])} on "
        f"{fix['verified_samples']} sample(s), verified",
        *(f"  {_shorten(layer, 90)}" for layer in fix["layers"][:12]),
    ]
    if len(fix["layers"]) > 12:
        lines.append(f"  ... and {len(fix['layers']) - 12} more")
    lines += [f"  {tool}: {_shorten(text, 200)}" for tool, text in fix["flags"].items()]
    return "\n".join(lines)


def _nodes(finding: Finding, count: int) -> str:
    names = finding.nodes or finding.tensors
    more = f" (+{len(names) - count})" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _times(value: float | None) -> str:
    if value is None:
        return "inf x"
    return f"{value:.1f} x" if value < 1000 else f"{value:.1e} x"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2 - 1]}...{text[-(width // 2 - 2) :]}"
