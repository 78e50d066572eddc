"""Delta debugging: the smallest set of items with which something still fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Fails = Callable[[Sequence[T]], bool]


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A 1-minimal failing subset: it fails, and without any single item it does not.

    The algorithm of Zeller and Hildebrandt ("Simplifying and isolating failure-inducing input",
    2002): try each of n parts alone, then each complement, then twice as many parts. Order is
    kept, and no set is tried twice.

    Args:
        items: all items; `fails(items)` must be true.
        fails: the test of a subset.
    """
    known: dict[tuple[int, ...], bool] = {}

    def failing(indices: Sequence[int]) -> bool:
        key = tuple(indices)
        if key not in known:
            known[key] = fails([items[i] for i in key])
        return known[key]

    current = list(range(len(items)))
    parts = 2
    while len(current) >= 2:
        size = (len(current) + parts - 1) // parts
        chunks = [current[i : i + size] for i in range(0, len(current), size)]
        found = next((c for c in chunks if failing(c)), None)
        if found is not None:
            current, parts = found, 2
            continue
        rests = ([i for i in current if i not in set(chunk)] for chunk in chunks)
        found = next((r for r in rests if r and failing(r)), None)
        if found is not None:
            current, parts = found, max(parts - 1, 2)
        elif parts >= len(current):
            break
        else:
            parts = min(2 * parts, len(current))
    return [items[i] for i in current]


def linear(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """The same by leaving out one item after the other: for tests that are rarely reliable."""
    current = list(items)
    shrunk = True
    while shrunk:
        shrunk = False
        for index in range(len(current) - 1, -1, -1):
            rest = current[:index] + current[index + 1 :]
            if rest and fails(rest):
                current, shrunk = rest, True
    return current
