"""Activations that exporters write out become one operator again.

* `x * 0.5 * (1 + Erf(x / sqrt(2)))` in any order of the factors  =>  `Gelu(x)`
* `x * 0.5 * (1 + Tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))`     =>  `Gelu(x, approximate=tanh)`

Refused: other constants, interior values that something else reads, nodes of two precisions.
"""

from __future__ import annotations

import math

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Network, Node, Tensor
from polytool.backends.native.passes.match import (
    Graph,
    same_precision,
    scalar,
    sources,
    split_constant,
)
from polytool.backends.native.passes.result import PassResult

_ROUNDING = 1e-3  # models carry these constants rounded, to float16 too


def fuse_gelu(network: Network, config: BuilderConfig) -> PassResult:
    """Rewrite every GELU found in `network` and its bodies."""
    result = PassResult()
    for body in (network, *network.bodies()):
        graph = Graph(body)
        replaced: dict[int, Node] = {}
        for layer in body.layers:
            node = layer.nodes[0]
            if len(layer.nodes) == 1 and node.op in ("Erf", "Tanh"):
                found = _match(graph, node, config)
                if found is not None:
                    replaced[id(found[0])] = found[1]
        graph.rewrite(replaced)
        result.changed += len(replaced)
    return result


def _close(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=_ROUNDING)


def _match(graph: Graph, core: Node, config: BuilderConfig) -> tuple[Node, Node] | None:
    """The last node of the GELU around `core`, and the node that replaces it."""
    argument = _erf_argument(graph, core) if core.op == "Erf" else _tanh_argument(graph, core)
    if argument is None:
        return None
    x, inner = argument
    (value,) = core.writes()
    plus = graph.reader(value, "Add")
    split = split_constant(plus) if plus is not None else None
    if plus is None or split is None or scalar(split[1]) != 1.0:
        return None
    product = _product(graph, plus, x)
    if product is None:
        return None
    last, between = product
    nodes = [*inner, core, plus, *between, last]
    interior = [t for n in nodes[:-1] for t in n.writes()]
    if not same_precision(config, nodes) or not _enclosed(graph, interior, nodes):
        return None
    attrs = {"approximate": "none" if core.op == "Erf" else "tanh"}
    node = Node("Gelu", "", 20, [x], list(last.outputs), attrs)
    node.sources = sources(*nodes)
    return last, node


def _enclosed(graph: Graph, interior: list[Tensor], nodes: list[Node]) -> bool:
    """Whether only `nodes` read the interior tensors."""
    reads = {t: sum(t in n.inputs for n in nodes) for t in interior}
    return all(graph.only(t, count) for t, count in reads.items())


def _erf_argument(graph: Graph, erf: Node) -> tuple[Tensor, list[Node]] | None:
    scaled = graph.node(erf.inputs[0], "Div", "Mul")
    split = split_constant(scaled) if scaled is not None else None
    if scaled is None or split is None or (scaled.op == "Div" and scaled.inputs[0] is not split[0]):
        return None
    expected = math.sqrt(2.0) if scaled.op == "Div" else math.sqrt(0.5)
    return (split[0], [scaled]) if _close(scalar(split[1]), expected) else None


def _tanh_argument(graph: Graph, tanh: Node) -> tuple[Tensor, list[Node]] | None:
    scaled = graph.node(tanh.inputs[0], "Mul")
    split = split_constant(scaled) if scaled is not None else None
    if scaled is None or split is None or not _close(scalar(split[1]), math.sqrt(2 / math.pi)):
        return None
    total = graph.node(split[0], "Add")
    if total is None:
        return None
    for x, cubic in (total.inputs, total.inputs[::-1]):
        weighted = graph.node(cubic, "Mul")
        weight = split_constant(weighted) if weighted is not None else None
        if weighted is None or weight is None or not _close(scalar(weight[1]), 0.044715):
            continue
        cube = _cube(graph, weight[0], x)
        if cube is not None and x is not None:
            return x, [*cube, weighted, total, scaled]
    return None


def _cube(graph: Graph, tensor: Tensor, x: Tensor | None) -> list[Node] | None:
    node = graph.node(tensor, "Pow", "Mul")
    if node is None:
        return None
    if node.op == "Pow":
        return [node] if node.inputs[0] is x and scalar(node.inputs[1]) == 3.0 else None
    for a, b in (node.inputs, node.inputs[::-1]):
        square = graph.node(b, "Mul", "Pow")
        if a is x and square is not None and square.inputs[0] is x:
            whole = square.inputs[1] is x if square.op == "Mul" else scalar(square.inputs[1]) == 2.0
            if whole:
                return [square, node]
    return None


def _product(graph: Graph, plus: Node, x: Tensor) -> tuple[Node, list[Node]] | None:
    """The node that ends `x * 0.5 * plus`, in any order, and the other nodes of the product."""
    (value,) = plus.writes()
    first = graph.reader(value, "Mul")
    if first is None:
        return None
    other = first.inputs[0] if first.inputs[1] is value else first.inputs[1]
    (product,) = first.writes()
    halved = graph.node(other, "Mul")
    split = split_constant(halved) if halved is not None else None
    if halved is not None and split is not None and split[0] is x and scalar(split[1]) == 0.5:
        return first, [halved]
    second = graph.reader(product, "Mul")
    if second is None:
        return None
    rest = second.inputs[0] if second.inputs[1] is product else second.inputs[1]
    if (other is x and scalar(rest) == 0.5) or (scalar(other) == 0.5 and rest is x):
        return second, [first]
    return None
