"""Pooling: the operator on cache-sized blocks of channels, which do not depend on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic
from polytool.backends.native.tactics.pool import BUFFERED, blocks_of, parallel

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 17


class Pooling(Tactic):
    """MaxPool, AveragePool and LpPool."""

    name = "numpy.pooling"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op not in ("MaxPool", "AveragePool", "LpPool"):
            return False
        x = node.inputs[0]
        if x is None or x.constant is not None or stored_as(x) != FLOAT or mode.wide:
            return False
        return len(layer.outputs) == 1 and node.outputs[0] is layer.outputs[0]

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        operator = Generic().compile(layer, mode)

        def launch(x: Array) -> Sequence[Any]:
            if x.ndim < 3 or x.size <= 2 * _BLOCK:
                return operator(x)
            return (_by_channels(operator, x),)

        return launch


def _by_channels(operator: Launch, x: Array) -> Array:
    planes = x.reshape(-1, 1, *x.shape[2:])  # images and channels alike
    size = math.prod(x.shape[2:])
    parts = blocks_of(len(planes), max(1, _BLOCK // size))
    results: list[Any] = [None] * len(parts)

    def block(index: int) -> None:
        first, last = parts[index]
        results[index] = operator(planes[first:last])[0]

    parallel(block, len(parts), BUFFERED)
    pooled = np.concatenate(results)
    return pooled.reshape(*x.shape[:2], *pooled.shape[2:])
