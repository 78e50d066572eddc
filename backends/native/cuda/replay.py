"""The shortest way from inputs to outputs: copies in, one graph launch, copies out.

A `Replay` is one inference for inputs of known kinds, shapes and types, with everything decided.
It serves networks that one stretch runs from end to end; all others go through the program.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.native.cuda.arrays import DeviceArray, Pinned, Pool
from polytool.backends.native.cuda.interop import OWN, Framework, framework_of
from polytool.backends.native.cuda.stretch import Stretch
from polytool.backends.native.kernels import driver
from polytool.backends.native.network import Network

if TYPE_CHECKING:
    from polytool.backends.native.cuda.program import CudaProgram

_KEPT = 32  # kinds and shapes of inputs


def _numpy_key(value: np.ndarray[Any, Any]) -> object:
    return value.shape, value.dtype


def _there(address: int) -> Callable[[Any], int]:
    return lambda _: address


class Replay:
    """One inference that is ready to run.

    Args:
        stretch: what runs it.
        network: gives the order of inputs and outputs.
        values: inputs of the kind that it will be given.
        pool: memory for outputs that no other library asks for.
        raw: the driver.
    """

    def __init__(
        self, stretch: Stretch, network: Network, values: Sequence[Any], pool: Pool, raw: driver.Raw
    ) -> None:
        self.stretch, self._pool, self._raw = stretch, pool, raw
        self._handover = stretch.handover(network)
        self._stream = stretch.stream
        self._event = driver.create_event(timed=False)
        self._inputs: list[tuple[int, Callable[[Any], int]]] = []
        self._uploads: list[tuple[int, Pinned, DeviceArray]] = []
        frameworks: dict[Framework, None] = {}
        places = dict(stretch.inputs)
        for index, (tensor, value) in enumerate(zip(network.inputs, values, strict=True)):
            framework = framework_of(value)
            if framework is not None:
                frameworks[framework] = None
            if tensor not in places:
                continue  # nothing reads it
            if framework is not None:
                self._inputs.append((index, framework.address))
                continue
            place = places[tensor]
            staged = pool.array(place.shape, place.dtype)
            self._uploads.append((index, Pinned(place.shape, place.dtype), staged))
            self._inputs.append((index, _there(staged.address)))
        self._framework = next(iter(frameworks), None)
        self._streams = [f.stream for f in frameworks if f.stream() is not None]
        made = dict(stretch.outputs)
        self._outputs = [
            (name, made[t].shape, made[t].dtype)
            for name, t in zip(network.output_names, network.outputs, strict=True)
        ]
        self._downloads: list[tuple[DeviceArray, Pinned]] = []
        self._next: list[tuple[Any, int]] | None = None

    def run(self, values: Sequence[Any]) -> dict[str, Any]:
        """Run once; the outputs are of the library of the inputs, or NumPy arrays.

        Args:
            values: one a network input, of the kind that this replay was made for.
        """
        if self._framework is None:
            return self._to_host(values)
        made = self._next or self._empty(self._framework)
        status = self._start(values, [address for _, address in made])
        self._next = self._empty(self._framework)  # while the GPU is at work
        status = status or self._raw.synchronize(self._stream)
        if status:
            driver.raise_status(status, "an inference")
        return {name: array for (name, _, _), (array, _) in zip(self._outputs, made, strict=True)}

    def enqueue(self, values: Sequence[Any]) -> dict[str, Any]:
        """The same without waiting; see `ExecutionContext.enqueue`."""
        raw, stream, event = self._raw, self._stream, self._event
        status = raw.synchronize(stream) if self._uploads else 0  # pinned memory may be in use
        made = self._empty(self._framework or OWN)
        status = status or self._start(values, [address for _, address in made])
        for current in self._streams:
            status = status or raw.record(event, stream) or raw.wait(current(), event, 0)
        if status:
            driver.raise_status(status, "an inference")
        return {name: array for (name, _, _), (array, _) in zip(self._outputs, made, strict=True)}

    def _start(self, values: Sequence[Any], targets: list[int]) -> int:
        """Launch, once what the inputs come from is done."""
        addresses = [address(values[index]) for index, address in self._inputs]
        status = self._upload(values)
        return status or self._handover.enqueue(self._raw, (*addresses, *targets))

    def _upload(self, values: Sequence[Any]) -> int:
        """Wait for what the inputs come from, and copy those of the host."""
        raw, stream, event = self._raw, self._stream, self._event
        status = 0
        for current in self._streams:
            other = current()
            if raw.query(other):  # it is still at work
                status = status or raw.record(event, other) or raw.wait(stream, event, 0)
        for index, pinned, staged in self._uploads:
            np.copyto(pinned.array, values[index])
            status = status or raw.to_device(staged.address, pinned.address, pinned.size, stream)
        return status

    def _empty(self, framework: Framework) -> list[tuple[Any, int]]:
        return [framework.empty(shape, dtype, self._pool) for _, shape, dtype in self._outputs]

    def phases(self, values: Sequence[Any]) -> dict[str, float]:
        """Run with events between the parts; see `Runner.phases`.

        Inputs and outputs of the device are moved within `compute`, and then there is no more.
        """
        raw, stream = self._raw, self._stream
        made = self._empty(self._framework) if self._framework is not None else []
        targets = [address for _, address in made] or self._targets()
        addresses = (*(address(values[index]) for index, address in self._inputs), *targets)
        events = [driver.create_event() for _ in range(4)]
        status = raw.synchronize(stream) or raw.record(events[0], stream)
        status = status or self._upload(values) or raw.record(events[1], stream)
        start = time.perf_counter()
        status = status or self._handover.enqueue(raw, addresses)
        enqueue = time.perf_counter() - start
        status = status or raw.record(events[2], stream)
        if not made:
            status = status or self._download()
        status = status or raw.record(events[3], stream) or raw.synchronize(stream)
        driver.raise_status(status, "an inference")
        names = ["compute"] if made else ["h2d", "compute", "d2h"]
        spans = itertools.pairwise(events[1:3] if made else events)
        times = {n: driver.elapsed(*span) / 1e3 for n, span in zip(names, spans, strict=True)}
        for event in events:
            driver.destroy_event(event)
        return {"enqueue": enqueue, **times}

    def _targets(self) -> list[int]:
        """Where outputs lie before they are copied to the host."""
        if not self._downloads:
            self._downloads = [
                (self._pool.array(shape, dtype), Pinned(shape, dtype))
                for _, shape, dtype in self._outputs
            ]
        return [made.address for made, _ in self._downloads]

    def _download(self) -> int:
        """Copy the outputs to page-locked memory."""
        status = 0
        for made, pinned in self._downloads:
            if pinned.size:
                status = status or self._raw.to_host(
                    pinned.address, made.address, pinned.size, self._stream
                )
        return status

    def _to_host(self, values: Sequence[Any]) -> dict[str, Any]:
        status = self._start(values, self._targets())
        status = status or self._download() or self._raw.synchronize(self._stream)
        if status:
            driver.raise_status(status, "an inference")
        return {
            name: pinned.array.copy()
            for (name, _, _), (_, pinned) in zip(self._outputs, self._downloads, strict=True)
        }

    def launcher(self, values: Sequence[Any]) -> Callable[[], None]:
        """A function that launches with these inputs and waits: what an inference takes without
        the rest of it. For measurements; its outputs are lost."""
        made = self._empty(self._framework or OWN)
        held = [address(values[index]) for index, address in self._inputs]
        addresses = (*held, *(address for _, address in made))

        def launch() -> None:
            status = self._handover.enqueue(self._raw, addresses)
            driver.raise_status(status or self._raw.synchronize(self._stream), "an inference")
            assert made  # keeps the memory

        return launch

    def close(self) -> None:
        """Free what it holds, not the stretch."""
        for pinned in (*(p for _, p, _ in self._uploads), *(p for _, p in self._downloads)):
            pinned.close()
        self._uploads, self._downloads = [], []
        self._next = None
        driver.destroy_event(self._event)


class Replays:
    """The replays of a context, found by the kinds, shapes and types of inputs."""

    def __init__(self, program: CudaProgram) -> None:
        self._program, self._network = program, program.network
        self._names = [t.name for t in self._network.inputs]
        self._keys: dict[type, Callable[[Any], object]] = {np.ndarray: _numpy_key}
        self._known: dict[tuple[object, ...], Replay] = {}
        self._raw, self._context = driver.Raw(), program.device.context
        self.pool = Pool()
        self.stream = program.stream
        self.run = program.run

    def activate(self) -> None:
        """Let the calling thread use the device; every entry needs that."""
        status = self._raw.activate(self._context)
        if status:
            driver.raise_status(status, "a context")

    def declared(self, tune: bool) -> None:
        """Whether the engine is specialised for the shapes that come next."""
        self._program.tune = tune

    def find(self, feeds: Mapping[str, Any]) -> tuple[Replay, list[Any]] | None:
        """What runs such inputs, and the inputs in order; None for what was not seen before.

        The calling thread may use the device from then on.
        """
        self.activate()
        if not self._known or len(feeds) != len(self._names):
            return None
        key, values = self._key(feeds)
        replay = self._known.get(key)
        if replay is None or replay.stretch.closed:
            return None
        return replay, values

    def _key(self, feeds: Mapping[str, Any]) -> tuple[tuple[object, ...], list[Any]]:
        key: list[object] = []
        values: list[Any] = []
        for name in self._names:
            value = feeds.get(name)
            function = self._keys.get(type(value))
            part = None if function is None else function(value)
            if part is None:
                return (), values
            key.append(part)
            values.append(value)
        return tuple(key), values

    def learn(self, feeds: Mapping[str, Any]) -> None:
        """Prepare for more inputs like those that the program has just run."""
        stretch, wanted = self._program.whole(), set(self._network.outputs)
        if stretch is None or not wanted <= dict(stretch.outputs).keys():
            return
        for value in feeds.values():
            framework = framework_of(value)
            if framework is not None:
                self._keys[type(value)] = framework.key
        key, values = self._key(feeds)
        if not key:
            return
        while len(self._known) >= _KEPT:
            self._known.pop(next(iter(self._known))).close()
        old = self._known.pop(key, None)
        if old is not None:
            old.close()
        self._known[key] = Replay(stretch, self._network, values, self.pool, self._raw)

    def close(self) -> None:
        """Free everything, the program included; from any thread."""
        self.activate()
        driver.synchronize(self.stream)
        for replay in self._known.values():
            replay.close()
        self._known.clear()
        self.pool.close()
        self._program.close()
