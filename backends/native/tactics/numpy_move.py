"""Large copies over the pool: Concat, and Resize to a whole multiple by nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.memo import Memo
from polytool.backends.native.tactics.numpy_generic import Generic
from polytool.backends.native.tactics.pool import blocks_of, parallel

Array = np.ndarray[Any, Any]
# Elements from which a copy is shared among threads.
_LARGE = 1 << 18


class Concat(Tactic):
    """Large inputs are copied side by side."""

    name = "numpy.concat"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op != "Concat" or mode.wide:
            return False
        return len(node.inputs) > 1 and all(
            t is not None and t.constant is None and stored_as(t) == FLOAT for t in node.inputs
        )

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        axis = int(node.attrs["axis"])
        places = [layer.inputs.index(t) for t in node.inputs if t is not None]
        fallback = Generic().compile(layer, mode)

        def launch(*args: Any) -> Sequence[Any]:
            if sum(a.size for a in args) < _LARGE:
                return fallback(*args)
            return (_joined([args[i] for i in places], axis),)

        return launch


def _joined(parts: list[Array], axis: int) -> Array:
    shape = list(parts[0].shape)
    axis %= len(shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    out = np.empty(shape, np.float32)
    copies, start = [], 0
    for part in parts:
        length = part.shape[axis]
        lead = (slice(None),) * axis
        for first, last in blocks_of(length, max(1, length * _LARGE // max(1, part.size))):
            target = out[(*lead, slice(start + first, start + last))]
            copies.append((target, part[(*lead, slice(first, last))]))
        start += length
    parallel(lambda i: np.copyto(*copies[i]), len(copies))
    return out


class ResizeNearest(Tactic):
    """Every element of an image becomes a block of equal elements."""

    name = "numpy.resize_nearest"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op != "Resize" or mode.wide:
            return False
        x, *others = node.inputs
        if x is None or x.constant is not None or stored_as(x) != FLOAT:
            return False
        if any(t is not None and t.constant is None for t in others):
            return False
        return bool(node.attrs.get("mode", "nearest") == "nearest")

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        fallback = Generic().compile(layer, mode)
        factors: Memo[tuple[int, ...], tuple[int, int] | None] = Memo()

        def launch(x: Array) -> Sequence[Any]:
            if x.shape not in factors:
                factors.keep(x.shape, _factors(x, fallback))
            found = factors.get(x.shape)
            return fallback(x) if found is None else (_enlarged(x, *found),)

        return launch


def _factors(x: Array, resize: Launch) -> tuple[int, int] | None:
    """How often rows and columns repeat, if that is all that happens: asked of the operator."""
    if x.ndim != 4 or x.size < 1 << 12:
        return None
    height, width = x.shape[2:]
    where = np.arange(height * width, dtype=np.float32).reshape(height, width)
    if where.size >= 1 << 24:
        return None
    result = resize(np.broadcast_to(where, x.shape))[0]
    if result.shape[:2] != x.shape[:2]:
        return None
    rows, columns = result.shape[2] // height, result.shape[3] // width
    repeated = where.repeat(rows, axis=0).repeat(columns, axis=1)
    return (rows, columns) if np.array_equal(result[0, 0], repeated) else None


def _enlarged(x: Array, rows: int, columns: int) -> Array:
    n, c, height, width = x.shape
    out = np.empty((n, c, height * rows, width * columns), np.float32)
    x = x.reshape(n * c, height, width)
    lines = out.reshape(n * c, height, rows, width * columns)
    size = math.prod(lines.shape[1:])
    parts = blocks_of(n * c, max(1, _LARGE // max(1, size)))

    def block(index: int) -> None:
        first, last = parts[index]
        line = lines[first:last, :, 0]
        for column in range(columns):
            line[:, :, column::columns] = x[first:last]
        lines[first:last, :, 1:] = line[:, :, None]

    parallel(block, len(parts))
    return out
