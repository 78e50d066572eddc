"""Tensors of which a runner computes one row only, beside an oracle that knows whole ones.

What such a tensor is computed from, and what is computed from it, works row by row along that axis:
the row repeated stands for the whole tensor, and one row of the result is what counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, LayerOracle, Outputs, Tap, Trace

Sizes = dict[str, tuple[int, ...]]


class RowOracle(LayerOracle):
    """An oracle that takes and gives the rows that taps show.

    Args:
        oracle: evaluates whole tensors.
        taps: what is seen of the runner.
    """

    def __init__(self, oracle: LayerOracle, taps: Iterable[Tap]) -> None:
        self._oracle = oracle
        self._rows = {tap.tensor: tap.rows for tap in taps if tap.rows}
        self._samples: dict[int, Sizes] = {}
        self._sizes: Sizes = {}

    def of_sample(self, number: int, oracle: LayerOracle | None = None) -> RowOracle:
        """The same, or one on another oracle, for the sizes of one sample."""
        made = RowOracle(oracle or self._oracle, ())
        made._rows, made._samples = self._rows, self._samples
        made._sizes = self._samples.setdefault(number, {})
        return made

    def trace(self, wanted: str, available: Collection[str]) -> Trace:
        """How `wanted` is computed from the nearest available tensors; see `LayerOracle`."""
        return self._oracle.trace(wanted, available)

    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute `wanted` from `inputs`, both as the runner shows them; see `LayerOracle`."""
        whole = {name: self._whole(name, value) for name, value in inputs.items()}
        found = self._oracle.evaluate(whole, wanted, noise=noise, seed=seed)
        return {name: self._row(name, value) for name, value in found.items()}

    def _whole(self, name: str, value: Any) -> Any:
        if name not in self._rows or name not in self._sizes:
            return value
        return repeated(value, self._rows[name], self._sizes[name])

    def _row(self, name: str, value: Any) -> Any:
        if name not in self._rows or not isinstance(value, np.ndarray):
            return value
        self._sizes[name] = value.shape
        for axis, index in self._rows[name]:
            value = np.take(value, [index], axis)
        return value


def repeated(value: Any, rows: Sequence[tuple[int, int]], shape: Sequence[Any] | None) -> Any:
    """A row as often as the whole tensor has it.

    Args:
        value: as a tap shows it.
        rows: see `Tap`.
        shape: of the whole tensor; where a dimension is no number, one row stays.
    """
    if not isinstance(value, np.ndarray) or shape is None or len(shape) != value.ndim:
        return value
    for axis, _ in rows:
        if isinstance(shape[axis], int) and value.shape[axis] == 1:
            value = np.repeat(value, shape[axis], axis)
    return value
