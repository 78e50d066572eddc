"""The smallest set of layers to keep in higher precision, so that a target is met.

Errors of layers add up nearly independently, so the layers whose own error moves the outputs most
are the ones to keep: candidates are ordered by contribution, the shortest prefix that meets the
target is found by bisection, and delta debugging then drops whatever is not needed. Every answer
has been run: the set that is returned meets the target, and no single layer can be left out of it.
Where runs are cheap, sets that are a good deal smaller are tried too, since near the limits of a
type errors cancel by chance, which no order foresees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Accepts = Callable[[frozenset[str]], bool]
"""Runs the whole model on every sample with these candidates in higher precision; whether the
target is met."""

_MOST_RUNS = 120
_HARDLY_LARGER = 1.5  # times the smallest set is good enough
_EXCHANGED = 8  # of the candidates that were left out, so many are tried in place of two


@dataclass(frozen=True)
class Fix:
    """What the search found.

    Attributes:
        kept: the candidates to keep in higher precision, the most important first; None when even
            all of them together do not meet the target.
        runs: how many sets were run.
        minimal: whether it was checked that none of them can be left out.
    """

    kept: tuple[str, ...] | None
    runs: int
    minimal: bool


def find_fix(
    candidates: Sequence[str],
    accepts: Accepts,
    *,
    most_runs: int = _MOST_RUNS,
    extra_runs: int = 0,
) -> Fix:
    """Search for a smallest accepted subset.

    Args:
        candidates: most important first.
        accepts: the test; sets are tried once each.
        most_runs: stop minimising after so many runs, with what is accepted by then.
        extra_runs: how many sets to try besides, in search of one that is smaller by a third.

    Returns:
        An accepted set in the order of `candidates`, or None in `kept`.
    """
    search = _Search(list(candidates), accepts, most_runs)
    if search.accepts(()):
        return Fix((), search.runs, True)
    if not search.accepts(range(len(candidates))):
        return Fix(None, search.runs, True)
    chosen = search.shortest_prefix()
    chosen = search.exchange(search.minimise(chosen))
    minimal = not search.spent()
    chosen = search.smaller(chosen, extra_runs)
    kept = tuple(candidates[i] for i in sorted(chosen))
    return Fix(kept, search.runs, minimal)


class _Search:
    """Sets of candidates by index; remembers every answer."""

    def __init__(self, candidates: list[str], accepts: Accepts, most_runs: int) -> None:
        self._names, self._accepts, self._most = candidates, accepts, most_runs
        self._known: dict[frozenset[int], bool] = {}

    @property
    def runs(self) -> int:
        return len(self._known)

    def spent(self) -> bool:
        """Whether no more sets may be run."""
        return self.runs >= self._most

    def accepts(self, chosen: Sequence[int] | range) -> bool:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._accepts(frozenset(self._names[i] for i in key))
        return self._known[key]

    def shortest_prefix(self) -> list[int]:
        """The shortest accepted prefix, taking acceptance to be monotone along prefixes."""
        low, high = 0, len(self._names)  # low is refused, high accepted
        while high - low > 1:
            middle = (low + high) // 2
            if self.accepts(range(middle)):
                high = middle
            else:
                low = middle
        return list(range(high))

    def minimise(self, chosen: list[int]) -> list[int]:
        """Drop what is not needed: halves first, then single ones, the least important first.

        This is the complement step of ddmin (Zeller and Hildebrandt, 2002).
        """
        size = max(1, len(chosen) // 2)
        while chosen and not self.spent():
            dropped = False
            for start in range(len(chosen) - size, -size, -size):
                cut = set(chosen[max(0, start) : start + size])
                rest = [i for i in chosen if i not in cut]
                if len(rest) < len(chosen) and self.accepts(rest):
                    chosen, dropped = rest, True
                    break
                if self.spent():
                    return chosen
            if dropped:
                size = max(1, min(size, len(chosen) // 2))
            elif size == 1:
                break
            else:
                size = max(1, size // 2)
        return chosen

    def exchange(self, chosen: list[int]) -> list[int]:
        """Replace two by one where that is accepted: the order of candidates is an estimate."""
        improved = True
        while improved and len(chosen) > 1 and not self.spent():
            improved = False
            others = [i for i in range(len(self._names)) if i not in chosen][:_EXCHANGED]
            pairs = [(a, b) for j, a in enumerate(chosen) for b in chosen[j + 1 :]]
            for a, b in pairs:
                rest = [i for i in chosen if i not in (a, b)]
                for other in others:
                    if self.spent():
                        return chosen
                    if self.accepts([*rest, other]):
                        chosen, improved = self.minimise([*rest, other]), True
                        break
                if improved:
                    break
        return chosen

    def smaller(self, chosen: list[int], runs: int) -> list[int]:
        """An accepted set that is smaller by a third, if one is found within so many more runs."""
        self._most = self.runs + runs
        everything = range(len(self._names))
        for size in range(1, math.ceil(len(chosen) / _HARDLY_LARGER)):
            if math.comb(len(everything), size) > 10 * runs:
                break
            for group in sorted(itertools.combinations(everything, size), key=sum):
                if self.spent():
                    return chosen
                if self.accepts(group):
                    return list(group)
        return chosen
