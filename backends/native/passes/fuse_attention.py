"""Scaled dot-product attention that exporters write out becomes one operator again.

* `MatMul(Softmax(MatMul(q, k^T) [* scale] [+ mask]), v)  =>  Attention(q, k, v, mask, scale)`
* the same with `Where(IsNaN(p), 0, p)` behind the softmax, as torch writes it

A row whose mask is -inf throughout gives zeros, as the guard does; without the guard it was NaN.

The scale may stand on the scores, on q, on k^T, or be split over q and k^T (torch does that). The
transposed k comes from a Transpose, whose permutation is corrected, from one between Reshapes that
join batch and heads and part them again (torch's exporter), or is transposed back.
Refused: ranks other than four, a softmax over another axis, interior values that something else
reads, nodes of two precisions, a mask that is not added, one that may broadcast over the keys:
Attention reads a mask that ends before the last key as -inf from there on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.passes.match import (
    Graph,
    same_precision,
    scalar,
    sources,
    split_constant,
)
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.shapes import ShapePass, probe, sample_inputs

_RANK = 4


def fuse_attention(network: Network, config: BuilderConfig) -> PassResult:
    """Rewrite every attention found in `network` and its bodies."""
    result = PassResult()
    passes: list[ShapePass] | None = None
    for body in (network, *network.bodies()):
        graph = Graph(body)
        replaced: dict[int, Node] = {}
        before: dict[int, Node] = {}
        for layer in body.layers:
            node = layer.nodes[0]
            if len(layer.nodes) > 1 or node.op != "Softmax":
                continue
            found = _match(graph, node)
            if found is None or not same_precision(config, found.nodes):
                continue
            if found.mask is not None:
                passes = _probed(network, config) if passes is None else passes
                if not _spans_keys(found.mask, found.k_transposed, passes):
                    continue
            last, attention, transpose = found.build(graph)
            replaced[id(last)] = attention
            if transpose is not None:
                before[id(last)] = transpose
        _insert(body, before)
        graph.rewrite(replaced)
        result.changed += len(replaced)
    return result


def _probed(network: Network, config: BuilderConfig) -> list[ShapePass]:
    samples = [p.to_samples() for p in config.profiles] or [sample_inputs(network)]
    return probe(network, [s for group in samples for s in group])


def _spans_keys(mask: Tensor, k_transposed: Tensor, passes: list[ShapePass]) -> bool:
    """Whether the mask surely has an entry for every key."""
    pairs = [(p.shape(mask), p.shape(k_transposed)) for p in passes]
    known = bool(pairs) and all(a is not None and b is not None for a, b in pairs)
    shapes = pairs if known else [(mask.shape, k_transposed.shape)]
    return all(a and b and a[-1] is not None and a[-1] == b[-1] for a, b in shapes)


def _insert(body: Network, before: dict[int, Node]) -> None:
    layers: list[Layer] = []
    for layer in body.layers:
        if id(layer.nodes[0]) in before:
            layers.append(Layer.single(before[id(layer.nodes[0])]))
        layers.append(layer)
    body.replace_layers(layers)


@dataclass
class _Found:
    """One attention: operands, the factors of its scale, and the nodes it consists of."""

    q: Tensor
    k_transposed: Tensor
    v: Tensor
    mask: Tensor | None
    nodes: list[Node]
    scale: float = 1.0
    last: Node = field(init=False)

    def build(self, graph: Graph) -> tuple[Node, Node, Node | None]:
        """The node to replace, the Attention, and a Transpose that must stand before it."""
        self.last = self.nodes[-1]
        key, transpose = self._key(graph)
        inputs = [self.q, key, self.v]
        if self.mask is not None:
            inputs.append(self.mask)
        attrs = {"scale": self.scale}
        node = Node("Attention", "", 23, list(inputs), list(self.last.outputs), attrs)
        node.sources = sources(*self.nodes)
        return self.last, node, transpose

    def _key(self, graph: Graph) -> tuple[Tensor, Node | None]:
        """k with its rows back in place, and the Transpose that makes it where one must."""
        source, perm, name = self.k_transposed, [0, 1, 3, 2], self.k_transposed.name
        turned = _turned_in_three(graph, source)
        if turned is not None:
            return turned, None
        earlier = graph.node(self.k_transposed, "Transpose")
        origin = sources(*self.nodes)  # and so its precision
        if earlier is not None and len(earlier.attrs.get("perm", ())) == _RANK:
            assert earlier.inputs[0] is not None
            first = earlier.attrs["perm"]
            source, perm, origin = earlier.inputs[0], [first[i] for i in perm], earlier.sources
        shape = self.k_transposed.shape
        if shape is not None:
            shape = (*shape[:2], shape[3], shape[2])
        key = Tensor(f"{name}/rows", self.k_transposed.dtype, shape)
        node = Node("Transpose", "", 13, [source], [key], {"perm": perm})
        node.sources = origin
        return key, node


def _turned_in_three(graph: Graph, k_transposed: Tensor) -> Tensor | None:
    """The k of `Reshape(Transpose(Reshape(k)))` that exchanges its last two dimensions."""
    last = graph.node(k_transposed, "Reshape")
    turn = graph.node(last.inputs[0], "Transpose") if last is not None else None
    first = graph.node(turn.inputs[0], "Reshape") if turn is not None else None
    k = first.inputs[0] if first is not None else None
    if turn is None or first is None or k is None or turn.attrs.get("perm") != [0, 2, 1]:
        return None
    (flat,) = first.writes()
    shape, joined, wanted = k.shape, flat.shape, k_transposed.shape
    if shape is None or joined is None or len(shape) != _RANK or None in shape:
        return None
    same = joined[1:] == shape[2:] and wanted == (*shape[:2], shape[3], shape[2])
    return k if same else None


def _match(graph: Graph, softmax: Node) -> _Found | None:
    scores_in = softmax.inputs[0]
    axis = softmax.attrs.get("axis", -1)
    if scores_in is None or scores_in.shape is None or len(scores_in.shape) != _RANK:
        return None
    weights, guard = _guarded(graph, softmax)
    mixed = graph.reader(weights, "MatMul")
    if mixed is None or mixed.inputs[0] is not weights or axis not in (-1, _RANK - 1):
        return None
    if softmax.version < 13:
        return None
    scores, mask, nodes = _unmask(graph, scores_in)
    scale = 1.0
    scores, factor, scaling = _unscale(graph, scores)
    scale *= factor
    product = graph.node(scores, "MatMul")
    if product is None or not graph.only(scores):
        return None
    q, kt, v = product.inputs[0], product.inputs[1], mixed.inputs[1]
    if q is None or kt is None or v is None or any(not _four(t) for t in (q, kt, v)):
        return None
    q, q_factor, q_nodes = _unscale(graph, q)
    kt, k_factor, k_nodes = _unscale(graph, kt)
    if kt.constant is not None or not _four(kt) or not _four(q):
        return None
    inner = [*q_nodes, *k_nodes, product, *scaling, *nodes, softmax, *guard, mixed]
    interior = {
        t: 2 if guard and t in softmax.outputs else 1 for n in inner[:-1] for t in n.writes()
    }
    if not all(graph.only(t, count) for t, count in interior.items()):
        return None
    return _Found(q, kt, v, mask, inner, scale * q_factor * k_factor)


def _guarded(graph: Graph, softmax: Node) -> tuple[Tensor, list[Node]]:
    """The weights behind `Where(IsNaN(p), 0, p)`: torch's guard for rows that see nothing."""
    (weights,) = softmax.writes()
    nodes = graph.consumers(weights)
    test = next((n for n in nodes if n.op == "IsNaN"), None)
    choice = next((n for n in nodes if n.op == "Where"), None)
    if test is None or choice is None or len(nodes) != 2:
        return weights, []
    chosen = [*test.writes()], choice.inputs[2] is weights, scalar(choice.inputs[1]) == 0.0
    if chosen != ([choice.inputs[0]], True, True):
        return weights, []
    (guarded,) = choice.writes()
    return guarded, [test, choice]


def _four(tensor: Tensor) -> bool:
    return tensor.shape is not None and len(tensor.shape) == _RANK


def _unmask(graph: Graph, scores: Tensor) -> tuple[Tensor, Tensor | None, list[Node]]:
    """What a mask is added to, the mask, and the node that adds it."""
    added = graph.node(scores, "Add")
    if added is None:
        return scores, None, []
    for value, mask in (added.inputs, added.inputs[::-1]):
        assert value is not None and mask is not None
        inner, _, _ = _unscale(graph, value)
        if graph.node(inner, "MatMul") is not None and mask.shape is not None:
            return value, mask, [added]
    return scores, None, []


def _unscale(graph: Graph, tensor: Tensor) -> tuple[Tensor, float, list[Node]]:
    """What a scalar multiplies or divides, the factor, and the node that does it."""
    node = graph.node(tensor, "Mul", "Div")
    split = split_constant(node) if node is not None else None
    factor = scalar(split[1]) if split is not None else None
    if node is None or split is None or not factor:
        return tensor, 1.0, []
    if node.op == "Div" and node.inputs[0] is not split[0]:
        return tensor, 1.0, []
    return split[0], factor if node.op == "Mul" else 1.0 / factor, [node]
