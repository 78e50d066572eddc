"""DLPack capsules, in and out (https://dmlc.github.io/dlpack/latest/c_api.html, version 0.x)."""

from __future__ import annotations

import ctypes
from typing import Any

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.kernels.pointwise import dense
from polytool.errors import UsageError
from polytool.tensors import DType

CUDA = 2
"""The number of CUDA devices in DLPack."""
_NAME = b"dltensor"
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_CODES = {
    (_FLOAT, 16): DType.FLOAT16,
    (_FLOAT, 32): DType.FLOAT,
    (_FLOAT, 64): DType.DOUBLE,
    (_BFLOAT, 16): DType.BFLOAT16,
    (_BOOL, 8): DType.BOOL,
    **{(_INT, b): getattr(DType, f"INT{b}") for b in (8, 16, 32, 64)},
    **{(_UINT, b): getattr(DType, f"UINT{b}") for b in (8, 16, 32, 64)},
}
_BY_DTYPE = {dtype: code for code, dtype in _CODES.items()}

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
# the destructor of a capsule gets a borrowed reference that ctypes must not touch
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)

_exported: dict[int, tuple[Any, ...]] = {}
"""What must live until a consumer calls the deleter, by address of its DLManagedTensor."""


def _delete(managed: int) -> None:
    """The consumer is done."""
    _exported.pop(managed, None)


def _destroy(capsule: int) -> None:
    """A capsule that nobody consumed gives back what it holds."""
    if _is_valid(capsule, _NAME):
        _exported.pop(_raw_pointer(capsule, _NAME), None)


_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroy)


def export(array: DeviceArray) -> object:
    """A capsule of an array, which stays alive until the consumer is done with it."""
    if array.dtype not in _BY_DTYPE:
        raise BufferError(f"DLPack has no type for {array.dtype.label}")
    code, bits = _BY_DTYPE[array.dtype]
    rank = len(array.shape)
    sizes = (ctypes.c_int64 * max(rank, 1))(*array.shape)
    steps = (ctypes.c_int64 * max(rank, 1))(*dense(array.shape))
    tensor = _Tensor(array.address, CUDA, 0, rank, code, bits, 1, sizes, steps, 0)
    managed = _Managed(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    _exported[address] = (managed, sizes, steps, array)
    return _new(address, _NAME, ctypes.cast(_destructor, ctypes.c_void_p))


def import_(value: Any, stream: int) -> DeviceArray | None:
    """A producer's array, ready for work on `stream`; None where it is not dense.

    Raises:
        UsageError: its element type is not one of ONNX, or it refuses to be exported.
    """
    try:
        capsule = value.__dlpack__(stream=stream)
        address = _pointer(capsule, _NAME)
    except (BufferError, ValueError, TypeError, RuntimeError) as err:
        raise UsageError(f"a {type(value).__name__} gives no DLPack tensor: {err}") from err
    tensor = _Managed.from_address(address).tensor
    dtype = _CODES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise UsageError(f"a {type(value).__name__} has an element type that ONNX lacks")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        steps = tuple(tensor.strides[: tensor.ndim])
        wanted = dense(shape)
        if any(n != 1 and s != w for n, s, w in zip(shape, steps, wanted, strict=True)):
            return None
    start = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(start, shape, dtype, (capsule, value))
