"""The native engine behind the common Runner interface."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import polytool
from polytool.backends.base import Feeds, LayerTime, Observable, Observer, Outputs, Tap
from polytool.backends.native.builder import engine_from_onnx, is_engine
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.context import ExecutionContext
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.numerics import unload
from polytool.backends.native.profiler import Profiler
from polytool.backends.native.profiles import select_profiles
from polytool.backends.native.tactics import choose
from polytool.errors import UsageError
from polytool.tensors import DType, TensorSpec


class NativeRunner(Observable):
    """Runs a model on polytool's own engine.

    Args:
        model: a path, `onnx.ModelProto`, bytes, an `Engine`, or the path of an engine file.
        precision: `fp32`, `tf32`, `fp16`, `bf16` or `fp64`.
        device: `auto`, `cpu` or `cuda`.
        profiles: `[{"x": (min, opt, max)}]`.
        layer_precisions: ordered mapping pattern -> precision, or a path to
            `{"layer_precisions": {...}}`.
        optimize: False runs the nodes one by one, unfolded and unfused.
        config: a complete BuilderConfig in place of the options above.
        kernels, retune: for engine files, see `Engine.load`.
        optimization_profile: number of the profile that shapes must fit; any by default.
        builder_options: further arguments of `BuilderConfig.of`; with an engine only `cuda_graph`
            has a meaning.
    """

    name = "native"
    keeps_taps = True

    def __init__(
        self,
        model: Any,
        *,
        precision: str = "fp32",
        device: str = "auto",
        profiles: Sequence[Any] | None = None,
        layer_precisions: Mapping[str, str] | str | Path | None = None,
        optimize: bool = True,
        config: BuilderConfig | None = None,
        name: str | None = None,
        kernels: bool = True,
        retune: bool = True,
        optimization_profile: int | None = None,
        **builder_options: Any,
    ) -> None:
        self._cuda_graph: bool | None = builder_options.get("cuda_graph")
        if is_engine(model) and builder_options.keys() - {"cuda_graph"}:
            raise UsageError(
                f"an engine is as it was built: {', '.join(sorted(builder_options))} have no effect"
            )
        if isinstance(model, Engine):
            self.engine = model
        elif is_engine(model):
            self.engine = Engine.load(model, device=device, kernels=kernels, retune=retune)
        else:
            self.engine = engine_from_onnx(
                model,
                config
                or BuilderConfig.of(
                    precision=precision,
                    device=device,
                    profiles=profiles,
                    layer_precisions=layer_precisions,
                    optimize=optimize,
                    **builder_options,
                ),
            )
        if name is not None:
            self.name = name
        select_profiles(self.engine.config.profiles, optimization_profile, self.engine.name)
        self._optimization_profile = optimization_profile
        network = self.engine.network
        self.inputs = tuple(t.spec for t in network.inputs)
        self.outputs = tuple(
            TensorSpec(name, t.dtype, t.shape, t.container)
            for name, t in zip(network.output_names, network.outputs, strict=True)
        )
        self.context: ExecutionContext | None = None
        self._seconds = 0.0

    def activate(self) -> None:
        """Create the execution context."""
        if self.context is None:
            self.context = self.engine.create_execution_context(
                cuda_graph=self._cuda_graph, optimization_profile=self._optimization_profile
            )

    def deactivate(self) -> None:
        """Drop the execution context."""
        if self.context is not None:
            self.context.close()
        self.context = None

    def infer(self, feeds: Feeds, observe: Observer | None = None) -> Outputs:
        """Run once; see `Runner.infer` and `Observable.infer`."""
        self.activate()
        assert self.context is not None
        start = time.perf_counter()
        try:
            if observe is None:
                return self.context.infer(feeds)
            return self.context.infer(feeds, self._observer(observe))
        finally:
            self._seconds = time.perf_counter() - start

    def infer_until(self, feeds: Feeds, tap: Tap) -> Any:
        """What `tap` holds in an unobserved inference that ends there; see `Observable`."""
        self.activate()
        assert self.context is not None
        tensor = next(t for t, known in self._known_taps.items() if known == tap)
        return self.context.infer_until(feeds, tensor)

    def _observer(self, observe: Observer) -> Any:
        """What the context calls for every stored tensor: `observe` for those that are taps."""
        known = self._known_taps

        def each(_: Layer, tensor: Tensor, value: Any) -> None:
            tap = known.get(tensor)
            if tap is None:
                return
            if isinstance(value, np.ndarray) and tensor.dtype is not None:
                wide = self.engine.mode.wide and value.dtype == np.float64
                value = value if wide else unload(value, tensor.dtype)
            observe(tap, value)

        return each

    @cached_property
    def _known_taps(self) -> dict[Tensor, Tap]:
        """Where each ONNX tensor is stored first; a cast of it that follows is no second tap."""
        found: dict[str, tuple[Tensor, Tap]] = {}
        for depth, layer in self.engine.network.walk():
            for tensor in layer.outputs:
                tap = _tap(layer, tensor, depth)
                if tap is not None:
                    found.setdefault(tap.tensor, (tensor, tap))
        return dict(found.values())

    def last_inference_time(self) -> float:
        """Seconds that the last `infer` took."""
        return self._seconds

    def resident(self, feeds: Feeds) -> Feeds:
        """The inputs in the memory of the GPU, where the engine runs there."""
        self.activate()
        assert self.context is not None
        return self.context.resident(feeds)

    def phases(self, feeds: Feeds) -> dict[str, float]:
        """Run once, and tell the seconds of its parts; see `Runner.phases`."""
        self.activate()
        assert self.context is not None
        return self.context.phases(feeds)

    def profile(self, feeds: Feeds, iterations: int) -> tuple[LayerTime, ...]:
        """How long each layer takes; on a GPU by its own clock, with the names of kernels."""
        self.activate()
        assert self.context is not None
        profiler = self.context.profiler = Profiler()
        try:
            for _ in range(iterations):
                self.context.infer(feeds)
        finally:
            self.context.profiler = None
        kernels = {
            layer: profiler.kernels.get(layer) or self._tactic(layer) for layer in profiler.spans
        }
        return tuple(
            LayerTime(layer.name, layer.kind, layer.origin, kernels[layer], tuple(spans))
            for layer, spans in profiler.spans.items()
        )

    def _tactic(self, layer: Layer) -> tuple[str, ...]:
        """What runs a layer on the CPU; nothing for control flow."""
        if any(node.bodies for node in layer.nodes):
            return ()
        return (choose(layer, self.engine.mode).name,)

    def another(self) -> NativeRunner:
        """One more context on the same engine."""
        return NativeRunner(
            self.engine,
            name=self.name,
            cuda_graph=self._cuda_graph,
            optimization_profile=self._optimization_profile,
        )

    def device_memory(self) -> dict[str, int]:
        """Bytes of GPU memory; empty on the CPU."""
        return {} if self.context is None else self.context.device_memory()

    def taps(self) -> tuple[Tap, ...]:
        """Every stored tensor that equals an ONNX tensor, in execution order."""
        return tuple(self._known_taps.values())

    @property
    def settings(self) -> dict[str, Any]:
        """Precision, device and versions."""
        return {
            "runner": "native",
            "precision": self.engine.config.precision,
            "layer_precisions": dict(self.engine.config.layer_precisions),
            "device": self.engine.device,
            "optimize": self.engine.config.optimize,
            "polytool": polytool.__version__,
            "numpy": np.__version__,
        }


def _spec(tensor: Tensor) -> TensorSpec:
    name = tensor.value_of.tensor if tensor.value_of is not None else tensor.name
    return TensorSpec(name, tensor.dtype, tensor.shape, tensor.container)


def _tap(layer: Layer, tensor: Tensor, depth: int) -> Tap | None:
    """What is seen of a tensor; None where that is no ONNX tensor, or cut out of a whole one."""
    steps = tensor.value_of.map if tensor.value_of is not None else ()
    rows = tuple(step for kind, step in steps if kind == "slice")
    known = all(kind in ("cast", "slice") for kind, _ in steps)
    if tensor.value_of is None or not known or (rows and not layer.origin):
        return None
    name, spec = tensor.value_of.tensor, _spec(tensor)
    return Tap(name, layer.name, layer.origin, spec, _operands(layer), depth, rows)


def _operands(layer: Layer) -> str:
    """The precision of what a layer computes with, which the model may have declared itself."""
    if layer.precision != "fp32":
        return layer.precision
    nodes = [node for node in layer.nodes if node.op != "Cast"]
    declared = {t.dtype for node in nodes for t in node.inputs if t is not None}
    if DType.BFLOAT16 in declared:
        return "bf16"
    return "fp16" if DType.FLOAT16 in declared else "fp32"
