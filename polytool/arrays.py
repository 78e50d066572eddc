"""Tensor contents: ONNX's many encodings to NumPy arrays and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.errors import ModelError
from polytool.tensors import DType

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
MAX_RANK, MAX_SIZE = 64, 1 << 59  # what NumPy can count; empty arrays too

# The typed field in which each type lies when it is not in raw_data; int32_data for all others.
_FLOAT_DATA = {DType.FLOAT, DType.COMPLEX64}
_DOUBLE_DATA = {DType.DOUBLE, DType.COMPLEX128}
_UINT64_DATA = {DType.UINT32, DType.UINT64}
_BLOCK = 1 << 20  # elements that are looked at together


def label(tensor: onnx.TensorProto) -> str:
    """How messages call `tensor`."""
    return f"tensor {tensor.name!r}" if tensor.name else "an unnamed tensor"


def dtype_of(tensor: onnx.TensorProto) -> DType:
    """The element type.

    Raises:
        ModelError: the tensor declares none that ONNX has.
    """
    try:
        return DType(tensor.data_type)
    except ValueError:
        raise ModelError(
            f"{label(tensor)} has element type {tensor.data_type}, which ONNX does not define"
        ) from None


def shape_of(tensor: onnx.TensorProto) -> tuple[int, ...]:
    """The dimensions, all of them >= 0.

    Raises:
        ModelError: a dimension is negative, or there are more than an array can have.
    """
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"{label(tensor)} has a negative dimension: {list(shape)}")
    if len(shape) > MAX_RANK or math.prod(max(d, 1) for d in shape) > MAX_SIZE:
        raise ModelError(f"{label(tensor)} has impossible dimensions: {list(shape)}")
    return shape


def packed_size(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes that ONNX needs for such a tensor (not for strings)."""
    return (math.prod(shape) * dtype.bits + 7) // 8


def decode(tensor: onnx.TensorProto, raw: memoryview | None = None) -> Array:
    """The value of `tensor`.

    Args:
        tensor: the description, with the content unless that is in `raw`.
        raw: the content as raw_data would hold it.

    Returns:
        A read-only array; it shares memory with `raw` where the encoding allows that.

    Raises:
        ModelError: the content does not fit type and dimensions.
    """
    dtype, shape = dtype_of(tensor), shape_of(tensor)
    if dtype is DType.STRING:
        array = _strings(tensor, shape)
    elif raw is not None or tensor.HasField("raw_data"):
        array = decode_raw(raw if raw is not None else tensor.raw_data, dtype, shape, label(tensor))
    else:
        array = _typed(tensor, dtype, shape)
    array.flags.writeable = False
    return array


def decode_raw(raw: Any, dtype: DType, shape: tuple[int, ...], who: str) -> Array:
    """The array that the little-endian, packed bytes `raw` stand for."""
    need = packed_size(dtype, shape)
    if len(raw) != need:
        raise ModelError(
            f"{who} holds {len(raw)} bytes, but {dtype.label} of shape {list(shape)} takes {need}"
        )
    if dtype.bits < 8:
        return _unpack(np.frombuffer(raw, np.uint8), dtype, math.prod(shape)).reshape(shape)
    if dtype is DType.BOOL:  # any non-zero byte is true; NumPy must not see other bytes
        flags = np.frombuffer(raw, np.uint8)
        return (flags.view(np.bool_) if not flags.size or flags.max() <= 1 else flags != 0).reshape(
            shape
        )
    return np.frombuffer(raw, dtype.numpy).reshape(shape)


