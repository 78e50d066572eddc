"""Arrays of other libraries on the device: how each is read, and how results are made for it.

A `Framework` serves one library. Its work on the current stream may still be running when its
arrays are given to us, so the engine's stream waits for that one first.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from polytool.backends.native.cuda.arrays import DeviceArray, Pool
from polytool.backends.native.cuda.dlpack import CUDA, import_
from polytool.backends.native.kernels import driver
from polytool.errors import UsageError
from polytool.tensors import DType

Dims = tuple[int, ...]


class Framework(abc.ABC):
    """One library's arrays."""

    @abc.abstractmethod
    def key(self, value: Any) -> object:
        """Equal for arrays that an inference treats the same; None where `read` must look."""

    @abc.abstractmethod
    def address(self, value: Any) -> int:
        """Where a dense array begins."""

    @abc.abstractmethod
    def read(self, value: Any, stream: int) -> DeviceArray:
        """Any array as a dense one on the device.

        Raises:
            UsageError: it lies on another device, or its type is not one of ONNX.
        """

    @abc.abstractmethod
    def empty(self, shape: Dims, dtype: DType, pool: Pool) -> tuple[Any, int]:
        """A new array and its address."""

    @abc.abstractmethod
    def stream(self) -> int | None:
        """The stream on which the library works now; None where `read` has waited already."""


class Torch(Framework):
    """torch.Tensor."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        # what torch's own compiler calls: the public way makes an object each time
        self._raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        self._dtypes = {
            DType.of(label): kind
            for label in ("float16", "float32", "float64", "bfloat16", "bool", "int8", "int16",
                          "int32", "int64", "uint8", "uint16", "uint32", "uint64")
            if (kind := getattr(torch, label, None)) is not None
        }  # fmt: skip
        self._known = {kind: dtype for dtype, kind in self._dtypes.items()}

    def key(self, value: Any) -> object:
        if value.is_contiguous() and not value.is_neg():
            return value.shape, value.dtype, value.get_device()
        return None

    def address(self, value: Any) -> int:
        return value.data_ptr()  # type: ignore[no-any-return]  # torch is untyped here

    def read(self, value: Any, stream: int) -> DeviceArray:
        if value.get_device() != 0:
            raise _elsewhere(f"cuda:{value.get_device()}")
        dtype = self._known.get(value.dtype)
        if dtype is None:
            raise UsageError(f"{value.dtype} is not an element type that the GPU engine takes")
        value = value.detach().resolve_neg().contiguous()
        return DeviceArray(value.data_ptr(), tuple(value.shape), dtype, value)

    def empty(self, shape: Dims, dtype: DType, pool: Pool) -> tuple[Any, int]:
        made = self._torch.empty(shape, dtype=self._dtypes[dtype], device="cuda:0")
        return made, made.data_ptr()

    def stream(self) -> int | None:
        if self._raw is not None:
            return self._raw(0)  # type: ignore[no-any-return]  # torch is untyped here
        return self._torch.cuda.current_stream(0).cuda_stream  # type: ignore[no-any-return]


class CuPy(Framework):
    """cupy.ndarray."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def key(self, value: Any) -> object:
        if value.flags.c_contiguous:
            return value.shape, value.dtype, value.device.id
        return None

    def address(self, value: Any) -> int:
        return value.data.ptr  # type: ignore[no-any-return]  # CuPy is untyped here

    def read(self, value: Any, stream: int) -> DeviceArray:
        if value.device.id != 0:
            raise _elsewhere(f"device {value.device.id}")
        value = self._cupy.ascontiguousarray(value)
        return DeviceArray(value.data.ptr, value.shape, DType.of(value), value)

    def empty(self, shape: Dims, dtype: DType, pool: Pool) -> tuple[Any, int]:
        made = self._cupy.empty(shape, dtype.numpy)
        return made, made.data.ptr

    def stream(self) -> int | None:
        return self._cupy.cuda.get_current_stream().ptr  # type: ignore[no-any-return]  # CuPy is untyped here


class Own(Framework):
    """DeviceArray: results of another inference."""

    def key(self, value: Any) -> object:
        return value.shape, value.dtype

    def address(self, value: Any) -> int:
        return value.address  # type: ignore[no-any-return]  # a DeviceArray

    def read(self, value: Any, stream: int) -> DeviceArray:
        return value  # type: ignore[no-any-return]  # a DeviceArray

    def empty(self, shape: Dims, dtype: DType, pool: Pool) -> tuple[Any, int]:
        made = pool.array(shape, dtype)
        return made, made.address

    def stream(self) -> int | None:
        return None


class Foreign(Own):
    """Whatever speaks DLPack."""

    def key(self, value: Any) -> object:
        return None

    def read(self, value: Any, stream: int) -> DeviceArray:
        found = import_(value, stream)
        if found is None:
            raise UsageError(
                f"a {type(value).__name__} has gaps between its elements: make it contiguous"
            )
        return found


OWN, _FOREIGN = Own(), Foreign()


def _elsewhere(where: str) -> UsageError:
    return UsageError(f"an input lies on {where}, the engine runs on cuda:0: copy it there")


@cache
def _framework(kind: type) -> Framework | None:
    """Who made arrays of this type, if they may lie on a device."""
    if issubclass(kind, DeviceArray):
        return OWN
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "torch" in roots and hasattr(kind, "data_ptr"):
        return Torch(sys.modules["torch"])
    if "cupy" in roots and hasattr(kind, "__cuda_array_interface__"):
        return CuPy(sys.modules["cupy"])
    return _FOREIGN if hasattr(kind, "__dlpack_device__") else None


def framework_of(value: Any) -> Framework | None:
    """The library of an array on the device; None for what lies on the host."""
    kind: type = type(value)
    found = _framework(kind)
    if found is None or type(found) is Own or type(found) is CuPy:
        return found
    if type(found) is Torch:
        return found if value.is_cuda else None
    return found if value.__dlpack_device__()[0] == CUDA else None


def on_device(feeds: Mapping[str, Any], stream: int) -> tuple[dict[str, Any], Framework | None]:
    """The inputs with those on the device read, and whose arrays the first of them is.

    Work that is put on `stream` from now on finds the values that they have by then.
    """
    found = {name: f for name, v in feeds.items() if (f := framework_of(v)) is not None}
    if not found:
        return dict(feeds), None
    for framework in dict.fromkeys(found.values()):
        current = framework.stream()
        if current is not None:
            driver.follow(stream, current)
    given = {n: found[n].read(v, stream) if n in found else v for n, v in feeds.items()}
    return given, next(iter(found.values()))


def to_library(
    outputs: Mapping[str, Any], library: Framework, pool: Pool, stream: int
) -> dict[str, Any]:
    """Copies of the outputs as arrays of a library; lists and strings stay as they are."""
    made = {}
    for name, value in outputs.items():
        made[name] = value
        if isinstance(value, DeviceArray):
            made[name], address = library.empty(value.shape, value.dtype, pool)
            driver.copy(address, value.address, value.nbytes, stream)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            dense = np.ascontiguousarray(value)
            made[name], address = library.empty(value.shape, DType.of(value), pool)
            driver.to_device(address, dense.ctypes.data, dense.nbytes, stream)
            driver.synchronize(stream)  # the array may be gone before an async copy
    driver.synchronize(stream)
    return made
