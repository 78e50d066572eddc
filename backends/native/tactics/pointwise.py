"""The float32 steps of pointwise operators: what `blocks.Program` is made of.

A lowering is a function from a node to the value that it computes, written with `emit`:

    @lowering("HardSigmoid")
    def _hard_sigmoid(b, node): ...

A step is a function of one to three operands and the result's memory. Constants of one element
are Python scalars, which NumPy applies without a cast; `clip` stands for maximum and minimum with
a scalar, for which NumPy has no vector code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from polytool.backends.native.network import Node
from polytool.backends.native.ops.special import erf, gelu
from polytool.backends.native.tactics.lowering import (
    BOOL,
    EXACT,
    FLOAT,
    Lowering,
    Refused,
    Value,
    clip,
    copy,
    kind_of,
)
from polytool.tensors import DType

Handler = Callable[[Lowering, Node], Value]
LOWERINGS: dict[tuple[str, str], Handler] = {}


def lowering(*names: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Register the decorated function for operators `names`."""

    def register(handler: Handler) -> Handler:
        for name in names:
            LOWERINGS[domain, name] = handler
        return handler

    return register


def _floats(b: Lowering, node: Node) -> list[Value]:
    values = [b.value(t) for t in node.inputs]
    if any(b.dtype(v) != FLOAT for v in values):
        raise Refused
    return values


def _table(domain: str, table: dict[str, Any], dtype: np.dtype[Any], source: Any) -> None:
    for name, function in table.items():

        def handler(b: Lowering, node: Node, function: Any = function) -> Value:
            values = [b.value(t) for t in node.inputs]
            if any(b.dtype(v) != source for v in values):
                raise Refused
            return b.emit(function, *values, dtype=dtype)

        LOWERINGS[domain, name] = handler


_table(
    "",
    {
        "Abs": np.abs,
        "Ceil": np.ceil,
        "Cos": np.cos,
        "Exp": np.exp,
        "Floor": np.floor,
        "Identity": copy,
        "Log": np.log,
        "Neg": np.negative,
        "Round": np.rint,
        "Sign": np.sign,
        "Sin": np.sin,
        "Sqrt": np.sqrt,
        "Tanh": np.tanh,
        "Sub": np.subtract,
    },
    FLOAT,
    FLOAT,
)
_table(
    "",
    {
        "Equal": np.equal,
        "Greater": np.greater,
        "GreaterOrEqual": np.greater_equal,
        "Less": np.less,
        "LessOrEqual": np.less_equal,
    },
    BOOL,
    FLOAT,
)
_table("", {"And": np.logical_and, "Or": np.logical_or, "Not": np.logical_not}, BOOL, BOOL)


@lowering("Add")
def _add(b: Lowering, node: Node) -> Value:
    if not any(t is not None and t.dtype is DType.INT32 for t in node.inputs):
        return b.emit(np.add, *_floats(b, node))
    x, y = (b.integer(t) for t in node.inputs)
    bound = b.bounds[x] + b.bounds[y]
    if bound >= EXACT:
        raise Refused
    result = b.emit(np.add, x, y)
    b.bounds[result] = bound
    return result


@lowering("Mul")
def _mul(b: Lowering, node: Node) -> Value:
    return b.product(*_floats(b, node))


@lowering("Div")
def _div(b: Lowering, node: Node) -> Value:
    x, y = _floats(b, node)
    divisor = b.constants.get(y)
    if isinstance(divisor, float) and divisor and math.isfinite(divisor):
        return b.multiple(x, 1.0 / divisor, np.divide, divisor)
    return b.emit(np.divide, x, y)


@lowering("Reciprocal")
def _reciprocal(b: Lowering, node: Node) -> Value:
    return b.reciprocal(*_floats(b, node))


@lowering("Relu")
def _relu(b: Lowering, node: Node) -> Value:
    return b.emit(clip, *_floats(b, node), 0.0, math.inf)


@lowering("Clip")
def _clip_to(b: Lowering, node: Node) -> Value:
    x, low, high = (*node.inputs, None, None)[:3]
    value = b.value(x)
    if b.dtype(value) != FLOAT:
        raise Refused
    return b.emit(clip, value, b.scalar(low, -math.inf), b.scalar(high, math.inf))


def _sigmoid_of(b: Lowering, x: Value, scale: float = 1.0) -> Value:
    t = b.emit(np.negative, x) if scale == 1.0 else b.emit(np.multiply, x, -scale)
    return b.reciprocal(b.emit(np.add, b.emit(np.exp, t), 1.0))


@lowering("Sigmoid")
def _sigmoid(b: Lowering, node: Node) -> Value:
    return _sigmoid_of(b, *_floats(b, node))


