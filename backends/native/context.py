"""Running an engine: inputs checked and converted, the plan run, outputs handed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.numerics import load, unload
from polytool.backends.native.profiler import Profiler
from polytool.backends.native.profiles import check_profiles
from polytool.backends.native.tactics.pool import single_threaded_blas
from polytool.errors import UsageError
from polytool.tensors import DType, as_numpy, format_shape

if TYPE_CHECKING:
    from polytool.backends.native.cuda.program import CudaProgram
    from polytool.backends.native.program import LazyProgram, Program

Observe = Callable[[Layer, Tensor, Any], None]


class ExecutionContext:
    """What one thread needs to run an engine; make one per thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profiler: Profiler | None = None
        self._program: Program | LazyProgram | CudaProgram
        if engine.device == "cuda":
            from polytool.backends.native.cuda.program import CudaProgram

            self._program = CudaProgram(engine.network, engine.weights, engine.timings)
        else:
            self._program = engine.program

    def infer(self, feeds: Mapping[str, Any], observe: Observe | None = None) -> dict[str, Any]:
        """Run once.

        Args:
            feeds: input name to array.
            observe: called as `observe(layer, tensor, array)` for every stored tensor, in
                execution order; the array is only valid during the call.

        Raises:
            UsageError: an input does not fit.
            RunnerError: a layer failed.
        """
        arrays = check_feeds(self.engine, feeds)
        inputs = arrays if self.engine.device == "cuda" else self._stored(arrays)
        with np.errstate(all="ignore"), single_threaded_blas():
            values = self._program.run(inputs, self._watch(observe))
        return self._outputs(values, inputs)

    def _stored(self, arrays: Sequence[Any]) -> list[Any]:
        """The inputs as the CPU engine stores them."""
        wide = self.engine.mode.wide
        return [
            load(a, t.dtype, wide=wide) if isinstance(a, np.ndarray) and t.dtype else a
            for t, a in zip(self.engine.network.inputs, arrays, strict=True)
        ]

    def close(self) -> None:
        """Free what the context holds on a device."""
        if self.engine.device == "cuda":
            self._program.close()  # type: ignore[union-attr]  # a CudaProgram there

    def _watch(self, observe: Observe | None) -> Any:
        if observe is None and self.profiler is None:
            return None
        profiler = self.profiler
        if profiler is not None:
            profiler.start()

        def watch(layer: Layer, values: Sequence[Any]) -> None:
            if profiler is not None and layer.nodes:
                profiler.layer(layer)
            if observe is not None:
                for tensor, value in zip(layer.outputs, values, strict=True):
                    observe(layer, tensor, value)
            if profiler is not None:
                profiler.start()

        return watch

    def _outputs(self, values: Sequence[Any], inputs: Sequence[Any]) -> dict[str, Any]:
        """Outputs in their declared types, each owned by the caller alone."""
        taken = {id(a) for a in inputs}
        outputs = {}
        network = self.engine.network
        for name, tensor, value in zip(network.output_names, network.outputs, values, strict=True):
            if isinstance(value, np.ndarray):
                if tensor.dtype is not None and tensor.container == "tensor":
                    value = unload(value, tensor.dtype)
                if value.base is not None or id(value) in taken or tensor.constant is not None:
                    value = value.copy()
                taken.add(id(value))
            elif isinstance(value, list):
                dtype = tensor.dtype
                value = [
                    unload(v, dtype).copy() if dtype and isinstance(v, np.ndarray) else v
                    for v in value
                ]
            outputs[name] = value
        return outputs


def check_feeds(engine: Engine, feeds: Mapping[str, Any]) -> list[Any]:
    """The inputs in the network's order, as arrays (or lists, or None for an optional).

    Raises:
        UsageError: a name, dtype, rank or dimension is not what the engine expects.
    """
    tensors = engine.network.inputs
    unknown = sorted(set(feeds).difference(t.name for t in tensors))
    missing = [t.name for t in tensors if t.name not in feeds and t.container != "optional"]
    if unknown or missing:
        wrong = [f"unknown input {n!r}" for n in unknown] + [
            f"missing input {n!r}" for n in missing
        ]
        expected = ", ".join(str(t.spec) for t in tensors) or "none"
        raise UsageError(f"{'; '.join(wrong)}; {engine.name} expects {expected}")
    arrays = [_check(engine, t, feeds.get(t.name)) for t in tensors]
    _check_symbols(engine, tensors, arrays)
    if engine.config.profiles:
        shapes = {
            t.name: a.shape for t, a in zip(tensors, arrays, strict=True) if hasattr(a, "shape")
        }
        check_profiles(engine.config.profiles, shapes)
    return arrays


def _check_symbols(engine: Engine, tensors: Sequence[Tensor], arrays: Sequence[Any]) -> None:
    """One symbolic dimension has one size: fusion relies on it."""
    sizes: dict[str, tuple[int, str]] = {}
    for tensor, array in zip(tensors, arrays, strict=True):
        if tensor.container != "tensor":
            continue
        for dim, size in zip(tensor.shape or (), array.shape, strict=True):
            if not isinstance(dim, str):
                continue
            known, name = sizes.setdefault(dim, (size, tensor.name))
            if known != size:
                raise UsageError(
                    f"dimension {dim!r} of {engine.name} is {known} in {name!r} but {size} in "
                    f"{tensor.name!r}; the model gives it one name, so it must have one size"
                )


def _check(engine: Engine, tensor: Tensor, value: Any) -> Any:
    if tensor.container != "tensor" and (value is None or isinstance(value, (list, dict))):
        return value
    array = as_numpy(value)
    if tensor.dtype is not None:
        found = DType.of(array)
        if found is not tensor.dtype:
            raise UsageError(
                f"input {tensor.name!r} is {found.label}; {engine.name} expects {tensor.spec}"
            )
    if tensor.shape is None:
        return array
    if array.ndim != len(tensor.shape):
        raise UsageError(
            f"input {tensor.name!r} has shape {list(array.shape)}, rank {array.ndim}; "
            f"{engine.name} expects {tensor.spec}"
        )
    for axis, (size, dim) in enumerate(zip(array.shape, tensor.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise UsageError(
                f"input {tensor.name!r} has shape {list(array.shape)}, but dimension {axis} must "
                f"be {dim}: {engine.name} expects {format_shape(tensor.shape)}"
            )
    return array
