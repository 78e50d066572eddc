"""What pointwise nodes become: values and the float32 steps that compute them.

`pointwise` says for each operator which steps it takes; `blocks` gives the values registers and
runs the steps on cache-sized blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy._core import umath

from polytool.backends.native.network import Tensor
from polytool.tensors import DType

clip: Any = umath.clip  # type: ignore[attr-defined]  # np.clip costs microseconds a call
EXACT = 1 << 24  # below it float32 holds every integer, and adds them exactly
FLOAT, BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_FLOATS = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)
Value = int


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
            self.anchored = self._values[tensor] = self._new(kind_of(tensor))
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
        value = self._values[tensor]
        if value not in self.bounds:  # float32 after all
            raise Refused
        return value

    def define(self, tensor: Tensor, value: Value) -> None:
        """`value` is what `tensor` holds."""
        self._values[tensor] = value

    def value(self, tensor: Tensor | None) -> Value:
        """The value of a node's input: computed before, an operand, or a constant."""
        if tensor is None:
            raise Refused
        kind_of(tensor)
        if tensor not in self._values:
            if tensor.constant is not None:
                self._values[tensor] = self.constant(self._constant(tensor))
            else:
                self._values[tensor] = self.operands[tensor] = self._new(kind_of(tensor))
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

    def array(self, tensor: Tensor | None) -> Any:
        """The value of a constant float32 input."""
        if tensor is None or tensor.constant is None or kind_of(tensor) != FLOAT:
            raise Refused
        return self._constant(tensor)

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
        return self.emit(copy, value, dtype=self.dtype(value))

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


def kind_of(tensor: Tensor) -> np.dtype[Any]:
    kind = stored_as(tensor)
    if kind is None:
        raise Refused
    return kind


def copy(x: Any, out: Any) -> None:
    """The step that only moves a value into the result's memory."""
    np.copyto(out, x)
