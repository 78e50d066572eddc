"""Decide which tensors live on the host: those that only shapes are computed from.

A tensor is on the host when its value follows from shapes and constants alone and an operator
needs it to know the shape of its output (`Operator.host`), directly or through other such tensors.
"""

from __future__ import annotations

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.passes.result import PassResult

_SHAPE_READERS = frozenset({"Shape", "Size"})


def place_on_host(network: Network, config: BuilderConfig) -> PassResult:
    """Set `Tensor.place`, in bodies too."""
    result = PassResult()
    for graph in (network, *network.bodies()):
        derived = _derived(graph)
        for layer in reversed(graph.layers):
            for tensor in _needed(layer):
                if tensor in derived and tensor.place != "host":
                    tensor.place = "host"
                    result.changed += 1
    return result


def _derived(graph: Network) -> set[Tensor]:
    """Tensors whose values follow from shapes and constants."""
    derived: set[Tensor] = set()
    for layer in graph.layers:
        node = layer.nodes[0]
        operator = node.operator
        if operator is None or operator.random or node.bodies:
            continue
        if node.op in _SHAPE_READERS or all(
            t.constant is not None or t in derived for t in node.reads()
        ):
            derived.update(node.writes())
    return derived


def _needed(layer: Layer) -> list[Tensor]:
    """The inputs that must be on the host for this layer."""
    node = layer.nodes[0]
    if node.op in _SHAPE_READERS:
        return []
    if layer.outputs and all(t.place == "host" for t in layer.outputs):
        return layer.inputs
    operator = node.operator
    if operator is None:
        return []
    chosen = (node.inputs[i] for i in operator.host if i < len(node.inputs))
    return [t for t in chosen if t is not None and t.constant is None]
