"""Elementary functions of one tensor: roots, exponentials, rounding, trigonometry."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.ops import special
from polytool.backends.native.ops.registry import Array, op


@op("Abs", since=6, pointwise=True)
def abs_(xp: Any, x: Array) -> Array:
    """`|x|`."""
    return xp.asarray(xp.abs(x))


@op("Neg", since=6, pointwise=True)
def neg(xp: Any, x: Array) -> Array:
    """`-x`."""
    return xp.asarray(-x)


@op("Sign", since=9, pointwise=True)
def sign(xp: Any, x: Array) -> Array:
    """-1, 0 or 1; NaN stays."""
    return xp.asarray(xp.sign(x))


@op("Reciprocal", since=6, pointwise=True)
def reciprocal(xp: Any, x: Array) -> Array:
    """`1 / x`."""
    return xp.asarray(xp.reciprocal(x))


@op("Sqrt", since=6, pointwise=True)
def sqrt(xp: Any, x: Array) -> Array:
    """The square root; NaN below zero."""
    return xp.asarray(xp.sqrt(x))


@op("Exp", since=6, pointwise=True)
def exp(xp: Any, x: Array) -> Array:
    """e to the power of `x`."""
    return xp.asarray(xp.exp(x))


@op("Log", since=6, pointwise=True)
def log(xp: Any, x: Array) -> Array:
    """The natural logarithm."""
    return xp.asarray(xp.log(x))


@op("Erf", since=9, pointwise=True)
def erf(xp: Any, x: Array) -> Array:
    """The error function; integers are computed in float64 and truncated."""
    if x.dtype.kind == "f":
        return special.erf(xp, x)
    return special.erf(xp, x.astype("float64")).astype(x.dtype)


@op("Floor", since=6, pointwise=True)
def floor(xp: Any, x: Array) -> Array:
    """The largest integer not above `x`."""
    return xp.asarray(xp.floor(x))


@op("Ceil", since=6, pointwise=True)
def ceil(xp: Any, x: Array) -> Array:
    """The smallest integer not below `x`."""
    return xp.asarray(xp.ceil(x))


@op("Round", since=11, pointwise=True)
def round_(xp: Any, x: Array) -> Array:
    """The nearest integer; halves go to the even one."""
    return xp.asarray(xp.rint(x))


@op("Sin", since=7, pointwise=True)
def sin(xp: Any, x: Array) -> Array:
    """The sine of `x` in radians."""
    return xp.asarray(xp.sin(x))


@op("Cos", since=7, pointwise=True)
def cos(xp: Any, x: Array) -> Array:
    """The cosine of `x` in radians."""
    return xp.asarray(xp.cos(x))


@op("Tan", since=7, pointwise=True)
def tan(xp: Any, x: Array) -> Array:
    """The tangent of `x` in radians."""
    return xp.asarray(xp.tan(x))


@op("Asin", since=7, pointwise=True)
def asin(xp: Any, x: Array) -> Array:
    """The angle in radians whose sine is `x`."""
    return xp.asarray(xp.arcsin(x))


@op("Acos", since=7, pointwise=True)
def acos(xp: Any, x: Array) -> Array:
    """The angle in radians whose cosine is `x`."""
    return xp.asarray(xp.arccos(x))


@op("Atan", since=7, pointwise=True)
def atan(xp: Any, x: Array) -> Array:
    """The angle in radians whose tangent is `x`."""
    return xp.asarray(xp.arctan(x))


@op("Sinh", since=9, pointwise=True)
def sinh(xp: Any, x: Array) -> Array:
    """The hyperbolic sine."""
    return xp.asarray(xp.sinh(x))


@op("Cosh", since=9, pointwise=True)
def cosh(xp: Any, x: Array) -> Array:
    """The hyperbolic cosine."""
    return xp.asarray(xp.cosh(x))


@op("Tanh", since=6, pointwise=True)
def tanh(xp: Any, x: Array) -> Array:
    """The hyperbolic tangent."""
    return xp.asarray(xp.tanh(x))


@op("Asinh", since=9, pointwise=True)
def asinh(xp: Any, x: Array) -> Array:
    """The inverse of the hyperbolic sine."""
    return xp.asarray(xp.arcsinh(x))


@op("Acosh", since=9, pointwise=True)
def acosh(xp: Any, x: Array) -> Array:
    """The inverse of the hyperbolic cosine; NaN below one."""
    return xp.asarray(xp.arccosh(x))


@op("Atanh", since=9, pointwise=True)
def atanh(xp: Any, x: Array) -> Array:
    """The inverse of the hyperbolic tangent; NaN outside -1 to 1."""
    return xp.asarray(xp.arctanh(x))
