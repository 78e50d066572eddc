"""What a pass reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PassResult:
    """Attributes:
    changed: how many places were rewritten.
    refused: reasons, each with the name of a node, for what was looked at and left alone.
    notes: what the user should hear, such as an option that did nothing.
    """

    changed: int = 0
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
