"""Elementwise arithmetic on two or more tensors, with NumPy's broadcasting."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Array, op


@op("Add", since=7, pointwise=True)
def add(xp: Any, a: Array, b: Array) -> Array:
    """`a + b`; integers wrap around."""
    return xp.asarray(a + b)


@op("Sub", since=7, pointwise=True)
def sub(xp: Any, a: Array, b: Array) -> Array:
    """`a - b`; integers wrap around."""
    return xp.asarray(a - b)


@op("Mul", since=7, pointwise=True)
def mul(xp: Any, a: Array, b: Array) -> Array:
    """`a * b`; integers wrap around."""
    return xp.asarray(a * b)


@op("Div", since=7, pointwise=True)
def div(xp: Any, a: Array, b: Array) -> Array:
    """`a / b`; integers truncate toward zero, and dividing them by zero gives zero."""
    kind = a.dtype.kind
    if kind == "f":
        return xp.asarray(a / b)
    if kind == "i":  # NumPy floors; without C's remainder there is nothing to round
        a = a - xp.fmod(a, b)
    return xp.asarray(a // b)


@op("Mod", since=10, pointwise=True)
def mod(xp: Any, a: Array, b: Array, *, fmod: int = 0) -> Array:
    """The remainder of `a / b` with the sign of `b`, or, with `fmod`, of `a`."""
    if fmod:
        return xp.asarray(xp.fmod(a, b))
    if xp is np or a.dtype.kind != "f":
        return xp.asarray(xp.remainder(a, b))
    rest = xp.fmod(a, b)  # CuPy's remainder is NaN where an operand is infinite
    rest = xp.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
    return xp.where(rest == 0, xp.copysign(rest, b), rest)


@op("Pow", since=7, pointwise=True)
def pow_(xp: Any, x: Array, y: Array) -> Array:
    """`x` to the power of `y`, in the type of `x`; integers truncate."""
    if x.dtype.kind == "f":
        if xp is np and y.size == 1 and y.ndim <= x.ndim:
            exponent = y.item()
            if exponent == 2:
                return xp.asarray(x * x)
            if exponent == 3:
                return xp.asarray(x * x * x)
            if exponent == 1:
                return x
            if exponent == 0.5:  # as pow: zero has no sign, and minus infinity a root
                return xp.where(x == -math.inf, x.dtype.type(math.inf), xp.sqrt(x + 0.0))
            if y.dtype != x.dtype and x.dtype.type(exponent) == exponent:
                y = y.astype(x.dtype)
        result = xp.power(x, y)
    elif y.dtype.kind == "f" or (y.dtype.kind == "i" and bool((y < 0).any())):
        result = xp.power(x.astype(np.float64), y)
    else:
        result = xp.power(x, y)
    return xp.asarray(result).astype(x.dtype, copy=False)


@op("Sum", since=6, pointwise=True)
def sum_(xp: Any, *data: Array) -> Array:
    """The elementwise sum of all inputs."""
    return xp.asarray(functools.reduce(xp.add, data))


@op("Mean", since=6, pointwise=True)
def mean(xp: Any, *data: Array) -> Array:
    """The elementwise mean of all inputs."""
    return xp.asarray(functools.reduce(xp.add, data) / len(data))


@op("Max", since=6, pointwise=True)
def max_(xp: Any, *data: Array) -> Array:
    """The elementwise maximum of all inputs; NaN where any is NaN."""
    return xp.asarray(functools.reduce(xp.maximum, data))


@op("Min", since=6, pointwise=True)
def min_(xp: Any, *data: Array) -> Array:
    """The elementwise minimum of all inputs; NaN where any is NaN."""
    return xp.asarray(functools.reduce(xp.minimum, data))


@op("Clip", since=11, pointwise=True)
def clip(xp: Any, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """`x` no less than `low` and then no more than `high`."""
    if low is not None:
        x = xp.maximum(x, low)
    if high is not None:
        x = xp.minimum(x, high)
    return xp.asarray(x)
