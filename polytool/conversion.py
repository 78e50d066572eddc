"""From an ONNX model to an engine file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polytool.errors import ModelError
from polytool.files import StrPath


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        path: the engine file.
        nodes: nodes of the model, those of bodies and functions not counted.
        layers: layers of the engine.
        nbytes: size of the file.
        seconds: for building and writing.
        config: what it was built with.
        device: `cpu` or `cuda`.
        notes: what the user should know, such as an option that did nothing.
    """

    path: str
    nodes: int
    layers: int
    nbytes: int
    seconds: float
    config: Mapping[str, Any]
    device: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        return {
            "engine": self.path,
            "nodes": self.nodes,
            "layers": self.layers,
            "bytes": self.nbytes,
            "seconds": self.seconds,
            "config": dict(self.config),
            "device": self.device,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.nodes} nodes in {self.layers} layers, "
            f"{self.config['precision']} on {self.device}, {self.nbytes / 2**20:.1f} MiB, "
            f"{self.seconds:.1f} s"
        )


def convert(
    model: StrPath,
    output: StrPath,
    *,
    external_data_dir: StrPath | None = None,
    save_timing_cache: StrPath | None = None,
    save_tactics: StrPath | None = None,
    **options: Any,
) -> Conversion:
    """Build an engine and write it.

    Args:
        model: path of an ONNX model.
        output: path of the engine file.
        external_data_dir: where the model's external data lies, if not beside it.
        save_timing_cache, save_tactics: see `polytool.tactic_files.save_decisions`.
        options: those of `BuilderConfig.of`.

    Raises:
        ModelError: the model cannot be read or built, or `output` cannot be written.
    """
    from polytool.backends.native.builder import engine_from_onnx
    from polytool.backends.native.config import BuilderConfig
    from polytool.model import load
    from polytool.tactic_files import save_decisions

    for path in (output, save_timing_cache, save_tactics):
        if path is not None:
            check_writable(path)
    start = time.perf_counter()
    source = load(model, external_data_dir=external_data_dir)
    engine = engine_from_onnx(source, BuilderConfig.of(**options))
    engine.save(os.fspath(output))
    unused = save_decisions(engine, timing_cache=save_timing_cache, tactics=save_tactics)
    return Conversion(
        path=os.fspath(output),
        nodes=len(source.proto.graph.node),
        layers=len(engine.network.layers),
        nbytes=os.path.getsize(output),
        seconds=time.perf_counter() - start,
        config=engine.config.to_json(),
        device=engine.device,
        notes=(*engine.notes, *unused),
    )


def check_writable(path: StrPath) -> None:
    """Find out before long work that its result cannot be written.

    Raises:
        ModelError: `path` is a directory, or lies in none that can be written to.
    """
    where = os.path.realpath(path)
    folder = os.path.dirname(where)
    if os.path.isdir(where):
        raise ModelError(f"{os.fspath(path)!r} cannot be written: it is a directory")
    if not os.path.isdir(folder):
        raise ModelError(f"{os.fspath(path)!r} cannot be written: there is no directory {folder!r}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(
            f"{os.fspath(path)!r} cannot be written: the directory {folder!r} is write-protected"
        )
