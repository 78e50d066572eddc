"""Looking at the neighbourhood of a node: what the pattern passes share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.passes.precision import precision_of
from polytool.tensors import DType

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
"""The operators that normalise the last axes, with the same inputs."""


class Graph:
    """Producers and consumers of one network while a pass looks for patterns in it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.producer: dict[Tensor, Layer] = {}
        self.readers: dict[Tensor, int] = {}
        self._readers: dict[Tensor, list[Layer]] = {}
        for layer in network.layers:
            for tensor in layer.outputs:
                self.producer[tensor] = layer
            for tensor in layer.inputs:
                self.readers[tensor] = self.readers.get(tensor, 0) + 1
                self._readers.setdefault(tensor, []).append(layer)
        for tensor in network.outputs:
            self.readers[tensor] = self.readers.get(tensor, 0) + 1

    def node(self, tensor: Tensor | None, *ops: str) -> Node | None:
        """The unfused node that produces `tensor`, if it is one of `ops`."""
        layer = self.producer.get(tensor) if tensor is not None else None
        if layer is None or len(layer.nodes) > 1 or layer.nodes[0].op not in ops:
            return None
        return layer.nodes[0]

    def only(self, tensor: Tensor, readers: int = 1) -> bool:
        """Whether `tensor` is read exactly `readers` times (leaving the network counts)."""
        return self.readers.get(tensor, 0) == readers

    def reader(self, tensor: Tensor, *ops: str) -> Node | None:
        """The one node that reads `tensor`, if it is unfused and one of `ops`."""
        found = self.consumers(tensor)
        return found[0] if len(found) == 1 and self.only(tensor) and found[0].op in ops else None

    def consumers(self, tensor: Tensor) -> list[Node]:
        """The unfused nodes that read `tensor`, in order."""
        return [x.nodes[0] for x in self._readers.get(tensor, ()) if len(x.nodes) == 1]

    def rewrite(self, replaced: dict[int, Node]) -> None:
        """Put each new node in the place of the old node that produced its last output.

        Args:
            replaced: `id` of an old node to the node that computes its output now; the layers of
                nodes whose outputs nobody reads any more are dropped.
        """
        layers = [
            Layer.single(replaced[id(layer.nodes[0])]) if id(layer.nodes[0]) in replaced else layer
            for layer in self.network.layers
        ]
        self.network.replace_layers(drop_unread(layers, self.network.outputs))


def drop_unread(layers: list[Layer], outputs: Iterable[Tensor]) -> list[Layer]:
    """The layers without those whose outputs nothing reads."""
    needed = set(outputs)
    kept = []
    for layer in reversed(layers):
        if needed.isdisjoint(layer.outputs):
            continue
        kept.append(layer)
        needed.update(layer.inputs)
    return kept[::-1]


def scalar(tensor: Tensor | None) -> float | None:
    """The value of a constant of one element, else None."""
    if tensor is None or tensor.constant is None or tensor.constant.size != 1:
        return None
    return float(np.asarray(tensor.constant.array(), dtype=np.float64).reshape(-1)[0])


def split_constant(node: Node) -> tuple[Tensor, Tensor] | None:
    """The variable and the constant operand of a two-operand node, in that order."""
    if len(node.inputs) != 2 or None in node.inputs:
        return None
    a, b = node.inputs
    assert a is not None and b is not None
    if (a.constant is None) == (b.constant is None):
        return None
    return (b, a) if a.constant is not None else (a, b)


def sources(*nodes: Node | None) -> tuple[str, ...]:
    """The ONNX nodes of several nodes, each once."""
    return tuple(dict.fromkeys(s for n in nodes if n is not None for s in n.sources))


def same_precision(config: BuilderConfig, nodes: Iterable[Node]) -> bool:
    """Whether all nodes write one type (or bool) and will be lowered to one precision."""
    nodes = list(nodes)
    types = {t.dtype for n in nodes for t in n.writes()} - {DType.BOOL}
    return len(types) == 1 and len({precision_of(n, config) for n in nodes}) == 1
