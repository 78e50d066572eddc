"""Comparison, boolean and bitwise operators, and selection by a condition."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.ops.registry import Array, op


@op("Equal", since=7, pointwise=True, exact=True)
def equal(xp: Any, a: Array, b: Array) -> Array:
    """Where `a` and `b` are equal."""
    return xp.asarray(a == b)


@op("Greater", since=7, pointwise=True, exact=True)
def greater(xp: Any, a: Array, b: Array) -> Array:
    """Where `a > b`."""
    return xp.asarray(a > b)


@op("GreaterOrEqual", since=12, pointwise=True, exact=True)
def greater_or_equal(xp: Any, a: Array, b: Array) -> Array:
    """Where `a >= b`."""
    return xp.asarray(a >= b)


@op("Less", since=7, pointwise=True, exact=True)
def less(xp: Any, a: Array, b: Array) -> Array:
    """Where `a < b`."""
    return xp.asarray(a < b)


@op("LessOrEqual", since=12, pointwise=True, exact=True)
def less_or_equal(xp: Any, a: Array, b: Array) -> Array:
    """Where `a <= b`."""
    return xp.asarray(a <= b)


@op("And", since=7, pointwise=True, exact=True)
def and_(xp: Any, a: Array, b: Array) -> Array:
    """Where both are true."""
    return xp.asarray(a & b)


@op("Or", since=7, pointwise=True, exact=True)
def or_(xp: Any, a: Array, b: Array) -> Array:
    """Where either is true."""
    return xp.asarray(a | b)


@op("Xor", since=7, pointwise=True, exact=True)
def xor(xp: Any, a: Array, b: Array) -> Array:
    """Where exactly one is true."""
    return xp.asarray(a ^ b)


@op("Not", since=1, pointwise=True, exact=True)
def not_(xp: Any, x: Array) -> Array:
    """Where `x` is false."""
    return xp.asarray(~x)


@op("BitwiseAnd", since=18, pointwise=True, exact=True)
def bitwise_and(xp: Any, a: Array, b: Array) -> Array:
    """The bits set in both."""
    return xp.asarray(a & b)


@op("BitwiseOr", since=18, pointwise=True, exact=True)
def bitwise_or(xp: Any, a: Array, b: Array) -> Array:
    """The bits set in either."""
    return xp.asarray(a | b)


@op("BitwiseXor", since=18, pointwise=True, exact=True)
def bitwise_xor(xp: Any, a: Array, b: Array) -> Array:
    """The bits set in exactly one."""
    return xp.asarray(a ^ b)


@op("BitwiseNot", since=18, pointwise=True, exact=True)
def bitwise_not(xp: Any, x: Array) -> Array:
    """Every bit turned."""
    return xp.asarray(~x)


@op("BitShift", since=11, pointwise=True, exact=True)
def bit_shift(xp: Any, x: Array, y: Array, *, direction: str) -> Array:
    """`x` shifted by `y` bits; the right shift of signed integers keeps the sign."""
    shift = xp.left_shift if direction == "LEFT" else xp.right_shift
    return xp.asarray(shift(x, y))


@op("Where", since=9, pointwise=True, exact=True)
def where(xp: Any, condition: Array, x: Array, y: Array) -> Array:
    """`x` where the condition holds, else `y`."""
    return xp.where(condition, x, y)


@op("IsNaN", since=9, pointwise=True, exact=True)
def is_nan(xp: Any, x: Array) -> Array:
    """Where `x` is not a number."""
    return xp.asarray(xp.isnan(x))


@op("IsInf", since=10, pointwise=True, exact=True)
def is_inf(xp: Any, x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Where `x` is infinite with a sign that is asked for."""
    found = xp.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    if not detect_positive:
        found = found & (x < 0)
    return xp.asarray(found)
