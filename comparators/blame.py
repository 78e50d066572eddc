"""Which of several runs is off, when all were compared with the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from polytool.comparators.comparison import Comparison, Pair

_CLEARLY = 3.0  # times as far from the truth


def who_is_off(comparison: Comparison) -> str | None:
    """One sentence about runs that were all compared with one reference.

    Returns:
        None for fewer than two runs, or where nothing could be measured.
    """
    pairs = [pair for pair in comparison.pairs if pair.verdict != "not_compared"]
    distances = {pair.a: _distance(pair) for pair in pairs}
    known = {name: d for name, d in distances.items() if d is not None}
    if len(pairs) < 2 or len(known) < 2:
        return None
    reference = pairs[0].b
    told = ", ".join(f"{name} {d:.1e}" for name, d in known.items())
    wrong = [pair.a for pair in pairs if pair.verdict == "differ"]
    right = [pair.a for pair in pairs if pair.verdict == "agree"]
    if wrong and right:
        agreed = f"{_and(right)} {_agree(right)} with {reference}"
        return f"{_and(wrong)} {_is(wrong)} off: {agreed} ({told})"
    nearest, furthest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    clear = known[furthest] > _CLEARLY * known[nearest]
    nearer = f", {nearest} is the nearest" if clear else ", about as far"
    if wrong:
        return f"{_and(wrong)} are all off{nearer} ({told})"
    return f"none is off{nearer if clear else ''} ({told})"


def _distance(pair: Pair) -> float | None:
    """The largest relative L2 of the outputs; None where none has one."""
    found = [o.metrics["rel_l2"] for o in pair.outputs.values() if "rel_l2" in o.metrics]
    if not found:
        return None
    return max(math.inf if math.isnan(value) else value for value in found)


def _and(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _is(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _agree(names: Sequence[str]) -> str:
    return "agree" if len(names) > 1 else "agrees"
