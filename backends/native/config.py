"""What a user decides about an engine before it is built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytool.backends.native.numerics import PRECISIONS
from polytool.backends.native.profiles import OptimizationProfile
from polytool.backends.native.tactic_replay import TacticReplay
from polytool.backends.native.timing_cache import TimingCache
from polytool.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
TACTIC_SOURCES = ("nvrtc", "cublas_lt", "cudnn")
MAX_LEVEL = 5


@dataclass(frozen=True)
class BuilderConfig:
    """Everything that decides what an engine computes and where.

    Attributes:
        precision: `fp32`, `tf32`, `fp16`, `bf16` or `fp64`: what float32 nodes are lowered to.
        layer_precisions: `(pattern, precision)` pairs, the last match wins; a pattern is an ONNX
            node name with wildcards, or `op:` and an operator such as `op:Softmax`.
        device: `auto` takes a GPU where there is one.
        profiles: the ranges of input shapes; empty allows every shape.
        optimize: False runs the model's nodes one by one, unfolded and unfused.
        cuda_graph: whether contexts on a GPU capture their launches unless told otherwise.
        builder_optimization_level: how much is tried on a GPU to make it fast: 0 takes the first
            candidate of each operation and times nothing, 1 and 2 time a few, from 2 on libraries
            are asked too, 3 and above time all. On the CPU 0 takes the generic tactics.
        tactic_sources: where candidates may come from; an operation always keeps one.
        workspace_limit: bytes that a candidate may need besides inputs and outputs; None for any.
        allow_nondeterministic: allow candidates that give other bits each time.
        timing_cache: times from other builds; what is timed is added.
        tactics: decisions of another build, which are repeated.
    """

    precision: str = "fp32"
    layer_precisions: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    profiles: tuple[OptimizationProfile, ...] = field(default=())
    optimize: bool = True
    cuda_graph: bool = True
    builder_optimization_level: int = 3
    tactic_sources: tuple[str, ...] = TACTIC_SOURCES
    workspace_limit: int | None = None
    allow_nondeterministic: bool = False
    timing_cache: TimingCache | None = field(default=None, compare=False, repr=False)
    tactics: TacticReplay | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for precision in (self.precision, *(p for _, p in self.layer_precisions)):
            if precision not in PRECISIONS:
                raise UsageError(
                    f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}"
                )
        if self.device not in DEVICES:
            raise UsageError(f"unknown device {self.device!r}; choose one of {', '.join(DEVICES)}")
        if not 0 <= self.builder_optimization_level <= MAX_LEVEL:
            raise UsageError(
                f"builder optimization level {self.builder_optimization_level} is not one of 0 to "
                f"{MAX_LEVEL}"
            )
        for source in self.tactic_sources:
            if source not in TACTIC_SOURCES:
                raise UsageError(
                    f"unknown tactic source {source!r}; choose from {', '.join(TACTIC_SOURCES)}"
                )

    def is_declared(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether the engine is specialised for these input shapes: the usual ones of a profile;
        all, without profiles."""
        return not self.profiles or any(
            all(tuple(shapes[n]) == opt for n, (_, opt, _) in p.shapes.items() if n in shapes)
            for p in self.profiles
        )

    @classmethod
    def of(
        cls,
        *,
        precision: str = "fp32",
        device: str = "auto",
        profiles: Sequence[Any] | None = None,
        layer_precisions: Mapping[str, str] | str | Path | None = None,
        optimize: bool = True,
        cuda_graph: bool = True,
        builder_optimization_level: int = 3,
        tactic_sources: Sequence[str] | None = None,
        workspace_limit: int | None = None,
        allow_nondeterministic: bool = False,
        timing_cache: TimingCache | str | Path | None = None,
        tactics: TacticReplay | str | Path | None = None,
    ) -> BuilderConfig:
        """A configuration from what the public API takes: mappings, paths, tuples."""
        if isinstance(timing_cache, (str, Path)):
            timing_cache = TimingCache.load(timing_cache)
        if isinstance(tactics, (str, Path)):
            tactics = TacticReplay.load(tactics)
        return cls(
            precision=precision,
            layer_precisions=tuple(read_layer_precisions(layer_precisions).items()),
            device=device,
            profiles=tuple(
                p if isinstance(p, OptimizationProfile) else OptimizationProfile.of(p)
                for p in profiles or ()
            ),
            optimize=optimize,
            cuda_graph=cuda_graph,
            builder_optimization_level=builder_optimization_level,
            tactic_sources=TACTIC_SOURCES if tactic_sources is None else tuple(tactic_sources),
            workspace_limit=workspace_limit,
            allow_nondeterministic=allow_nondeterministic,
            timing_cache=timing_cache,
            tactics=tactics,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as engine files and results store it: without times and tactics."""
        return {
            "precision": self.precision,
            "layer_precisions": dict(self.layer_precisions),
            "device": self.device,
            "profiles": [p.to_json() for p in self.profiles],
            "optimize": self.optimize,
            "cuda_graph": self.cuda_graph,
            "builder_optimization_level": self.builder_optimization_level,
            "tactic_sources": list(self.tactic_sources),
            "workspace_limit": self.workspace_limit,
            "allow_nondeterministic": self.allow_nondeterministic,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuilderConfig:
        """The inverse of `to_json`."""
        return cls.of(**data)


def read_layer_precisions(source: Mapping[str, str] | str | Path | None) -> Mapping[str, str]:
    """The ordered pattern -> precision mapping of a dict or a JSON file.

    Raises:
        UsageError: the file is missing, is not JSON, or has no `layer_precisions` object.
    """
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"cannot read layer precisions from {path}: {err}") from err
    table = data.get("layer_precisions") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise UsageError(
            f'{path} must hold {{"layer_precisions": {{"PATTERN": "PRECISION", ...}}}}'
        )
    return table
