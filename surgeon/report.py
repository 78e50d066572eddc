"""What surgery did, and what it refused to do and why."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Refusal:
    """A rewrite that was possible by its form and was not done."""

    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


@dataclass
class Report:
    """Counts of rewrites by name, and refusals with reasons.

    Attributes:
        done: name of the rewrite to how often it was done.
        refused: one entry a node and reason.
        passes: name of each kind of pass that ran to how many rewrites it did.
    """

    done: Counter[str] = field(default_factory=Counter)
    refused: dict[Refusal, None] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)

    @contextlib.contextmanager
    def counted(self, name: str) -> Iterator[None]:
        """Count what is done in the block for the pass `name`, also when that is nothing."""
        before = self.total
        yield
        self.passes[name] += self.total - before

    def did(self, what: str, count: int = 1) -> None:
        """Count a rewrite."""
        if count:
            self.done[what] += count

    def refuse(self, node: str, reason: str) -> None:
        """Record why `node` was left as it is; the same reason is recorded once."""
        self.refused[Refusal(node, reason)] = None

    @property
    def total(self) -> int:
        """How many rewrites were done."""
        return sum(self.done.values())
