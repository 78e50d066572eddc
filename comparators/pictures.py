"""What the errors of an output look like: a heat map and a histogram, small enough for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polytool.comparators.comparison import Comparison, Finding, Pair, iterate
from polytool.comparators.leaves import fit, leaves

MOST_OUTPUTS = 24  # outputs drawn for each pair of runs, the worst first
_ROWS, _COLUMNS = 48, 96
_BINS_PER_DECADE = 2


def pictures(results: Mapping[str, Any], comparison: Comparison) -> list[dict[str, Any]]:
    """One dict a pair of runs: output name to its picture, in the worst iteration.

    A picture has `shape` (of the tensor), `view` (rows, columns: all leading dimensions, and the
    last one), `map` (rows of cells, each the largest |a - b| of the elements that it covers, or
    None where a value is NaN or infinite on one side only), `histogram` (`from`: exponents of 10
    at which bins begin, `counts`, `step`), and how many elements are `equal` or `one_sided`.

    Args:
        results: the runs by name, as they were compared.
        comparison: what was found.
    """
    return [_of_pair(pair, results[pair.a], results[pair.b]) for pair in comparison.pairs]


def _of_pair(pair: Pair, a: Any, b: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for output in iterate(pair.outputs):
        if len(found) == MOST_OUTPUTS:
            break
        index, finding = output.worst_iteration, output.worst
        if index >= min(len(a), len(b)) or output.name not in a[index]:
            continue
        drawn = _of_output(a[index][output.name], b[index].get(output.name), finding)
        if drawn is not None:
            found[output.name] = drawn
    return found


def _of_output(a: Any, b: Any, finding: Finding) -> dict[str, Any] | None:
    """The picture of the arrays that the numbers are of; None for what has no distance."""
    if finding.errors is None:
        return None
    for leaf in leaves(a, b):
        fitting = fit(leaf, check_shapes=False, check_dtypes=False)
        if leaf.path == finding.path and fitting.a is not None and _is_number(fitting.a):
            return draw(fitting.a, fitting.r)
    return None


def _is_number(array: Any) -> bool:
    return bool(array.dtype != object and array.size > 0)


def draw(a: Any, b: Any) -> dict[str, Any]:
    """The picture of two arrays of one shape; see `pictures`."""
    error, one_sided = distance(a, b)
    rows, columns = _view(error.shape)
    return {
        "shape": list(error.shape),
        "view": [rows, columns],
        "map": _cells(error.reshape(rows, columns), one_sided.reshape(rows, columns)),
        "histogram": _histogram(error[~one_sided]),
        "equal": int(np.count_nonzero(error == 0)),
        "one_sided": int(np.count_nonzero(one_sided)),
    }


def distance(a: Any, b: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """|a - b| in float64, and where only one side is finite, or they are not finite alike.

    What is not finite in the same way on both sides is equal.
    """
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(x - y)
    one_sided = ~same & ~(np.isfinite(x) & np.isfinite(y))
    return np.where(same, 0.0, np.where(one_sided, np.inf, error)), one_sided


def _view(shape: tuple[int, ...]) -> tuple[int, int]:
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), shape[-1]


def _cells(error: Any, one_sided: Any) -> list[list[float | None]]:
    """Maxima over blocks; rows and columns are cut at equal distances."""
    for axis, most in ((0, _ROWS), (1, _COLUMNS)):
        size = error.shape[axis]
        if size > most:
            starts = np.arange(most) * size // most
            error = np.maximum.reduceat(error, starts, axis=axis)
            one_sided = np.logical_or.reduceat(one_sided, starts, axis=axis)
    worst = np.where(one_sided, np.inf, error).tolist()
    return [[float(f"{e:.3g}") if math.isfinite(e) else None for e in row] for row in worst]


def _histogram(error: Any) -> dict[str, Any]:
    """How many errors lie in each half of a decade; those that are 0 are in no bin."""
    positive = error[(error > 0) & np.isfinite(error)]
    if not positive.size:
        return {"from": [], "counts": [], "step": 1 / _BINS_PER_DECADE}
    bins = np.floor(np.log10(positive) * _BINS_PER_DECADE).astype(np.int64)
    first = int(bins.min())
    counts = np.bincount(bins - first)
    return {
        "from": [(first + i) / _BINS_PER_DECADE for i in range(len(counts))],
        "counts": counts.tolist(),
        "step": 1 / _BINS_PER_DECADE,
    }
