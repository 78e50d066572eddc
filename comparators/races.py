"""Which layer computes something else when nobody looks.

Observing makes layers wait for each other. A kernel that reads before its predecessor has written,
a launch that a captured graph lacks, or memory that is read before anything is stored there show
only when nothing waits. So the unobserved inference is repeated up to single tensors, and what
they hold is compared, bit by bit, with what observing sees there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, Observable, Tap
from polytool.comparators.slices import Slice

_RUNS = 4


def find_race(
    runner: Observable, taps: Sequence[Tap], slices: Mapping[int, Slice], feed: Feeds
) -> int | None:
    """The first of `taps`, by its place, that differs unobserved although its inputs do not.

    None where no tensor differs, or the runner's unobserved work is the observed work.
    """
    flat = [i for i in sorted(slices) if not taps[i].depth]
    places = {taps[i].tensor: i for i in flat}
    outputs = [places[spec.name] for spec in runner.outputs if spec.name in places]
    wrong = next((i for i in outputs or flat[-1:] if _differs(runner, taps[i], feed)), None)
    if wrong is None:
        return None
    right, found = -1, flat.index(wrong)
    while found - right > 1:
        middle = (right + found) // 2
        if _differs(runner, taps[flat[middle]], feed):
            found = middle
        else:
            right = middle
    return _origin(runner, taps, slices, feed, places, flat[found])


def find_unsteady(
    runner: Observable, taps: Sequence[Tap], slices: Mapping[int, Slice], feed: Feeds
) -> int | None:
    """The first of `taps`, by its place, that changes from one observed run to the next.

    None where all are the same in a few runs.
    """
    places = {taps[i].tensor: i for i in slices if not taps[i].depth}
    first: dict[int, int] = {}
    changed: set[int] = set()
    for _ in range(_RUNS):

        def look(tap: Tap, value: Any) -> None:
            place = places.get(tap.tensor)
            if place is not None and isinstance(value, np.ndarray) and value.dtype != object:
                digest = zlib.crc32(value.tobytes())
                if first.setdefault(place, digest) != digest:
                    changed.add(place)

        runner.infer(feed, observe=look)
    return min(changed, default=None)


def _origin(
    runner: Observable,
    taps: Sequence[Tap],
    slices: Mapping[int, Slice],
    feed: Feeds,
    places: Mapping[str, int],
    found: int,
) -> int:
    """Upstream of a tensor that differs: the first one whose own inputs do not."""
    while True:
        above = (places[name] for name in slices[found].inputs if name in places)
        wrong = next((i for i in above if _differs(runner, taps[i], feed)), None)
        if wrong is None:
            return found
        found = wrong


def _differs(runner: Observable, tap: Tap, feed: Feeds) -> bool:
    alone = runner.infer_until(feed, tap)
    if alone is None:
        return False
    seen: list[Any] = []

    def keep(other: Tap, value: Any) -> None:
        if other.tensor == tap.tensor:
            seen.append(np.array(value))

    runner.infer(feed, observe=keep)
    return not (len(seen) == 1 and same_bits(alone, seen[0]))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two values of one tensor are the same to the bit, NaN included."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same_bits, a, b))
    if not isinstance(a, np.ndarray) or a.dtype == object:
        return bool(np.all(a == b))
    return a.shape == b.shape and bool(a.tobytes() == b.tobytes())
