"""How coarsely an operator computes a model's outputs, where that is coarser than its values.

A Sigmoid of -16 is 1e-7; implementations compute it as a fraction of 1 and are off by as much. So
an output made by Sigmoid cannot be told apart below 2^-22, however small its values are. One made
by x * Sigmoid(x), or another product with a Sigmoid, cannot below 2^-22 of its largest values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from polytool.comparators.tolerances import OfScale

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
_ALL = {"Concat", "Max", "Min", "SequenceConstruct"}
_NOT, _PRODUCT, _FRACTION = range(3)  # holds no Sigmoids, products with them, Sigmoids


def output_grains(model: Source) -> dict[str, float]:
    """By output name, the absolute error that its operator may have; only those that have one."""
    from polytool.model import load

    graph = load(model).proto.graph
    scope = _Scope(graph, None)
    grains = {_PRODUCT: OfScale(GRAIN), _FRACTION: GRAIN}
    kinds = {o.name: scope.kind(o.name) for o in graph.output}
    return {name: grains[kind] for name, kind in kinds.items() if kind != _NOT}


def declared_precisions(model: Source) -> list[str]:
    """The reduced precisions that a model itself computes in: `fp16`, `bf16`."""
    from polytool.model import load, nodes, tensors

    proto = load(model).proto
    found = {t.data_type for t in tensors(proto)}
    found |= {i.type.tensor_type.elem_type for i in proto.graph.input}
    for node in nodes(proto.graph.node):
        if node.op_type == "Cast":
            found |= {a.i for a in node.attribute if a.name == "to"}
    return [name for name, number in (("fp16", 10), ("bf16", 16)) if number in found]


class _Scope:
    """The graph or a body in it: which node makes a tensor."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._known: dict[str, int] = {}
        self._outer = outer

    def kind(self, name: str) -> int:
        """What a tensor holds; the product of two Sigmoids is as good as one."""
        order = [name]
        while order:  # depth first, without recursion: graphs are deep
            current = order[-1]
            if current in self._known:
                order.pop()
                continue
            node = self._makers.get(current)
            if node is None:
                self._known[current] = self._outer.kind(current) if self._outer else _NOT
            elif node.op_type == "Sigmoid":
                self._known[current] = _FRACTION
            elif node.op_type in ("Swish", "QuickGelu"):
                self._known[current] = _PRODUCT
            elif node.op_type in _FIRST | _ALL | {"Mul"}:
                sources = list(node.input[:1] if node.op_type in _FIRST else node.input)
                if unknown := [s for s in sources if s not in self._known]:
                    order += unknown
                    continue
                kinds = [self._known[s] for s in sources]
                worst = min(kinds)
                if node.op_type == "Mul" and worst == _NOT and max(kinds) != _NOT:
                    worst = _PRODUCT
                self._known[current] = worst
            else:
                self._known[current] = self._in_bodies(node, list(node.output).index(current))
        return self._known[name]

    def _in_bodies(self, node: onnx.NodeProto, index: int) -> int:
        found = [
            _Scope(body, self).kind(body.output[index + shift].name)
            for body, shift in _bodies(node)
            if index + shift < len(body.output)
        ]
        return (max if node.op_type == "If" else min)(found, default=_NOT)


_SHIFTS: Mapping[str, int] = {"If": 0, "Loop": 1, "Scan": 0}


def _bodies(node: onnx.NodeProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """The bodies of a node, and how far their outputs are shifted against those of the node."""
    if node.op_type in _SHIFTS:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g, _SHIFTS[node.op_type]
