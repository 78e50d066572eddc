"""A stretch with the copies from and to the caller's memory in front and behind, as one graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.kernels import driver, handover
from polytool.backends.native.kernels.launch import Launch, Launchable, prepare

_GRAPHS = 4
"""Instances of the graph, one for each set of addresses that comes again and again."""


class _Copies:
    """Launches that move tensors; `inwards` from the caller into the arena."""

    def __init__(self, places: Sequence[DeviceArray], inwards: bool, device: driver.Device) -> None:
        self.launches: list[Launch] = []
        self._outer: list[tuple[int, int, Any]] = []
        for start in range(0, len(places), handover.MOST):
            group = places[start : start + handover.MOST]
            call, moves = handover.move([p.nbytes for p in group])
            inner, outer = (moves.target, moves.source) if inwards else (moves.source, moves.target)
            inner[: len(group)] = [p.address for p in group]
            self._outer.append((start, len(group), outer))
            self.launches.append(prepare(call, device, ()))

    def point(self, addresses: Sequence[int]) -> None:
        """Where the tensors are outside of the arena."""
        for start, count, outer in self._outer:
            outer[:count] = addresses[start : start + count]


class Handover:
    """Runs launches between copies of the inputs and of the outputs.

    Args:
        launches: what runs between.
        inputs: where inputs lie in the arena.
        outputs: where outputs lie there; the last launches leave them.
        captured: whether all of it becomes one CUDA graph, from the second time on.
    """

    def __init__(
        self,
        launches: Sequence[Launchable],
        inputs: Sequence[DeviceArray],
        outputs: Sequence[DeviceArray],
        device: driver.Device,
        stream: int,
        captured: bool,
    ) -> None:
        self._stream, self._captured, self._count = stream, captured, len(inputs)
        self._in = _Copies(inputs, True, device)
        self._out = _Copies(outputs, False, device)
        self._between = launches
        self._graph: driver.Graph | None = None
        self._nodes: list[tuple[Launch, int]] = []
        self._ready: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._loaded = False

    def enqueue(self, raw: driver.Raw, addresses: tuple[int, ...]) -> int:
        """Put one inference on the stream; returns the driver's status.

        Args:
            raw: the driver.
            addresses: where the inputs are, then where the outputs go, all on the device.
        """
        executable = self._ready.get(addresses)
        if executable is None:
            self._in.point(addresses[: self._count])
            self._out.point(addresses[self._count :])
            if not self._captured or not self._loaded:
                self._launch_all()  # the first time loads everything
                self._loaded = True
                return 0
            executable = self._instance(addresses)
        return raw.launch(executable, self._stream)  # type: ignore[no-any-return]  # ctypes is untyped

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
        with driver.Graph.capture(self._stream) as graph:
            for launch in self._in.launches:
                launch(self._stream)
                self._nodes.append((launch, graph.last_node(self._stream)))
            for other in self._between:
                other(self._stream)
            for launch in self._out.launches:
                launch(self._stream)
                self._nodes.append((launch, graph.last_node(self._stream)))
        self._graph = graph

    def close(self) -> None:
        """Free the graphs; idempotent. Nothing may be under way."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._ready.clear()
