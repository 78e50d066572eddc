"""How far two arrays are apart: absolute, relative, ULP, L2, cosine, PSNR, SNR, top-k indices.

Nothing wraps around and nothing is rounded before it is subtracted: integers are subtracted
exactly, real floats as float64, complex ones as complex128. A NaN, or an Inf of one sign, at the
same place on both sides counts as equal and takes no part in the statistics; one on one side only
makes every error infinite.

Formulas, with e = a - r, r the reference, over the elements that are finite on both sides:

    max_abs = max|e|              rel_l2 = ||e|| / ||r||          snr = 20 log10(||r|| / ||e||) dB
    max_rel = max(|e| / |r|)      cosine = <a, r> / (||a|| ||r||)
    max_scaled = max|e| / max|r|  psnr = 20 log10(max|r| sqrt(n) / ||e||) dB
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.comparators.frontier import frontier_of
from polytool.comparators.ranks import index_distance, max_ulp
from polytool.errors import UsageError
from polytool.tensors import DType

Array = Any
Slices = tuple[Any, ...]  # of slices; or (...,) for the whole

BLOCK = 1 << 18
MIN_SLICE = 8  # elements: below that the norm of a slice says little
MAX_SLICES = 1 << 16


@dataclass(frozen=True)
class SliceNorms:
    """Along one axis: the norms of the error and of the reference in each slice."""

    axis: int
    size: int
    error: Array
    reference: Array


@dataclass(frozen=True)
class Errors:
    """How far an array `a` is from its reference `r`.

    Attributes:
        count: elements.
        mismatched: elements that are not equal.
        one_sided: elements that are NaN or Inf on one side only, or Inf of different signs.
        not_finite: elements that are NaN or Inf on both sides, in the same way.
        scale: the largest finite |r|.
        worst: index of the largest error; () for a 0-d array, None when there is none.
        values: a and r at `worst`, as text.
        frontier: pairs (|r|, |e|) that decide `max(|e| - t |r|)` for every t >= 0, so that any
            tolerance can be checked later; see `frontier.required_atol`.
        slices: norms along each axis that has slices worth looking at.
    """

    count: int
    mismatched: int = 0
    one_sided: int = 0
    not_finite: int = 0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    max_rel: float = 0.0
    mean_rel: float = 0.0
    l2: float = 0.0
    reference_l2: float = 0.0
    cosine_similarity: float = 1.0
    scale: float = 0.0
    max_ulp: float | None = None
    index_distance: float | None = None
    median_abs: float | None = None
    median_rel: float | None = None
    quantile_abs: float | None = None
    quantile_rel: float | None = None
    worst: tuple[int, ...] | None = None
    values: tuple[str, str] = ("", "")
    frontier: tuple[tuple[float, float], ...] = ()
    slices: tuple[SliceNorms, ...] = field(default=(), repr=False, compare=False)

    @property
    def rel_l2(self) -> float:
        """The norm of the error over that of the reference."""
        return _ratio(self.l2, self.reference_l2)

    @property
    def max_scaled(self) -> float:
        """The largest error over the largest |r|."""
        return _ratio(self.max_abs, self.scale)

    @property
    def snr(self) -> float:
        """Signal to noise, in dB."""
        return -_decibel(self.rel_l2)

    @property
    def psnr(self) -> float:
        """Peak signal to noise, in dB; the peak is the largest |r|."""
        finite = max(self.count - self.one_sided - self.not_finite, 1)
        return -_decibel(_ratio(self.l2, self.scale * math.sqrt(finite)))


def _ratio(error: float, reference: float) -> float:
    if error == 0:
        return 0.0
    return error / reference if reference else math.inf


def _decibel(ratio: float) -> float:
    return 20 * math.log10(ratio) if ratio > 0 else -math.inf


def measure(
    a: Array,
    r: Array,
    *,
    ulp: bool = False,
    indices: bool = False,
    quantile: float | None = None,
    slices: bool = False,
    frontier: bool = False,
) -> Errors:
    """Compare two arrays of one shape.

    Args:
        a: the array.
        r: its reference.
        ulp: also the distance in units of the last place, where both have one float type.
        indices: also how far the rows are from being reordered, in places.
        quantile: also medians and this quantile of absolute and relative errors.
        slices: also the norms of slices along each axis.
        frontier: also what decides about any pair of tolerances.

    Raises:
        UsageError: the shapes differ.
    """
    if a.shape != r.shape:
        raise UsageError(f"shapes {list(a.shape)} and {list(r.shape)} cannot be compared")
    if a.dtype == object or r.dtype == object:
        return _compare_exactly(a, r)
    total = _Total(a.shape, slices, frontier)
    kept: list[tuple[Array, Array]] = []
    for block in blocks(a.shape):
        error, relative = total.add(block, a[block], r[block])
        if quantile is not None:
            kept.append((error, relative))
    extra: dict[str, float | None] = {}
    if ulp:
        extra["max_ulp"] = max_ulp(a, r)
    if indices:
        extra["index_distance"] = index_distance(a, r)
    if quantile is not None and kept:
        extra |= _quantiles(kept, quantile)
    return total.result(a, r, extra)


def blocks(shape: Sequence[int]) -> Iterator[Slices]:
    """Index tuples that cut an array into parts of about `BLOCK` elements along one axis."""
    axis = next((i for i, d in enumerate(shape) if d > 1), None)
    size = math.prod(shape)
    if axis is None or size <= BLOCK:
        yield (...,)
        return
    rows = max(1, BLOCK * shape[axis] // size)
    for start in range(0, shape[axis], rows):
        yield (*[slice(None)] * axis, slice(start, start + rows))


def difference(a: Array, r: Array) -> tuple[Array, Array, Array]:
    """|a - r|, exact up to the rounding of the result, and a and r, as float64 or complex128."""
    kinds = {_kind(a), _kind(r)}
    wide = np.complex128 if "c" in kinds else np.float64
    x, y = a.astype(wide), r.astype(wide)
    if kinds <= {"i", "u", "b"} and {a.dtype.itemsize, r.dtype.itemsize} & {8}:
        return _wide_difference(a, r), x, y
    error = np.asarray(np.subtract(x, y))
    return (np.abs(error) if "c" in kinds else np.abs(error, out=error)), x, y


def _kind(array: Array) -> str:
    """`i`, `u`, `f`, `c`, `b`; the types of ml_dtypes count as what they are."""
    if array.dtype.kind != "V":
        return str(array.dtype.kind)
    dtype = DType.of(array)
    return "f" if dtype.is_float else "i"


def _wide_difference(a: Array, r: Array) -> Array:
    """Modulo 2^64 the larger minus the smaller is right whatever the signs are."""
    larger = _greater(a, r)
    x, y = a.astype(np.uint64), r.astype(np.uint64)
    error = np.where(larger, x - y, y - x).astype(np.float64)
    if a.dtype.kind == r.dtype.kind:
        return error
    # A negative number and one above 2^63 are further apart than 64 bits hold, but then their
    # magnitudes only add up, which floats do well.
    return np.where((a < 0) | (r < 0), np.abs(a.astype(np.float64) - r.astype(np.float64)), error)


def _greater(a: Array, r: Array) -> Array:
    """a > r without a common type that rounds: int64 beside uint64 would become float64."""
    if a.dtype.kind == r.dtype.kind:
        return a > r
    if a.dtype == np.uint64:
        return (r < 0) | (a > r.astype(np.uint64))
    return (a >= 0) & (a.astype(np.uint64) > r.astype(np.uint64))


class _Total:
    """Statistics that are gathered block by block."""

    def __init__(self, shape: Sequence[int], slices: bool, frontier: bool) -> None:
        self.shape = tuple(shape)
        self.count = math.prod(shape)
        self.frontier = frontier
        self.mismatched = self.one_sided = self.not_finite = 0
        self.sum_abs = self.sum_rel = self.max_rel = self.scale = 0.0
        self.sums = np.zeros(4)  # of e^2, r^2, a^2, a r; in units of `unit`
        self.unit = 0.0
        self.worst: tuple[float, tuple[int, ...]] | None = None
        self.points: list[tuple[float, float]] = []
        axes = [k for k in range(len(shape)) if slices and self._worth(k)]
        self.squares = {k: np.zeros((2, shape[k])) for k in axes}

    def _worth(self, axis: int) -> bool:
        size = self.shape[axis]
        return 1 < size <= MAX_SLICES and self.count // size >= MIN_SLICE

    def add(self, where: Slices, a: Array, r: Array) -> tuple[Array, Array]:
        """Take a block in; returns its errors, absolute and relative, of the finite elements."""
        with np.errstate(all="ignore"):
            error, x, y = difference(a, r)
            finite = None if np.isfinite(error.sum()) else np.isfinite(error)
            if finite is not None and not finite.all():
                self._count_specials(where, x, y, finite)
                error, x, y = (np.where(finite, v, 0) for v in (error, x, y))
            size = np.abs(y)
            relative = np.divide(error, size, out=np.zeros_like(error), where=error != 0)
        if error.size:
            self.mismatched += int(np.count_nonzero(error))
            self.sum_abs += float(error.sum())
            self.sum_rel += float(relative.sum())
            self.max_rel = max(self.max_rel, float(relative.max()))
            self.scale = max(self.scale, float(size.max()))
            self._add_worst(where, error)
            self._add_norms(where, error, x, y)
            if self.frontier:
                self.points = frontier_of(error.reshape(-1), size.reshape(-1), self.points)
        return (error, relative) if finite is None else (error[finite], relative[finite])

    def _count_specials(self, where: Slices, x: Array, y: Array, finite: Array) -> None:
        """NaN and Inf: the same on both sides, or on one side only."""
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        wrong = ~finite & ~same
        if wrong.any():
            self.one_sided += int(wrong.sum())
            if self.worst is None or self.worst[0] < math.inf:
                self.worst = (math.inf, self._global(where, wrong, int(wrong.argmax())))
        self.not_finite += int((~finite & same).sum())

    def _add_worst(self, where: Slices, error: Array) -> None:
        at = int(error.argmax())
        value = float(error.reshape(-1)[at])
        if self.worst is None or value > self.worst[0]:
            self.worst = (value, self._global(where, error, at))

    def _global(self, where: Slices, block: Array, at: int) -> tuple[int, ...]:
        index = [int(i) for i in np.unravel_index(at, block.shape)]
        if where[-1] is not ...:
            index[len(where) - 1] += where[-1].start
        return tuple(index)

    def _add_norms(self, where: Slices, error: Array, x: Array, y: Array) -> None:
        largest = max(float(error.max()), float(np.abs(x).max()), float(np.abs(y).max()))
        # Squares of very large or very small numbers leave float64.
        unit = 1.0 if 1e-120 < largest < 1e120 or not largest else largest
        if unit > self.unit:
            self.sums *= (self.unit / unit) ** 2
            for squares in self.squares.values():
                squares *= (self.unit / unit) ** 2
            self.unit = unit
        if self.unit != 1:
            error, x, y = error / self.unit, x / self.unit, y / self.unit
        pairs = ((error, error), (y, y), (x, x), (x, y))
        self.sums += [float(np.vdot(p, q).real) for p, q in pairs]
        for axis, squares in self.squares.items():
            cut = where[axis] if where[0] is not ... and axis < len(where) else slice(None)
            squares[0][cut] += _sum_squares(error, axis)
            squares[1][cut] += _sum_squares(y, axis)

    def result(self, a: Array, r: Array, extra: dict[str, Any]) -> Errors:
        """Everything that was gathered."""
        finite = max(self.count - self.one_sided - self.not_finite, 1)
        e, s, x, dot = (float(v) for v in self.sums)
        cosine = dot / math.sqrt(s * x) if s and x else float(s == x)
        found: dict[str, Any] = {
            "max_abs": self.worst[0] if self.worst else 0.0,
            "mean_abs": self.sum_abs / finite,
            "max_rel": self.max_rel,
            "mean_rel": self.sum_rel / finite,
            "l2": math.sqrt(e) * self.unit,
            "cosine_similarity": max(-1.0, min(1.0, cosine)),
        } | extra
        if self.one_sided:
            found = {k: math.nan if k.startswith("cos") else math.inf for k in found}
        worst = self.worst[1] if self.worst and self.worst[0] > 0 else None
        return Errors(
            count=self.count,
            mismatched=self.mismatched + self.one_sided,
            one_sided=self.one_sided,
            not_finite=self.not_finite,
            reference_l2=math.sqrt(s) * self.unit,
            scale=self.scale,
            worst=worst,
            values=("", "") if worst is None else (_show(a[worst]), _show(r[worst])),
            frontier=tuple(self.points),
            slices=tuple(
                SliceNorms(k, self.count // self.shape[k], *np.sqrt(v) * self.unit)
                for k, v in self.squares.items()
            ),
            **found,
        )


def _sum_squares(array: Array, axis: int) -> Array:
    """Along every other axis."""
    shape = array.shape
    three = array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    return np.einsum("abc,abc->b", three, three.conj()).real


def _show(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, np.bool_ | bool | np.integer | int):
        return str(value)
    return f"{complex(value):.6g}" if np.iscomplexobj(value) else f"{float(value):.6g}"


def _compare_exactly(a: Array, r: Array) -> Errors:
    """Strings: equal or not."""
    unequal = np.asarray(a != r, bool)
    wrong = int(unequal.sum())
    worst = None if not wrong else _unravel(unequal)
    error = 1.0 if wrong else 0.0
    return Errors(
        count=a.size,
        mismatched=wrong,
        max_abs=error,
        mean_abs=wrong / max(a.size, 1),
        max_rel=error,
        mean_rel=wrong / max(a.size, 1),
        worst=worst,
        values=("", "") if worst is None else (_show(a[worst]), _show(r[worst])),
        frontier=((0.0, 1.0),) if wrong else (),
    )


def _unravel(flags: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(flags.argmax()), flags.shape))


def _quantiles(kept: list[tuple[Array, Array]], quantile: float) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, parts in zip(("abs", "rel"), zip(*kept, strict=True), strict=True):
        values = np.concatenate([p.reshape(-1) for p in parts])
        if values.size:
            with np.errstate(invalid="ignore"):  # between a number and infinity, or two infinities
                median, other = np.quantile(values, (0.5, quantile))
            found |= {f"median_{name}": _or_inf(median), f"quantile_{name}": _or_inf(other)}
    return found


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else float(value)
