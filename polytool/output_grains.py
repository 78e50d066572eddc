"""How coarsely an operator computes a model's outputs, where that is coarser than its values.

A Sigmoid of -16 is 1e-7; implementations compute it as a fraction of 1 and are off by as much. So
an output made by Sigmoid cannot be told apart below 2^-22, however small its values are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from polytool.model import Source

GRAIN = 2.0**-22  # onnxruntime's Sigmoid is off by up to 1.7e-7
# Operators that hand on values of their first input, or of all inputs, or something between them.
_FIRST = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather",
    "Split", "Clip", "ReduceMax", "ReduceMin", "ReduceMean", "MaxPool", "AveragePool",
    "GlobalAveragePool", "TopK", "Pad", "Expand",
}  # fmt: skip
_ALL = {"Concat", "Mul", "Max", "Min", "SequenceConstruct"}


def output_grains(model: Source) -> dict[str, float]:
    """By output name, the absolute error that its operator may have; only those that have one."""
    from polytool.model import load

    graph = load(model).proto.graph
    scope = _Scope(graph, None)
    return {o.name: GRAIN for o in graph.output if scope.is_fraction(o.name)}


class _Scope:
    """The graph or a body in it: which node makes a tensor."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._known: dict[str, bool] = {}
        self._outer = outer

    def is_fraction(self, name: str) -> bool:
        """Whether a tensor holds values of Sigmoids, or products of such."""
        order = [name]
        while order:  # depth first, without recursion: graphs are deep
            current = order[-1]
            if current in self._known:
                order.pop()
                continue
            node = self._makers.get(current)
            if node is None:
                self._known[current] = self._outer is not None and self._outer.is_fraction(current)
            elif node.op_type == "Sigmoid":
                self._known[current] = True
            elif node.op_type in _FIRST | _ALL:
                sources = list(node.input if node.op_type in _ALL else node.input[:1])
                if unknown := [s for s in sources if s not in self._known]:
                    order += unknown
                else:
                    self._known[current] = all(self._known[s] for s in sources)
            else:
                self._known[current] = self._in_bodies(node, list(node.output).index(current))
        return self._known[name]

    def _in_bodies(self, node: onnx.NodeProto, index: int) -> bool:
        found = [
            _Scope(body, self).is_fraction(body.output[index + shift].name)
            for body, shift in _bodies(node)
            if index + shift < len(body.output)
        ]
        return any(found) if node.op_type == "If" else bool(found) and all(found)


_SHIFTS: Mapping[str, int] = {"If": 0, "Loop": 1, "Scan": 0}


def _bodies(node: onnx.NodeProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """The bodies of a node, and how far their outputs are shifted against those of the node."""
    if node.op_type in _SHIFTS:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g, _SHIFTS[node.op_type]
