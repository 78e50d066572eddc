"""Saved inputs and outputs: looking at them, joining them, turning outputs into inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.errors import ModelError, UsageError
from polytool.feed_files import read_array, read_npz
from polytool.feeds import save_feeds
from polytool.files import StrPath
from polytool.result_files import iteration_files, load_results, read_file
from polytool.results import Chain, Iteration, Run, RunResults
from polytool.tensors import DType, as_numpy


@dataclass(frozen=True)
class SavedData:
    """What a file or directory holds.

    Attributes:
        kind: `inputs` or `results`.
        runs: one a runner; for inputs a single one without a name.
    """

    kind: str
    runs: tuple[Run, ...]

    def save(self, path: StrPath) -> None:
        """Write it again, in the format that the path's extension asks for."""
        if self.kind == "results":
            RunResults(self.runs).save(path)
        else:
            save_feeds(self.runs[0], path)


def load_saved(path: StrPath) -> SavedData:
    """Open results or inputs, ours or Polygraphy's, `.npz`, `.npy`, or a directory of such files.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    where = os.fspath(path)
    if os.path.isdir(where):
        return _load_directory(where)
    if where.endswith(".npz"):
        return SavedData("inputs", (Run("", [Iteration(read_npz(where))]),))
    if where.endswith(".npy"):
        name = os.path.splitext(os.path.basename(where))[0]
        return SavedData("inputs", (Run("", [Iteration({name: read_array(where)})]),))
    kind, runs = read_file(where)
    return SavedData(kind, tuple(runs))


def _load_directory(path: str) -> SavedData:
    arrays = [os.path.join(path, n) for n in sorted(os.listdir(path)) if n.endswith(".npz")]
    files = arrays or iteration_files(path)
    if load_saved(files[0]).kind == "results":
        return SavedData("results", tuple(load_results(path).values()))
    parts = [load_saved(file) for file in files]
    wrong = [f for f, part in zip(files, parts, strict=True) if part.kind != "inputs"]
    if wrong:
        raise ModelError(f"{path!r} holds inputs and results, such as {wrong[0]!r}: separate them")
    return SavedData("inputs", (Run("", Chain(part.runs[0] for part in parts)),))


def concat(paths: Sequence[StrPath]) -> SavedData:
    """The iterations of several files one after the other; results are matched by runner.

    Raises:
        UsageError: some hold inputs and some results, or an iteration has other tensors than the
            first.
    """
    parts = [load_saved(p) for p in paths]
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        named = ", ".join(f"{os.fspath(p)!r} {s.kind}" for p, s in zip(paths, parts, strict=True))
        raise UsageError(f"inputs and results cannot be joined: {named}")
    joined = RunResults.concat(RunResults(part.runs) for part in parts)
    for run in joined.values():
        _check_same_tensors(run)
    return SavedData(kinds.pop(), tuple(joined.values()))


def _check_same_tensors(run: Run) -> None:
    first: list[str] | None = None
    for index, iteration in enumerate(run):
        names = sorted(iteration)
        if first is not None and names != first:
            raise UsageError(
                f"iteration {index} holds {', '.join(names)}, but the first one "
                f"{', '.join(first)}: join files of the same tensors"
            )
        first = names


def merge(paths: Sequence[StrPath]) -> tuple[list[dict[str, Any]], list[str]]:
    """Inputs whose iterations hold the tensors of all files, and what is worth knowing.

    Results of one runner count as inputs: that is how the outputs of one model are fed to another.
    Where a tensor is in several files, the last one counts.

    Raises:
        UsageError: the files have different numbers of iterations, or results of several runners.
    """
    feeds: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, path in enumerate(paths):
        run = _single(path)
        if number and len(run) != len(feeds):
            raise UsageError(
                f"{os.fspath(path)!r} has {len(run)} iterations, but the files before it have "
                f"{len(feeds)}: merge files of the same length"
            )
        feeds = feeds or [{} for _ in run]
        again = {name for feed, new in zip(feeds, run, strict=True) for name in new if name in feed}
        if again:
            notes.append(f"{', '.join(sorted(again))}: taken from {os.fspath(path)!r}")
        for feed, new in zip(feeds, run, strict=True):
            feed.update(new)
    return feeds, notes


def _single(path: StrPath) -> Run:
    saved = load_saved(path)
    if len(saved.runs) != 1:
        names = ", ".join(r.name for r in saved.runs) or "none"
        raise UsageError(
            f"{os.fspath(path)!r} holds results of {len(saved.runs)} runners ({names}), and inputs "
            "are made of the outputs of exactly one"
        )
    return saved.runs[0]


def statistics(value: Any, bins: int = 0) -> dict[str, Any]:
    """What there is to say of a value: type, shape, range, moments, NaN and Inf.

    Args:
        value: an array, or a list (sequence), a dict (map) or None.
        bins: of a histogram of the finite values; 0 for none.

    Returns:
        `dtype`, `shape`; for numbers `min`, `max`, `mean`, `std`, `zeros`, `nan`, `inf`, and
        `histogram` as (counts, edges); for strings `distinct`. Complex numbers are taken by
        magnitude. A list gives `items`, a map `items` by key.
    """
    if value is None:
        return {"dtype": None}
    if isinstance(value, Mapping):
        return {"items": {str(k): statistics(v, bins) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"items": [statistics(v, bins) for v in value]}
    array = as_numpy(value)
    if array.dtype == object:
        distinct = len(set(array.reshape(-1).tolist()))
        return {"dtype": "string", "shape": list(array.shape), "distinct": distinct}
    found: dict[str, Any] = {"dtype": DType.of(array).label, "shape": list(array.shape)}
    return found | _moments(array, bins)


def _moments(array: Any, bins: int) -> dict[str, Any]:
    whole = array.dtype.kind in "iu"
    wide = np.abs(array) if array.dtype.kind == "c" else array
    wide = wide if whole else wide.astype(np.float64)
    finite = wide if whole else wide[np.isfinite(wide)]
    found: dict[str, Any] = {
        "zeros": int(np.count_nonzero(wide == 0)),
        "nan": 0 if whole else int(np.isnan(wide).sum()),
        "inf": 0 if whole else int(np.isinf(wide).sum()),
    }
    if finite.size:
        floats = finite.astype(np.float64)
        found |= {"min": finite.min().item(), "max": finite.max().item()}
        found |= {"mean": float(floats.mean()), "std": float(floats.std())}
        if bins:
            counts, edges = np.histogram(floats, bins)
            found["histogram"] = (counts.tolist(), edges.tolist())
    return found


def selected(runs: Iterable[Run], every: bool) -> list[tuple[Run, list[tuple[int, Iteration]]]]:
    """The runs with all of their iterations, or with the first alone."""
    return [(run, list(enumerate(run if every else run[:1]))) for run in runs]
