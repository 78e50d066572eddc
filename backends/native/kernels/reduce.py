"""Reductions over any axes: sums, means, extremes, products, norms, logarithms, ArgMax, ArgMin."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.pointwise import dense, merge
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    dims,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

KINDS = {
    "ReduceSum": "SUM",
    "ReduceMean": "MEAN",
    "ReduceMax": "MAXIMUM",
    "ReduceMin": "MINIMUM",
    "ReduceProd": "PRODUCT",
    "ReduceL1": "L1",
    "ReduceL2": "L2",
    "ReduceSumSquare": "SUM_SQUARE",
    "ReduceLogSum": "LOG_SUM",
    "ReduceLogSumExp": "LOG_SUM_EXP",
    "ArgMax": "ARG_MAX",
    "ArgMin": "ARG_MIN",
}
_THREADS = 256
_LIMITS = {
    "signed char": ("-128", "127"),
    "unsigned char": ("0", "255"),
    "short": ("-32768", "32767"),
    "unsigned short": ("0", "65535"),
    "int": ("(-2147483647 - 1)", "2147483647"),
    "unsigned int": ("0", "4294967295u"),
    "long long": ("(-9223372036854775807ll - 1)", "9223372036854775807ll"),
    "unsigned long long": ("0", "18446744073709551615ull"),
    "bool": ("0", "1"),
}


@dataclass(frozen=True)
class Reduce:
    """One reduction. Buffers: the input, the output.

    Attributes:
        op: the ONNX operator.
        last: ArgMax and ArgMin: the last of equal extremes.
    """

    op: str
    dtype: DType
    output: DType
    last: bool = False

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (
            *(_kernel(self, False, t) for t in (8, 32, 256)),
            *(_kernel(self, True, t) for t in (1, 8, 32)),
        )

    def plan(
        self, shape: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...] | None = None
    ) -> Plan:
        """The launch.

        Args:
            shape: of the input.
            axes: what is reduced, not negative.
            steps: the input's strides in elements; dense unless given.
        """
        steps = dense(shape) if steps is None else steps
        other = tuple(d for d in range(len(shape)) if d not in axes)
        kept, (kept_steps,) = merge(
            tuple(shape[d] for d in other), [tuple(steps[d] for d in other)]
        )
        reduced, (reduced_steps,) = merge(
            tuple(shape[d] for d in axes), [tuple(steps[d] for d in axes)]
        )
        results, length = math.prod(kept), math.prod(reduced)
        if max(results, length) >= 1 << 31:
            raise UnsupportedError(f"{self.op} of {list(shape)} has a side beyond 2^31 elements")
        column = kept_steps[-1] == 1 and results > 1 and reduced_steps[-1] != 1
        if column:
            share = 1 if length < 8 or results >= 132 * 256 else 8 if length < 256 else 32
        else:
            share = 8 if length <= 32 else 32 if length <= 512 and results >= 132 else 256
        kernel = _kernel(self, column, share)
        args = (
            ctypes.c_uint(results),
            ctypes.c_uint(length),
            dims(kept),
            strides(kept_steps),
            dims(reduced),
            strides(reduced_steps),
            Buffer(0),
            Buffer(1),
        )
        grid = (-(-results // (_THREADS // share)), 1, 1)
        return Plan((Call(kernel, grid, (_THREADS, 1, 1), args),) if results else ())


@cache
def _kernel(op: Reduce, column: bool, share: int) -> Kernel:
    source = C_TYPES[op.dtype]
    kind = KINDS[op.op]
    real = op.dtype.is_float
    acc = source if not real or op.dtype is DType.DOUBLE else "float"
    if kind == "LOG_SUM_EXP" and not real:
        acc = "double"
    low, high = ("-INFINITY", "INFINITY") if real else _LIMITS[source]
    neutral = {"MAXIMUM": low, "MINIMUM": high, "PRODUCT": "1"}.get(kind, "0")
    defines: dict[str, str | int] = {
        "T_IN": source,
        "T_OUT": C_TYPES[op.output],
        "ACC": acc,
        "KIND": kind,
        "COLUMN": int(column),
        "RT": share,
        "KEEP_LAST": int(op.last),
    }
    free = kind in ("ARG_MAX", "ARG_MIN", "LOG_SUM_EXP")
    code = "\n".join(
        (
            f"#define EXTREME_MAX(a, b) {'propagating_max(a, b)' if real else '(a > b ? a : b)'}",
            f"#define EXTREME_MIN(a, b) {'propagating_min(a, b)' if real else '(a < b ? a : b)'}",
            "" if free else f"#define NEUTRAL {{{neutral}}}",
        )
    )
    return assemble("reduce", "reduce", defines=defines, code=code, threads=_THREADS)
