"""Pointwise operators join the layer that feeds them.

* `Conv|ConvTranspose|Gemm|MatMul|... -> pointwise*  =>  conv|gemm with an epilogue`
* `pointwise -> pointwise*                            =>  pointwise`

A chain may branch and join again (`x * sigmoid(x)`) as long as one tensor leaves it. Everything
that leaves is stored, everything else is not. Refused: a broadcast that would enlarge the result,
two precisions, more than `_LONGEST` nodes, and two-operand steps whose shapes are not known to
agree.
"""

from __future__ import annotations

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.sizes import Sizes

ANCHORS = {
    "Conv": "conv",
    "ConvTranspose": "deconv",
    "Gemm": "gemm",
    "MatMul": "gemm",
    "FusedMatMul": "gemm",
    "ConvInteger": "conv_integer",
    "MatMulInteger": "gemm_integer",
}
"""What takes the pointwise operators behind it, and the kind of layer that it becomes."""
_LONGEST = 24


def fuse_epilogues(network: Network, config: BuilderConfig) -> PassResult:
    """Fuse in `network` and in every body below it."""
    result = PassResult()
    sizes = Sizes(network, config)
    for graph in (network, *network.bodies()):
        before = len(graph.layers)
        _fuse(graph, sizes)
        result.changed += before - len(graph.layers)
    return result


def _fuse(network: Network, sizes: Sizes) -> None:
    consumers: dict[Tensor, list[int]] = {}
    for index, layer in enumerate(network.layers):
        for tensor in layer.inputs:
            consumers.setdefault(tensor, []).append(index)
    leaving = {*network.outputs}
    taken: set[int] = set()
    placed: dict[int, Layer] = {}
    for index, layer in enumerate(network.layers):
        if index in taken:
            continue
        kind = _kind(layer)
        if kind is None:
            placed[index] = layer
            continue
        members = _grow(index, network.layers, consumers, leaving, taken, sizes)
        taken.update(members)
        nodes = [network.layers[i].nodes[0] for i in members]
        if len(nodes) == 1 and kind == "pointwise":
            placed[index] = layer
            continue
        placed[members[-1]] = Layer(kind, nodes, list(nodes[-1].writes()))
    network.replace_layers(placed[i] for i in sorted(placed))


def _kind(layer: Layer) -> str | None:
    node = layer.nodes[0]
    if len(layer.nodes) > 1 or len(layer.outputs) != 1:
        return None
    if node.op in ANCHORS:
        return ANCHORS[node.op]
    return "pointwise" if _is_pointwise(node) else None


def _is_pointwise(node: Node) -> bool:
    operator = node.operator
    return operator is not None and operator.pointwise and len(node.outputs) == 1


def _grow(
    start: int,
    layers: list[Layer],
    consumers: dict[Tensor, list[int]],
    leaving: set[Tensor],
    taken: set[int],
    sizes: Sizes,
) -> list[int]:
    """Indexes of the layers that fuse with `start`, in order; only the last one's output leaves."""
    members, accepted = [start], [start]
    while len(members) < _LONGEST:
        frontier = sorted(
            {c for m in members for c in consumers.get(layers[m].outputs[0], ())} - set(members)
        )
        open_ends = any(layers[m].outputs[0] in leaving for m in members)
        if not frontier or open_ends or not _joins(frontier[0], layers, members, sizes, taken):
            break
        members.append(frontier[0])
        inside = set(members)
        exposed = [
            m
            for m in members
            if layers[m].outputs[0] in leaving
            or not inside.issuperset(consumers.get(layers[m].outputs[0], ()))
        ]
        if not exposed or exposed == [members[-1]]:
            accepted = members.copy()
    return accepted


def _joins(
    index: int, layers: list[Layer], members: list[int], sizes: Sizes, taken: set[int]
) -> bool:
    layer, first = layers[index], layers[members[0]]
    node = layer.nodes[0]
    if index in taken or len(layer.nodes) > 1 or not _is_pointwise(node):
        return False
    precisions = {layers[m].nodes[0].precision for m in members} | {node.precision}
    if len(precisions) > 1 or layer.outputs[0].container != "tensor":
        return False
    if layer.outputs[0].place != first.outputs[0].place:
        return False
    inside = {layers[m].outputs[0] for m in members}
    return all(t is None or t in inside or sizes.fits(t, first.outputs[0]) for t in node.inputs)
