"""Building one engine several times: do they all pass, and what do only the bad ones share?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytool.checks import CommandCheck, repeat

if TYPE_CHECKING:
    from polytool.model import Source


@dataclass(frozen=True)
class Builds:
    """What came of it.

    Attributes:
        runs: whether each engine passed.
        suspects: layers and their tactics that every bad engine has and no good one.
    """

    runs: tuple[bool, ...]
    suspects: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "runs": ["good" if ok else "bad" for ok in self.runs],
            "good": sum(self.runs),
            "bad": len(self.runs) - sum(self.runs),
            "suspects": [{"layer": layer, "tactic": tactic} for layer, tactic in self.suspects],
        }


def repeat_build(
    model: Source,
    check: CommandCheck,
    until: str,
    engine_path: str,
    artifacts: Sequence[str],
    folder: str | Path,
    **options: Any,
) -> Builds:
    """Build, save and check an engine, again and again.

    Args:
        model: the model.
        check: the command that looks at the engine.
        until: a number of engines, or `good` or `bad`: until the first one of that kind.
        engine_path: where the command finds each engine.
        artifacts: files to move into `folder/good` and `folder/bad` after each run.
        folder: where they go.
        options: those of `BuilderConfig.of`.

    Raises:
        UsageError: `until` is something else.
    """
    from polytool.backends.native.builder import engine_from_onnx
    from polytool.backends.native.config import BuilderConfig
    from polytool.backends.native.tactic_replay import TacticReplay, differing

    tactics: list[TacticReplay] = []

    def build() -> None:
        engine = engine_from_onnx(model, BuilderConfig.of(**options))
        engine.save(engine_path)
        tactics.append(engine.tactics())

    runs = repeat(check, until, artifacts, folder, prepare=build)
    good = [t for t, ok in zip(tactics, runs, strict=True) if ok]
    bad = [t for t, ok in zip(tactics, runs, strict=True) if not ok]
    return Builds(tuple(runs), differing(good, bad))
