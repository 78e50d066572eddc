"""From a model and a configuration to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.engine import Engine
from polytool.backends.native.parser import parse
from polytool.backends.native.passes import PASSES, UNOPTIMIZED
from polytool.collection import paused_collection
from polytool.errors import UsageError
from polytool.model import Model, load


def engine_from_onnx(model: Any, config: BuilderConfig | None = None) -> Engine:
    """Build an engine.

    Args:
        model: a path, an `onnx.ModelProto`, serialized bytes, a `polytool.model.Model`, or what
            `prepared` makes of one.
        config: what to build; fp32 on the best device by default.

    Raises:
        ModelError: the model cannot be read or is broken.
        UnsupportedError: the engine cannot run some of its nodes; all are named.
    """
    config = config or BuilderConfig()
    device = choose_device(config.device)
    if config.precision == "fp64" and device == "cuda":
        if config.device == "cuda":
            raise UsageError("fp64 is the oracle's precision and runs on the CPU: use --device cpu")
        device = "cpu"
    if isinstance(model, Prepared):
        source = model.simplified if config.optimize else model.original
    else:
        source = load(model)
        source = prepared(source).simplified if config.optimize else source
    notes: list[str] = []
    with paused_collection():
        network = parse(source)
        for rewrite in PASSES if config.optimize else UNOPTIMIZED:
            notes += rewrite(network, config).notes
    return Engine(source.name, network, config, device, tuple(notes))


@dataclass(frozen=True)
class Prepared:
    """A model whose simplification is shared by the engines that are built from it."""

    original: Model
    simplified: Model


def prepared(model: Any) -> Prepared:
    """Simplify a model once, to build several engines from it."""
    from polytool.surgeon import simplify

    original = load(model)
    return Prepared(original, with_shapes(simplify(original)))


def with_shapes(model: Model) -> Model:
    """The model with the shapes that ONNX can infer; as it is where inference fails."""
    try:
        proto = onnx.shape_inference.infer_shapes(model.proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model  # shapes only help fusion; the engine computes its own when it runs
    return model.derive(proto)


def choose_device(device: str) -> str:
    """`cpu` or `cuda`.

    Raises:
        UsageError: `cuda` was asked for and there is no GPU, or no CuPy.
    """
    if device == "cpu":
        return "cpu"
    from polytool.backends.native.kernels import driver

    if driver.available():
        return "cuda"
    if device == "cuda":
        raise UsageError(
            "device 'cuda' needs an NVIDIA GPU and pip install 'polytool[cuda]'; "
            "use --device cpu here"
        )
    return "cpu"


def is_engine(model: Any) -> bool:
    """Whether `model` is an Engine or the path of an engine file."""
    if isinstance(model, Engine):
        return True
    return isinstance(model, (str, Path)) and Path(model).suffix == ".engine"
