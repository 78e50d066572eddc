"""What a tactic is: one way to run a layer on one device."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polytool.backends.native.network import Layer, Node

Launch = Callable[..., Sequence[Any]]
"""Takes the layer's inputs (`Layer.inputs`, constants left out) in order, as stored arrays, and
returns the layer's outputs in order, unrounded. It may be called from several threads."""


@dataclass(frozen=True)
class Mode:
    """How values are stored while an engine runs.

    Attributes:
        wide: fp64 mode: every real float type above 8 bits is float64.
    """

    wide: bool = False


class Tactic(abc.ABC):
    """One way to run a layer.

    Attributes:
        name: unique; written to engine files, timing caches and `inspect tactics`.
        device: `cpu` or `cuda`.
        priority: among the CPU tactics that support a layer the highest is taken; GPU tactics are
            timed instead.
    """

    name: str
    device: str = "cpu"
    priority: int = 0

    @abc.abstractmethod
    def supports(self, layer: Layer, mode: Mode) -> bool:
        """Whether `compile` will work; a cheap look at kinds, types and constants."""

    @abc.abstractmethod
    def compile(self, layer: Layer, mode: Mode) -> Launch:
        """Prepare the layer: pack its constants, bind its attributes. No timing, no state."""


def only_node(layer: Layer) -> Node | None:
    """The layer's node where it has exactly one."""
    return layer.nodes[0] if len(layer.nodes) == 1 else None
