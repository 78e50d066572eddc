"""A stretch with the copies from and to the caller's memory in front and behind, as one graph."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.kernels import driver, handover
from polytool.backends.native.kernels.launch import Launchable, prepare_plan


class Handover:
    """Runs launches between a fetch of the inputs and a delivery of the outputs.

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
        self._stream, self._captured = stream, captured
        columns = len(inputs) + len(outputs)
        self._row = struct.Struct(f"{columns}Q")
        self._table = driver.pin(max(1, handover.ROWS * self._row.size))
        self._rows = driver.host_bytes(self._table, handover.ROWS * self._row.size)
        self._state = driver.allocate(8 * len(outputs) + 8)  # the outputs' addresses, the turn
        turn = self._state + 8 * len(outputs)
        driver.fill(self._state, 8 * len(outputs) + 8, 0, stream)
        fetch = handover.fetch([(x.address, x.nbytes) for x in inputs], len(outputs))
        deliver = handover.deliver([(y.address, y.nbytes) for y in outputs])
        self._launches = (
            *prepare_plan(fetch, device, [self._table, self._state, turn]),
            *launches,
            *prepare_plan(deliver, device, [self._state, turn]),
        )
        self._graph: driver.Graph | None = None
        self._executable = 0
        self._turn = self._waiting = 0

    def enqueue(self, raw: driver.Raw, addresses: Sequence[int]) -> int:
        """Put one inference on the stream; returns the driver's status.

        Args:
            raw: the driver.
            addresses: where the inputs are, then where the outputs go: on the device, or in
                page-locked memory.
        """
        if self._waiting == handover.ROWS:
            self._waiting = 0
            status: int = raw.synchronize(self._stream)
            if status:
                return status
        self._row.pack_into(self._rows, self._turn % handover.ROWS * self._row.size, *addresses)
        self._turn += 1
        self._waiting += 1
        if self._executable:
            return raw.launch(self._executable, self._stream)  # type: ignore[no-any-return]  # ctypes is untyped
        if self._captured and self._turn > 1:  # the first time has loaded everything
            self._capture()
            return raw.launch(self._executable, self._stream)  # type: ignore[no-any-return]  # ctypes is untyped
        for launch in self._launches:
            launch(self._stream)
        return 0

    def done(self) -> None:
        """All that was put on the stream has happened."""
        self._waiting = 0

    def _capture(self) -> None:
        with driver.Graph.capture(self._stream) as graph:
            for launch in self._launches:
                launch(self._stream)
        self._graph, self._executable = graph, graph.executable

    def close(self) -> None:
        """Free everything; idempotent. Nothing may be under way."""
        if self._graph is not None:
            self._graph.close()
            self._graph, self._executable = None, 0
        if self._table:
            driver.free(self._state)
            driver.unpin(self._table)
            self._table = 0
