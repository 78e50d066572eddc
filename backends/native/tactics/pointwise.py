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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy._core import umath

from polytool.backends.native.network import Node, Tensor
from polytool.backends.native.ops.special import erf, gelu
from polytool.tensors import DType

clip: Any = umath.clip  # type: ignore[attr-defined]  # np.clip costs microseconds a call
EXACT = 1 << 24  # below it float32 holds every integer, and adds them exactly
FLOAT, BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)
Value = int
Handler = Callable[["Lowering", Node], Value]
LOWERINGS: dict[tuple[str, str], Handler] = {}


class Refused(Exception):
    """A node has no steps: another element type, or a case that is not written down here."""


@dataclass(frozen=True)
class Step:
    """`function(*arguments, result)`; `in_place`: the result may lie where an argument lies."""

    function: Any
    arguments: tuple[Value, ...]
    result: Value
    dtype: np.dtype[Any]
    in_place: bool = True


class Lowering:
    """Collects operands, constants and steps while nodes are lowered one after the other.

    Attributes:
        rank: the largest rank of a constant; one of a single element can still add axes.
        bounds: the values that stand for int32, with the largest magnitude they can have.
    """

    def __init__(self, constant: Callable[[Tensor], Any]) -> None:
        self._constant = constant
        self._dtypes: list[np.dtype[Any]] = []
        self._values: dict[Tensor, Value] = {}
        self._steps: list[Step] = []
        self._denominators: dict[Value, Value] = {}
        self._multiples: dict[Value, tuple[Value, float]] = {}
        self.operands: dict[Tensor, Value] = {}
        self.constants: dict[Value, Any] = {}
        self._scalars: dict[tuple[type, Any], Value] = {}
        self.anchored: Value | None = None
        self.rank = 0
        self.bounds: dict[Value, int] = {}

    def anchor(self, tensor: Tensor, bound: int | None = None) -> None:
        """`tensor` lies in the result's memory from the start.

        Args:
            bound: for an int32 tensor that is kept as float32: the largest magnitude it can have.
        """
        if bound is None:
            self.anchored = self._values[tensor] = self._new(_kind(tensor))
        else:
            self.anchored = self._values[tensor] = self._new(FLOAT)
            self.bounds[self.anchored] = bound

    def integer(self, tensor: Tensor | None) -> Value:
        """An int32 input as whole float32 numbers: one derived from the anchor, or a constant."""
        if tensor is None:
            raise Refused
        if tensor not in self._values:
            if tensor.constant is None or tensor.dtype is not DType.INT32:
                raise Refused
            array = self._constant(tensor)
            value = self.constant(np.asarray(array, np.float32))
            self._values[tensor] = value
            self.bounds[value] = int(np.abs(array.astype(np.int64)).max(initial=0))
        return self._values[tensor]

    def define(self, tensor: Tensor, value: Value) -> None:
        """`value` is what `tensor` holds."""
        self._values[tensor] = value

    def value(self, tensor: Tensor | None) -> Value:
        """The value of a node's input: computed before, an operand, or a constant."""
        if tensor is None:
            raise Refused
        _kind(tensor)
        if tensor not in self._values:
            if tensor.constant is not None:
                self._values[tensor] = self.constant(self._constant(tensor))
            else:
                self._values[tensor] = self.operands[tensor] = self._new(_kind(tensor))
        return self._values[tensor]

    def holds(self, tensor: Tensor, value: Value) -> bool:
        """Whether `value` stands for the int32 `tensor`."""
        return tensor.dtype is DType.INT32 and value in self.bounds

    def final(self, tensor: Tensor) -> Value:
        """The value of the chain's result; an int32 one must be exact."""
        if tensor.dtype is DType.INT32 and self.bounds[self.integer(tensor)] >= EXACT:
            raise Refused
        return self._values[tensor] if tensor.dtype is DType.INT32 else self.value(tensor)

    def constant(self, value: Any) -> Value:
        """A scalar or an array as a value."""
        if isinstance(value, np.ndarray):
            self.rank = max(self.rank, value.ndim)
        if isinstance(value, np.ndarray) and value.size != 1:
            index = self._new(value.dtype)
            self.constants[index] = value
            return index
        scalar = value.reshape(()).item() if isinstance(value, np.ndarray) else value
        key = (type(scalar), repr(scalar))
        if key not in self._scalars:
            self._scalars[key] = self._new(BOOL if isinstance(scalar, bool) else FLOAT)
            self.constants[self._scalars[key]] = scalar
        return self._scalars[key]

    def scalar(self, tensor: Tensor | None, default: float) -> float:
        """The number that an optional input holds, where it is a constant of one element."""
        if tensor is None:
            return default
        value = self.constants.get(self.value(tensor))
        if not isinstance(value, (int, float)):
            raise Refused
        return float(value)

    def emit(
        self, function: Any, *arguments: Value | float, dtype: Any = FLOAT, in_place: bool = True
    ) -> Value:
        """Append a step and return its value."""
        values = tuple(self.constant(a) if isinstance(a, float) else a for a in arguments)
        result = self._new(dtype)
        self._steps.append(Step(function, values, result, dtype, in_place))
        return result

    def reciprocal(self, denominator: Value) -> Value:
        """1 / denominator; a product with it becomes a division."""
        result = self.emit(np.divide, 1.0, denominator)
        self._denominators[result] = denominator
        return result

    def product(self, a: Value, b: Value) -> Value:
        """a * b."""
        for x, y in ((a, b), (b, a)):
            if y in self._denominators:
                return self.emit(np.divide, x, self._denominators[y])
            if isinstance(factor := self.constants.get(y), float):
                return self.multiple(x, factor, np.multiply, factor)
        return self.emit(np.multiply, a, b)

    def multiple(self, x: Value, factor: float, function: Any, operand: float) -> Value:
        """`factor` times x: as `function(x, operand)`, or as one step with the scaling before."""
        source, before = self._multiples.get(x, (x, 1.0))
        total = before * factor
        if source != x and all(1e-3 < abs(f) < 1e3 for f in (before, factor)):
            result = self.emit(np.multiply, source, total)
        else:
            source, total = x, factor
            result = self.emit(function, x, operand)
        self._multiples[result] = source, total
        return result

    def dtype(self, value: Value) -> np.dtype[Any]:
        """The dtype of a value."""
        return self._dtypes[value]

    def as_step(self, value: Value) -> Value:
        """A value that some step computes: operands and constants are copied."""
        if value == self.anchored or any(s.result == value for s in self._steps):
            return value
        return self.emit(_copy, value, dtype=self.dtype(value))

    def live_steps(self, final: Value) -> list[Step]:
        """The steps that `final` depends on."""
        needed, kept = {final}, []
        for step in reversed(self._steps):
            if step.result in needed:
                needed.update(step.arguments)
                kept.append(step)
        return kept[::-1]

    def _new(self, dtype: np.dtype[Any]) -> Value:
        self._dtypes.append(dtype)
        return len(self._dtypes) - 1


def stored_as(tensor: Tensor) -> np.dtype[Any] | None:
    """float32 or bool, as the executor stores a tensor outside the fp64 mode; else None."""
    if tensor.container != "tensor":
        return None
    if tensor.dtype in _FLOATS:
        return FLOAT
    return BOOL if tensor.dtype is DType.BOOL else None


def _kind(tensor: Tensor) -> np.dtype[Any]:
    kind = stored_as(tensor)
    if kind is None:
        raise Refused
    return kind


def lowering(*names: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Register the decorated function for operators `names`."""

    def register(handler: Handler) -> Handler:
        for name in names:
            LOWERINGS[domain, name] = handler
        return handler

    return register


def _copy(x: Any, out: Any) -> None:
    np.copyto(out, x)


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
        "Identity": _copy,
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
    return b.emit(_copy, value, dtype=_kind(target))
