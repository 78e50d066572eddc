"""Sliding windows over the spatial axes: geometry, cutting out and putting back.

Used by convolution, pooling and Col2Im. Arrays are always (N, C, *spatial).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from polytool.backends.native.ops.registry import Array
from polytool.errors import RunnerError

Ints = Sequence[int]


@dataclass(frozen=True)
class Windows:
    """Where a kernel stands; each field has one entry a spatial axis.

    Attributes:
        size: the input, without padding.
        before: padding in front.
        after: the padding that is declared behind.
        out: how many positions.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """The padding behind that the windows need: more than declared under `ceil_mode`."""
        return tuple(
            max(a, (o - 1) * s + (k - 1) * d + 1 - n - b) for n, k, s, d, b, a, o in self._axes()
        )

    @property
    def is_pointwise(self) -> bool:
        """True when every window is one element and every element has its window."""
        return self.out == self.size and set(self.kernel + self.strides) <= {1}

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every kernel position, and the slice of the padded input that it sees."""
        for tap in itertools.product(*map(range, self.kernel)):
            yield tap, tuple(self.slice(axis, t) for axis, t in enumerate(tap))

    def places(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every output position, and the slice of the padded input that its window is."""
        steps = tuple(zip(self.strides, self.kernel, self.dilations, strict=True))
        for place in itertools.product(*map(range, self.out)):
            spans = zip(place, steps, strict=True)
            yield place, tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, (s, k, d) in spans)

    def pieces(self) -> Iterator[tuple[tuple[Any, ...], tuple[slice, ...]]]:
        """Parts of columns [*kernel, *out], and the slices of the padded input where they stand.

        By kernel positions, or by output positions where these are fewer.
        """
        if prod(self.out) < prod(self.kernel):
            every = (slice(None),) * len(self.kernel)
            yield from (((*every, *place), part) for place, part in self.places())
        else:
            yield from self.taps()

    def slice(self, axis: int, tap: int) -> slice:
        """What kernel position `tap` sees of one padded axis."""
        start, stride, out = tap * self.dilations[axis], self.strides[axis], self.out[axis]
        return slice(start, start + (out - 1) * stride + 1 if out else start, stride)

    def covered(self, *, pads_count: bool) -> list[list[int]]:
        """For each axis and window, how many kernel positions fall on the input.

        With `pads_count`, positions on the declared padding count as well; those that only
        `ceil_mode` reaches never do.
        """
        counts = []
        for n, k, s, d, b, a, o in self._axes():
            low, high = (-b, n + a) if pads_count else (0, n)
            starts = [i * s - b for i in range(o)]
            inside = [(max(0, -((p - low) // d)), min(k, -((p - high) // d))) for p in starts]
            counts.append([max(0, last - first) for first, last in inside])
        return counts

    def _axes(self) -> Iterator[tuple[int, ...]]:
        return zip(
            self.size,
            self.kernel,
            self.strides,
            self.dilations,
            self.before,
            self.after,
            self.out,
            strict=True,
        )


def windows(
    size: Ints,
    kernel: Ints,
    strides: Ints | None = None,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: bool = False,
) -> Windows:
    """Resolve ONNX's attributes for an input of spatial `size`.

    With `ceil_mode`, a last window that would start behind the input and its front padding is
    dropped.

    Raises:
        RunnerError: a kernel of negative size, or strides or dilations below one.
    """
    rank = len(size)
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    if min(kernel, default=0) < 0 or min(*strides, *dilations, 1) < 1:
        raise RunnerError(
            f"a window of size {list(kernel)} cannot go in steps of {list(strides)} with "
            f"dilations {list(dilations)}"
        )
    pads = pads if pads and auto_pad in ("NOTSET", "") else [0] * (2 * rank)
    before, after, out = [], [], []
    for axis, (n, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        extent = (k - 1) * d + 1
        front, back = pads[axis], pads[rank + axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-n // s)
            total = max((count - 1) * s + extent - n, 0)
            front = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            back = total - front
        else:
            room = n + front + back - extent
            count = (-(-room // s) if ceil_mode else room // s) + 1
            if ceil_mode and (count - 1) * s >= n + front:
                count -= 1
        before.append(front)
        after.append(back)
        out.append(max(count, 0))
    return Windows(*map(tuple, (size, kernel, strides, dilations, before, after, out)))


def pad_spatial(xp: Any, x: Array, before: Ints, after: Ints, value: Any = 0) -> Array:
    """Pad the spatial axes with `value`; negative amounts crop."""
    if not any(before) and not any(after):
        return x
    size = [n + b + a for n, b, a in zip(x.shape[2:], before, after, strict=True)]
    padded = xp.full((*x.shape[:2], *size), value, dtype=x.dtype)
    target, source = [], []
    for n, total, b in zip(x.shape[2:], size, before, strict=True):
        low = max(b, 0)
        high = max(low, min(b + n, total))
        target.append(slice(low, high))
        source.append(slice(low - b, high - b))
    padded[..., *target] = x[..., *source]
    return padded


def patches(xp: Any, x: Array, w: Windows) -> Array:
    """A view (N, C, *kernel, *out) of an already padded `x`."""
    spatial = x.strides[2:]
    taps = tuple(s * d for s, d in zip(spatial, w.dilations, strict=True))
    steps = tuple(s * d for s, d in zip(spatial, w.strides, strict=True))
    shape, strides = (*x.shape[:2], *w.kernel, *w.out), (*x.strides[:2], *taps, *steps)
    return xp.lib.stride_tricks.as_strided(x, shape=shape, strides=strides)


def fold(xp: Any, columns: Array, w: Windows) -> Array:
    """Add up columns (N, C, *kernel, *out) where their windows stand: (N, C, *size)."""
    total = [n + b + max(a, 0) for n, b, a in zip(w.size, w.before, w.reach, strict=True)]
    image = xp.zeros((*columns.shape[:2], *total), dtype=columns.dtype)
    for piece, where in w.pieces():
        image[..., *where] += columns[:, :, *piece]
    crop = tuple(slice(b, b + n) for b, n in zip(w.before, w.size, strict=True))
    return image[..., *crop]


def reduce_windows(x: Array, w: Windows, combine: Callable[[Array, Array], Array]) -> Array:
    """Reduce every window of an already padded `x` with `combine`, one axis after the other.

    The innermost axis comes first, so that the first of equals in memory order wins.
    """
    for axis in reversed(range(len(w.kernel))):
        lead = (slice(None),) * (2 + axis)
        result = x[(*lead, w.slice(axis, 0))]
        for tap in range(1, w.kernel[axis] if result.size else 0):
            result = combine(result, x[(*lead, w.slice(axis, tap))])
        x = result
    return x
