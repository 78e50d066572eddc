"""Gather, GatherElements, GatherND, ScatterElements, ScatterND."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.expr import REDUCED
from polytool.backends.native.kernels.pointwise import dense
from polytool.backends.native.kernels.source import (
    C_TYPES,
    UNSIGNED,
    Buffer,
    Call,
    Dims,
    Kernel,
    Plan,
    Strides,
    assemble,
    dims,
    item_size,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_THREADS = 256
_Sizes = ctypes.c_uint * 8
_LIMIT = 1 << 31


class _GatherShape(ctypes.Structure):
    _fields_ = (
        ("out", Dims),
        ("x", Strides),
        ("size", _Sizes),
        ("axis", ctypes.c_int),
        ("depth", ctypes.c_int),
    )


class _ScatterShape(ctypes.Structure):
    _fields_ = (
        ("lines", Dims),
        ("y", Strides),
        ("updates", Strides),
        ("size", _Sizes),
        ("depth", ctypes.c_int),
        ("count", ctypes.c_uint),
        ("axis_step", ctypes.c_longlong),
        ("update_step", ctypes.c_longlong),
    )


def blocks(units: int) -> tuple[int, int, int]:
    """A grid for a loop over `units` with 256 threads a block."""
    return (min(max(1, -(-units // _THREADS)), 132 * 16), 1, 1)


def check_size(what: str, count: int) -> None:
    """Raise when an index would not fit 31 bits."""
    if count >= _LIMIT:
        raise UnsupportedError(f"{what} of {count} elements is beyond 2^31")


@dataclass(frozen=True)
class Gather:
    """The three gathers. Buffers: data, indices, output. Indices outside are not checked.

    Attributes:
        op: `Gather`, `GatherElements` or `GatherND`.
        index: INT32 or INT64.
    """

    op: str
    dtype: DType
    index: DType = DType.INT64

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        widths = (1,) if self.op == "GatherElements" else (1, self._wide)
        return tuple(_gather(self, v) for v in dict.fromkeys(widths))

    @property
    def _wide(self) -> int:
        return 16 // item_size(self.dtype)

    def plan(
        self, data: tuple[int, ...], indices: tuple[int, ...], *, axis: int = 0, batch_dims: int = 0
    ) -> Plan:
        """The launch; `axis` is not negative."""
        if self.op == "Gather":
            inner = math.prod(data[axis + 1 :])
            order = (math.prod(data[:axis]), math.prod(indices), inner)
            return self._launch(order, inner, (), (data[axis],))
        if self.op == "GatherElements":
            units = math.prod(indices)
            check_size(self.op, units)
            shape = _GatherShape(dims(indices), strides(dense(data)), _Sizes(data[axis]), axis, 0)
            return self._call(1, units, shape, 0)
        depth = indices[-1]
        inner = math.prod(data[batch_dims + depth :])
        batch = math.prod(data[:batch_dims])
        order = (batch, math.prod(indices[batch_dims:-1]), inner)
        steps = dense(data)[batch_dims : batch_dims + depth]
        step = math.prod(data[batch_dims:])
        return self._launch(order, inner, steps, data[batch_dims : batch_dims + depth], step)

    def _launch(
        self,
        order: tuple[int, int, int],
        inner: int,
        steps: tuple[int, ...],
        sizes: tuple[int, ...],
        batch_step: int = 0,
    ) -> Plan:
        check_size(self.op, math.prod(order))
        vector = self._wide if inner % self._wide == 0 else 1
        counted = (order[0], order[1], inner // vector)
        shape = _GatherShape(dims(counted), strides(steps), _Sizes(*sizes), 0, len(sizes))
        return self._call(vector, math.prod(counted), shape, batch_step)

    def _call(self, vector: int, units: int, shape: _GatherShape, batch_step: int) -> Plan:
        args = (
            ctypes.c_uint(units),
            shape,
            ctypes.c_longlong(batch_step),
            Buffer(0),
            Buffer(1),
            Buffer(2),
        )
        call = Call(_gather(self, vector), blocks(units), (_THREADS, 1, 1), args)
        return Plan((call,) if units else ())


@cache
def _gather(op: Gather, vector: int) -> Kernel:
    defines: dict[str, str | int] = {
        "T": C_TYPES[UNSIGNED[item_size(op.dtype)]],
        "T_INDEX": C_TYPES[op.index],
        "MODE": ("Gather", "GatherElements", "GatherND").index(op.op),
        "VEC": vector,
    }
    return assemble("gather", "gather", defines=defines, threads=_THREADS)


@dataclass(frozen=True)
class Scatter:
    """ScatterElements and ScatterND into the output, which already holds a copy of the data.

    Buffers: indices, updates, output.

    Attributes:
        reduction: `none`, `add`, `mul`, `max` or `min`.
    """

    op: str
    dtype: DType
    index: DType = DType.INT64
    reduction: str = "none"

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_scatter(self),)

    def plan(self, data: tuple[int, ...], indices: tuple[int, ...], *, axis: int = 0) -> Plan:
        """The launch; `axis` is not negative."""
        steps = dense(data)
        if self.op == "ScatterElements":
            own = dense(indices)
            rest = tuple(d for d in range(len(data)) if d != axis)
            lines = tuple(indices[d] for d in rest)
            units = math.prod(lines) if math.prod(indices) else 0
            shape = _ScatterShape(
                dims(lines),
                strides(tuple(steps[d] for d in rest)),
                strides(tuple(own[d] for d in rest)),
                _Sizes(data[axis]),
                0,
                indices[axis],
                steps[axis],
                own[axis],
            )
        else:
            depth = indices[-1]
            units = math.prod(data[depth:]) if math.prod(indices) or not depth else 0
            shape = _ScatterShape(
                dims((units,)),
                strides(steps[:depth]),
                strides(()),
                _Sizes(*data[:depth]),
                depth,
                math.prod(indices[:-1]),
                0,
                0,
            )
        check_size(self.op, units)
        args = (ctypes.c_uint(units), shape, Buffer(0), Buffer(1), Buffer(2))
        call = Call(_scatter(self), blocks(units), (_THREADS, 1, 1), args)
        return Plan((call,) if units else ())


@cache
def _scatter(op: Scatter) -> Kernel:
    kind = C_TYPES[op.dtype]
    real = op.dtype.is_float
    a, b = ("widen(a)", "widen(b)") if op.dtype in REDUCED else ("(a)", "(b)")
    formula = {
        "none": "(b)",
        "add": f"narrow<{kind}>({a} + {b})",
        "mul": f"narrow<{kind}>({a} * {b})",
        "max": f"narrow<{kind}>(propagating_max({a}, {b}))" if real else "((a) > (b) ? (a) : (b))",
        "min": f"narrow<{kind}>(propagating_min({a}, {b}))" if real else "((a) < (b) ? (a) : (b))",
    }[op.reduction]
    defines: dict[str, str | int] = {
        "T": kind,
        "T_INDEX": C_TYPES[op.index],
        "MODE": 1 if op.op == "ScatterElements" else 2,
    }
    code = f"#define REDUCTION(a, b) {formula}\n"
    return assemble("scatter", "scatter", defines=defines, code=code, threads=_THREADS)
