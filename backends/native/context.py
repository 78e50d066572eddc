"""Running an engine: inputs checked and converted, the plan run, outputs handed over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.checks import check_feeds, on_device
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.numerics import load, unload
from polytool.backends.native.profiler import Profiler
from polytool.backends.native.profiles import check_profiles, select_profiles
from polytool.backends.native.tactics.pool import single_threaded_blas
from polytool.errors import UsageError
from polytool.tensors import as_numpy

if TYPE_CHECKING:
    from polytool.backends.native.cuda.program import CudaProgram
    from polytool.backends.native.cuda.replay import Replays
    from polytool.backends.native.program import LazyProgram, Program

Observe = Callable[[Layer, Tensor, Any], None]


class ExecutionContext:
    """What one thread needs to run an engine; make one per thread.

    On a GPU it owns a stream, an arena and the memory of outputs; contexts of one engine run
    concurrently.

    Args:
        engine: what it runs.
        cuda_graph: on a GPU, whether the launches for each set of shapes are captured as one CUDA
            graph; what the engine was built with by default.
        optimization_profile: number of the profile that shapes must fit; any by default.

    Raises:
        UsageError: the engine has no such profile.
    """

    def __init__(
        self,
        engine: Engine,
        cuda_graph: bool | None = None,
        optimization_profile: int | None = None,
    ) -> None:
        self.engine = engine
        self.profiler: Profiler | None = None
        self._specs = [t.spec for t in engine.network.inputs]
        self._profiles = select_profiles(engine.config.profiles, optimization_profile, engine.name)
        self._program: Program | LazyProgram | CudaProgram
        self._replays: Replays | None = None
        if engine.device == "cuda":
            from polytool.backends.native.cuda.program import CudaProgram
            from polytool.backends.native.cuda.replay import Replays

            captured = engine.config.cuda_graph if cuda_graph is None else cuda_graph
            self._program = CudaProgram(engine.network, engine.weights, engine.tuning, captured)
            self._replays = Replays(self._program)
        else:
            self._program = engine.program

    def infer(self, feeds: Mapping[str, Any], observe: Observe | None = None) -> dict[str, Any]:
        """Run once; everything has happened when it returns.

        Args:
            feeds: input name to array. With torch or CuPy arrays on the GPU, or others with DLPack,
                the outputs are arrays of the same library there.
            observe: called as `observe(layer, tensor, array)` for every stored tensor, in
                execution order; the array is only valid during the call.

        Raises:
            UsageError: an input does not fit.
            RunnerError: a layer failed.
        """
        if self._replays is not None:
            found = self._replays.find(feeds)
            if found is not None and observe is None and self.profiler is None:
                return found[0].run(found[1])
            return self._first(self._replays, feeds, observe)
        inputs = self._stored(self._checked(feeds))
        with np.errstate(all="ignore"), single_threaded_blas():
            values = self._program.run(inputs, self._watch(observe))
        return self._outputs(values, inputs)

    def infer_until(self, feeds: Mapping[str, Any], tensor: Tensor) -> Any:
        """What `tensor` holds on the GPU in an unobserved inference that ends with its layer.

        None on the CPU, where observing changes nothing.
        """
        if self._replays is None:
            return None
        inputs = self._checked(feeds)
        with np.errstate(all="ignore"), single_threaded_blas():
            return self._program.run_until(inputs, tensor)  # type: ignore[union-attr]  # a CudaProgram

    def enqueue(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Start an inference on the GPU and return at once.

        The outputs lie on the device. What torch or CuPy puts on its current stream from now on
        waits for them, and for the inputs to have been read; others call `synchronize` first.

        Raises:
            UsageError: an input does not fit, or the engine runs on the CPU, or not as a whole on
                the GPU.
        """
        if self._replays is None:
            raise UsageError(f"{self.engine.name} runs on the CPU, where nothing can be enqueued")
        found = self._replays.find(feeds)
        if found is None:
            self._first(self._replays, feeds, None)
            found = self._replays.find(feeds)
        if found is None:
            raise UsageError(
                f"{self.engine.name} needs the host between its layers or for its inputs: use infer"
            )
        return found[0].enqueue(found[1])

    @property
    def on_host(self) -> dict[str, str]:
        """Layers of an engine for the GPU that run on the host, and why; empty on the CPU."""
        return dict(getattr(self._program, "on_host", {}))

    def phases(self, feeds: Mapping[str, Any]) -> dict[str, float]:
        """Run once, and tell the seconds of its parts; see `Runner.phases`.

        Empty on the CPU, and where not the whole network runs on the GPU.
        """
        if self._replays is None:
            return {}
        if self._replays.find(feeds) is None:
            self._first(self._replays, feeds, None)
        found = self._replays.find(feeds)
        return {} if found is None else found[0].phases(found[1])

    def resident(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs in the memory of the GPU; unchanged on the CPU, and what it reads."""
        if self._replays is None:
            return dict(feeds)
        from polytool.backends.native.cuda.interop import OWN, to_library

        self._replays.activate()
        host = {t.name for t in self.engine.network.inputs if t.place == "host"}
        moved = {n: v for n, v in feeds.items() if n not in host}
        made = to_library(moved, OWN, self._replays.pool, self._replays.stream)
        return {name: made.get(name, value) for name, value in feeds.items()}

    def device_memory(self) -> dict[str, int]:
        """Bytes of GPU memory.

        `weights`, which contexts share; `arena`, of which `workspace` is what tactics need besides
        tensors; `outputs` and other memory that is kept for the next inference.
        """
        if self._replays is None:
            return {}
        program: CudaProgram = self._program  # type: ignore[assignment]  # it is one there
        return {
            "weights": self.engine.weights.size,
            "arena": program.arena_size,
            "workspace": program.workspace,
            "outputs": self._replays.pool.size,
        }

    def synchronize(self) -> None:
        """Wait for what was enqueued; errors of its kernels are raised here."""
        if self._replays is not None:
            from polytool.backends.native.kernels import driver

            self._replays.activate()
            driver.synchronize(self._replays.stream)

    def _first(
        self, replays: Replays, feeds: Mapping[str, Any], observe: Observe | None
    ) -> dict[str, Any]:
        """Inputs of a new kind, or more to do than a replay does: through the program."""
        from polytool.backends.native.cuda import interop

        given, library = interop.on_device(feeds, replays.stream)
        inputs = self._checked(given)
        replays.declared(self._declared(inputs))
        with np.errstate(all="ignore"), single_threaded_blas():
            self._program.profiler = self.profiler if observe is None else None  # type: ignore[union-attr]  # a CudaProgram
            values = replays.run(inputs, self._watch(observe), on_device=library is not None)
        outputs = self._outputs(values, inputs)
        if library is not None:
            outputs = interop.to_library(outputs, library, replays.pool, replays.stream)
        if observe is None and self.profiler is None:
            replays.learn(feeds)
        return outputs

    def _declared(self, inputs: Sequence[Any]) -> bool:
        named = zip(self.engine.network.inputs, inputs, strict=True)
        shapes = {t.name: tuple(x.shape) for t, x in named if hasattr(x, "shape")}
        return self.engine.config.is_declared(shapes)

    def _checked(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The inputs in the network's order, those of the host as NumPy arrays.

        Raises:
            UsageError: a name, dtype, rank or dimension is not what the engine expects.
        """
        engine = self.engine
        ready = check_feeds(self._specs, feeds, who=engine.name, one_size=True)
        if self._profiles:
            shapes = {n: v.shape for n, v in ready.items() if hasattr(v, "shape")}
            check_profiles(self._profiles, shapes)
        return [_on_host(ready[spec.name]) for spec in self._specs]

    def _stored(self, arrays: Sequence[Any]) -> list[Any]:
        """The inputs as the CPU engine stores them."""
        wide = self.engine.mode.wide
        return [
            load(a, t.dtype, wide=wide) if isinstance(a, np.ndarray) and t.dtype else a
            for t, a in zip(self.engine.network.inputs, arrays, strict=True)
        ]

    def __del__(self) -> None:
        if not sys.is_finalizing() and getattr(self, "_replays", None) is not None:
            self.close()

    def close(self) -> None:
        """Free what the context holds on a device."""
        if self._replays is not None:
            self._replays.close()
            self._replays = None

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


def _on_host(value: Any) -> Any:
    """Arrays of other libraries as NumPy arrays; what the engine itself keeps on a GPU stays."""
    if isinstance(value, list):
        return [_on_host(v) for v in value]
    return as_numpy(value) if on_device(value) and not getattr(value, "on_device", False) else value
