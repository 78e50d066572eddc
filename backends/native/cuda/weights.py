"""Constants on the device: uploaded once an engine, whoever uses them."""

from __future__ import annotations

import sys
import threading

import numpy as np

from polytool.backends.native.cuda.buffers import Storage
from polytool.backends.native.kernels import driver


class Weights:
    """The device memory of an engine's constants."""

    def __init__(self, device: driver.Device) -> None:
        self.device = device
        self._addresses: dict[object, int] = {}
        self._alive: list[object] = []  # keys hold ids of constants, which must stay alive
        self._lock = threading.Lock()
        self.size = 0

    def address(self, storage: Storage) -> int:
        """Where a constant lies, uploading it when it is first asked for."""
        assert storage.make is not None
        with self._lock:
            if storage.key not in self._addresses:
                value = np.ascontiguousarray(storage.make())
                address = driver.allocate(max(storage.size, value.nbytes) + 256)
                driver.to_device(address, value.ctypes.data, value.nbytes)
                driver.synchronize(0)
                self._addresses[storage.key] = address
                self._alive.append(storage.key)
                self.size += value.nbytes
            return self._addresses[storage.key]

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        if self._addresses:
            self.device.activate()
        for address in self._addresses.values():
            driver.free(address)
        self._addresses.clear()
