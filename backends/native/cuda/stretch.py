"""A straight line of layers for one set of shapes: recorded, placed, timed, captured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import Storage, View
from polytool.backends.native.cuda.library import ask_libraries
from polytool.backends.native.cuda.recorder import Recorder, Step, storages
from polytool.backends.native.cuda.timing import fastest
from polytool.backends.native.cuda.weights import Weights
from polytool.backends.native.kernels import compiler, driver
from polytool.backends.native.kernels.launch import Launchable, prepare_plan
from polytool.backends.native.kernels.source import item_size
from polytool.backends.native.memory import Lifetime, plan_arena
from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.program import Watch
from polytool.backends.native.shapes import ShapePass
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@dataclass(frozen=True)
class DeviceArray:
    """A dense tensor on the device; valid until its stretch runs again."""

    address: int
    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * item_size(self.dtype)

    def numpy(self, stream: int) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        value = np.empty(self.shape, self.dtype.numpy)
        if value.nbytes:
            driver.to_host(value.ctypes.data, self.address, value.nbytes, stream)
            driver.synchronize(stream)
        return value


class Stretch:
    """The launches of some layers, ready to run.

    Raises:
        UnsupportedError: a layer needs the host; its `layer` attribute names it.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Tensor],
        wanted: Sequence[Tensor],
        values: dict[Tensor, Any],
        weights: Weights,
        stream: int,
        timings: dict[str, list[float]],
    ) -> None:
        self._stream, self._weights = stream, weights
        self._arena = 0
        self._graph: driver.Graph | None = None
        self._layers = list(layers)
        recorder = _record(layers, inputs, values)
        self._host = {t: v for t, v in recorder.shapes.values.items() if t not in values}
        self._inputs = [(t, recorder.views[t]) for t in inputs if t in recorder.views]
        self._views = recorder.views
        self._outputs = [
            (t, recorder.dense(recorder.view(t))) for t in wanted if t not in self._host
        ]
        self._steps = ask_libraries(recorder.steps)
        self._place()
        self._fill(values)
        self._launches = self._choose(timings)
        self._fill(values)
        self._capture()

    def _place(self) -> None:
        """Offsets in one arena; inputs live from the start, outputs to the end."""
        lives = storages(self._steps)
        end = len(self._steps)
        for _, view in self._inputs:
            lives[view.storage] = (-1, lives.get(view.storage, (0, 0))[1])
        for _, view in self._outputs:
            lives[view.storage] = (lives.get(view.storage, (-1, 0))[0], end)
        placed = [s for s in lives if s.make is None]
        # A workspace is a storage of its own step.
        self._spaces = {
            index: Storage(max(p.workspace for p in step.plans))
            for index, step in enumerate(self._steps)
            if any(p.workspace for p in step.plans)
        }
        spans = [Lifetime(s.size, *lives[s]) for s in placed]
        spans += [Lifetime(s.size, i, i) for i, s in self._spaces.items()]
        arena = plan_arena(spans)
        self.arena_size = arena.size
        self._arena = driver.allocate(arena.size + 256)
        every = [*placed, *self._spaces.values()]
        self._addresses = {
            s: self._arena + offset for s, offset in zip(every, arena.offsets, strict=True)
        }

    def _address(self, view: View) -> int:
        base = self._addresses.get(view.storage)
        if base is None:
            base = self._weights.address(view.storage)
        return base + view.offset * item_size(view.dtype)

    def _choose(self, timings: dict[str, list[float]]) -> list[tuple[Step, tuple[Launchable, ...]]]:
        """The fastest candidate of each step; each is timed on what those before it computed."""
        new = [s for s in self._steps if s.signature not in timings]
        kernels = (k for step in new for plan in step.plans for k in plan.kernels())
        compiler.compile_all(kernels, self._weights.device.arch, os.cpu_count() or 1)
        chosen = []
        for index, step in enumerate(self._steps):
            addresses = [self._address(v) for v in step.views]
            if index in self._spaces:
                addresses.append(self._addresses[self._spaces[index]])
            best = fastest(step, addresses, self._weights.device, self._stream, timings)
            launches = prepare_plan(step.plans[best], self._weights.device, addresses)
            for launch in launches:
                launch(self._stream)
            chosen.append((step, launches))
        return chosen

    def _capture(self) -> None:
        """Run once, so that everything is loaded, then record the launches as one graph."""
        self._launch_all()
        driver.synchronize(self._stream)
        if not self._launches:
            return
        with driver.Graph.capture(self._stream) as graph:
            self._launch_all()
        self._graph = graph
        self._replay = graph.launcher(self._stream)

    def _launch_all(self) -> None:
        for _, launches in self._launches:
            for launch in launches:
                launch(self._stream)

    def run(self, values: dict[Tensor, Any], watch: Watch | None = None) -> None:
        """Read inputs from `values`, and put outputs there."""
        self._fill(values)
        if watch is not None:
            self._watched(values, watch)
        elif self._graph is not None:
            driver.raise_status(self._replay(), "cuGraphLaunch")
        values.update(self._host)
        for tensor, view in self._outputs:
            values[tensor] = DeviceArray(self._address(view), view.shape, view.dtype)

    def _fill(self, values: dict[Tensor, Any]) -> None:
        """Bring the inputs to where they lie."""
        for tensor, view in self._inputs:
            self._upload(values[tensor], self._address(view))

    def _upload(self, value: Any, address: int) -> None:
        if isinstance(value, DeviceArray):
            driver.copy(address, value.address, value.nbytes, self._stream)
            return
        array = np.ascontiguousarray(value)
        if array.nbytes:
            driver.to_device(address, array.ctypes.data, array.nbytes, self._stream)
            driver.synchronize(self._stream)  # the array may be gone before an async copy

    def _watched(self, values: dict[Tensor, Any], watch: Watch) -> None:
        """Launch layer by layer, handing over copies of what each has just stored."""
        pending = list(self._launches)
        for layer in self._layers:
            while pending and pending[0][0].layer is layer:
                _, launches = pending.pop(0)
                for launch in launches:
                    launch(self._stream)
            driver.synchronize(self._stream)
            watch(layer, [self._look(t) for t in layer.outputs])
        for _, launches in pending:  # copies that only outputs need
            for launch in launches:
                launch(self._stream)

    def _look(self, tensor: Tensor) -> Any:
        if tensor in self._host:
            return self._host[tensor]
        view = self._views[tensor]
        whole = np.empty(view.storage.size, np.uint8)
        if whole.nbytes:
            base = self._address(view.whole)
            driver.to_host(whole.ctypes.data, base, whole.nbytes, self._stream)
            driver.synchronize(self._stream)
        flat = whole.view(view.dtype.numpy)[view.offset :]
        item = item_size(view.dtype)
        steps = tuple(s * item for s in view.steps)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, view.shape, steps))

    def close(self) -> None:
        """Free the arena and the graph."""
        driver.synchronize(self._stream)
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        if self._arena:
            driver.free(self._arena)
            self._arena = 0


def _record(
    layers: Sequence[Layer], inputs: Sequence[Tensor], values: dict[Tensor, Any]
) -> Recorder:
    shapes = {t: tuple(values[t].shape) for t in inputs}
    known = {
        t: values[t] for t in inputs if isinstance(values[t], np.ndarray) and t.place == "host"
    }
    walker = ShapePass(shapes, known)
    recorder = Recorder(walker, layers)
    for tensor in inputs:
        if tensor not in known and tensor.dtype is not None:
            recorder.views[tensor] = View.new(tensor.dtype, shapes[tensor])
    for layer in layers:
        walker.run([layer])
        if all(t in walker.values for t in layer.outputs):
            continue
        try:
            recorder.lower(layer)
        except UnsupportedError as err:
            err.layer = layer  # type: ignore[attr-defined]  # tells the caller where to split
            raise
    return recorder
