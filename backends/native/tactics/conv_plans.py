"""Ways to compute one convolution of a known input shape; `numpy_conv` chooses among them.

A plan is made once per input shape and then only read: `plan.run(x, out, finish)` fills `out` and
calls `finish` on every block as soon as it is complete, while it is in cache. Inputs are
(N, C, H, W); one-dimensional convolutions have H = 1.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from polytool.backends.native.ops.windows import Windows, pad_spatial, patches
from polytool.backends.native.tactics.epilogue import Finish
from polytool.backends.native.tactics.pool import blocks_of, buffer_for, parallel, scratch

Array = np.ndarray[Any, Any]
_ALL = slice(None)
# Multiply-adds below which a second thread costs more than it saves.
_SMALL = 3_000_000
# OpenBLAS's small-matrix kernel takes a product of at most this many multiply-adds.
_SMALL_KERNEL = 1_000_000
# Elements of the columns that one block unrolls: more blocks cost more than a cache miss.
_COLUMNS = 1 << 19


class Packing:
    """Filters, and the layouts of them that plans want: each made once, for all input shapes."""

    def __init__(self, filters: Array) -> None:
        self.filters = filters
        self._made: dict[Any, Array] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[Array], Array]) -> Array:
        """`make(filters)`, remembered under `key`."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make(self.filters)
            return self._made[key]


