"""Where tensors lie in one arena, so that those that live at the same time do not overlap.

Best-fit by size: the largest tensor is placed first, each at the lowest gap that fits between
those already placed that live at the same time. (Greedy by size, as in Pisarchyk and Lee,
"Efficient memory management for deep neural net inference", 2020.)
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256


@dataclass(frozen=True)
class Lifetime:
    """One tensor: its bytes, the step that writes it and the last step that reads it."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """The answer: an offset a tensor, and the bytes that they take together."""

    offsets: tuple[int, ...]
    size: int


def plan_arena(tensors: Sequence[Lifetime]) -> Arena:
    """Place every tensor; offsets are multiples of `ALIGNMENT`."""
    order = sorted(range(len(tensors)), key=lambda i: (-tensors[i].size, tensors[i].first, i))
    offsets = [0] * len(tensors)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; by offset
    size = 0
    for index in order:
        tensor = tensors[index]
        need = align(tensor.size)
        offset = _lowest_gap(placed, tensor, need)
        offsets[index] = offset
        insort(placed, (offset, offset + need, tensor.first, tensor.last))
        size = max(size, offset + need)
    return Arena(tuple(offsets), size)


def _lowest_gap(placed: Sequence[tuple[int, int, int, int]], tensor: Lifetime, need: int) -> int:
    offset = 0
    for start, end, first, last in placed:
        if first > tensor.last or last < tensor.first:
            continue
        if start - offset >= need:
            break
        offset = max(offset, end)
    return offset


def lower_bound(tensors: Sequence[Lifetime]) -> int:
    """The most bytes that live at one step: no arena can be smaller."""
    changes: dict[int, int] = {}
    for tensor in tensors:
        changes[tensor.first] = changes.get(tensor.first, 0) + align(tensor.size)
        changes[tensor.last + 1] = changes.get(tensor.last + 1, 0) - align(tensor.size)
    live = most = 0
    for step in sorted(changes):
        live += changes[step]
        most = max(most, live)
    return most


def align(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
