"""Where the slice of each observed tensor begins, and when values may be dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from polytool.backends.base import LayerOracle, Tap
from polytool.errors import UsageError

_CONTROL = frozenset({"If", "Loop", "Scan"})


@dataclass
class Slice:
    """What one observed tensor is computed from.

    Attributes:
        inputs: the nearest tensors seen before it.
        operators: the operators between them and it.
        nodes: the ONNX nodes through which it depends on them.
        holds_bodies: an If, Loop or Scan is among them, whose bodies are judged layer by layer.
        done: tensors that no later slice needs.
    """

    inputs: tuple[str, ...]
    operators: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    holds_bodies: bool = False
    done: list[str] = field(default_factory=list)


def plan_slices(
    taps: Sequence[Tap], inputs: Sequence[str], oracle: LayerOracle
) -> tuple[dict[int, Slice], list[str]]:
    """The slice of every tap that can be judged, by its place among `taps`.

    What a layer stores is not taken for an input of what the same layer stores besides, which it
    may have computed from a value that was not rounded yet.

    Returns:
        The slices, and the reasons for the taps that have none.
    """
    available = set(inputs)
    beside: list[str] = []  # stored by the layer of the tap before
    slices: dict[int, Slice] = {}
    skipped: list[str] = []
    holder = ""  # the layer right behind the taps of its bodies
    for index, tap in enumerate(taps):
        if index and taps[index - 1].depth > tap.depth:
            holder = tap.layer
        if index and taps[index - 1].layer != tap.layer:
            available.update(beside)
            beside.clear()
        if tap.nodes:
            try:
                trace = oracle.trace(tap.tensor, available)
            except UsageError as err:
                skipped.append(f"{tap.tensor}: {err}")
            else:
                control = bool(_CONTROL.intersection(trace.operators))
                slices[index] = Slice(
                    trace.inputs,
                    trace.operators,
                    _joined(tap.nodes, trace.nodes),
                    control and tap.layer == holder,
                )
        beside.append(tap.tensor)
    _plan_drops(taps, slices)
    return slices, skipped


def _joined(known: tuple[str, ...], exact: tuple[str, ...]) -> tuple[str, ...]:
    """The oracle's nodes in order, behind what only the runner knows.

    A runner may have simplified the model before it ran it: what it has merged, such as a batch
    normalisation that went into a convolution, it no longer names.
    """
    return tuple(dict.fromkeys((*(n for n in known if n not in exact), *exact)))


def _plan_drops(taps: Sequence[Tap], slices: dict[int, Slice]) -> None:
    """What bodies read is kept until the If, Loop or Scan around them ends."""
    ends = _ends(taps, slices)
    last: dict[str, int] = {}
    for index, found in slices.items():
        for name in (*found.inputs, taps[index].tensor):
            last[name] = max(last.get(name, -1), ends[index])
    for name, index in last.items():
        if index in slices:
            slices[index].done.append(name)


def _ends(taps: Sequence[Tap], slices: dict[int, Slice]) -> dict[int, int]:
    """For each slice the first top-level slice at or after it."""
    ends: dict[int, int] = {}
    following = len(taps)
    for index in range(len(taps) - 1, -1, -1):
        if index in slices:
            if not taps[index].depth:
                following = index
            ends[index] = following
    return ends