class PointwisePlan:
    """1x1: one GEMM on the (C, P) view of each image, cut along the pixels, nothing copied."""

    def __init__(self, filters: Array, images: int, pixels: int) -> None:
        self._filters = filters
        m, c = filters.shape
        self._pixels = pixels
        if m * c * pixels * images <= _SMALL:
            self._blocks = [(0, images, 0, pixels)]
        else:
            parts = blocks_of(pixels, max(4096, (1 << 18) // m), 64)
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
            if last - first == 1:
                multiply(filters, x[first, :, columns], part[0])
            else:
                np.matmul(filters, x[images, :, columns], out=part)
            if finish is not None:
                finish(part, images, m, columns)

        parallel(block, len(blocks), buffer_for(self._pixels))


class RowPlan:
    """Unroll the kernel's width only; a GEMM a kernel row, on the rows that it sees, summed up.

    The rows of the columns lie one after the other, so that moving down a kernel row is an offset:
    a third of im2col's memory for a 3x3 kernel. With a vertical stride the input's rows are kept
    in as many phases.
    """

    def __init__(self, packing: Packing, where: Windows, images: int) -> None:
        m, c, kh, kw = packing.filters.shape
        self._where = where
        self._filters = packing.get(
            "rows", lambda f: np.ascontiguousarray(f.transpose(2, 0, 3, 1).reshape(kh, m, kw * c))
        )
        self._plain = kw == 1 and where.strides[1] == 1 and where.out[1] == where.size[1]
        self._plain = self._plain and where.before[1] == 0 and where.strides[0] == 1
        self._taps, self._reach = _phases(where)
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

        _run_blocks(block, len(self._blocks), self._small, math.prod(self._where.out))

    def _product(self, image: Array, first: int, last: int, part: Array) -> None:
        width = self._where.out[1]
        phases = {phase: self._columns(image, phase, first, last) for phase in self._reach}
        for i, (phase, offset) in enumerate(self._taps):
            begin = offset * width
            columns = phases[phase][:, begin : begin + part.shape[1]]
            if i == 0:
                multiply(self._filters[i], columns, part)
            else:
                product = scratch("product", part.shape)
                multiply(self._filters[i], columns, product)
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
        self._plain = where.is_pointwise and not any(where.before)
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
            pixels = slice(first * row, last * row)
            part = flat[image, :, :, pixels]
            if self._plain:
                columns = x.reshape(n, group, c // group, -1)[image, :, :, pixels]
            else:
                source = view[image][(..., slice(first, last), *inner)]
                columns = scratch("columns", source.shape)
                np.copyto(columns, source)
                columns = columns.reshape(group, self._depth, -1)
            if group == 1:
                multiply(self._filters[0], columns[0], part[0])
            else:
                np.matmul(self._filters, columns, out=part)
            if finish is not None:
                part = out.reshape(n, -1, row * w.out[0])[image : image + 1, :, pixels]
                finish(part, slice(image, image + 1), m, pixels)

        _run_blocks(block, len(self._blocks), self._small, math.prod(self._where.out))


class GatherPlan:
    """Small convolutions: one `take` makes the columns of all images, one product the rest."""

    def __init__(self, filters: Array, where: Windows, group: int) -> None:
        m, depth = filters.shape[:2]
        self._filters = filters.reshape(group, m // group, -1)
        channels = depth * group
        place = np.arange(channels * math.prod(where.size)).reshape(1, channels, *where.size)
        # Padding is read from one zero behind each image.
        padded = pad_spatial(np, place, where.before, where.reach, value=place.size)
        index = patches(np, padded, where)[0]
        self._index = index.reshape(group, self._filters.shape[2], -1)
        self._size = place.size

    @staticmethod
    def columns(filters: Array, where: Windows, images: int, group: int) -> int:
        """How many elements it would gather."""
        return int(images * group * math.prod(filters.shape[1:]) * math.prod(where.out))

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        images, m = out.shape[:2]
        flat = np.empty((images, self._size + 1), np.float32)
        flat[:, :-1] = x.reshape(images, -1)
        flat[:, -1] = 0
        columns = flat.take(self._index, axis=1)
        group, rows, _ = self._filters.shape
        np.matmul(self._filters, columns, out=out.reshape(images, group, rows, -1))
        if finish is not None:
            part = out.reshape(images, m, -1)
            finish(part, slice(0, images), slice(0, m), slice(0, part.shape[2]))


class DepthwisePlan:
    """One input channel a group: small GEMMs against a Toeplitz matrix of each kernel row.

    A segment of S neighbouring outputs of one row is the sum over kernel rows of the S + width - 1
    inputs that it sees times a banded matrix. It multiplies by zeros, and is still several times
    faster than a pass over memory for each kernel position. Segments of a row overlap a little, so
    they are unrolled once; moving down a kernel row is then an offset, as in `RowPlan`.
    """

    def __init__(self, packing: Packing, where: Windows, images: int, channels: int) -> None:
        filters = packing.filters
        self._where, self._filters = where, filters
        height, width = where.out
        self._multiplier = filters.shape[0] // channels
        self._segment = segment = _segment(width)
        self._segments = -(-width // segment)
        self._seen = (segment - 1) * where.strides[1] + (where.kernel[1] - 1) * where.dilations[1]
        self._seen += 1
        self._matrices = packing.get(segment, self._toeplitz)
        self._taps, self._reach = _phases(where)
        rows = sum(height + reach for reach in self._reach.values())
        per_channel = rows * self._segments * self._seen
        work = per_channel * channels * segment * self._multiplier * images
        parts = [(0, channels)]
        if work > _SMALL:
            parts = blocks_of(channels, max(1, (1 << 18) // max(1, per_channel)))
        self._blocks = [(n, a, b) for n in range(images) for a, b in parts]
        self._small = work <= _SMALL

    def _toeplitz(self, filters: Array) -> Array:
        """(kh, C, seen, multiplier S)."""
        w, k, s = self._where, self._multiplier, self._segment
        m, _, kh, kw = filters.shape
        matrix = np.zeros((kh, m // k, self._seen, k, s), np.float32)
        taps = filters.reshape(m // k, k, kh, kw)
        for column, j in itertools.product(range(s), range(kw)):
            row = column * w.strides[1] + j * w.dilations[1]
            matrix[:, :, row, :, column] = taps[:, :, :, j].transpose(2, 0, 1)
        return matrix.reshape(kh, m // k, self._seen, k * s)

    def run(self, x: Array, out: Array, finish: Finish | None) -> None:
        flat = out.reshape(*out.shape[:2], -1)
        pixels, k = slice(0, flat.shape[2]), self._multiplier

        def block(index: int) -> None:
            n, first, last = self._blocks[index]
            part = flat[n : n + 1, first * k : last * k]
            self._product(x[n, first:last], self._matrices[:, first:last], part)
            if part.max() != part.max():  # an infinity times one of the matrix's zeros, perhaps
                self._direct(x[n, first:last], self._filters[first * k : last * k], part)
            if finish is not None:
                finish(part, slice(n, n + 1), slice(first * k, last * k), pixels)

        _run_blocks(block, len(self._blocks), self._small, math.prod(self._where.out))

    def _product(self, image: Array, matrices: Array, part: Array) -> None:
        w, k = self._where, self._multiplier
        channels, (height, width) = image.shape[0], w.out
        count, segment = height * self._segments, self._segment
        even = k == 1 and self._segments * segment == width
        shape = (channels, count, k * segment)
        target = part.reshape(shape) if even else scratch("segments", shape)
        unrolled = self._unroll(image)
        for i, (phase, offset) in enumerate(self._taps):
            begin = offset * self._segments
            rows = unrolled[phase][:, begin : begin + count]
            if i == 0:
                np.matmul(rows, matrices[i], out=target)
            else:
                product = scratch("product", shape)
                np.matmul(rows, matrices[i], out=product)
                np.add(target, product, out=target)
        if not even:
            self._put_together(target, part.reshape(channels, k, height, width))

    def _put_together(self, segments: Array, out: Array) -> None:
        """(C, height segments, multiplier S) into (C, multiplier, height, width)."""
        channels, k, height, width = out.shape
        pieces = segments.reshape(channels, height, self._segments, k, self._segment)
        if k == 1:
            lines = pieces.reshape(channels, height, -1)
            np.copyto(out[:, 0], lines[:, :, :width])
            return
        for s in range(self._segments):
            start = s * self._segment
            piece = pieces[:, :, s, :, : min(self._segment, width - start)]
            out[..., start : start + self._segment] = piece.transpose(0, 2, 1, 3)

    def _direct(self, image: Array, filters: Array, part: Array) -> None:
        """Kernel position by kernel position: slow, and exact where values are not finite."""
        w, k = self._where, self._multiplier
        padded = pad_spatial(np, image[None], w.before, w.reach)[0, :, None]
        target = part.reshape(len(image), k, *w.out)
        target[...] = 0
        for tap, (rows, columns) in w.taps():
            row, column = tap
            weights = filters[:, 0, row, column].reshape(-1, k, 1, 1)
            target += weights * padded[:, :, rows, columns]

    def _unroll(self, image: Array) -> dict[int, Array]:
        """For each phase of the rows: what every segment sees, (C, rows segments, seen)."""
        w = self._where
        channels, stride = image.shape[0], w.strides[0]
        counts = {phase: w.out[0] + reach for phase, reach in self._reach.items()}
        rows = max((count - 1) * stride + phase + 1 for phase, count in counts.items())
        step = self._segment * w.strides[1]
        image = self._padded(image, rows, (self._segments - 1) * step + self._seen)
        plane, row, column = image.strides
        unrolled = {}
        for phase, count in counts.items():
            shape = (channels, count, self._segments, self._seen)
            view = np.lib.stride_tricks.as_strided(
                image[:, phase:], shape, (plane, row * stride, column * step, column)
            )
            columns = scratch(f"columns{phase}", shape)
            np.copyto(columns, view)
            unrolled[phase] = columns.reshape(channels, -1, self._seen)
        return unrolled

    def _padded(self, image: Array, rows: int, columns: int) -> Array:
        (top, left), (height, width) = self._where.before, self._where.size
        if not top and not left and rows <= height and columns <= width:
            return image
        padded = scratch("padded", (image.shape[0], rows, columns))
        bottom = max(top, min(rows, top + height))
        right = max(left, min(columns, left + width))
        padded[:, :top] = 0
        padded[:, bottom:] = 0
        padded[:, top:bottom, :left] = 0
        padded[:, top:bottom, right:] = 0
        padded[:, top:bottom, left:right] = image[:, : bottom - top, : right - left]
        return padded


def _segment(width: int) -> int:
    """How many outputs of a row one Toeplitz product makes: about 16, with little left over."""
    if width <= 16:
        return width
    return min(range(9, 17), key=lambda size: (-(-width // size) * size, -size))


def _phases(where: Windows) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Where each kernel row finds its input rows, when every `stride`-th row is kept together.

    Returns:
        For each kernel row its phase and its offset there; for each phase the largest offset.
    """
    stride, dilation = where.strides[0], where.dilations[0]
    taps = [(i * dilation % stride, i * dilation // stride) for i in range(where.kernel[0])]
    return taps, {phase: max(q for p, q in taps if p == phase) for phase, _ in taps}


def _run_blocks(block: Callable[[int], None], count: int, small: bool, pixels: int) -> None:
    if small:
        for index in range(count):
            block(index)
    else:
        parallel(block, count, buffer_for(pixels))


def multiply(filters: Array, columns: Array, out: Array) -> None:
    """`out` = filters @ columns, in pieces narrow enough for OpenBLAS's small-matrix kernel.

    That kernel packs nothing, which pays where there are few filters.
    """
    m, depth = filters.shape
    total = columns.shape[1]
    width = next((w for w in (256, 128, 64) if m * depth * w <= _SMALL_KERNEL), 0)
    count = total // width if width else 0
    if count < 2:
        np.matmul(filters, columns, out=out)
        return
    whole = count * width
    pieces = columns[:, :whole].reshape(depth, count, width).transpose(1, 0, 2)
    targets = out[:, :whole].reshape(m, count, width).transpose(1, 0, 2)
    np.matmul(filters, pieces, out=targets)
    if whole < total:
        np.matmul(filters, columns[:, whole:], out=out[:, whole:])
