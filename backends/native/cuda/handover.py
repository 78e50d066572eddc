"""A stretch from and to the caller's memory, as one graph.

Launches that read an input, or write an output, get the caller's address instead of the arena's.
Where that cannot be, a launch in front or behind copies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.kernels import driver, handover
from polytool.backends.native.kernels.launch import Launch, Launchable, prepare

_GRAPHS = 8
"""Instances of the graph, one for each set of addresses that comes again and again."""
_ALIGNED = 16
"""What kernels expect of every tensor's address."""


@dataclass(frozen=True)
class Use:
    """An argument that is an address in a tensor.

    Attributes:
        launch: number of the launch.
        position: of the argument.
        offset: bytes from where the tensor begins.
    """

    launch: int
    position: int
    offset: int


class _Copies:
    """Launches that move tensors; `inwards` from the caller into the arena.

    Args:
        places: number of a tensor to where it lies in the arena.
    """

    def __init__(
        self, places: Mapping[int, DeviceArray], inwards: bool, device: driver.Device
    ) -> None:
        self.launches: list[Launch] = []
        self._outer: list[tuple[list[int], Any]] = []
        numbers = list(places)
        for start in range(0, len(numbers), handover.MOST):
            group = numbers[start : start + handover.MOST]
            call, moves = handover.move([places[n].nbytes for n in group])
            inner, outer = (moves.target, moves.source) if inwards else (moves.source, moves.target)
            inner[: len(group)] = [places[n].address for n in group]
            self._outer.append((group, outer))
            self.launches.append(prepare(call, device, ()))

    def point(self, addresses: Sequence[int]) -> None:
        """Where the tensors are outside of the arena."""
        for group, outer in self._outer:
            outer[: len(group)] = [addresses[n] for n in group]


class Handover:
    """Runs launches on the caller's inputs and into the caller's outputs.

    Args:
        launches: what runs, on an arena.
        tensors: where inputs, then outputs lie there.
        inputs: how many of them are inputs.
        uses: by number of a tensor, every argument that lies in it; those that are absent are
            copied.
        captured: whether all of it becomes one CUDA graph, from the second time on.
    """

    def __init__(
        self,
        launches: Sequence[Launchable],
        tensors: Sequence[DeviceArray],
        inputs: int,
        uses: Mapping[int, Sequence[Use]],
        device: driver.Device,
        stream: int,
        captured: bool,
    ) -> None:
        self._stream, self._captured = stream, captured
        self._copying = partial(Handover, launches, tensors, inputs, {}, device, stream, captured)
        copied = {n: t for n, t in enumerate(tensors) if n not in uses}
        self._in = _Copies({n: t for n, t in copied.items() if n < inputs}, True, device)
        self._out = _Copies({n: t for n, t in copied.items() if n >= inputs}, False, device)
        self._between = list(launches)
        self._uses = [(n, use) for n, group in uses.items() for use in group]
        self._changed: dict[int, Launch] = {}
        for number in {use.launch for _, use in self._uses}:
            original = launches[number]
            assert isinstance(original, Launch)
            positions = {use.position for _, use in self._uses if use.launch == number}
            self._changed[number] = self._between[number] = original.copy(positions)
        self._graph: driver.Graph | None = None
        self._nodes: list[tuple[Launch, int]] = []
        self._ready: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._loaded = False
        self._unaligned: Handover | None = None

    def enqueue(self, raw: driver.Raw, addresses: tuple[int, ...]) -> int:
        """Put one inference on the stream; returns the driver's status.

        Args:
            raw: the driver.
            addresses: where the inputs are, then where the outputs go, all on the device.
        """
        executable = self._ready.get(addresses)
        if executable is None:
            if self._uses and any(addresses[n] % _ALIGNED for n, _ in self._uses):
                if self._unaligned is None:
                    self._unaligned = self._copying()
                return self._unaligned.enqueue(raw, addresses)
            self._point(addresses)
            if not self._captured or not self._loaded:
                self._launch_all()  # the first time loads everything
                self._loaded = True
                return 0
            executable = self._instance(addresses)
        else:
            self._ready.move_to_end(addresses)
        return raw.launch(executable, self._stream)  # type: ignore[no-any-return]  # ctypes is untyped

    def _point(self, addresses: Sequence[int]) -> None:
        self._in.point(addresses)
        self._out.point(addresses)
        for number, use in self._uses:
            self._changed[use.launch].point(use.position, addresses[number] + use.offset)

    def _launch_all(self) -> None:
        every: list[Launchable] = [*self._in.launches, *self._between, *self._out.launches]
        for launch in every:
            launch(self._stream)

    def _instance(self, addresses: tuple[int, ...]) -> int:
        """An instance of the graph with these addresses: a new one, or the least used changed."""
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        if len(self._ready) < _GRAPHS:
            executable = self._graph.executable if not self._ready else self._graph.instantiate()
        else:
            _, executable = self._ready.popitem(last=False)
        for launch, node in self._nodes:
            launch.update(executable, node)
        self._ready[addresses] = executable
        return executable

    def _capture(self) -> None:
        changing = {
            id(x) for x in (*self._in.launches, *self._changed.values(), *self._out.launches)
        }
        with driver.Graph.capture(self._stream) as graph:
            every: list[Launchable] = [*self._in.launches, *self._between, *self._out.launches]
            for launch in every:
                launch(self._stream)
                if id(launch) in changing:
                    assert isinstance(launch, Launch)
                    self._nodes.append((launch, graph.last_node(self._stream)))
        self._graph = graph

    def close(self) -> None:
        """Free the graphs; idempotent. Nothing may be under way."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._ready.clear()
        if self._unaligned is not None:
            self._unaligned.close()
