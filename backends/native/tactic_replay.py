"""Which candidate runs each layer: saved, so that another build decides alike.

The idea is Polygraphy's tactic replay. A file holds one row for each decision; on a GPU a layer may
hold several, for each of its operations that has alternatives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polytool.errors import ModelError
from polytool.files import DataFile, StrPath, replacing, write_all

FORMAT = "polytool-tactics-1"


@dataclass(frozen=True)
class TacticChoice:
    """One decision.

    Attributes:
        layer: the layer's name.
        tactic: the name of the candidate that was taken.
        signature: what it computes, types and layouts; empty on the CPU, where layers are decided.
        candidates: the names that there were to choose from.
    """

    layer: str
    tactic: str
    signature: str = ""
    candidates: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        row: dict[str, Any] = {"layer": self.layer, "tactic": self.tactic}
        if self.signature:
            row["signature"] = self.signature
        return row | {"candidates": list(self.candidates)}


@dataclass(frozen=True)
class TacticReplay:
    """The decisions of one build.

    Attributes:
        device: `cpu`, or the name of the GPU.
        source: where they come from, for messages.
    """

    choices: tuple[TacticChoice, ...]
    device: str = "cpu"
    source: str = "the saved tactics"

    def of_layer(self, layer: str) -> tuple[TacticChoice, ...]:
        """The decisions of a layer, in order."""
        return tuple(c for c in self.choices if c.layer == layer)

    def wanted(self, layer: str, signature: str, place: int) -> str:
        """The candidate that was taken for an operation.

        Args:
            layer: the layer's name.
            signature: the operation; for other shapes the decision at the same place counts.
            place: which operation of the layer with alternatives it is, from 0.

        Raises:
            ModelError: there is no decision about it.
        """
        rows = self.of_layer(layer)
        exact = [r.tactic for r in rows if r.signature == signature]
        if exact:
            return exact[0]
        if place < len(rows):
            return rows[place].tactic
        raise ModelError(
            f"{self.source} holds no tactic for layer {layer!r}: they were saved from another "
            "model or configuration; save them again with --save-tactics"
        )

    def misfit(self, layer: str, tactic: str, names: Iterable[str]) -> ModelError:
        """The error for a decision that cannot be followed."""
        return ModelError(
            f"{self.source} wants tactic {tactic!r} for layer {layer!r}, which has "
            f"{', '.join(names)}; save them again with --save-tactics"
        )

    def check_layers(self, names: Iterable[str]) -> None:
        """Check that every decision is about one of these layers.

        Raises:
            ModelError: some are not.
        """
        unknown = sorted({c.layer for c in self.choices}.difference(names))
        if unknown:
            more = f" and {len(unknown) - 1} more layers" if len(unknown) > 1 else ""
            raise ModelError(
                f"{self.source} holds tactics for layer {unknown[0]!r}{more} that the model does "
                "not have: they were saved from another model or configuration"
            )

    def to_json(self) -> dict[str, Any]:
        """What a file holds."""
        rows = [c.to_json() for c in self.choices]
        return {"format": FORMAT, "device": self.device, "tactics": rows}

    def save(self, path: StrPath) -> None:
        """Write a file, whole or not at all."""
        with replacing(path) as file:
            write_all(file, json.dumps(self.to_json(), indent=1).encode())

    @classmethod
    def load(cls, path: StrPath) -> TacticReplay:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing or holds no tactics.
        """
        where = os.fspath(path)
        try:
            data = json.loads(bytes(DataFile.open(path).view))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
            rows = tuple(read_choice(row) for row in data["tactics"])
            return cls(rows, str(data["device"]), repr(where))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise ModelError(
                f"{where!r} holds no tactics ({type(err).__name__}: {err}); give a file that "
                "--save-tactics wrote"
            ) from err


def read_choice(row: Any) -> TacticChoice:
    """The inverse of `TacticChoice.to_json`; raises KeyError, TypeError or ValueError."""
    texts = [row["layer"], row["tactic"], row.get("signature", ""), *row.get("candidates", ())]
    if not all(isinstance(t, str) for t in texts):
        raise ValueError("a row is not made of text")
    return TacticChoice(texts[0], texts[1], texts[2], tuple(texts[3:]))


def differing(
    good: Sequence[TacticReplay], bad: Sequence[TacticReplay]
) -> tuple[tuple[str, str], ...]:
    """Layers and tactics that every bad engine has and no good one, by name of the layer."""

    def pairs(replay: TacticReplay) -> frozenset[tuple[str, str]]:
        return frozenset((c.layer, c.tactic) for c in replay.choices)

    if not good or not bad:
        return ()
    shared = frozenset.intersection(*map(pairs, bad))
    return tuple(sorted(shared.difference(*map(pairs, good))))
