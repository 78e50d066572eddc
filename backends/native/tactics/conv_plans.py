"""Ways to compute one convolution of a known input shape; `numpy_conv` chooses among them.

A plan is made once per input shape and then only read: `plan.run(x, out, finish)` fills `out` and
calls `finish` on every block as soon as it is complete, while it is in cache. Inputs are
(N, C, H, W); one-dimensional convolutions have H = 1.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from polytool.backends.native.ops.windows import Windows, pad_spatial, patches
from polytool.backends.native.tactics.epilogue import Finish
from polytool.backends.native.tactics.pool import blocks_of, parallel, scratch

Array = np.ndarray[Any, Any]
_ALL = slice(None)
# Multiply-adds below which a second thread costs more than it saves.
_SMALL = 1 << 22
# Elements of the columns that one block unrolls: about a second-level cache.
_COLUMNS = 3 << 16


class PointwisePlan:
    """1x1: one GEMM on the (C, P) view of each image, cut along the pixels, nothing copied."""

    def __init__(self, filters: Array, images: int, pixels: int) -> None:
        self._filters = filters
        m, c = filters.shape
        self._pixels = pixels
        if m * c * pixels * images <= _SMALL:
            self._blocks = [(0, images, 0, pixels)]
        else:
            parts = blocks_of(pixels, max(256, (1 << 16) // m), 16)
            if images > 1 and len(parts) <= 2:
                parts = [(0, pixels)]
            self._blocks = [(n, n + 1, a, b) for n in range(images) for a, b in parts]

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        n, c = x.shape[:2]
        filters, blocks = self._filters, self._blocks
        x = x.reshape(n, c, self._pixels)
        out = out.reshape(n, -1, self._pixels)
        m = slice(0, out.shape[1])

        def block(index: int) -> None:
            first, last, start, stop = blocks[index]
            images, columns = slice(first, last), slice(start, stop)
            part = out[images, :, columns]
            np.matmul(filters, x[images, :, columns], out=part)
            if finish is not None:
                finish(part, images, m, columns)

        parallel(block, len(blocks))


class RowPlan:
    """Unroll the kernel's width only; a GEMM a kernel row, on the rows that it sees, summed up.

    The rows of the columns lie one after the other, so that moving down a kernel row is an offset:
    a third of im2col's memory for a 3x3 kernel. With a vertical stride the input's rows are kept
    in as many phases.
    """

    def __init__(self, filters: Array, where: Windows, images: int) -> None:
        m, c, kh, kw = filters.shape
        self._where = where
        self._filters = np.ascontiguousarray(filters.transpose(2, 0, 3, 1).reshape(kh, m, kw * c))
        self._plain = kw == 1 and where.strides[1] == 1 and where.out[1] == where.size[1]
        self._plain = self._plain and where.before[1] == 0 and where.strides[0] == 1
        stride, dilation = where.strides[0], where.dilations[0]
        # For each kernel row: the phase of the input rows that it sees, and its offset there.
        self._taps = [((i * dilation) % stride, (i * dilation) // stride) for i in range(kh)]
        self._reach = {
            phase: max(q for p, q in self._taps if p == phase) for phase, _ in self._taps
        }
        height, width = where.out
        work = m * c * kh * kw * height * width
        target = height if work <= _SMALL else max(1, _COLUMNS // max(1, c * kw * width))
        rows = blocks_of(height, target)
        if images > 1 and len(rows) <= 2:
            rows = [(0, height)]
        self._blocks = [(n, a, b) for n in range(images) for a, b in rows]
        self._small = work * images <= _SMALL

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        width = self._where.out[1]
        flat = out.reshape(*out.shape[:2], -1)
        m = slice(0, out.shape[1])

        def block(index: int) -> None:
            n, first, last = self._blocks[index]
            columns = slice(first * width, last * width)
            part = flat[n, :, columns]
            self._product(x[n], first, last, part)
            if finish is not None:
                finish(part[None], slice(n, n + 1), m, columns)

        if self._small:
            for index in range(len(self._blocks)):
                block(index)
        else:
            parallel(block, len(self._blocks))

    def _product(self, image: Array, first: int, last: int, part: Array) -> None:
        width = self._where.out[1]
        phases = {phase: self._columns(image, phase, first, last) for phase in self._reach}
        for i, (phase, offset) in enumerate(self._taps):
            begin = offset * width
            columns = phases[phase][:, begin : begin + part.shape[1]]
            if i == 0:
                np.matmul(self._filters[i], columns, out=part)
            else:
                product = scratch("product", part.shape)
                np.matmul(self._filters[i], columns, out=product)
                np.add(part, product, out=part)

    def _columns(self, image: Array, phase: int, first: int, last: int) -> Array:
        """(kw C, rows width): every input row that the block sees in `phase`, unrolled."""
        w = self._where
        stride, top = w.strides[0], w.before[0]
        channels, width = image.shape[0], w.out[1]
        count = last - first + self._reach[phase]
        low = max(0, -(-(top - phase) // stride) - first)
        high = min(count, (w.size[0] - 1 + top - phase) // stride - first + 1)
        high = max(low, high)
        start = (first + low) * stride + phase - top
        if self._plain and low == 0 and high == count:
            return image.reshape(channels, -1)[:, start * width : (start + count) * width]
        kw = w.kernel[1]
        columns = scratch(f"columns{phase}", (kw, channels, count, width))
        columns[:, :, :low] = 0
        columns[:, :, high:] = 0
        rows = image[:, start : start + (high - low) * stride : stride] if high > low else None
        for j in range(kw):
            shift = j * w.dilations[1] - w.before[1]
            left, right, source = _overlap(shift, w.strides[1], w.size[1], width)
            target = columns[j, :, low:high]
            if left > 0:
                target[:, :, :left] = 0
            if right < width:
                target[:, :, right:] = 0
            if rows is not None and right > left:
                np.copyto(target[:, :, left:right], rows[:, :, source])
        return columns.reshape(kw * channels, count * width)


def _overlap(shift: int, stride: int, size: int, width: int) -> tuple[int, int, slice]:
    """Which of `width` windows, `stride` apart from `shift` on, fall on the input, and where."""
    left = min(width, max(0, -(shift // stride)))
    right = max(left, min(width, (size - 1 - shift) // stride + 1))
    start = left * stride + shift
    return left, right, slice(start, start + (right - left - 1) * stride + 1, stride)


class PatchPlan:
    """im2col in blocks of output rows: any rank, any groups."""

    def __init__(self, filters: Array, where: Windows, images: int, group: int) -> None:
        m = filters.shape[0]
        self._where, self._group = where, group
        self._filters = filters.reshape(group, m // group, -1)
        self._depth = self._filters.shape[2]
        self._row = math.prod(where.out[1:])
        work = m * self._depth * self._row * where.out[0]
        row_size = self._depth * group * self._row
        target = where.out[0] if work <= _SMALL else max(1, _COLUMNS // max(1, row_size))
        rows = blocks_of(where.out[0], target)
        if images > 1 and len(rows) <= 2:
            rows = [(0, where.out[0])]
        self._blocks = [(n, a, b) for n in range(images) for a, b in rows]
        self._small = work * images <= _SMALL

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        w, group, row = self._where, self._group, self._row
        x = pad_spatial(np, x, w.before, w.reach)
        n, c = x.shape[:2]
        view = patches(np, x, w).reshape(n, group, c // group, *w.kernel, *w.out)
        flat = out.reshape(n, group, -1, row * w.out[0])
        m = slice(0, out.shape[1])
        inner = (_ALL,) * (len(w.out) - 1)

        def block(index: int) -> None:
            image, first, last = self._blocks[index]
            source = view[image][(..., slice(first, last), *inner)]
            columns = scratch("columns", source.shape)
            np.copyto(columns, source)
            pixels = slice(first * row, last * row)
            part = flat[image, :, :, pixels]
            np.matmul(self._filters, columns.reshape(group, self._depth, -1), out=part)
            if finish is not None:
                part = out.reshape(n, -1, row * w.out[0])[image : image + 1, :, pixels]
                finish(part, slice(image, image + 1), m, pixels)

        if self._small:
            for index in range(len(self._blocks)):
                block(index)
        else:
            parallel(block, len(self._blocks))


class DepthwisePlan:
    """One input channel a group: small GEMMs against a Toeplitz matrix of each kernel.

    A segment of S neighbouring outputs of one row is the product of the input that it sees
    (kernel height x (S - 1) stride + kernel width) with a banded matrix. It multiplies by zeros,
    and is still several times faster than a pass over memory for each kernel position.
    """

    def __init__(self, filters: Array, where: Windows, images: int, channels: int) -> None:
        self._where, self._filters = where, filters
        m, _, kh, kw = filters.shape
        height, width = where.out
        self._multiplier = m // channels
        segment = _segment(width, kh, kw, where.strides[1], where.dilations[1])
        self._segments = -(-width // segment)
        self._segment = segment
        self._seen = (segment - 1) * where.strides[1] + (kw - 1) * where.dilations[1] + 1
        self._matrix = self._toeplitz(filters)
        per_channel = height * self._segments * self._matrix.shape[1]
        work = per_channel * channels * segment * self._multiplier
        parts = [(0, channels)]
        if work * images > _SMALL:
            parts = blocks_of(channels, max(1, (1 << 17) // max(1, per_channel)))
        self._blocks = [(n, a, b) for n in range(images) for a, b in parts]
        self._small = work * images <= _SMALL

    def _toeplitz(self, filters: Array) -> Array:
        """(C, kh seen, multiplier S)."""
        w, k = self._where, self._multiplier
        m, _, kh, kw = filters.shape
        matrix = np.zeros((m // k, kh, self._seen, k, self._segment), np.float32)
        taps = filters.reshape(m // k, k, kh, kw)
        for s, j in itertools.product(range(self._segment), range(kw)):
            column = s * w.strides[1] + j * w.dilations[1]
            matrix[:, :, column, :, s] = taps[:, :, :, j].transpose(0, 2, 1)
        return matrix.reshape(m // k, kh * self._seen, k * self._segment)

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        flat = out.reshape(*out.shape[:2], -1)
        pixels, k = slice(0, flat.shape[2]), self._multiplier

        def block(index: int) -> None:
            n, first, last = self._blocks[index]
            part = flat[n : n + 1, first * k : last * k]
            self._product(x[n, first:last], self._matrix[first:last], part)
            if part.max() != part.max():  # an infinity times one of the matrix's zeros, perhaps
                self._direct(x[n, first:last], self._filters[first * k : last * k], part)
            if finish is not None:
                finish(part, slice(n, n + 1), slice(first * k, last * k), pixels)

        if self._small:
            for index in range(len(self._blocks)):
                block(index)
        else:
            parallel(block, len(self._blocks))

    def _product(self, image: Array, matrix: Array, part: Array) -> None:
        w, k = self._where, self._multiplier
        channels, (height, width) = image.shape[0], w.out
        view = self._windows(image)
        columns = scratch("columns", view.shape)
        np.copyto(columns, view)
        columns = columns.reshape(channels, height * self._segments, -1)
        if k == 1 and self._segments * self._segment == width:
            target = part.reshape(channels, height * self._segments, self._segment)
            np.matmul(columns, matrix, out=target)
            return
        product = scratch("product", (*columns.shape[:2], matrix.shape[2]))
        np.matmul(columns, matrix, out=product)
        rows = product.reshape(channels, height, self._segments, k, self._segment)
        target = part.reshape(channels, k, height, width)
        whole = width // self._segment
        for s in range(self._segments if k > 1 or whole == 0 else 0):
            start = s * self._segment
            piece = rows[:, :, s, :, : min(self._segment, width - start)]
            target[..., start : start + self._segment] = piece.transpose(0, 2, 1, 3)
        if k == 1 and whole:
            lines = rows.reshape(channels, height, self._segments * self._segment)
            np.copyto(target[:, 0], lines[:, :, :width])

    def _direct(self, image: Array, filters: Array, part: Array) -> None:
        """Kernel position by kernel position: slow, and exact where values are not finite."""
        w, k = self._where, self._multiplier
        padded = pad_spatial(np, image[None], w.before, w.reach)[0, :, None]
        target = part.reshape(len(image), k, *w.out)
        target[...] = 0
        for tap, (rows, columns) in w.taps():
            weights = filters[:, 0, *tap].reshape(-1, k, 1, 1)
            target += weights * padded[:, :, rows, columns]

    def _windows(self, image: Array) -> Array:
        """A view (C, height, segments, kh, seen) of the padded image."""
        w = self._where
        kh = w.kernel[0]
        rows = (w.out[0] - 1) * w.strides[0] + (kh - 1) * w.dilations[0] + 1
        step = self._segment * w.strides[1]
        columns = (self._segments - 1) * step + self._seen
        (top, left), (height, width) = w.before, w.size
        if top or left or rows > height or columns > width:
            padded = scratch("padded", (image.shape[0], rows, columns))
            bottom = max(top, min(rows, top + height))
            right = max(left, min(columns, left + width))
            padded[:, :top] = 0
            padded[:, bottom:] = 0
            padded[:, top:bottom, :left] = 0
            padded[:, top:bottom, right:] = 0
            padded[:, top:bottom, left:right] = image[:, : bottom - top, : right - left]
            image = padded
        channel, row, column = image.strides
        return np.lib.stride_tricks.as_strided(
            image,
            (image.shape[0], w.out[0], self._segments, kh, self._seen),
            (channel, row * w.strides[0], column * step, row * w.dilations[0], column),
        )


def _segment(width: int, kh: int, kw: int, stride: int, dilation: int) -> int:
    """How many outputs of a row one Toeplitz product makes: the cheapest by a small model.

    Per segment: multiply-adds at 0.05 ns, copied elements at 0.25 ns and 6 ns a copied run, and
    0.4 ns for each output where the row is not cut evenly and has to be copied out.
    """

    def cost(size: int) -> float:
        count = -(-width // size)
        seen = (size - 1) * stride + (kw - 1) * dilation + 1
        uneven = 0.4 * width if count * size != width else 0.0
        return count * kh * (seen * (0.05 * size + 0.25) + 6.0) + uneven

    return min(range(1, min(width, 40) + 1), key=cost)
