"""A straight line of layers for one set of shapes: recorded, placed, timed, captured."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.cuda.buffers import Storage, View
from polytool.backends.native.cuda.handover import Handover, Use
from polytool.backends.native.cuda.recorder import Recorder, Step, storages
from polytool.backends.native.cuda.timed import TimedGraph
from polytool.backends.native.cuda.tuning import Tuning
from polytool.backends.native.cuda.weights import Weights
from polytool.backends.native.kernels import compiler, driver, handover
from polytool.backends.native.kernels.launch import Launch, Launchable, prepare_plan
from polytool.backends.native.kernels.source import Buffer, Plan, TensorMap, item_size
from polytool.backends.native.memory import Lifetime, plan_arena
from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.profiler import Profiler
from polytool.backends.native.program import Watch
from polytool.backends.native.shapes import ShapePass
from polytool.errors import RunnerError, UnsupportedError

_LOG = logging.getLogger(__name__)


class Arena:
    """The arena of a straight line of layers, shared by its stretches for different shapes.

    Only one of them runs at a time. A stretch that needs more closes the others.
    """

    def __init__(self) -> None:
        self.address = self.size = 0
        self._users: list[Stretch] = []

    def reserve(self, size: int, user: Stretch) -> int:
        """The address of at least `size` bytes."""
        if size > self.size:
            self.close()
            self.address, self.size = driver.allocate(size + 256), size
        self._users = [u for u in self._users if not u.closed] + [user]
        return self.address

    def close(self, but: Stretch | None = None) -> None:
        """Close the stretches in it, but for one that reserves anew, and free it."""
        for user in self._users:
            if user is not but:
                user.close()
        self._users = []
        if self.address:
            driver.free(self.address)
        self.address = self.size = 0


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
        tuning: Tuning,
        memory: Arena,
        cuda_graph: bool = True,
        tune: bool = True,
        read: frozenset[Tensor] = frozenset(),
    ) -> None:
        self.stream, self.device, self._weights, self._memory = (
            stream, weights.device, weights, memory,
        )  # fmt: skip
        self.closed = False
        self._graph: driver.Graph | None = None
        self._handover: Handover | None = None
        self._timed: TimedGraph | None = None
        self._layers = list(layers)
        recorder = _record(layers, inputs, values, read)
        self._host = {t: v for t, v in recorder.shapes.values.items() if t not in inputs}
        self._views = recorder.views
        self._inputs = [(t, recorder.views[t]) for t in inputs if t in recorder.views]
        self._outputs = [
            (t, recorder.dense(recorder.view(t))) for t in wanted if t not in self._host
        ]
        self._steps = tuning.decide(recorder.steps, tune=tune)
        timed = any(len(s.plans) > 1 for s in self._steps)
        self._place()
        self._compile()
        self._fill(values)
        self._launches = self._choose(tuning)
        if timed:  # what needs no workspace of the losers any more
            memory.close(but=self)
            self._place()
            self._fill(values)  # launches on garbage may read anywhere
            self._launches = self._choose(tuning)
        tuning.use(k for step in self._steps for plan in step.plans for k in plan.kernels())
        tuning.use([handover.kernel()])
        self._cuda_graph, self._runs = cuda_graph, 0

    def _array(self, view: View) -> DeviceArray:
        return DeviceArray(self._address(view), view.shape, view.dtype)

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
        self.arena_size = self.tensors_size = arena.size
        if self._spaces:
            self.tensors_size = plan_arena(spans[: len(placed)]).size
        base = self._memory.reserve(arena.size, self)
        every = [*placed, *self._spaces.values()]
        self._addresses = {s: base + offset for s, offset in zip(every, arena.offsets, strict=True)}
        self.inputs = [(t, self._array(v)) for t, v in self._inputs]
        self.outputs = [(t, self._array(v)) for t, v in self._outputs]

    def _address(self, view: View) -> int:
        base = self._addresses.get(view.storage)
        if base is None:
            base = self._weights.address(view.storage)
        return base + view.offset * item_size(view.dtype)

    def _compile(self) -> None:
        """Compile what is not compiled yet, all at once; what this GPU has not is no candidate."""
        kernels = (k for step in self._steps for plan in step.plans for k in plan.kernels())
        errors = compiler.refused(kernels, self.device.arch, os.cpu_count() or 1)
        for index, step in enumerate(self._steps) if errors else ():
            left = tuple(p for p in step.plans if not errors.keys() & set(p.kernels()))
            if not left:
                raise next(errors[k] for p in step.plans for k in p.kernels() if k in errors)
            self._steps[index] = dataclasses.replace(step, plans=left)
        if errors:
            names = sorted({kernel.name for kernel in errors})
            _LOG.info("no candidates for %s: %s", self.device.arch, ", ".join(names))

    def _choose(self, tuning: Tuning) -> list[tuple[Step, tuple[Launchable, ...]]]:
        """The fastest candidate of each step; each is timed on what those before it computed."""
        chosen = []
        places: Counter[str] = Counter()
        for index, step in enumerate(self._steps):
            addresses = [self._address(v) for v in step.views]
            if index in self._spaces:
                addresses.append(self._addresses[self._spaces[index]])
            plan = tuning.fastest(step, addresses, self.stream, places[step.layer.name])
            places[step.layer.name] += step.signature is not None
            self._steps[index] = dataclasses.replace(step, plans=(plan,))
            launches = prepare_plan(plan, self.device, addresses)
            for launch in launches:
                launch(self.stream)
            chosen.append((step, launches))
        return chosen

    @property
    def workspace(self) -> int:
        """How much larger the arena is for what tactics need besides tensors."""
        return self.arena_size - self.tensors_size

    @property
    def launches(self) -> int:
        """How many kernels it launches."""
        return sum(len(launches) for _, launches in self._launches)

    def handover(self, network: Network) -> Handover:
        """The stretch as the whole of a network, with copies from and to the caller's memory."""
        if self._handover is None:
            given, made = dict(self._inputs), dict(self._outputs)
            views = [given[t] for t in network.inputs if t in given]
            inputs = len(views)
            views += [made[t] for t in network.outputs]
            self._handover = Handover(
                [launch for _, launches in self._launches for launch in launches],
                [self._array(v) for v in views],
                inputs,
                self._uses(views),
                self.device,
                self.stream,
                self._cuda_graph,
            )
        return self._handover

    def _uses(self, views: Sequence[View]) -> dict[int, list[Use]]:
        """For each of the tensors every argument that lies in it, by number.

        Those are left out that no kernel may find elsewhere: parts of larger memory, what a
        library or the hardware knows by its address, and what is several of the tensors at once.
        """
        several = Counter(v.storage for v in views)
        found: dict[Storage, list[Use] | None] = {
            v.storage: []
            for v in views
            if several[v.storage] == 1 and v.is_dense and v.storage.size == self._array(v).nbytes
        }
        number = 0
        for step, (_, launches) in zip(self._steps, self._launches, strict=True):
            (plan,) = step.plans
            calls = plan.calls if isinstance(plan, Plan) else ()
            known = len(calls) == len(launches) and all(isinstance(x, Launch) for x in launches)
            for view, index in ((v, i) for i, v in enumerate(step.views) if v.storage in found):
                uses = found[view.storage]
                offset = view.offset * item_size(view.dtype)
                if not known or any(
                    isinstance(arg, TensorMap) and arg.index == index
                    for call in calls
                    for arg in call.args
                ):
                    found[view.storage] = None
                elif uses is not None:
                    uses += [
                        Use(number + i, position, offset + arg.offset)
                        for i, call in enumerate(calls)
                        for position, arg in enumerate(call.args)
                        if isinstance(arg, Buffer) and arg.index == index
                    ]
            number += len(launches)
        numbers = {v.storage: n for n, v in enumerate(views)}
        return {numbers[storage]: uses for storage, uses in found.items() if uses}

    def _launch(self) -> None:
        """One after the other at first, which loads everything; from then on as one graph."""
        self._runs += 1
        if self._graph is None and self._cuda_graph and self._launches and self._runs > 1:
            with driver.Graph.capture(self.stream) as graph:
                self._launch_all()
            self._graph = graph
        if self._graph is not None:
            self._graph.launch(self.stream)
        else:
            self._launch_all()

    def _launch_all(self, count: int | None = None) -> None:
        for _, launches in self._launches[:count]:
            for launch in launches:
                launch(self.stream)

    def run(self, values: dict[Tensor, Any], watch: Watch | None = None) -> None:
        """Read inputs from `values`, and put outputs there."""
        self._fill(values)
        if watch is not None:
            self._watched(values, watch)
        else:
            self._launch()
        values.update(self._host)
        values.update(self.outputs)

    def profiled(self, values: dict[Tensor, Any], profiler: Profiler) -> None:
        """`run`, telling `profiler` how long each step took on the device."""
        self._fill(values)
        if self._timed is None:
            self._timed = TimedGraph([launches for _, launches in self._launches], self.stream)
        begin, spans = self._timed.run()
        runs = [
            (step.layer, tuple(getattr(x, "name", "") for x in launches), *span)
            for (step, launches), span in zip(self._launches, spans, strict=True)
        ]
        profiler.on_device(begin, runs)
        values.update(self._host)
        values.update(self.outputs)

    def run_until(self, values: dict[Tensor, Any], tensor: Tensor) -> Any:
        """What the layer of `tensor` stores in an inference that ends there, captured as usual.

        Nothing of earlier inferences is left in memory: all of it is NaN or 255 before.
        """
        places = [id(layer) for layer in self._layers]
        end = next(i for i, layer in enumerate(self._layers) if tensor in layer.outputs)
        count = sum(places.index(id(step.layer)) <= end for step, _ in self._launches)
        driver.fill(self._memory.address, self.arena_size, 0xFF, self.stream)
        self._fill(values)
        if not (self._cuda_graph and count):
            self._launch_all(count)
        else:
            with driver.Graph.capture(self.stream) as graph:
                self._launch_all(count)
            graph.launch(self.stream)
            driver.synchronize(self.stream)
            graph.close()
        return self._look(tensor)

    def _fill(self, values: dict[Tensor, Any]) -> None:
        """Bring the inputs to where they lie."""
        for tensor, place in self.inputs:
            self._upload(values[tensor], place.address)

    def _upload(self, value: Any, address: int) -> None:
        if isinstance(value, DeviceArray):
            driver.copy(address, value.address, value.nbytes, self.stream)
            return
        array = np.ascontiguousarray(value)
        if array.nbytes:
            driver.to_device(address, array.ctypes.data, array.nbytes, self.stream)
            driver.synchronize(self.stream)  # the array may be gone before an async copy

    def _watched(self, values: dict[Tensor, Any], watch: Watch) -> None:
        """Launch layer by layer, handing over copies of what each has just stored."""
        pending = list(self._launches)
        for layer in self._layers:
            while pending and pending[0][0].layer is layer:
                _, launches = pending.pop(0)
                for launch in launches:
                    launch(self.stream)
            driver.synchronize(self.stream)
            watch(layer, [self._look(t) for t in layer.outputs])
        for _, launches in pending:  # copies that only outputs need
            for launch in launches:
                launch(self.stream)

    def _look(self, tensor: Tensor) -> Any:
        if tensor in self._host:
            return self._host[tensor]
        view = self._views[tensor]
        whole = np.empty(view.storage.size, np.uint8)
        if whole.nbytes:
            base = self._address(view.whole)
            driver.to_host(whole.ctypes.data, base, whole.nbytes, self.stream)
            driver.synchronize(self.stream)
        flat = whole.view(view.dtype.numpy)[view.offset :]
        item = item_size(view.dtype)
        steps = tuple(s * item for s in view.steps)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, view.shape, steps))

    def close(self) -> None:
        """Free the graphs; idempotent. The stretch cannot run any more."""
        if not self.closed:
            driver.synchronize(self.stream)
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        if self._handover is not None:
            self._handover.close()
            self._handover = None
        if self._timed is not None:
            self._timed.close()
            self._timed = None
        self.closed = True


def _record(
    layers: Sequence[Layer],
    inputs: Sequence[Tensor],
    values: dict[Tensor, Any],
    read: frozenset[Tensor],
) -> Recorder:
    shapes = {t: tuple(values[t].shape) for t in inputs}
    known = {
        t: values[t]
        for t in inputs
        if isinstance(values[t], np.ndarray) and (t.place == "host" or t in read)
    }
    walker = ShapePass(shapes, known)
    recorder = Recorder(walker, layers)
    for tensor in inputs:
        if (tensor not in known or tensor.place != "host") and tensor.dtype is not None:
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
        except (AssertionError, ValueError, IndexError, TypeError) as err:
            found = ", ".join(f"{t.name}{list(walker.shape(t) or ())}" for t in layer.inputs)
            raise RunnerError(
                f"node {', '.join(layer.origin) or layer.name} ({layer.kind}) cannot run on inputs "
                f"{found}: {err or 'they do not fit'}; check the input shapes"
            ) from err
    return recorder
