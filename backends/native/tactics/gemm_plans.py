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
from polytool.backends.native.tactics.pool import parallel, pool

Array = np.ndarray[Any, Any]
# OpenBLAS's small-matrix kernel takes a product of at most this many multiply-adds.
_SMALL_KERNEL = 1_000_000
# Multiply-adds below which a second thread costs more than it saves.
_SMALL = 1 << 23


class ConstantMatrix:
    """(K, N), float32, as the right operand of products with any number of rows."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self._packed: dict[int, Array] = {}
        self._lock = threading.Lock()

    def multiply(self, x: Array, out: Array, finish: Finish | None) -> None:
        """`out` (rows, N) = x (rows, K) @ matrix, in column blocks that are finished in cache."""
        rows, depth = x.shape
        columns = out.shape[1]
        width = self._width(rows, depth, columns)
        work = rows * depth * columns
        everything = slice(0, 1), slice(0, rows), slice(0, columns)
        if work <= _SMALL:
            if width:
                self._blocked(x, out, width, 0, columns)
            else:
                np.matmul(x, self.matrix, out=out)
            if finish is not None:
                finish(out[None], *everything)
            return
        unit = width or 16
        target = max(unit, min((1 << 15) // rows, -(-columns // (2 * pool().size))))
        if not width:
            target = -(-columns // pool().size)
        size = -(-target // unit) * unit
        starts = range(0, columns, size)

        def block(index: int) -> None:
            start = starts[index]
            stop = min(start + size, columns)
            part = out[:, start:stop]
            if width:
                self._blocked(x, part, width, start, stop)
            else:
                np.matmul(x, self.matrix[:, start:stop], out=part)
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

    def _blocked(self, x: Array, out: Array, width: int, start: int, stop: int) -> None:
        """Columns start to stop; `start` is a multiple of `width`."""
        packed = self._pack(width)
        first, last = start // width, stop // width
        whole = (last - first) * width
        if last > first:
            rows, stride = out.shape[0], out.strides[0]
            blocks = np.lib.stride_tricks.as_strided(
                out, (last - first, rows, width), (width * out.itemsize, stride, out.itemsize)
            )
            np.matmul(x, packed[first:last], out=blocks)
        if start + whole < stop:
            np.matmul(x, self.matrix[:, start + whole : stop], out=out[:, whole:])

    def _pack(self, width: int) -> Array:
        packed = self._packed.get(width)
        if packed is None:
            with self._lock:
                packed = self._packed.get(width)
                if packed is None:
                    depth, columns = self.matrix.shape
                    count = columns // width
                    cut = self.matrix[:, : count * width].reshape(depth, count, width)
                    packed = np.ascontiguousarray(cut.transpose(1, 0, 2))
                    self._packed[width] = packed
        return packed
