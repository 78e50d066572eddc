"""Activation functions. Attributes are Python floats, so they take the type of `x`."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.ops import special
from polytool.backends.native.ops.registry import Array, op


@op("Relu", since=6, pointwise=True)
def relu(xp: Any, x: Array) -> Array:
    """`x` where positive, else zero."""
    return xp.asarray(xp.maximum(x, 0))


@op("LeakyRelu", since=6, pointwise=True)
def leaky_relu(xp: Any, x: Array, *, alpha: float = 0.009999999776482582) -> Array:
    """`x` where not negative, else `alpha * x`."""
    if 0 < alpha <= 1:
        return xp.asarray(xp.maximum(x, x * alpha))
    return xp.where(x < 0, x * alpha, x)


@op("PRelu", since=7, pointwise=True)
def prelu(xp: Any, x: Array, slope: Array) -> Array:
    """`x` where not negative, else `slope * x`."""
    return xp.where(x < 0, x * slope, x)


@op("ThresholdedRelu", since=10, pointwise=True)
def thresholded_relu(xp: Any, x: Array, *, alpha: float = 1.0) -> Array:
    """`x` above `alpha`, else zero."""
    return xp.where(x > alpha, x, x.dtype.type(0))


@op("Elu", since=6, pointwise=True)
def elu(xp: Any, x: Array, *, alpha: float = 1.0) -> Array:
    """`x` where positive, else `alpha * (exp(x) - 1)`."""
    return xp.where(x > 0, x, xp.expm1(x) * alpha)


@op("Celu", since=12, pointwise=True)
def celu(xp: Any, x: Array, *, alpha: float = 1.0) -> Array:
    """`x` where positive, else `alpha * (exp(x / alpha) - 1)`."""
    return xp.asarray(xp.maximum(x, 0) + xp.minimum(xp.expm1(x / alpha) * alpha, 0))


@op("Selu", since=6, pointwise=True)
def selu(
    xp: Any, x: Array, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Array:
    """`gamma` times `x` where positive, else `alpha * (exp(x) - 1)`."""
    return xp.asarray(xp.where(x > 0, x, xp.expm1(x) * alpha) * gamma)


@op("Gelu", since=20, pointwise=True)
def gelu(xp: Any, x: Array, *, approximate: str = "none") -> Array:
    """`x` times the normal distribution function of `x`, or its approximation by tanh."""
    if approximate == "none":
        return special.gelu(xp, x)
    inner = (x + x * x * x * 0.044715) * 0.7978845608028654
    half = x * 0.5
    return xp.asarray(half + half * xp.tanh(inner))


@op("Sigmoid", since=6, pointwise=True)
def sigmoid(xp: Any, x: Array) -> Array:
    """`1 / (1 + exp(-x))`."""
    return xp.asarray(1 / (1 + xp.exp(-x)))


@op("HardSigmoid", since=6, pointwise=True)
def hard_sigmoid(
    xp: Any, x: Array, *, alpha: float = 0.20000000298023224, beta: float = 0.5
) -> Array:
    """`alpha * x + beta`, kept between 0 and 1."""
    return xp.asarray(xp.minimum(xp.maximum(x * alpha + beta, 0), 1))


@op("HardSwish", since=14, pointwise=True)
def hard_swish(xp: Any, x: Array) -> Array:
    """`x` times `x / 6 + 0.5` kept between 0 and 1."""
    return xp.asarray(x * xp.minimum(xp.maximum(x * (1 / 6) + 0.5, 0), 1))


@op("Swish", since=24, pointwise=True)
def swish(xp: Any, x: Array, *, alpha: float = 1.0) -> Array:
    """`x * sigmoid(alpha * x)`."""
    return xp.asarray(x / (1 + xp.exp(x * -alpha)))


@op("SwiGLU", since=28, pointwise=True)
def swiglu(xp: Any, a: Array, b: Array, *, alpha: float = 1.0) -> Array:
    """`swish(a) * b`."""
    return xp.asarray(a / (1 + xp.exp(a * -alpha)) * b)


@op("Softplus", since=1, pointwise=True)
def softplus(xp: Any, x: Array) -> Array:
    """`log(1 + exp(x))`, without overflow."""
    return xp.asarray(xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x))))


@op("Mish", since=18, pointwise=True)
def mish(xp: Any, x: Array) -> Array:
    """`x * tanh(softplus(x))`."""
    return xp.asarray(x * xp.tanh(softplus(xp, x)))


@op("Softsign", since=1, pointwise=True)
def softsign(xp: Any, x: Array) -> Array:
    """`x / (1 + |x|)`."""
    return xp.asarray(x / (1 + xp.abs(x)))


@op("Shrink", since=9, pointwise=True)
def shrink(xp: Any, x: Array, *, lambd: float = 0.5, bias: float = 0.0) -> Array:
    """`x + bias` below `-lambd`, `x - bias` above `lambd`, else zero; integers truncate."""
    result = xp.where(x < -lambd, x + bias, xp.where(x > lambd, x - bias, 0))
    return result.astype(x.dtype, copy=False)