def encode(array: Array, dtype: DType) -> bytes:
    """The bytes that raw_data holds for `array` (not for strings)."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype.bits >= 8:
        return flat.astype(dtype.numpy, copy=False).tobytes()
    codes: Array = flat.astype(dtype.numpy, copy=False).view(np.uint8) & ((1 << dtype.bits) - 1)
    if dtype.bits == 6:  # a stream of bits: codes lie across bytes
        bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :6]
        return np.packbits(bits, bitorder="little").tobytes()
    per = 8 // dtype.bits
    codes = np.concatenate([codes, np.zeros(-len(codes) % per, np.uint8)]).reshape(-1, per)
    shifts = np.arange(per, dtype=np.uint8) * dtype.bits
    packed: Array = np.bitwise_or.reduce(codes << shifts, axis=1)
    return packed.astype(np.uint8).tobytes()


def to_tensor(array: Any, name: str = "", dtype: DType | None = None) -> onnx.TensorProto:
    """A TensorProto that holds `array`, whatever its element type."""
    import onnx

    array = np.asarray(array)
    dtype = DType.of(array) if dtype is None else dtype
    tensor = onnx.TensorProto(name=name, data_type=int(dtype), dims=array.shape)
    if dtype is DType.STRING:
        tensor.string_data.extend(_to_bytes(s) for s in array.reshape(-1))
    else:
        tensor.raw_data = encode(array, dtype)
    return tensor


def _to_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _unpack(packed: Array, dtype: DType, count: int) -> Array:
    if dtype.bits == 6:
        bits = np.unpackbits(packed, count=6 * count, bitorder="little").reshape(count, 6)
        return np.packbits(bits, axis=1, bitorder="little").reshape(count).view(dtype.numpy)
    per = 8 // dtype.bits
    shifts = np.arange(per, dtype=np.uint8) * dtype.bits
    codes = (packed[:, None] >> shifts & ((1 << dtype.bits) - 1)).reshape(-1)[:count]
    if dtype.is_integer and not dtype.name.startswith("U"):
        sign = 1 << (dtype.bits - 1)
        return ((codes ^ sign).astype(np.int8) - np.int8(sign)).astype(dtype.numpy)
    if dtype.is_integer:
        return codes.astype(dtype.numpy)
    return codes.view(dtype.numpy)


def _strings(tensor: onnx.TensorProto, shape: tuple[int, ...]) -> Array:
    _expect_count(tensor, len(tensor.string_data), math.prod(shape))
    array = np.empty(len(tensor.string_data), np.object_)
    # Bytes that are not UTF-8 survive a round trip.
    array[:] = [s.decode("utf-8", "surrogateescape") for s in tensor.string_data]
    return array.reshape(shape)


def _expect_count(tensor: onnx.TensorProto, have: int, need: int) -> None:
    if have != need:
        raise ModelError(
            f"{label(tensor)} holds {have} values, but its shape {list(tensor.dims)} takes {need}"
        )


def _typed(tensor: onnx.TensorProto, dtype: DType, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    values: Sequence[float]
    stored: np.dtype[Any]
    if dtype in _FLOAT_DATA:
        values, stored = tensor.float_data, np.dtype(np.float32)
    elif dtype in _DOUBLE_DATA:
        values, stored = tensor.double_data, np.dtype(np.float64)
    elif dtype in _UINT64_DATA:
        values, stored = tensor.uint64_data, np.dtype(np.uint64)
    elif dtype is DType.INT64:
        values, stored = tensor.int64_data, np.dtype(np.int64)
    else:
        values, stored = tensor.int32_data, np.dtype(np.int32)
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        _expect_count(tensor, len(values), 2 * count)
        return np.array(values, stored).view(dtype.numpy).reshape(shape)
    if dtype.bits == 6:  # int32_data holds one code an entry
        _expect_count(tensor, len(values), count)
        codes = np.array(values, stored).astype(np.uint8) & np.uint8(63)
        return codes.view(dtype.numpy).reshape(shape)
    if dtype.bits < 8:  # int32_data holds the packed bytes
        _expect_count(tensor, len(values), packed_size(dtype, shape))
        return _unpack(np.array(values, stored).astype(np.uint8), dtype, count).reshape(shape)
    _expect_count(tensor, len(values), count)
    array: Array = np.array(values, stored)
    if dtype is DType.BOOL:
        array = array != 0
    elif dtype.is_float and dtype.bits <= 16:  # the bits, not the value
        array = array.astype(f"u{dtype.bits // 8}").view(dtype.numpy)
    else:
        array = array.astype(dtype.numpy)
    return array.reshape(shape)


def saturated(value: Array, dtype: DType) -> Array:
    """`value` in `dtype`; a finite number beyond its range becomes the largest finite one.

    Exporters write masks as the lowest float32: as an infinity it would turn 0 * mask into NaN.
    """
    with np.errstate(over="ignore"):
        cast = value.astype(dtype.numpy)
        if value.size and not beyond(value, largest(dtype)):
            return cast
        lost = np.isinf(cast) & np.isfinite(value)
        return np.where(lost, np.copysign(largest(dtype), value).astype(dtype.numpy), cast)


def overflows(value: Array, dtype: DType) -> bool:
    """Whether `value` has finite numbers beyond the range of `dtype`."""
    limit, flat = largest(dtype), value.reshape(-1)
    blocks = (flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK))
    return any(beyond(b, limit) and (np.abs(b[np.isfinite(b)]) > limit).any() for b in blocks)


def beyond(value: Array, limit: float) -> bool:
    """Whether an array that is not empty has a number beyond `limit`, infinity, or NaN."""
    return not (-limit <= value.min() and value.max() <= limit)


def largest(dtype: DType) -> float:
    """The largest finite number of a type of floats."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]  # no stubs
