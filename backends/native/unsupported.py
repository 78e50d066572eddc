"""What the engine cannot run in a model: every node, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polytool.errors import UnsupportedError

_SHOWN = 20


@dataclass(frozen=True)
class Unsupported:
    """A node that the engine cannot run.

    Attributes:
        node: how messages call it.
        op: the operator, behind its domain where that is not the standard one.
        version: of the domain, at which the model uses it.
        graph: the way to it through nodes, bodies and functions; empty in the main graph.
        reason: why it cannot run.
        top: the outputs of the node of the main graph that it is, or is inside of.
    """

    node: str
    op: str
    version: int
    graph: str
    reason: str
    top: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" in {self.graph}" if self.graph else ""
        return f"{self.node} ({self.op}-{self.version}{where}): {self.reason}"


def refusal(name: str, found: Sequence[Unsupported]) -> UnsupportedError:
    """The error that names `found`."""
    shown = "; ".join(map(str, found[:_SHOWN]))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return UnsupportedError(
        f"the native engine cannot run {len(found)} node(s) of {name}: {shown}{more}; "
        f"run them with --onnxrt"
    )
