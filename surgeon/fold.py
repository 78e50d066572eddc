"""Constant folding.

    op(constants) => initializer            also If, Loop and Scan with what they capture

Left alone: what is random, what a caller can override, quantisation (folding it would undo it),
and results that would make the file grow by more than the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.arrays import Array, packed_size
from polytool.surgeon.constants import become_constant
from polytool.surgeon.evaluate import CannotEvaluateError, evaluate, evaluate_bodies, result_shapes
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.tensors import DType

DEFAULT_LIMIT = 16 << 20
RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
_QUANTISATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MOST_TRIPS = 10_000
_LARGEST_VALUE = 1 << 30  # bytes; nothing larger is even computed


def fold_constants(workspace: Workspace, report: Report, *, limit: int = DEFAULT_LIMIT) -> None:
    """Replace everything that depends on constants only by its value.

    Args:
        workspace: sorted.
        report: what was done and refused.
        limit: bytes by which one folded node may make the file grow.
    """
    for graph in workspace.graphs:
        _Folder(graph, report, limit).run()


class _Folder:
    """Folds one graph: first computes, in order, then stores what is still needed."""

    def __init__(self, graph: Graph, report: Report, limit: int) -> None:
        self.graph, self.report, self.limit = graph, report, limit
        self.model = graph.workspace.model
        self.known: dict[Value, Any] = {}
        self.readers: dict[Value, int] = {}

    def run(self) -> None:
        folded = [node for node in self.graph.nodes if self.fold(node)]
        for node in reversed(folded):
            self.keep(node)
        if folded:
            self.graph.compact()
            gone = sum(node.graph is None for node in folded)
            self.report.did("nodes folded into constants", gone)

    def fold(self, node: Node) -> bool:
        """Compute `node` if it is to be folded."""
        if not self.is_candidate(node):
            return False
        inputs = [self.value_of(v) if v is not None else None for v in node.inputs]
        reason = self.refusal(node, inputs)
        if reason is None:
            try:
                results = self.compute(node, inputs)
            except CannotEvaluateError as err:
                reason = str(err)
            else:
                reason = self.growth(node, results)
        if reason is not None:
            self.report.refuse(node.label, f"not folded: {reason}")
            return False
        for value, result in zip(node.outputs, results, strict=True):
            if value is not None:
                self.known[value] = result
        self.release(node)
        return True

    def compute(self, node: Node, inputs: Sequence[Any]) -> list[Any]:
        if not node.bodies:
            return evaluate(node, inputs)
        return evaluate_bodies(node, {v: self.value_of(v) for v in node.reads()})

    def is_candidate(self, node: Node) -> bool:
        if node.op == "Constant":
            return False
        if node.op == "Identity" and not any(v.is_output for v in node.outputs if v):
            return False  # goes without a copy
        return all(v in self.known or v.constant is not None for v in node.reads())

    def refusal(self, node: Node, inputs: Sequence[Any]) -> str | None:
        if node.op in RANDOM:
            return "it is random"
        if node.op in _QUANTISATION:
            return "it quantises"
        if node.has_references:
            return "it depends on a parameter of its function"
        if node.bodies and (reason := _body_refusal(node, inputs)):
            return reason
        if not node.inputs and node.domain:
            return "nothing says that it always gives the same"
        size = predicted_bytes(node, inputs)
        if size is not None and size - self.freed(node) > self.limit:
            return f"the file would grow by {size - self.freed(node)} bytes"
        if size is not None and size > _LARGEST_VALUE:
            return f"its value has {size} bytes"
        return None

    def value_of(self, value: Value) -> Any:
        if value in self.known:
            return self.known[value]
        assert value.tensor is not None
        return self.model.array(value.tensor)

    def freed(self, node: Node) -> int:
        """Bytes of constants that nobody else needs."""
        total = 0
        for value in dict.fromkeys(v for v in node.inputs if v is not None):
            if len(value.users) == 1 and value.graph is self.graph:
                if value.tensor is not None:
                    total += self.model.nbytes(value.tensor)
                else:
                    total += nbytes(self.known[value])
        return total

    def growth(self, node: Node, results: Sequence[Any]) -> str | None:
        if any(isinstance(r, list) for r in results):
            return None
        size = sum(nbytes(r) for r, v in zip(results, node.outputs, strict=True) if v and v.users)
        more = size - self.freed(node)
        return f"the file would grow by {more} bytes" if more > self.limit else None

    def release(self, node: Node) -> None:
        """Let go of values that only folded nodes have read."""
        if any(not isinstance(self.known.get(v), np.ndarray) for v in node.outputs if v):
            return  # a sequence cannot be stored: its inputs may have to be
        for value in {v for v in node.inputs if v is not None and v in self.known}:
            self.readers[value] = self.readers.get(value, 0) + 1
            if self.readers[value] == len(value.users):
                self.known[value] = None

    def keep(self, node: Node) -> None:
        """Make initializers of the values of `node` that are still read, and remove it."""
        outputs = [v for v in node.outputs if v is not None]
        if any(v.users and not isinstance(self.known[v], np.ndarray) for v in outputs):
            return
        for value in outputs:
            if value.users:
                dtype = value.dtype if value.dtype is not None else DType.of(self.known[value])
                tensor = self.model.store(self.known[value], "", dtype)
                become_constant(value, tensor)
        if node.graph is not None:
            self.graph.remove(node)


def _body_refusal(node: Node, inputs: Sequence[Any]) -> str | None:
    """Why a node with bodies, all of whose inputs are constant, is not computed."""
    inside = (n for body in node.bodies.values() for graph in body.walk() for n in graph.nodes)
    if any(n.op in RANDOM for n in inside):
        return "it is random inside"
    if node.op not in ("If", "Loop", "Scan"):
        return "it has a body"
    if node.op != "Loop":
        return None
    trips = inputs[0]
    told = isinstance(trips, np.ndarray) and trips.dtype.kind in "iu"
    if not told or np.max(trips, initial=0) > _MOST_TRIPS:
        return f"nothing says that it ends within {_MOST_TRIPS} iterations"
    return None


def nbytes(value: Any) -> int:
    """Bytes that `value` takes in a file."""
    if isinstance(value, list):
        return sum(nbytes(v) for v in value)
    if value is None:
        return 0
    array: Array = value
    if array.dtype == np.object_:
        return sum(len(str(s)) for s in array.reshape(-1))
    return packed_size(DType.of(array), array.shape)


def predicted_bytes(node: Node, inputs: Sequence[Any]) -> int | None:
    """Bytes of the result before it is computed, where that can be told."""
    total = 0
    for value in node.outputs:
        if value is None:
            continue
        shape, dtype = value.shape, value.dtype
        if shape is None or dtype is None or not all(isinstance(d, int) for d in shape):
            if not all(isinstance(v, np.ndarray) for v in inputs):
                return None  # a sequence, or nothing
            try:
                return _growing(node, inputs)
            except Exception:  # inputs that the operator does not take: computing it will say so
                return None
        total += packed_size(dtype, tuple(int(d) for d in shape if isinstance(d, int)))
    return total


def _growing(node: Node, inputs: Sequence[Any]) -> int | None:
    """The same for operators that can make much out of little."""
    if node.op == "ConstantOfShape":
        tensor = node.attribute("value")
        item = nbytes(node.where.workspace.model.array(tensor)) if tensor is not None else 4
        return math.prod(map(int, inputs[0])) * item
    if node.op == "Expand":
        try:
            shape = np.broadcast_shapes(inputs[0].shape, tuple(map(int, inputs[1])))
        except ValueError:
            return None
        return math.prod(shape) * int(inputs[0].itemsize)
    if node.op == "Tile" and len(inputs) == 2:
        return math.prod(map(int, inputs[1])) * int(inputs[0].nbytes)
    if node.op == "Range" and all(np.size(v) == 1 for v in inputs) and inputs[2]:
        start, stop, step = (float(v.item()) for v in inputs)
        return max(math.ceil((stop - start) / step), 0) * int(inputs[0].itemsize)
    if node.op == "OneHot":
        return int(inputs[0].size) * int(np.reshape(inputs[1], -1)[0]) * int(inputs[2].itemsize)
    shapes = result_shapes(node, inputs)
    if not inputs or shapes is None or None in shapes:
        return None
    # Counting what is empty too: operators may make other large arrays on the way to it.
    elements = sum(math.prod(max(d, 1) for d in shape) for shape in shapes if shape is not None)
    return elements * max(int(v.itemsize) for v in inputs)
