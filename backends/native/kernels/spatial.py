"""GroupNormalization, InstanceNormalization, Pad and Resize."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from polytool.backends.native.kernels.expr import Step, Tree, emit
from polytool.backends.native.kernels.gather import blocks, check_size
from polytool.backends.native.kernels.pointwise import dense
from polytool.backends.native.kernels.reduce import _LIMITS
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
from polytool.tensors import DType

_Ints = ctypes.c_int * 8


class _GroupShape(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int) for n in ("channels", "group", "pixels")),
        ("epsilon", ctypes.c_float),
    )


@dataclass(frozen=True)
class GroupNorm:
    """Normalisation over groups of channels; one channel a group is InstanceNormalization.

    Buffers: input, scale [channels], bias [channels], output.

    Attributes:
        after: an operator of one operand behind it, such as `Relu`; empty for none.
    """

    dtype: DType
    scale: DType
    channels_last: bool = False
    after: str = ""

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return tuple(_group(self, t) for t in (128, 512))

    def plan(self, batch: int, channels: int, groups: int, pixels: int, epsilon: float) -> Plan:
        """The launch; `pixels` is the product of the spatial sizes."""
        shape = _GroupShape(channels, channels // groups, pixels, epsilon)
        kernel = _group(self, 512 if channels // groups * pixels > 2048 else 128)
        args = (shape, Buffer(0), Buffer(1), Buffer(2), Buffer(3))
        call = Call(kernel, (groups, batch, 1), (kernel.threads, 1, 1), args)
        return Plan((call,) if batch * channels * pixels else ())


@cache
def _group(op: GroupNorm, threads: int) -> Kernel:
    kind = C_TYPES[op.dtype]
    inner = DType.DOUBLE if op.dtype is DType.DOUBLE else DType.FLOAT
    steps = (Step.of(op.after, 0, dtype=op.dtype),) if op.after else ()
    lines, (result,) = emit(Tree((inner,), steps), ["v"])
    defines: dict[str, str | int] = {
        "T": kind,
        "T_OUT": kind,
        "T_SCALE": C_TYPES[op.scale],
        "REAL": C_TYPES[inner],
        "CHANNELS_LAST": int(op.channels_last),
    }
    function = f"DEVICE {C_TYPES[inner]} AFTER({C_TYPES[inner]} v) {{"
    code = "\n".join((function, *lines, f"    return {result};", "}"))
    return assemble("group_norm", "group_norm", defines=defines, code=code, threads=threads)


class _PadShape(ctypes.Structure):
    _fields_ = (("out", Dims), ("x", Strides), ("size", _Ints), ("before", _Ints))


@dataclass(frozen=True)
class Pad:
    """Padding and cropping. Buffers: input, the constant (one element) if `valued`, output.

    Attributes:
        mode: `constant`, `reflect`, `edge` or `wrap`.
        valued: whether a constant other than zero is given.
    """

    dtype: DType
    mode: str = "constant"
    valued: bool = False

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_pad(self),)

    def plan(self, shape: tuple[int, ...], before: Sequence[int], after: Sequence[int]) -> Plan:
        """The launch; pads may be negative."""
        out = tuple(s + b + a for s, b, a in zip(shape, before, after, strict=True))
        units = math.prod(out)
        check_size("Pad", units)
        geometry = _PadShape(dims(out), strides(dense(shape)), _Ints(*shape), _Ints(*before))
        constant = Buffer(1) if self.valued else ctypes.c_void_p(None)
        result = Buffer(2 if self.valued else 1)
        args = (ctypes.c_uint(units), geometry, Buffer(0), constant, result)
        return Plan((Call(_pad(self), blocks(units), (256, 1, 1), args),) if units else ())


@cache
def _pad(op: Pad) -> Kernel:
    modes = ("constant", "reflect", "edge", "wrap")
    kind = C_TYPES[UNSIGNED[item_size(op.dtype)]]
    return assemble("pad", "pad", defines={"T": kind, "MODE": modes.index(op.mode)})


class _ResizeShape(ctypes.Structure):
    _fields_ = (
        ("out", Dims),
        ("x", Strides),
        ("table", _Ints),
        ("taps", _Ints),
        ("outside", ctypes.c_float),
    )


@dataclass(frozen=True)
class Table:
    """Where a resized dimension reads: [output, taps] positions and weights.

    A negative position means that the result lies outside the image.
    """

    where: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Resize:
    """Interpolation by tables. Buffers: input, positions (int32), weights (float32), output.

    The host makes the tables (`Table`, one a dimension, joined in order by `join`), so that the
    coordinate rules of ONNX exist once.
    """

    dtype: DType
    rounds: bool = False  # integers are rounded and saturated, not truncated

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_resize(self),)

    @staticmethod
    def join(tables: Sequence[Table]) -> tuple[np.ndarray, np.ndarray]:
        """The contents of the two table buffers."""
        where = np.concatenate([t.where.reshape(-1) for t in tables]).astype(np.int32)
        weights = np.concatenate([t.weights.reshape(-1) for t in tables]).astype(np.float32)
        return where, weights

    def plan(self, shape: tuple[int, ...], tables: Sequence[Table], outside: float = 0.0) -> Plan:
        """The launch for an input of `shape`."""
        out = tuple(t.where.shape[0] for t in tables)
        starts = np.cumsum([0, *(t.where.size for t in tables)])[: len(tables)]
        units = math.prod(out)
        check_size("Resize", units)
        geometry = _ResizeShape(
            dims(out),
            strides(dense(shape)),
            _Ints(*(int(s) for s in starts)),
            _Ints(*(t.where.shape[1] for t in tables)),
            outside,
        )
        args = (ctypes.c_uint(units), geometry, Buffer(0), Buffer(1), Buffer(2), Buffer(3))
        return Plan((Call(_resize(self), blocks(units), (256, 1, 1), args),) if units else ())


@cache
def _resize(op: Resize) -> Kernel:
    kind = C_TYPES[op.dtype]
    low, high = _LIMITS.get(kind, ("0", "0"))
    rounded = f"fmin(fmax(rint(sum), (double){low}), (double){high})"
    return assemble(
        "resize",
        "resize",
        defines={
            "T": kind,
            "SUM": "double" if op.dtype is DType.DOUBLE else "float",
            "RESULT": rounded if op.rounds and kind in _LIMITS else "sum",
        },
    )
