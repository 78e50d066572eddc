"""CumSum, TopK and sorting, NonZero, NonMaxSuppression: kernels whose result depends on order."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache

from polytool.backends.native.kernels.gather import check_size
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    compute_type,
)
from polytool.tensors import DType

_THREADS = 256
_CHUNK = 1024


@dataclass(frozen=True)
class CumSum:
    """Running sums, or products, along an axis. Buffers: input, output."""

    dtype: DType
    exclusive: bool = False
    reverse: bool = False
    product: bool = False

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_scan(self),)

    def plan(self, shape: tuple[int, ...], axis: int) -> Plan:
        """The launch; `axis` is not negative."""
        inner, length = math.prod(shape[axis + 1 :]), shape[axis]
        lines = math.prod(shape[:axis]) * inner
        check_size("CumSum", lines)
        args = (
            ctypes.c_uint(lines),
            ctypes.c_uint(length),
            ctypes.c_uint(inner),
            Buffer(0),
            Buffer(1),
        )
        call = Call(_scan(self), (min(max(1, lines), 132 * 8), 1, 1), (_THREADS, 1, 1), args)
        return Plan((call,) if lines * length else ())


@cache
def _scan(op: CumSum) -> Kernel:
    defines: dict[str, str | int] = {
        "T": C_TYPES[op.dtype],
        "ACC": compute_type(op.dtype),
        "EXCLUSIVE": int(op.exclusive),
        "REVERSE": int(op.reverse),
        "JOIN(a, b)": "((a) * (b))" if op.product else "((a) + (b))",
        "NEUTRAL": int(op.product),
    }
    return assemble("scan", "scan", defines=defines, threads=_THREADS)


class _SortShape(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_uint) for n in ("lines", "length", "padded", "inner", "k"))


@dataclass(frozen=True)
class TopK:
    """The first k of a line in order, with their indices; k = length sorts.

    Buffers: input, values, indices (int64), workspace. Equal values keep their order.
    """

    dtype: DType
    largest: bool = True

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return tuple(_sort(self, phase) for phase in range(4))

    def plan(self, shape: tuple[int, ...], axis: int, k: int) -> Plan:
        """The launches; `axis` is not negative. Log-squared many when lines exceed 1024."""
        inner, length = math.prod(shape[axis + 1 :]), shape[axis]
        lines = math.prod(shape[:axis]) * inner
        padded = max(_CHUNK, 1 << max(length - 1, 0).bit_length())
        check_size("TopK", lines * padded)
        if not lines * k:
            return Plan(())
        geometry = _SortShape(lines, length, padded, inner, k)
        grid = (lines * (padded // _CHUNK), 1, 1)

        def call(phase: int, size: int = 0, stride: int = 0) -> Call:
            args = (
                geometry,
                Buffer(0),
                Buffer(3),
                Buffer(1),
                Buffer(2),
                ctypes.c_uint(size),
                ctypes.c_uint(stride),
            )
            return Call(_sort(self, phase), grid, (_THREADS, 1, 1), args)

        calls, size = [call(0)], 2 * _CHUNK
        while size <= padded:
            stride = size // 2
            while stride >= _CHUNK:
                calls.append(call(1, size, stride))
                stride //= 2
            calls.append(call(2, size))
            size *= 2
        calls.append(call(3))
        item = (
            16 if compute_type(self.dtype) in ("double", "long long", "unsigned long long") else 8
        )
        return Plan(tuple(calls), lines * padded * item)


@cache
def _sort(op: TopK, phase: int) -> Kernel:
    defines: dict[str, str | int] = {
        "T": C_TYPES[op.dtype],
        "LARGEST": int(op.largest),
        "CHUNK": _CHUNK,
        "PHASE": phase,
    }
    return assemble("sort", "sort", defines=defines, threads=_THREADS)


@dataclass(frozen=True)
class NonZero:
    """Flat positions of what is not zero, in order, and how many there are.

    Buffers: input, positions (int64, as many as the input has elements), count (int64), workspace.
    """

    dtype: DType

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return tuple(_nonzero(self, phase) for phase in range(3))

    def plan(self, count: int) -> Plan:
        """The launches for `count` elements."""
        check_size("NonZero", count)
        blocks = max(1, -(-count // _THREADS))
        args = (
            ctypes.c_uint(count),
            ctypes.c_uint(blocks),
            Buffer(0),
            Buffer(3),
            Buffer(1),
            Buffer(2),
        )
        calls = tuple(
            Call(_nonzero(self, phase), (1 if phase == 1 else blocks, 1, 1), (_THREADS, 1, 1), args)
            for phase in range(3)
        )
        return Plan(calls, blocks * 4)


@cache
def _nonzero(op: NonZero, phase: int) -> Kernel:
    defines: dict[str, str | int] = {"T": C_TYPES[op.dtype], "PHASE": phase}
    return assemble("nonzero", "nonzero", defines=defines, threads=_THREADS)


class _NmsShape(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int) for n in ("batches", "classes", "boxes", "most")),
        ("overlap", ctypes.c_float),
        ("score", ctypes.c_float),
    )


@dataclass(frozen=True)
class NonMaxSuppression:
    """Which boxes stay: [batch, class, box] rows in ONNX's order, and how many there are.

    Buffers: boxes [batches, boxes, 4], scores [batches, classes, boxes], rows (int64, room for
    batches * classes * most), count (int64), workspace. Everything else is float32.

    Attributes:
        center: boxes are x, y of the centre, width, height instead of two corners.
    """

    center: bool = False

    @property
    def _top(self) -> TopK:
        return TopK(DType.FLOAT)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (*self._top.kernels(), *(_nms(self, phase) for phase in range(2)))

    def plan(
        self,
        batches: int,
        classes: int,
        boxes: int,
        most: int,
        *,
        overlap: float = 0.0,
        score: float = -math.inf,
    ) -> Plan:
        """The launches.

        Args:
            batches: images.
            classes: of the scores.
            boxes: an image.
            most: boxes that a class may keep; at most `boxes` matter.
            overlap: intersection over union above which a box goes.
            score: scores at or below it go.
        """
        lists, most = batches * classes, min(most, boxes)
        sort = self._top.plan((lists, boxes), 1, boxes)
        # the workspace: sorted scores, order, kept, counts, then what sorting needs
        places = [0]
        for size in (lists * boxes * 4, lists * boxes * 8, lists * most * 4, lists * 4):
            places.append(places[-1] + -(-size // 256) * 256)
        values, order, kept, counts, rest = (Buffer(4, p) for p in places)
        moved = {0: Buffer(1), 1: values, 2: order, 3: rest}
        calls = [
            replace(c, args=tuple(moved[a.index] if isinstance(a, Buffer) else a for a in c.args))
            for c in sort.calls
        ]
        shape = _NmsShape(batches, classes, boxes, most, overlap, score)
        args = (shape, Buffer(0), Buffer(1), order, kept, counts, Buffer(2), Buffer(3))
        for phase, grid in ((0, max(1, lists)), (1, 1)):
            if phase or lists:
                calls.append(Call(_nms(self, phase), (grid, 1, 1), (_THREADS, 1, 1), args))
        return Plan(tuple(calls), places[-1] + sort.workspace)


@cache
def _nms(op: NonMaxSuppression, phase: int) -> Kernel:
    return assemble(
        "nms", "nms", defines={"CENTER": int(op.center), "PHASE": phase}, contract=False
    )
