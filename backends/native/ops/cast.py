"""Conversion between element types.

float16 and bfloat16 are not rounded to here: the executor does that for every operator when it
stores. A conversion to them only has to avoid a rounding of its own before.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from polytool.backends.native.ops.registry import Arg, Array, Node, dtypes, op, shape, upgrade
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_STORED_WIDE = frozenset({DType.FLOAT, DType.DOUBLE, DType.FLOAT16, DType.BFLOAT16})
_FLOAT8_MAX = {
    DType.FLOAT8E4M3FN: 448.0,
    DType.FLOAT8E4M3FNUZ: 240.0,
    DType.FLOAT8E5M2: 57344.0,
    DType.FLOAT8E5M2FNUZ: 57344.0,
}
_EXACT_IN_DOUBLE = 1 << 53


@upgrade("Cast", since=1)
def cast_type_by_name(node: Node) -> Node:
    """Before version 6 `to` is the type's name."""
    number = TensorProto.DataType.Value(node.attrs["to"])
    return node.raised(attrs={**node.attrs, "to": number}, version=6)


@op("Cast", since=6, pointwise=True)
def cast(
    xp: Any,
    x: Array,
    *,
    to: int,
    saturate: int = 1,
    round_mode: str = "up",
    out_dtypes: tuple[DType, ...],
) -> Array:
    """`x` in the output's element type."""
    return convert(xp, x, out_dtypes[0], bool(saturate), round_mode)


@dtypes("Cast", "BitCast")
def cast_dtypes(inputs: list[DType | None], *, to: int, **_: Any) -> list[DType]:
    """The type that `to` names."""
    return [DType(to)]


@op("CastLike", since=15)
def cast_like(
    xp: Any,
    x: Array,
    target: Array,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    out_dtypes: tuple[DType, ...],
) -> Array:
    """`x` in the element type of the second input, whose values do not matter."""
    return convert(xp, x, out_dtypes[0], bool(saturate), round_mode)


@shape("CastLike", "BitCast")
def cast_like_shape(x: Arg, *_: Arg, **__: Any) -> tuple[int, ...]:
    """The shape of the first input."""
    return x.shape


@op("BitCast", since=26, exact=True)
def bit_cast(
    xp: Any,
    x: Array,
    *,
    to: int,
    in_dtypes: tuple[DType | None, ...],
    out_dtypes: tuple[DType, ...],
) -> Array:
    """The bits of `x` read as another type of the same size."""
    source, target = in_dtypes[0], out_dtypes[0]
    if source is None or source.bits != target.bits:
        shown = source.label if source is not None else "an unknown one"
        raise UnsupportedError(f"BitCast needs types of one size, not {shown} and {target.label}")
    bits = xp.ascontiguousarray(x.astype(source.numpy, copy=False)).reshape(x.shape)
    if target.bits >= 8:
        return bits.view(target.numpy)
    return _from_bits(bits.view(np.uint8) & ((1 << target.bits) - 1), target)


def _from_bits(codes: Array, target: DType) -> Array:
    """Codes of 2 or 4 bits as values; ml_dtypes keeps signed ones sign-extended."""
    if target.is_integer and not target.name.startswith("U"):
        sign = 1 << (target.bits - 1)
        return ((codes ^ sign).astype(np.int8) - np.int8(sign)).astype(target.numpy)
    return codes.view(target.numpy)


def convert(xp: Any, x: Array, to: DType, saturate: bool, round_mode: str) -> Array:
    """`x` as an array from which the executor stores type `to` with one rounding."""
    if x.dtype == object:
        return x if to is DType.STRING else _from_strings(x, to)
    if to is DType.STRING:
        return _to_strings(x)
    if to in _STORED_WIDE:
        return _to_float(x, to)
    if to is DType.FLOAT8E8M0:
        return _to_e8m0(narrow(_to_float(x, to)), saturate, round_mode)
    if to in _FLOAT8_MAX or (to.is_float and to.bits < 8):
        value = narrow(_to_float(x, to))
        if saturate and to in _FLOAT8_MAX:
            value = np.clip(value, -_FLOAT8_MAX[to], _FLOAT8_MAX[to])
        return value.astype(to.numpy)
    return x.astype(to.numpy)


def _to_float(x: Array, to: DType) -> Array:
    """`x` in float32 or float64, whichever holds it; float types stay as they are stored."""
    if x.dtype in (np.float32, np.float64):
        return x
    if x.dtype.kind in "iu" and x.dtype.itemsize >= 4:
        if x.dtype.itemsize == 8 and x.size and _beyond_double(x):
            return x.astype(to.numpy if to in (DType.FLOAT, DType.DOUBLE) else np.float64)
        return x.astype(np.float64)
    return x.astype(np.float32)


def _beyond_double(x: Array) -> bool:
    return int(x.max()) > _EXACT_IN_DOUBLE or int(x.min()) < -_EXACT_IN_DOUBLE


def narrow(x: Array) -> Array:
    """float64 to float32, rounded to odd, so that a second rounding gives what one would."""
    if x.dtype != np.float64:
        return x
    near = x.astype(np.float32)
    bits = near.view(np.int32)
    bits = bits - (np.abs(near) > np.abs(x)).astype(np.int32)  # toward zero
    return np.where(near == x, near, (bits | 1).view(np.float32))


def _to_e8m0(x: Array, saturate: bool, round_mode: str) -> Array:
    """The power of two above, below or nearest; the sign is ignored."""
    fraction, exponent = np.frexp(np.abs(x))
    power = exponent.astype(np.int32) + 126  # |x| = (2 * fraction) * 2 ** (exponent - 1)
    limit = {"up": 0.5, "nearest": 0.75 - 2.0**-24, "down": 1.0}[round_mode]
    power += fraction > limit
    power = np.where(fraction == 0, -1, power)
    power = np.where(np.isinf(x), 255, power)
    outside = (power < 0) | (power > 254)
    code = np.clip(power, 0, 254) if saturate else np.where(outside, 255, power)
    return np.where(np.isnan(x), 255, code).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


def _to_strings(x: Array) -> Array:
    result = np.empty(x.size, np.object_)
    if x.dtype == bool:
        result[:] = ["1" if v else "0" for v in x.reshape(-1).tolist()]
    elif x.dtype.kind in "iu" or "int" in x.dtype.name:
        result[:] = [str(int(v)) for v in x.reshape(-1).tolist()]
    else:
        result[:] = [_number_text(v) for v in x.reshape(-1).astype(np.float64).tolist()]
    return result.reshape(x.shape)


def _number_text(value: float) -> str:
    """Eight digits, as ONNX Runtime writes; the specification does not say how many."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return f"{value:.8g}"


def _from_strings(x: Array, to: DType) -> Array:
    texts = x.reshape(-1).tolist()
    if to.is_float:
        values = np.array([float(t) for t in texts], np.float64)
        return convert(np, values.reshape(x.shape), to, True, "up")
    numbers = np.array([_integer(t) & 0xFFFFFFFFFFFFFFFF for t in texts], np.uint64)
    return numbers.astype(to.numpy).reshape(x.shape)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))
