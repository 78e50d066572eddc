"""A product with a constant matrix: packed for few rows, split over threads.

OpenBLAS repacks both operands on every call, which for few rows costs more than the product; its
small-matrix kernel does not. So the constant is cut into column blocks that lie one after the
other, few enough columns for that kernel, and one batched `matmul` goes over them.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from polytool.backends.native.tactics.epilogue import Finish
from polytool.backends.native.tactics.pool import parallel, pool, scratch

Array = np.ndarray[Any, Any]
# OpenBLAS's small-matrix kernel takes a product of at most this many multiply-adds.
_SMALL_KERNEL = 1_000_000
# Integers that become float32 at a time: about a second-level cache.
_CONVERTED = 1 << 18
# Multiply-adds below which a second thread costs more than it saves.
_SMALL = 3_000_000


class ConstantMatrix:
    """(K, N) as the right operand of float32 products with any number of rows.

    8- and 16-bit integers stay what they are, packed too, and become float32 a few blocks at a
    time: reading a quarter of the memory pays for the conversion.
    """

    def __init__(self, matrix: Array) -> None:
        self._matrix = matrix
        self._floats = matrix.dtype == np.float32
        self._packed: dict[int, Array] = {}
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        depth, columns = self._matrix.shape
        return depth, columns

    def multiply(self, x: Array, out: Array, finish: Finish | None) -> None:
        """`out` (rows, N) = x (rows, K) @ matrix, in column blocks that are finished in cache."""
        rows, depth = x.shape
        columns = out.shape[1]
        width = self._width(rows, depth, columns)
        work = rows * depth * columns
        everything = slice(0, 1), slice(0, rows), slice(0, columns)
        if work <= _SMALL:
            self._product(x, out, width, 0, columns)
            if finish is not None:
                finish(out[None], *everything)
            return
        unit = width or 16
        each = 1 if not width or work < 4 * _SMALL else 2  # blocks a thread
        target = -(-columns // (each * pool().size))
        if width:
            target = max(unit, min((1 << 16) // rows, target))
        size = -(-target // unit) * unit
        starts = range(0, columns, size)

        def block(index: int) -> None:
            start = starts[index]
            stop = min(start + size, columns)
            part = out[:, start:stop]
            self._product(x, part, width, start, stop)
            if finish is not None:
                finish(part[None], everything[0], everything[1], slice(start, stop))

        parallel(block, len(starts))

    @staticmethod
    def _width(rows: int, depth: int, columns: int) -> int:
        """Columns of a packed block; 0 where the plain product is as good."""
        if rows == 1 or rows * depth * columns < 1 << 17:
            return 0
        for width in (64, 32, 16):
            if rows * depth * width <= _SMALL_KERNEL and columns >= width:
                return width
        return 0

    def _product(self, x: Array, out: Array, width: int, start: int, stop: int) -> None:
        """Columns start to stop; `start` is a multiple of `width`."""
        if not width:
            self._unpacked(x, out, start, stop)
            return
        first, last = start // width, stop // width
        whole = (last - first) * width
        if last > first:
            blocks = out[:, :whole].reshape(len(x), last - first, width).transpose(1, 0, 2)
            packed = self._pack(width)[first:last]
            if self._floats:
                np.matmul(x, packed, out=blocks)
            else:
                group = max(1, _CONVERTED // (len(packed[0]) * width))
                for index in range(0, last - first, group):
                    part = packed[index : index + group]
                    np.matmul(x, _as_floats(part), out=blocks[index : index + group])
        if start + whole < stop:
            self._unpacked(x, out[:, whole:], start + whole, stop)

    def _unpacked(self, x: Array, out: Array, start: int, stop: int) -> None:
        columns = self._matrix[:, start:stop]
        if self._floats:
            np.matmul(x, columns, out=out)
            return
        step = max(1, _CONVERTED // len(columns))
        for first in range(0, stop - start, step):
            part = _as_floats(columns[:, first : first + step])
            np.matmul(x, part, out=out[:, first : first + step])

    def _pack(self, width: int) -> Array:
        packed = self._packed.get(width)
        if packed is None:
            with self._lock:
                packed = self._packed.get(width)
                if packed is None:
                    depth, columns = self._matrix.shape
                    count = columns // width
                    cut = self._matrix[:, : count * width].reshape(depth, count, width)
                    packed = np.ascontiguousarray(cut.transpose(1, 0, 2))
                    self._packed[width] = packed
        return packed


def _as_floats(values: Array) -> Array:
    """Integers as float32 in this thread's scratch memory."""
    floats = scratch("converted", values.shape)
    np.copyto(floats, values)
    return floats