@lowering("Swish")
def _swish(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    return b.product(x, _sigmoid_of(b, x, float(node.attrs.get("alpha", 1.0))))


@lowering("QuickGelu", domain="com.microsoft")
def _quick_gelu(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    return b.product(x, _sigmoid_of(b, x, float(node.attrs.get("alpha", 1.702))))


@lowering("HardSigmoid")
def _hard_sigmoid(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    t = b.emit(np.multiply, x, float(node.attrs.get("alpha", 0.2)))
    return b.emit(clip, b.emit(np.add, t, float(node.attrs.get("beta", 0.5))), 0.0, 1.0)


@lowering("HardSwish")
def _hard_swish(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    t = b.emit(np.add, b.emit(np.multiply, x, 1.0 / 6.0), 0.5)
    return b.emit(np.multiply, x, b.emit(clip, t, 0.0, 1.0))


@lowering("LeakyRelu")
def _leaky_relu(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    alpha = float(node.attrs.get("alpha", 0.009999999776482582))
    if not 0.0 <= alpha <= 1.0:
        raise Refused
    return b.emit(_maximum, x, b.emit(np.multiply, x, alpha))


@lowering("Softplus")
def _softplus(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    return b.emit(np.logaddexp, x, 0.0)


@lowering("Pow")
def _pow(b: Lowering, node: Node) -> Value:
    x, y = _floats(b, node)
    exponent = b.constants.get(y)
    if exponent == 2.0:
        return b.emit(np.multiply, x, x)
    if exponent == 3.0:
        return b.emit(np.multiply, x, b.emit(np.multiply, x, x))
    return b.emit(np.sqrt, x) if exponent == 0.5 else b.emit(np.power, x, y)


def _maximum(x: Any, y: Any, out: Any) -> None:
    np.maximum(x, y, out=out)


def _minimum(x: Any, y: Any, out: Any) -> None:
    np.minimum(x, y, out=out)


@lowering("Max", "Min")
def _extremum(b: Lowering, node: Node) -> Value:
    result, *rest = _floats(b, node)
    for value in rest:
        number = b.constants.get(value)
        if isinstance(number, float) and not math.isnan(number):
            low, high = (number, math.inf) if node.op == "Max" else (-math.inf, number)
            result = b.emit(clip, result, low, high)
        else:
            result = b.emit(_maximum if node.op == "Max" else _minimum, result, value)
    return result


@lowering("Sum")
def _sum(b: Lowering, node: Node) -> Value:
    result, *rest = _floats(b, node)
    for value in rest:
        result = b.emit(np.add, result, value)
    return result


@lowering("Erf")
def _erf(b: Lowering, node: Node) -> Value:
    return b.emit(_erf_step, *_floats(b, node))


def _erf_step(x: Any, out: Any) -> None:
    np.copyto(out, erf(np, x))


@lowering("Gelu")
def _gelu(b: Lowering, node: Node) -> Value:
    (x,) = _floats(b, node)
    if node.attrs.get("approximate", "none") == "tanh":
        return _tanh_gelu(b, x)
    return b.emit(_gelu_step, x)


@lowering("Gelu", domain="com.microsoft")
def _contrib_gelu(b: Lowering, node: Node) -> Value:
    return b.emit(_gelu_step, *_floats(b, node))


@lowering("BiasGelu", domain="com.microsoft")
def _bias_gelu(b: Lowering, node: Node) -> Value:
    return b.emit(_gelu_step, b.emit(np.add, *_floats(b, node)))


@lowering("FastGelu", domain="com.microsoft")
def _fast_gelu(b: Lowering, node: Node) -> Value:
    x, *bias = [b.value(t) for t in node.inputs if t is not None]
    return _tanh_gelu(b, b.emit(np.add, x, bias[0]) if bias else x)


def _gelu_step(x: Any, out: Any) -> None:
    np.copyto(out, gelu(np, x))


def _tanh_gelu(b: Lowering, x: Value) -> Value:
    """x * (1 + tanh(y)) / 2 with y = sqrt(2/pi) (x + 0.044715 x^3), which is x * sigmoid(2y)."""
    scale = math.sqrt(2.0 / math.pi)
    square = b.emit(np.multiply, x, x)
    t = b.emit(np.add, b.emit(np.multiply, square, 0.044715 * scale), scale)
    t = b.emit(np.tanh, b.emit(np.multiply, t, x))
    half = b.emit(np.multiply, x, 0.5)
    return b.emit(np.multiply, half, b.emit(np.add, t, 1.0))


@lowering("BatchNormalization")
def _batch_normalization(b: Lowering, node: Node) -> Value:
    """(x - mean) * factor + bias with a number a channel; statistics of the batch have no steps."""
    x, *parameters = node.inputs
    if node.attrs.get("training_mode", 0) or x is None or x.shape is None or len(x.shape) < 2:
        raise Refused
    shape = (-1, *[1] * (len(x.shape) - 2))
    scale, bias, mean, variance = (b.array(t) for t in parameters)
    factor = scale / np.sqrt(variance + np.float32(node.attrs.get("epsilon", 1e-5)))
    value = b.emit(np.subtract, b.value(x), b.constant(mean.reshape(shape)))
    value = b.emit(np.multiply, value, b.constant(factor.reshape(shape)))
    return b.emit(np.add, value, b.constant(bias.reshape(shape)))


@lowering("Where")
def _where(b: Lowering, node: Node) -> Value:
    condition, x, y = (b.value(t) for t in node.inputs)
    if b.dtype(condition) != BOOL or {b.dtype(x), b.dtype(y)} != {FLOAT}:
        raise Refused
    return b.emit(_select, condition, x, y, in_place=False)


def _select(condition: Any, x: Any, y: Any, out: Any) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


@lowering("Cast")
def _cast(b: Lowering, node: Node) -> Value:
    (source,), (target,) = node.inputs, node.outputs
    assert target is not None
    if source is not None and source.dtype is DType.INT32 and target.dtype is DType.FLOAT:
        return b.integer(source)  # it holds floats already
    value = b.value(source)
    same = source is not None and source.dtype is target.dtype
    if not same and not (b.dtype(value) == BOOL and target.dtype is DType.FLOAT):
        raise Refused
    return b.emit(copy, value, dtype=kind_of(target))
