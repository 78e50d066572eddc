"""Normalisations that exporters write out become one operator again.

* `Sub(x, ReduceMean(x)) = d; Div(d, Sqrt(Add(ReduceMean(d*d), eps))) [Mul scale] [Add shift]
   => LayerNormalization(x, scale, shift)`
* `Div(x, Sqrt(Add(ReduceMean(x*x), eps))) or Mul(x, Reciprocal(Sqrt(...))) [Mul scale]
   => RMSNormalization(x, scale)`

Refused: axes that are not trailing, a scale or shift that is no constant of the normalised shape,
interior values that something else reads, nodes of two precisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Constant, Network, Node, Tensor
from polytool.backends.native.passes.match import (
    Graph,
    same_precision,
    scalar,
    sources,
    split_constant,
)
from polytool.backends.native.passes.result import PassResult
from polytool.tensors import DType


def fuse_normalizations(network: Network, config: BuilderConfig) -> PassResult:
    """Rewrite every normalisation found in `network` and its bodies."""
    result = PassResult()
    for body in (network, *network.bodies()):
        graph = Graph(body)
        replaced: dict[int, Node] = {}
        for layer in body.layers:
            found = _match(graph, layer.nodes[0], config) if len(layer.nodes) == 1 else None
            if found is not None:
                last, node = found.build()
                replaced[id(last)] = node
        graph.rewrite(replaced)
        result.changed += len(replaced)
    return result


@dataclass
class _Found:
    """A normalisation: what goes in, and the nodes it consists of, in order."""

    op: str
    x: Tensor
    axis: int
    epsilon: float
    nodes: list[Node]
    scale: Tensor | None = None
    shift: Tensor | None = None

    def build(self) -> tuple[Node, Node]:
        last = self.nodes[-1]
        (output,) = last.outputs
        assert output is not None
        width = self.scale or self.shift
        shape = width.constant.shape if width is not None and width.constant is not None else (1,)
        scale = self.scale or _ones(output, shape)
        inputs: list[Tensor | None] = [self.x, scale]
        if self.shift is not None:
            inputs.append(self.shift)
        version = 17 if self.op == "LayerNormalization" else 23
        attrs = {"axis": self.axis, "epsilon": self.epsilon}
        node = Node(self.op, "", version, inputs, [output], attrs)
        node.sources = sources(*self.nodes)
        return last, node


def _ones(output: Tensor, shape: tuple[int, ...]) -> Tensor:
    dtype = output.dtype or DType.FLOAT
    ones = Constant(dtype, shape, lambda: np.ones(shape, dtype.numpy))
    return Tensor(f"{output.name}/ones", dtype, shape, constant=ones, place="host")


def _match(graph: Graph, node: Node, config: BuilderConfig) -> _Found | None:
    """The normalisation whose quotient `node` computes, with what follows it."""
    found = _quotient(graph, node)
    if found is None:
        return None
    _extend(graph, found)
    affine = found.scale is not None or found.shift is not None
    known = found.axis == -1 and (affine or _width(found.x) is not None)
    if not known or not same_precision(config, found.nodes):
        return None
    if not affine:
        width = _width(found.x)
        assert width is not None
        found.scale = _ones(found.x, (width,))
    return found


def _width(tensor: Tensor) -> int | None:
    last = tensor.shape[-1] if tensor.shape else None
    return last if isinstance(last, int) else None


def _quotient(graph: Graph, node: Node) -> _Found | None:
    """`value / sqrt(mean(value**2) + eps)`, as a Div or as a Mul by the reciprocal."""
    for value, root_nodes, epsilon, mean in _roots(graph, node):
        square = graph.node(mean.inputs[0], "Pow", "Mul")
        axis = _trailing_axis(mean)
        if square is None or axis is None or not _squares(square, value):
            continue
        inner = [square, mean, *root_nodes, node]
        interior = [t for n in inner[:-1] for t in n.writes()]
        if not all(graph.only(t) for t in interior):
            continue
        centred = _centred(graph, value, axis, square)
        if centred is not None:
            x, head = centred
            return _Found("LayerNormalization", x, axis, epsilon, [*head, *inner])
        return _Found("RMSNormalization", value, axis, epsilon, inner)
    return None


def _roots(graph: Graph, node: Node) -> list[tuple[Tensor, list[Node], float, Node]]:
    """Ways to read `node` as value / sqrt(mean + eps): value, nodes of the root, eps, the mean."""
    if len(node.inputs) != 2 or any(t is None or t.constant is not None for t in node.inputs):
        return []
    a, b = node.inputs
    assert a is not None and b is not None
    pairs = [(a, b)] if node.op == "Div" else [(a, b), (b, a)] if node.op == "Mul" else []
    found = []
    for value, divisor in pairs:
        between: list[Node] = []
        if node.op == "Mul":
            inverse = graph.node(divisor, "Reciprocal", "Div")
            if inverse is None or (inverse.op == "Div" and scalar(inverse.inputs[0]) != 1.0):
                continue
            between, divisor_in = [inverse], inverse.inputs[-1]
        else:
            divisor_in = divisor
        root = graph.node(divisor_in, "Sqrt")
        added = graph.node(root.inputs[0], "Add") if root is not None else None
        split = split_constant(added) if added is not None else None
        if root is None or added is None or split is None:
            continue
        mean, epsilon = graph.node(split[0], "ReduceMean"), scalar(split[1])
        if mean is not None and epsilon is not None:
            found.append((value, [added, root, *between], epsilon, mean))
    return found


def _trailing_axis(mean: Node) -> int | None:
    """-1 when the node reduces the last axis and keeps it."""
    if mean.attrs.get("keepdims", 1) != 1 or len(mean.inputs) < 2 or mean.inputs[1] is None:
        return None
    axes, source = mean.inputs[1].constant, mean.inputs[0]
    values = axes.array().reshape(-1).tolist() if axes is not None and axes.size == 1 else []
    rank = len(source.shape) if source is not None and source.shape is not None else None
    return -1 if values == [-1] or (rank is not None and values == [rank - 1]) else None


def _squares(square: Node, value: Tensor) -> bool:
    if square.op == "Mul":
        return square.inputs == [value, value]
    return square.inputs[0] is value and scalar(square.inputs[1]) == 2.0


def _centred(
    graph: Graph, value: Tensor, axis: int, square: Node
) -> tuple[Tensor, list[Node]] | None:
    """`x` and the nodes of `x - mean(x)`, when `value` is that and nothing else reads it."""
    sub = graph.node(value, "Sub")
    mean = graph.node(sub.inputs[1], "ReduceMean") if sub is not None else None
    if sub is None or mean is None or mean.inputs[0] is not sub.inputs[0]:
        return None
    x = sub.inputs[0]
    assert x is not None
    (average,) = mean.writes()
    if _trailing_axis(mean) != axis or not graph.only(average) or not graph.only(value, 2):
        return None
    return x, [mean, sub]


def _extend(graph: Graph, found: _Found) -> None:
    """Take the scale and the shift that follow."""
    (output,) = found.nodes[-1].writes()
    scaled = graph.reader(output, "Mul")
    scale = _vector(scaled)
    if scaled is not None and scale is not None:
        found.scale = scale
        found.nodes.append(scaled)
        (output,) = scaled.writes()
    if found.op != "LayerNormalization":
        return
    shifted = graph.reader(output, "Add")
    shift = _vector(shifted)
    if shifted is not None and shift is not None and _agrees(found.scale, shift):
        found.shift = shift
        found.nodes.append(shifted)


def _vector(node: Node | None) -> Tensor | None:
    """The constant operand of a node when it is a vector."""
    split = split_constant(node) if node is not None else None
    if split is None or split[1].constant is None or len(split[1].constant.shape) != 1:
        return None
    return split[1] if split[1].constant.size > 1 else None


def _agrees(scale: Tensor | None, shift: Tensor) -> bool:
    if scale is None or scale.constant is None or shift.constant is None:
        return scale is None
    return scale.constant.shape == shift.constant.shape
