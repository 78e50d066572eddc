"""What a user decides about an engine before it is built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytool.backends.native.numerics import PRECISIONS
from polytool.backends.native.profiles import OptimizationProfile
from polytool.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")


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
    """

    precision: str = "fp32"
    layer_precisions: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    profiles: tuple[OptimizationProfile, ...] = field(default=())
    optimize: bool = True
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        for precision in (self.precision, *(p for _, p in self.layer_precisions)):
            if precision not in PRECISIONS:
                raise UsageError(
                    f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}"
                )
        if self.device not in DEVICES:
            raise UsageError(f"unknown device {self.device!r}; choose one of {', '.join(DEVICES)}")

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
    ) -> BuilderConfig:
        """A configuration from what the public API takes: mappings, paths, tuples."""
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
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as engine files and results store it."""
        return {
            "precision": self.precision,
            "layer_precisions": dict(self.layer_precisions),
            "device": self.device,
            "profiles": [p.to_json() for p in self.profiles],
            "optimize": self.optimize,
            "cuda_graph": self.cuda_graph,
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
