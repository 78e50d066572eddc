"""ONNX Runtime as a runner."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from onnx import TensorProto

from polytool.backends.base import Feeds, LayerTime, Observable, Observer, Outputs, Tap
from polytool.backends.checks import check_feeds, on_device
from polytool.backends.native.protos import read_type
from polytool.backends.onnxrt import device, session
from polytool.backends.onnxrt.segments import Segments, rewritten
from polytool.backends.onnxrt.source import source_of
from polytool.backends.onnxrt.taps import find_taps
from polytool.backends.onnxrt.values import NUMPY_TYPES, from_ort, parse_type, to_ort
from polytool.errors import RunnerError
from polytool.model import Source as ModelSource
from polytool.model import load
from polytool.tensors import TensorSpec


class OnnxrtRunner(Observable):
    """Runs a model on ONNX Runtime.

    Sessions are made by the first call that needs one: a plain `infer` one for the whole model,
    an observed one a session for each segment.

    Args:
        model: a path, `onnx.ModelProto`, bytes or a polytool Model.
        providers: execution providers in order of priority, by whole or partial name in any case
            (`cuda`, `cpu`); the CPU by default. One that does not start is an error.
        provider_options: provider name to its options: `{"cuda": {"use_tf32": 0}}`.
        graph_optimization_level: `disable`, `basic`, `extended`, `layout` or `all` (default);
            onnxruntime's own names (`ORT_ENABLE_ALL`) do as well.
        custom_ops: paths of custom-operator libraries.
        threads: threads within an operator; 0 leaves the number to onnxruntime.
        session_options: session configuration entries by onnxruntime's own keys.
        name: what results call the runner.

    Raises:
        ModelError: the model cannot be read.
        UsageError: an unknown provider or level.
        MissingDependencyError: onnxruntime is not installed.
    """

    name = "onnxrt"

    def __init__(
        self,
        model: ModelSource,
        *,
        providers: Sequence[str] | None = None,
        provider_options: Mapping[str, Mapping[str, Any]] | None = None,
        graph_optimization_level: str | None = None,
        custom_ops: Sequence[str] = (),
        threads: int = 0,
        session_options: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self._config = session.SessionConfig(
            providers=session.find_providers(providers, provider_options),
            level=session.level_name(graph_optimization_level),
            libraries=tuple(custom_ops),
            threads=threads,
            entries=dict(session_options or {}),
        )
        self._model = load(model)
        self._who = self._model.name
        self.name = name or self.name
        graph = self._model.proto.graph
        held = {t.name for t in graph.initializer} | {
            t.values.name for t in graph.sparse_initializer
        }
        specs = [TensorSpec(i.name, *read_type(i.type)) for i in graph.input]
        self.inputs = tuple(s for s in specs if s.name not in held)
        self._defaulted = tuple(s for s in specs if s.name in held)
        self.outputs = tuple(TensorSpec(o.name, *read_type(o.type)) for o in graph.output)
        self._session: Any = None
        self._segments: dict[frozenset[str], Segments] = {}
        self._seconds = 0.0

    @cached_property
    def _source(self) -> Any:
        return source_of(self._model)

    @property
    def session(self) -> Any:
        """The `onnxruntime.InferenceSession` of the whole model."""
        if self._session is None:
            self._session = session.open_session(self._source, self._config, who=self._who)
        return self._session

    def deactivate(self) -> None:
        """Release every session."""
        self._session = None
        self._segments = {}

    def infer(self, feeds: Feeds, observe: Observer | None = None) -> Outputs:
        """Run once.

        Args:
            feeds: input name to array. Where one is an array of CuPy, torch or another library
                with DLPack, outputs are arrays of that library on that array's device.
            observe: called as `observe(tap, array)` in execution order; the array is only valid
                during the call, and not to be written.

        Raises:
            UsageError: a name, dtype, rank or dimension does not fit the model.
            ModelError: onnxruntime does not load the model.
            RunnerError: onnxruntime failed.
        """
        ready = check_feeds(self.inputs, feeds, optional=self._defaulted)
        if observe is not None:
            return self._infer_observed(ready, observe)
        run = self.session  # making it is no part of the time
        start = time.perf_counter()
        try:
            outputs = self._run(run, ready)
        except Exception as err:
            raise RunnerError(f"onnxruntime failed in {self._who}: {session.clean(err)}") from err
        self._seconds = time.perf_counter() - start
        return outputs

    def _run(self, run: Any, feeds: dict[str, Any]) -> Outputs:
        if any(on_device(v) for v in feeds.values()):
            return device.run(run, feeds)
        names = [o.name for o in run.get_outputs()]
        types = [parse_type(o.type) for o in run.get_outputs()]
        if all(d is None or d in NUMPY_TYPES for d, _ in types):
            given = {k: v if _passes(v) else to_ort(v) for k, v in feeds.items()}
            return dict(zip(names, run.run(names, given), strict=True))
        given = {k: to_ort(v) for k, v in feeds.items() if v is not None}
        values = run.run_with_ort_values(names, given)
        return {name: from_ort(v) for name, v in zip(names, values, strict=True)}

    def resident(self, feeds: Feeds) -> Feeds:
        """The inputs in the memory of the GPU, where onnxruntime runs there."""
        return dict(feeds) if self._on_cpu else device.resident(feeds)

    def profile(self, feeds: Feeds, iterations: int) -> tuple[LayerTime, ...]:
        """How long each node takes that onnxruntime's own rewriting has left."""
        from polytool.backends.onnxrt.profile import node_times

        ready = check_feeds(self.inputs, feeds, optional=self._defaulted)
        named = {n.name for n in self._model.proto.graph.node if n.name}
        return node_times(self._source, self._config, self._who, ready, iterations, named)

    def another(self) -> OnnxrtRunner:
        """The same session, which onnxruntime lets several threads use."""
        assert self.session is not None
        return copy.copy(self)

    def taps(self) -> tuple[Tap, ...]:
        """The tensors that onnxruntime stores, in execution order.

        At level `disable` these are all tensors of the model outside of If, Loop and Scan bodies;
        else those that its own fusions leave.
        """
        return tuple(self._taps.values())

    @cached_property
    def _executed(self) -> Any:
        return rewritten(self._source, self._config, self._who)

    @cached_property
    def _taps(self) -> dict[str, Tap]:
        return find_taps(self._model.proto, self._executed.proto)

    def _infer_observed(self, feeds: dict[str, Any], observe: Observer) -> Outputs:
        taps = self._taps
        overridden = frozenset(feeds) & {s.name for s in self._defaulted}
        if overridden not in self._segments:
            self._segments[overridden] = Segments(
                self._executed, self._config, set(taps), self._who, overridden
            )
        start = time.perf_counter()
        given = {k: device.host_value(v) for k, v in feeds.items() if v is not None}
        outputs = self._segments[overridden].run(given, lambda name, a: observe(taps[name], a))
        self._seconds = time.perf_counter() - start
        return {o.name: from_ort(outputs[o.name]) for o in self.outputs}

    def last_inference_time(self) -> float:
        """Seconds of the last `infer`; of an observed one with its sessions and callbacks."""
        return self._seconds

    @property
    def settings(self) -> dict[str, Any]:
        """Version, providers with their options, optimization level and threads."""
        package = session.onnxruntime()
        return {
            "backend": "onnxruntime",
            "version": package.__version__,
            "device": "cpu" if self._on_cpu else self._config.providers[0][0],
            "providers": [name for name, _ in self._config.providers],
            "provider_options": {n: dict(o) for n, o in self._config.providers if o},
            "graph_optimization_level": self._config.level,
            "threads": self._config.threads or "default",
            **({"session_options": dict(self._config.entries)} if self._config.entries else {}),
            **({"float16_in": "float32"} if self._on_cpu and self._has_float16 else {}),
            **({} if self._on_cpu else {"tf32": self._tf32}),
        }

    @cached_property
    def _has_float16(self) -> bool:
        """Whether the model computes in float16, for which the CPU provider has hardly a kernel."""
        graph = self._model.proto.graph
        kinds = {t.data_type for t in graph.initializer}
        kinds |= {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        kinds |= {a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute}
        return TensorProto.FLOAT16 in kinds

    @property
    def _on_cpu(self) -> bool:
        return self._config.providers[0][0] == "CPUExecutionProvider"

    @property
    def _tf32(self) -> bool | None:
        """Whether float32 products may run in TF32; None where the provider does not say."""
        provider, options = self._config.providers[0]
        if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
            return False
        if provider == "CUDAExecutionProvider":
            return options.get("use_tf32", "1") not in ("0", "False", "false")
        return None


def _passes(value: Any) -> bool:
    """Whether onnxruntime's NumPy interface takes `value` as it is."""
    if isinstance(value, list):
        return all(_passes(v) for v in value)
    return value is None or value.dtype.type.__module__ == "numpy"
