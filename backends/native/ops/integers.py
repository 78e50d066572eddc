"""Exact integer arithmetic by floating-point products, and saturating conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Array
from polytool.tensors import DType

_EXACT_FLOAT32 = 1 << 24


def exact_product(
    xp: Any,
    product: Callable[[Array, Array], Array],
    a: Array,
    b: Array,
    *,
    axis: int,
) -> Array:
    """`product(a, b)`, bilinear, of integers, exactly, in int32 with wrap-around.

    NumPy multiplies integer matrices without BLAS, many times slower than floats. No partial sum
    exceeds max|a| times the largest sum of |b| over the reduced `axis`: where that is below 2**24
    float32 is exact, else float64, whose 2**53 no int32 model reaches.
    """
    if a.size == 0 or b.size == 0:
        return product(a.astype(np.float32), b.astype(np.float32)).astype(np.int32)
    largest = max(int(a.max()), -int(a.min()))
    bound = largest * int(xp.abs(b.astype(np.int64)).sum(axis=axis).max())
    kind = np.float32 if bound < _EXACT_FLOAT32 else np.float64
    result = product(a.astype(kind), b.astype(kind))
    return result.astype(np.int32) if bound < 1 << 31 else result.astype(np.int64).astype(np.int32)


def exact_matmul(xp: Any, a: Array, b: Array) -> Array:
    """The matrix product of integers in int32."""
    return exact_product(xp, xp.matmul, a, b, axis=-2 if b.ndim > 1 else 0)


def saturate(xp: Any, values: Array, dtype: DType) -> Array:
    """Integral floats (or wider integers) as integers of `dtype`, clipped to its range."""
    signed = not dtype.label.startswith("u")
    high = (1 << (dtype.bits - signed)) - 1
    return xp.clip(values, -high - 1 if signed else 0, high).astype(dtype.numpy)
