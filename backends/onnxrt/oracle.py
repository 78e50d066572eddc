"""ONNX Runtime as the judge of single layers: slices of the original model on any values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from polytool.backends.base import Feeds, LayerOracle, Outputs, Trace, with_noise
from polytool.backends.native.protos import display
from polytool.backends.onnxrt.cut import Cutter
from polytool.backends.onnxrt.session import SessionConfig, clean, find_providers, open_session
from polytool.backends.onnxrt.source import Source, source_of
from polytool.backends.onnxrt.taps import specs_of
from polytool.backends.onnxrt.values import from_ort, to_ort
from polytool.errors import RunnerError, UsageError
from polytool.model import Source as ModelSource
from polytool.model import load
from polytool.tensors import DType, TensorSpec, as_numpy

_KEPT_SESSIONS = 256
_KEPT_WEIGHTS = 256 << 20  # bytes

Key = tuple[tuple[tuple[str, bytes], ...], tuple[str, ...]]


class OnnxrtOracle(LayerOracle):
    """Cuts the nodes between two sets of tensors out of the model and runs them unfused.

    Only tensors of the top-level graph can be named; an If, Loop or Scan is one node.

    Args:
        model: a path, `onnx.ModelProto`, bytes or a polytool Model.
        providers: execution providers by partial name; the CPU by default.
    """

    def __init__(self, model: ModelSource, *, providers: Sequence[str] | None = None) -> None:
        self._config = SessionConfig(find_providers(providers, None), level="disable")
        self._model = load(model)
        self._who = self._model.name
        self._sessions: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
        self._kept = 0

    @cached_property
    def _source(self) -> Source:
        return source_of(self._model)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._source.proto, self._who)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        return specs_of(self._model.proto)

    def trace(self, wanted: str, available: Collection[str]) -> Trace:
        """How `wanted` is computed from the nearest available tensors; see `LayerOracle`."""
        inputs = self._nearest(wanted, available)
        indices, _ = self._cutter.slice([wanted], inputs)
        reached, chosen = set(inputs), []
        for index in indices:
            if not reached.isdisjoint(self._cutter.reads[index]):
                reached.update(self._cutter.nodes[index].output)
                chosen.append(index)
        nodes = self._cutter.nodes
        return Trace(
            inputs,
            tuple(nodes[i].op_type for i in indices),
            tuple(dict.fromkeys(display(nodes[i]) for i in chosen or indices)),
        )

    def _nearest(self, wanted: str, available: Collection[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        stack, seen = [wanted], {wanted}
        while stack:
            name = stack.pop()
            index = self._cutter.producer.get(name)
            if name != wanted and name in available:
                found[name] = None
            elif index is not None:
                new = [r for r in self._cutter.reads[index] if r not in seen]
                seen.update(new)
                stack.extend(new)
            elif not self._cutter.is_weight(name):
                raise UsageError(f"{wanted!r} depends on {name!r}, which is not available")
        return tuple(found)

    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute `wanted` from `inputs`; see `LayerOracle`.

        Floating-point inputs are converted to the types that the model declares. Noise reaches
        the inputs only.
        """
        if noise:
            rng = np.random.default_rng(seed)
            inputs = {name: with_noise(value, noise, rng) for name, value in inputs.items()}
        names = list(dict.fromkeys(wanted))
        unknown = [n for n in names if n not in self._specs and n not in self._cutter.producer]
        unknown = [n for n in unknown if n not in inputs and not self._cutter.is_weight(n)]
        if unknown:
            raise UsageError(
                f"{', '.join(map(repr, unknown))} is not a tensor of the main graph of {self._who}"
            )
        made = self._compute(inputs, [n for n in names if n not in inputs])
        return {name: inputs[name] if name in inputs else made[name] for name in names}

    def _compute(self, inputs: Feeds, names: list[str]) -> Outputs:
        if not names:
            return {}
        indices, lacking = self._cutter.slice(names, inputs)
        if lacking:
            raise UsageError(
                f"{', '.join(map(repr, names))} needs the values of "
                f"{', '.join(map(repr, sorted(lacking)))}, which are not given"
            )
        produced = {o for i in indices for o in self._cutter.nodes[i].output}
        reads = dict.fromkeys(n for i in indices for n in self._cutter.reads[i])
        given = {n: self._value(n, inputs[n]) for n in reads if n in inputs and n not in produced}
        types = {name: _type(value) for name, value in given.items()}
        session = self._session(indices, types, tuple(names))
        feeds = {name: to_ort(value) for name, value in given.items()}
        try:
            values = session.run_with_ort_values(names, feeds)
        except Exception as err:
            raise RunnerError(
                f"onnxruntime failed to compute {', '.join(map(repr, names))} of {self._who}: "
                f"{clean(err)}"
            ) from err
        return {name: from_ort(value) for name, value in zip(names, values, strict=True)}

    def _value(self, name: str, value: Any) -> Any:
        """The value as the model declares it."""
        if isinstance(value, list):
            return [self._value(name, v) for v in value]
        array, spec = as_numpy(value), self._specs.get(name)
        if spec is None or spec.dtype is None or DType.of(array) is spec.dtype:
            return array
        if not (spec.dtype.is_float and DType.of(array).is_float):
            raise UsageError(
                f"tensor {name!r} is {DType.of(array).label}, but the model makes it "
                f"{spec.dtype.label}"
            )
        with np.errstate(over="ignore"):  # a value beyond the type becomes infinite there too
            return array.astype(spec.dtype.numpy)

    def _session(
        self, indices: Sequence[int], types: Mapping[str, onnx.TypeProto], outputs: tuple[str, ...]
    ) -> Any:
        key = (tuple((n, t.SerializeToString()) for n, t in types.items()), outputs)
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key][0]
        proto = self._cutter.model(indices, types, outputs)
        session = open_session(
            Source(proto, self._source.folder),
            self._config,
            who=f"the part of {self._who} that makes {', '.join(map(repr, outputs))}",
        )
        weights = sum(self._model.nbytes(t) for t in proto.graph.initializer)
        self._sessions[key] = session, weights
        self._kept += weights
        while len(self._sessions) > 1 and (
            self._kept > _KEPT_WEIGHTS or len(self._sessions) > _KEPT_SESSIONS
        ):
            self._kept -= self._sessions.popitem(last=False)[1][1]
        return session


def _type(value: Any) -> onnx.TypeProto:
    """The type of a value, of any shape."""
    if isinstance(value, list):
        inner = _type(value[0]) if value else onnx.helper.make_tensor_type_proto(1, None)
        return onnx.helper.make_sequence_type_proto(inner)
    return onnx.helper.make_tensor_type_proto(int(DType.of(value)), None)
