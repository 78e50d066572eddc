"""A Gemm on flattened rows computes in the rank that the model thinks in.

* `Reshape -> Gemm -> Reshape  =>  MatMul [-> Add]`, where the last one restores leading dimensions
* `Gemm -> Reshape             =>  Reshape -> MatMul [-> Add]`, where a pointwise operator follows

torch's `addmm` makes them of linear layers. The pointwise operators, residual sums and
normalisations behind the last Reshape then join the product, as they do behind a MatMul.

The second form only exchanges what stands in which order. Refused: a Reshape that changes the last
dimension, a Gemm whose result is read elsewhere, a transposed first operand, factors, something
added that differs between rows, whole numbers. Runs after precisions are lowered, so that patterns
of `--layer-precisions` see the Gemm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Constant, Layer, Network, Node, Tensor
from polytool.backends.native.passes.match import Graph, drop_unread, sources
from polytool.backends.native.passes.result import PassResult
from polytool.tensors import DType, Shape

_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def gemm_to_matmul(network: Network, config: BuilderConfig) -> PassResult:
    """Rewrite in `network` and in every body below it."""
    result = PassResult()
    for body in (network, *network.bodies()):
        rewrite = _Rewrite(Graph(body), result)
        layers = [made for layer in body.layers for made in rewrite.layers(layer)]
        body.replace_layers(drop_unread(layers, body.outputs))
    return result


@dataclass
class _Rewrite:
    """One graph.

    Attributes:
        operands: what stands before products now: flattened rows and a shape, to rows in it.
    """

    graph: Graph
    result: PassResult
    operands: dict[object, Tensor] = field(default_factory=dict)

    def layers(self, layer: Layer) -> list[Layer]:
        """What stands in the place of a layer."""
        last = layer.nodes[0]
        gemm = self.graph.node(last.inputs[0], "Gemm") if last.op in _RESHAPING else None
        if gemm is None or len(layer.nodes) > 1:
            return [layer]
        refusal = self._refusal(gemm, last)
        before, operand = ([], None) if refusal else self._operand(gemm, last)
        if operand is None:
            reason = refusal or "the Reshape behind it would have to move, and nothing gains"
            self.result.refused.append(f"{', '.join(gemm.sources)}: {reason}")
            return [layer]
        self.result.changed += 1
        return [Layer.single(n) for n in (*before, *_product(self.graph, gemm, last, operand))]

    def _refusal(self, gemm: Node, last: Node) -> str:
        """Why this is no product that may have another rank; empty where it is one."""
        (out,), (y,) = gemm.writes(), last.writes()
        rows, weights = gemm.inputs[:2]
        assert rows is not None and weights is not None
        shape = _shape(weights)
        if not self.graph.only(out):
            return "its result is read elsewhere"
        if gemm.attrs.get("transA", 0) or any(
            float(gemm.attrs.get(name, 1.0)) != 1.0 for name in ("alpha", "beta")
        ):
            return "it transposes or scales"
        if out.dtype is None or not out.dtype.is_float or y.place == "host":
            return "it multiplies whole numbers"
        if shape is None or len(shape) != 2 or not all(isinstance(d, int) for d in shape):
            return "the shape of its weights is not known"
        if y.shape is None or len(y.shape) < 2 or y.shape[-1] != _size(gemm)[1]:
            return "the Reshape behind it changes the last dimension"
        added = gemm.inputs[2] if len(gemm.inputs) > 2 else None
        if added is not None and not _one_row(_shape(added), _size(gemm)[1]):
            return "what it adds differs between rows"
        return ""

    def _operand(self, gemm: Node, last: Node) -> tuple[list[Node], Tensor | None]:
        """The rows in the shape of the result, and the nodes that make it; None for no gain."""
        rows, (y,) = gemm.inputs[0], last.writes()
        assert rows is not None and y.shape is not None
        first = self.graph.node(rows, *_RESHAPING)
        source = first.inputs[0] if first is not None else None
        if source is not None and _restored(source.shape, rows.shape, y.shape, _size(gemm)[0]):
            return [], source
        if last.op != "Reshape" or not any(map(_is_pointwise, self.graph.consumers(y))):
            return [], None
        return self._moved(rows, last, *_size(gemm))

    def _moved(
        self, rows: Tensor, last: Node, depth: int, columns: int
    ) -> tuple[list[Node], Tensor | None]:
        """The Reshape `last`, in front of the product."""
        wanted, (y,) = last.inputs[1], last.writes()
        assert wanted is not None and y.shape is not None
        before: list[Node] = []
        key: object = wanted
        if depth != columns:
            found = _with_last(self.graph, wanted, f"{y.name}/shape", depth)
            if found is None:
                return [], None
            before, wanted, key = found
        if (rows, key) not in self.operands:
            made = Tensor(f"{y.name}/operand", y.dtype, (*y.shape[:-1], depth))
            node = Node("Reshape", "", last.version, [rows, wanted], [made], dict(last.attrs))
            node.precision = last.precision
            self.operands[rows, key] = made
            return [*before, node], made
        return [], self.operands[rows, key]


def _product(graph: Graph, gemm: Node, last: Node, operand: Tensor) -> list[Node]:
    """The MatMul, and the Add of what the Gemm adds."""
    (y,) = last.writes()
    rows, weights, added = (*gemm.inputs, None)[:3]
    assert rows is not None and y.shape is not None
    passed = graph.node(rows, *_RESHAPING) if graph.only(rows) and operand is not rows else None
    attrs = {"transB": 1} if gemm.attrs.get("transB", 0) else {}
    name, domain, version = ("FusedMatMul", "com.microsoft", 1) if attrs else ("MatMul", "", 13)
    out = y if added is None else Tensor(f"{y.name}/product", y.dtype, y.shape)
    nodes = [Node(name, domain, version, [operand, weights], [out], attrs)]
    if added is not None:
        nodes.append(Node("Add", "", 14, [out, added], [y]))
    for node in nodes:
        node.precision, node.sources = gemm.precision, sources(passed, gemm, last)
    return nodes


def _size(gemm: Node) -> tuple[int, int]:
    """Depth and columns of the weights."""
    weights = gemm.inputs[1]
    shape = _shape(weights) if weights is not None else None
    assert shape is not None
    depth, columns = shape[::-1] if gemm.attrs.get("transB", 0) else shape
    assert isinstance(depth, int) and isinstance(columns, int)
    return depth, columns


def _shape(tensor: Tensor) -> Shape | None:
    return tensor.constant.shape if tensor.constant is not None else tensor.shape


def _one_row(shape: Shape | None, columns: int) -> bool:
    """Whether that is the same for every row."""
    return shape is not None and shape in ((), (1,), (columns,), (1, 1), (1, columns))


def _restored(source: Shape | None, rows: Shape | None, y: Shape, depth: int) -> bool:
    """Whether `source`, of which `rows` are the rows, has the leading dimensions of `y`.

    Both have as many rows, so that one dimension that is not known follows from the others.
    """
    if source is None or len(source) != len(y):
        return False
    width = rows[-1] if rows is not None else None
    if source[-1] != depth and (source[-1] is None or source[-1] != width):
        return False
    pairs = list(zip(source[:-1], y[:-1], strict=True))
    differ = [p for p in pairs if p[0] is None or p[0] != p[1]]
    return len(differ) <= 1 and not any(all(isinstance(d, int) for d in p) for p in differ)


def _with_last(
    graph: Graph, wanted: Tensor, name: str, size: int
) -> tuple[list[Node], Tensor, object] | None:
    """A shape with another last entry: the nodes that compute it, itself, and what it depends on.

    None where it is neither a constant nor joined from parts of which the last is one, or where
    an entry of 0 may take over the size that changes.
    """
    join = graph.node(wanted, "Concat")
    parts = [wanted] if join is None else [t for t in join.inputs if t is not None]
    tail = parts[-1].constant
    if tail is None or not tail.size:
        return None
    constants = [t.constant for t in parts if t.constant is not None]
    if any(len(c.shape) != 1 for c in constants):
        return None
    known = [n for c in constants for n in c.array().tolist()]
    if 0 in known[:-1]:
        return None
    parts[-1] = _replaced(parts[-1], name if join is None else f"{name}/last", size)
    key = (*parts[:-1], tuple(tail.array().tolist()[:-1]), size)
    if join is None:
        return [], parts[0], key
    made = Tensor(name, wanted.dtype, wanted.shape, place=wanted.place)
    node = Node("Concat", "", join.version, list(parts), [made], dict(join.attrs))
    return [node], made, key


def _replaced(tensor: Tensor, name: str, size: int) -> Tensor:
    assert tensor.constant is not None
    array = np.array(tensor.constant.array())
    array[-1] = size
    return Tensor(name, DType.INT64, array.shape, constant=Constant.of(array), place=tensor.place)


def _is_pointwise(node: Node) -> bool:
    operator = node.operator
    return operator is not None and operator.pointwise
