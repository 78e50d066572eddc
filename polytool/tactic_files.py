"""What builds have measured and decided: saved, read from files and engines, compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytool.errors import UsageError
from polytool.files import StrPath, is_engine_file

if TYPE_CHECKING:
    from polytool.backends.native.engine import Engine
    from polytool.backends.native.tactic_replay import TacticReplay


def save_decisions(
    engine: Engine, *, timing_cache: StrPath | None = None, tactics: StrPath | None = None
) -> tuple[str, ...]:
    """Write the files that the user wants of an engine.

    Args:
        engine: as built, or as it has run: shapes that were seen later are included.
        timing_cache: gets the times of candidates; what others wrote there is kept.
        tactics: gets the decisions, for `--load-tactics`.

    Returns:
        What had no effect.

    Raises:
        ModelError: a file cannot be written, or the timing cache there is none.
    """
    notes = []
    if timing_cache is not None:
        if engine.device == "cuda":
            engine.tuning.cache.save(timing_cache)
        else:
            notes.append(f"the CPU engine times nothing: {os.fspath(timing_cache)} is not written")
    if tactics is not None:
        engine.tactics().save(tactics)
    return tuple(notes)


def load_decisions(path: StrPath) -> list[TacticReplay]:
    """The decisions in an engine, one object a device that it was built for, or in a file of them.

    Raises:
        ModelError: the file is neither.
    """
    from polytool.backends.native.engine import Engine
    from polytool.backends.native.tactic_replay import TacticReplay

    if not is_engine_file(path):
        return [TacticReplay.load(path)]
    engine = Engine.load(Path(path), device="cpu", kernels=False)
    return [*engine.built_tactics(), engine.tactics()]


@dataclass(frozen=True)
class Difference:
    """What tells bad engines from good ones.

    Attributes:
        good, bad: the files that were compared.
        device: what the tactics are for.
        suspects: layers and tactics that every bad one has and no good one.
    """

    good: tuple[str, ...]
    bad: tuple[str, ...]
    device: str
    suspects: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "good": list(self.good),
            "bad": list(self.bad),
            "device": self.device,
            "suspects": [{"layer": layer, "tactic": tactic} for layer, tactic in self.suspects],
        }


def compare_decisions(good: StrPath, bad: StrPath) -> Difference:
    """Compare the decisions of good engines with those of bad ones.

    Args:
        good: an engine, a file of tactics, or a directory of them.
        bad: the same.

    Raises:
        UsageError: a directory holds neither, or they were not built for the same device.
        ModelError: a file holds no decisions.
    """
    from polytool.backends.native.tactic_replay import differing

    files = [_files(good), _files(bad)]
    replays = [[load_decisions(f)[0] for f in group] for group in files]
    devices = sorted({r.device for group in replays for r in group})
    if len(devices) > 1:
        raise UsageError(
            f"these tactics are for {' and '.join(devices)}: compare engines of one device"
        )
    return Difference(tuple(files[0]), tuple(files[1]), devices[0], differing(*replays))


def _files(path: StrPath) -> Sequence[str]:
    where = Path(path)
    if not where.is_dir():
        return [str(where)]
    found = sorted(str(p) for p in where.iterdir() if p.suffix in (".engine", ".json"))
    if not found:
        raise UsageError(f"{str(where)!r} holds no .engine and no .json file with tactics")
    return found
