"""Operators that make a tensor from a shape, a range or an attribute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, dtypes, entries, op, shape
from polytool.tensors import DType

Dims = tuple[int, ...]
_VALUES = {
    "value_float": DType.FLOAT,
    "value_floats": DType.FLOAT,
    "value_int": DType.INT64,
    "value_ints": DType.INT64,
    "value_string": DType.STRING,
    "value_strings": DType.STRING,
}


@op("Constant", since=1)
def constant(
    xp: Any,
    *,
    value: Array | None = None,
    sparse_value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Array:
    """The attribute that is given."""
    if value is not None:
        return xp.asarray(value)
    if sparse_value is not None:
        return xp.asarray(sparse_value)
    given = {
        "value_float": value_float,
        "value_floats": value_floats,
        "value_int": value_int,
        "value_ints": value_ints,
        "value_string": value_string,
        "value_strings": value_strings,
    }
    name, plain = next((n, v) for n, v in given.items() if v is not None)
    return xp.array(plain, _VALUES[name].numpy)


@shape("Constant")
def constant_shape(**attrs: Any) -> Dims:
    """The shape of the attribute."""
    return tuple(np.shape(next(iter(attrs.values()))))


@dtypes("Constant")
def constant_dtypes(inputs: list[DType | None], **attrs: Any) -> list[DType]:
    """The type of the attribute."""
    name, value = next(iter(attrs.items()))
    return [_VALUES[name] if name in _VALUES else DType.of(value)]


@op("ConstantOfShape", since=9, host=(0,))
def constant_of_shape(xp: Any, dims: Array, *, value: Array | None = None) -> Array:
    """A tensor of the given shape, all elements alike; float32 zeros by default."""
    if value is None:
        return xp.zeros(entries(dims), np.float32)
    return xp.full(entries(dims), value.item(), value.dtype)


@shape("ConstantOfShape")
def constant_of_shape_shape(dims: Arg, *, value: Array | None = None) -> Dims | None:
    """What the input says."""
    return None if dims.value is None else tuple(entries(dims.value))


@dtypes("ConstantOfShape")
def constant_of_shape_dtypes(
    inputs: list[DType | None], *, value: Array | None = None
) -> list[DType]:
    """The type of the value."""
    return [DType.FLOAT if value is None else DType.of(value)]


@op("EyeLike", since=9)
def eye_like(
    xp: Any, x: Array, *, k: int = 0, dtype: int | None = None, out_dtypes: tuple[DType, ...]
) -> Array:
    """Ones on the k-th diagonal, else zeros."""
    return xp.eye(*x.shape, k, dtype=np.float32).astype(out_dtypes[0].numpy)


@shape("EyeLike")
def eye_like_shape(x: Arg, *, k: int = 0, dtype: int | None = None) -> Dims:
    """The shape of the input."""
    return x.shape


@dtypes("EyeLike")
def eye_like_dtypes(
    inputs: list[DType | None], *, k: int = 0, dtype: int | None = None
) -> list[DType | None]:
    """The attribute's type, else the input's."""
    return [inputs[0] if dtype is None else DType(dtype)]


@op("Range", since=11, host=(0, 1, 2))
def range_(xp: Any, start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> Array:
    """The numbers from `start` by `delta` up to but not including `limit`."""
    count = _count(start, limit, delta)
    steps = xp.arange(count).astype(start.dtype)
    return steps * delta.item() + start.item()


@shape("Range")
def range_shape(start: Arg, limit: Arg, delta: Arg, *, stash_type: int = 1) -> Dims | None:
    """How many steps fit."""
    if start.value is None or limit.value is None or delta.value is None:
        return None
    return (_count(start.value, limit.value, delta.value),)


def _count(start: Array, limit: Array, delta: Array) -> int:
    if start.dtype.kind == "f":
        return max(0, math.ceil(float((limit - start).item()) / float(delta.item())))
    return max(0, -int((start.item() - limit.item()) // delta.item()))


@op("Shape", since=1, exact=True)
def shape_of(xp: Any, x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """The dimensions of `x`, or those from `start` to `end`; they live on the host."""
    return np.array(x.shape[start:end], np.int64)


@shape("Shape")
def shape_of_shape(x: Arg, *, start: int = 0, end: int | None = None) -> Dims:
    """How many dimensions are asked for."""
    return (len(x.shape[start:end]),)


@op("Size", since=1, exact=True)
def size(xp: Any, x: Array) -> Array:
    """The number of elements of `x`; it lives on the host."""
    return np.array(x.size, np.int64)


@shape("Size")
def size_shape(x: Arg) -> Dims:
    """A scalar."""
    return ()
