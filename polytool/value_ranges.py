"""Which tensors of a model leave the range of a reduced type, on given inputs.

A large negative number that ends in a Softmax is meant to be minus infinity: it masks. Such a
tensor may saturate, and forcing attention into float32 for its sake would cost time for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.base import Tap
from polytool.backends.native.network import Network, Node, Tensor
from polytool.model import Model
from polytool.tensors import DType

# How the sign of a masked value changes on its way; operands that are not named end the way.
_ADDED = {0: 1, 1: 1}
_WAY: Mapping[str, Mapping[int, int]] = {
    **{op: {0: 1} for op in ("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice")},
    **{op: {0: 1} for op in ("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")},
    "Add": _ADDED,
    "Where": {1: 1, 2: 1},
    "Sub": {0: 1, 1: -1},
    "Neg": {0: -1},
}
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_VANISHES = frozenset({"Exp", "Sigmoid", "Relu"})  # of a large negative number nothing is left


@dataclass
class Extent:
    """Smallest and largest finite value of a tensor over all inputs.

    Attributes:
        low: 0 where no value is negative.
        high: 0 where no value is positive.
        row_top: the smallest maximum along the last axis.
    """

    low: float = 0.0
    high: float = 0.0
    row_top: float = float("inf")

    def add(self, value: np.ndarray[Any, Any]) -> None:
        """Take one more value into account; what is not finite is not looked at."""
        if not value.size or value.dtype.kind != "f":
            return
        low, high = float(value.min()), float(value.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = value[np.isfinite(value)]
            if not finite.size:
                return
            low, high = float(finite.min()), float(finite.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if value.ndim:
            self.row_top = min(self.row_top, float(value.max(axis=-1).min()))


Extents = Mapping[str, Extent]


def measure(model: Model, feeds: Iterable[Mapping[str, Any]]) -> dict[str, Extent]:
    """Run a model in float32, unfused, and watch every float32 tensor, in bodies too.

    Raises:
        UnsupportedError: the native engine cannot run it.
    """
    from polytool.backends.native.runner import NativeRunner

    found: dict[str, Extent] = {}

    def observe(tap: Tap, value: Any) -> None:
        if tap.spec.dtype is DType.FLOAT and isinstance(value, np.ndarray):
            found.setdefault(tap.tensor, Extent()).add(value)

    runner = NativeRunner(model, optimize=False, device="cpu")
    with runner:
        for feed in feeds:
            for name, value in feed.items():
                if isinstance(value, np.ndarray) and value.dtype == np.float32:
                    found.setdefault(name, Extent()).add(value)
            runner.infer(feed, observe=observe)
    return found


class Masks:
    """Tells where a number beyond the range of a type does no harm.

    Args:
        network: the model, one layer a node.
        extents: what was measured; may be empty.
        limit: the largest number of the type.
    """

    def __init__(self, network: Network, extents: Extents, limit: float) -> None:
        self.extents, self.limit = extents, limit
        self.users: dict[Tensor, list[tuple[Node, int]]] = {}
        self.returned: set[Tensor] = set()
        self.known: dict[tuple[Tensor, int], bool] = {}
        for graph in (network, *network.bodies()):
            self.returned.update(graph.outputs)
            for layer in graph.layers:
                for node in layer.nodes:
                    for index, tensor in enumerate(node.inputs):
                        if tensor is not None:
                            self.users.setdefault(tensor, []).append((node, index))

    def harmless(self, tensor: Tensor, sign: int) -> bool:
        """Whether numbers of that sign beyond the limit all end where they count as infinite."""
        key = tensor, sign
        if key not in self.known:
            self.known[key] = False  # while it is being found out
            users = self.users.get(tensor, [])
            self.known[key] = (
                bool(users)
                and tensor not in self.returned
                and all(self._by(node, index, sign) for node, index in users)
            )
        return self.known[key]

    def passes(self, node: Node, operand: Tensor, sign: int) -> bool:
        """Whether such numbers in one operand of `node` do no harm there or later."""
        return all(self._by(node, i, sign) for i, t in enumerate(node.inputs) if t is operand)

    def _by(self, node: Node, index: int, sign: int) -> bool:
        if node.op in _SOFTMAX:
            return sign < 0 and self._has_unmasked_rows(node)
        if node.op in _VANISHES:
            return sign < 0
        factor = _WAY.get(node.op, {}).get(index)
        return factor is not None and all(self.harmless(t, sign * factor) for t in node.writes())

    def _has_unmasked_rows(self, softmax: Node) -> bool:
        """A row that is masked throughout would be NaN: minus infinity less minus infinity."""
        (tensor,) = softmax.reads()
        if tensor.value_of is None or tensor.shape is None:
            return False
        if softmax.attrs.get("axis", -1) not in (-1, len(tensor.shape) - 1):
            return False
        extent = self.extents.get(tensor.value_of.tensor)
        return extent is None or extent.row_top > -self.limit
