"""From a model and a configuration to an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.engine import Engine
from polytool.backends.native.inference import infer_shapes
from polytool.backends.native.parser import parse
from polytool.backends.native.passes import PASSES, UNOPTIMIZED
from polytool.backends.native.profiles import Dims
from polytool.backends.native.tactics import apply_tactics, take_generic
from polytool.collection import paused_collection
from polytool.errors import ModelError, PolytoolError, UsageError
from polytool.files import is_engine_file
from polytool.model import Model, load
from polytool.tensors import DType


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
    engine = Engine(source.name, network, config, device, tuple(notes))
    found = prebuild(engine) if device == "cuda" else _choose_cpu_tactics(engine)
    engine.notes += tuple(found)
    return engine


def _choose_cpu_tactics(engine: Engine) -> Iterator[str]:
    """Tactics that the user has a say in; yields what had no effect."""
    config = engine.config
    if config.tactics is not None:
        apply_tactics(engine.network, engine.mode, config.tactics)
    elif config.builder_optimization_level == 0:
        take_generic(engine.network, engine.mode)
    if config.timing_cache is not None:
        yield "the CPU engine times nothing: the timing cache has no effect"
    usual = BuilderConfig()
    for name, option in (
        ("tactic_sources", "tactic sources"),
        ("workspace_limit", "the workspace limit"),
        ("allow_nondeterministic", "allowing nondeterministic tactics"),
    ):
        if getattr(config, name) != getattr(usual, name):
            yield f"{option}: only engines for a GPU have a choice, so it has no effect here"


def prebuild(engine: Engine) -> tuple[str, ...]:
    """Choose tactics and compile for the shapes that are known: those of profiles, or static ones.

    Returns:
        What the user should hear.
    """
    shapes = declared_shapes(engine)
    if not shapes:
        return (
            "the model leaves shapes open and there is no optimization profile: tactics are chosen "
            "when shapes are first seen",
        )
    context = engine.create_execution_context()
    try:
        for sample in shapes:
            context.infer(sample)
    except PolytoolError as err:
        context.close()
        if isinstance(err, ModelError):  # tactics that do not fit
            raise
        return (f"tactics are chosen at the first inference: made-up inputs do not run ({err})",)
    engine.spare.append(context)
    return ()


def declared_shapes(engine: Engine) -> list[dict[str, Any]]:
    """Made-up inputs for what an engine is built for: the usual shapes, then largest and smallest.

    Empty where shapes are open, or depend on the values of inputs.
    """
    from polytool.backends.native.cuda.recorder import host_reads

    inputs = engine.network.inputs
    read = {t for layer in engine.network.layers for t in host_reads(layer)}
    if any(t in read for t in inputs):
        return []  # made-up numbers make no shapes
    samples: list[dict[str, Dims]] = []
    for order in (1, 2, 0):  # opt is timed; max makes the arena; min finds what is special there
        samples += [
            {n: triple[order] for n, triple in p.shapes.items()} for p in engine.config.profiles
        ]
    made = []
    for sample in samples or [{}]:
        feeds = {}
        for tensor in inputs:
            shape = sample.get(tensor.name, tensor.shape)
            if tensor.dtype in (None, DType.STRING) or tensor.container != "tensor":
                return []
            if shape is None or not all(isinstance(d, int) for d in shape):
                return []
            feeds[tensor.name] = _made_up(shape, tensor.dtype)
        made.append(feeds)
    return made


def _made_up(shape: Any, dtype: DType) -> np.ndarray[Any, Any]:
    """Numbers of usual size where the type is real; ones, which are valid as ids and masks."""
    made: np.ndarray[Any, Any] = np.ones(shape, dtype.numpy)
    if dtype.is_float:
        made[...] = np.random.default_rng(0).standard_normal(shape, np.float32)
    return made


@dataclass(frozen=True)
class Prepared:
    """A model whose simplification is shared by the engines that are built from it."""

    original: Model
    simplified: Model


def prepared(model: Any) -> Prepared:
    """Simplify a model once, to build several engines from it."""
    from polytool.surgeon import simplify

    original = load(model)
    # Debugging tells the model's own tensors apart: iterations written out have other names.
    return Prepared(original, with_shapes(simplify(original, unroll=False)))


def with_shapes(model: Model) -> Model:
    """The model with the shapes that ONNX can infer; as it is where inference fails."""
    try:
        proto = infer_shapes(model.proto)
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
    return isinstance(model, (str, Path)) and is_engine_file(model)
