"""ScatterElements with a reduction whose indices are the same all along the rows (graph networks).

Rows that go to the same place are brought together and reduced in one pass; `ufunc.at`, which the
operator needs for arbitrary indices, takes elements one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic

Array = np.ndarray[Any, Any]
_REDUCTIONS = {"add": np.add, "max": np.maximum, "min": np.minimum}


class Scatter(Tactic):
    """Rows of updates reduced into rows of the data."""

    name = "numpy.scatter"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op != "ScatterElements" or mode.wide:
            return False
        if node.attrs.get("reduction") not in _REDUCTIONS or node.attrs.get("axis", 0) != 0:
            return False
        return all(
            t is not None and t.constant is None and (i == 1 or stored_as(t) == FLOAT)
            for i, t in enumerate(node.inputs)
        )

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        combine = _REDUCTIONS[node.attrs["reduction"]]
        places = [layer.inputs.index(t) for t in node.inputs if t is not None]
        fallback = Generic().compile(layer, mode)

        def launch(*args: Any) -> Sequence[Any]:
            data, indices, updates = (args[i] for i in places)
            rows = _row_indices(indices, data, updates)
            if rows is None:
                return fallback(*args)
            return (_reduce_rows(combine, data, rows, updates),)

        return launch


def _row_indices(indices: Array, data: Array, updates: Array) -> Array | None:
    """The one index of each row; None where a row has several, or is shorter than the data's."""
    if indices.ndim < 2 or indices.size == 0 or updates.shape != indices.shape:
        return None
    if data.shape[1:] != indices.shape[1:]:
        return None
    first: Any = (slice(None), *[0] * (indices.ndim - 1))
    flat = indices[first]
    spread = all(
        s == 0 or n == 1 for s, n in zip(indices.strides[1:], indices.shape[1:], strict=True)
    )
    if not spread and not (indices == flat.reshape(-1, *[1] * (indices.ndim - 1))).all():
        return None
    flat = np.where(flat < 0, flat + len(data), flat)
    return flat if flat.min() >= 0 and flat.max() < len(data) else None


def _reduce_rows(combine: Any, data: Array, rows: Array, updates: Array) -> Array:
    """`data` with each row of `updates` combined into its row, in the order of the updates."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    reduced = combine.reduceat(updates[order], starts, axis=0)
    result = data.copy()
    targets = ordered[starts]
    result[targets] = combine(result[targets], reduced)
    return result
