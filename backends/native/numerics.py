"""How numbers are stored on the CPU, and how reduced precisions are emulated there.

float16 and bfloat16 values are float32 arrays on the reduced grid, rounded by bit operations in
cache-sized tiles: a NumPy cast to float16 and back costs thirteen additions. In fp64 mode every
real float type above 8 bits is float64 and nothing is rounded.

Roundings inside fused kinds, beside the one where a layer stores its result (docs/precision.md):

* `attention`: the exponentials of the softmax are rounded before they multiply V; their sum is
  taken before, and divides the product (tactics/numpy_attention.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.cast import narrow
from polytool.tensors import DType

Array = np.ndarray[Any, np.dtype[Any]]

PRECISIONS = {
    "fp32": DType.FLOAT,
    "tf32": DType.FLOAT,
    "fp16": DType.FLOAT16,
    "bf16": DType.BFLOAT16,
    "fp64": DType.DOUBLE,
}
_TILE = 1 << 16
_WIDE = frozenset({DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE})
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def storage(dtype: DType, *, wide: bool) -> np.dtype[Any]:
    """The NumPy dtype that holds a tensor of `dtype`; `wide` is the fp64 mode."""
    if wide and dtype in _WIDE:
        return _FLOAT64
    if dtype in (DType.FLOAT16, DType.BFLOAT16):
        return _FLOAT32
    return dtype.numpy


def store(value: Array, dtype: DType, *, wide: bool) -> Array:
    """`value` as a tensor of `dtype` is stored: converted, and rounded to the grid once."""
    kind = storage(dtype, wide=wide)
    if wide or dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return value if value.dtype == kind else value.astype(kind)
    value = narrow(value)  # float64 must not be rounded twice
    if value.dtype != _FLOAT32:
        return value.astype(dtype.numpy).astype(_FLOAT32)
    return round_float16(value) if dtype is DType.FLOAT16 else round_bfloat16(value)


def load(value: Array, dtype: DType, *, wide: bool) -> Array:
    """A value that comes from outside in its own dtype, as it is stored."""
    kind = storage(dtype, wide=wide)
    return value if value.dtype == kind else value.astype(kind)


def unload(value: Array, dtype: DType) -> Array:
    """A stored value in the NumPy dtype that `dtype` declares."""
    return value if value.dtype == dtype.numpy else value.astype(dtype.numpy)


def _tiled(value: Array, round_tile: Any) -> Array:
    source = np.ascontiguousarray(value, dtype=np.float32).reshape(-1)
    result = np.empty_like(source)
    for start in range(0, source.size, _TILE):
        round_tile(source[start : start + _TILE], result[start : start + _TILE])
    return result.reshape(value.shape)


def _round_mantissa(source: Array, result: Array, drop: int) -> None:
    """Round to nearest even, `drop` bits of the float32 mantissa fewer. Inf and NaN stay."""
    bits, out = source.view(np.uint32), result.view(np.uint32)
    np.right_shift(bits, drop, out=out)
    out &= np.uint32(1)
    out += np.uint32((1 << (drop - 1)) - 1)
    out += bits
    out &= np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)


def _keep_nan(source: Array, result: Array) -> None:
    nan = source != source
    if nan.any():
        result[nan] = np.nan


def round_float16(value: Array) -> Array:
    """float32 to the nearest float16, ties to even, as float32; overflow gives inf."""

    def tile(source: Array, result: Array) -> None:
        _round_mantissa(source, result, 13)
        size = np.abs(source)
        small = size < np.float32(2.0**-14)
        if small.any():  # subnormal spacing 2**-24 is the float32 spacing around 0.75
            result[small] = np.copysign(
                (size[small] + np.float32(0.75)) - np.float32(0.75), source[small]
            )
        if not size.max() < np.float32(65520.0):  # too large, or NaN
            large = size >= np.float32(65520.0)
            result[large] = np.copysign(np.float32(np.inf), source[large])
            _keep_nan(source, result)

    return _tiled(value, tile)


def round_bfloat16(value: Array) -> Array:
    """float32 to the nearest bfloat16, ties to even, as float32."""

    def tile(source: Array, result: Array) -> None:
        _round_mantissa(source, result, 16)
        _keep_nan(source, result)

    return _tiled(value, tile)


def round_tf32(value: Array) -> Array:
    """float32 with the mantissa cut to ten bits, ties to even: a tensor core's tf32 operand."""

    def tile(source: Array, result: Array) -> None:
        _round_mantissa(source, result, 13)
        _keep_nan(source, result)

    return _tiled(value, tile)
