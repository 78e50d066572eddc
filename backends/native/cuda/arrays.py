"""Arrays on the device: what a context hands out, and what other libraries hand in."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np

from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.source import item_size
from polytool.tensors import DType


class DeviceArray:
    """A dense tensor on the device.

    torch, CuPy and JAX take it without a copy (`torch.from_dlpack`, `cupy.asarray`); `numpy()`
    copies it to the host.

    Attributes:
        address: of its first element.
        owner: keeps the memory alive; None for memory that belongs to a context and is valid
            until that runs again.
    """

    __slots__ = ("__weakref__", "address", "dtype", "owner", "shape")
    on_device = True

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: DType, owner: object = None
    ) -> None:
        self.address, self.shape, self.dtype, self.owner = address, shape, dtype, owner

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * item_size(self.dtype)

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    def numpy(self, stream: int = 0) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        value = np.empty(self.shape, self.dtype.numpy)
        if value.nbytes:
            driver.device().activate()
            driver.to_host(value.ctypes.data, self.address, value.nbytes, stream)
            driver.synchronize(stream)
        return value

    def get(self) -> np.ndarray[Any, Any]:
        """The same under the name that CuPy has for it."""
        return self.numpy()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.numpy.str,
            "data": (self.address, False),
            "version": 3,
            "stream": None,  # nothing that is still to be waited for
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        from polytool.backends.native.cuda.dlpack import CUDA

        return CUDA, 0

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> object:
        """A DLPack capsule; nothing is pending on the array, so no stream has to wait."""
        from polytool.backends.native.cuda.dlpack import export

        return export(self)


class Pool:
    """Device memory for outputs, kept for the next inference when its array dies."""

    def __init__(self) -> None:
        self._unused: dict[int, list[int]] = {}
        self._closed = False
        self.size = 0

    def array(self, shape: tuple[int, ...], dtype: DType) -> DeviceArray:
        """Memory for a tensor, with what was in it."""
        size = math.prod(shape) * item_size(dtype)
        unused = self._unused.setdefault(size, [])
        if unused:
            address = unused.pop()
        else:
            address = driver.allocate(size)
            self.size += size
        owner = _Owner()
        weakref.finalize(owner, self._back, size, address).atexit = False
        return DeviceArray(address, shape, dtype, owner)

    def _back(self, size: int, address: int) -> None:
        if self._closed:
            driver.device().activate()  # any thread may drop the last reference
            driver.free(address)
        else:
            self._unused[size].append(address)

    def close(self) -> None:
        """Free what nobody holds; the rest is freed when its arrays die."""
        self._closed = True
        for addresses in self._unused.values():
            for address in addresses:
                driver.free(address)
        self._unused.clear()


class _Owner:
    """Dies with the last array that uses its memory."""


class Pinned:
    """Page-locked host memory as a NumPy array, for copies that do not wait."""

    def __init__(self, shape: tuple[int, ...], dtype: DType) -> None:
        self.size = math.prod(shape) * item_size(dtype)
        self.address = driver.pin(self.size)
        raw = (ctypes.c_ubyte * self.size).from_address(self.address)
        self.array = np.ctypeslib.as_array(raw).view(dtype.numpy).reshape(shape)

    def close(self) -> None:
        """Give it back; idempotent."""
        if self.address:
            driver.unpin(self.address)
            self.address = 0
