"""A normalisation in the kernel of the product that reads it.

Several products that read the same rows are one. See normalized_weights.py and
kernels/row_moments.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.epilogues import epilogue_of
from polytool.backends.native.cuda.lower_products import joined
from polytool.backends.native.cuda.normalized import moments_of, normalized_product
from polytool.backends.native.cuda.normalized_weights import NormalizedWeights
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.gemm import Matrix
from polytool.backends.native.kernels.row_moments import PART, RowNorm
from polytool.backends.native.network import Constant, Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@lowering("norm_gemm")
def norm_gemm(rec: Recorder, layer: Layer) -> None:
    """One kernel where the matrix is large, else the layers that it was."""
    siblings = rec.siblings(layer, _family)
    for layers in ([siblings] if len(siblings) > 1 else []) + [[layer]]:
        try:
            with rec.attempt():
                _multiplied(rec, layers)
            return
        except UnsupportedError:
            continue
    _apart(rec, siblings)


def _apart(rec: Recorder, layers: Sequence[Layer]) -> None:
    """The normalisation, and the products of its result."""
    norm = layers[0].nodes[0]
    (normalized,) = norm.writes()
    rec.shapes.node(norm)
    between = rec.temporary(normalized.dtype, rec.shape(normalized), normalized.name)
    rec.lower(Layer.single(dataclasses.replace(norm, outputs=[between])))
    products = []
    for layer in layers:
        own, *nodes = layer.nodes
        products.append(Layer("gemm", _reading(nodes, {own.outputs[0]: between}), layer.outputs))
    if len(products) > 1:
        try:
            with rec.attempt():
                joined(rec, products)
            return
        except UnsupportedError:
            pass
    for product in products:
        rec.shapes.run([product])
        rec.lower(product)


def _reading(nodes: Sequence[Node], others: dict[Tensor | None, Tensor]) -> list[Node]:
    """The nodes with other inputs."""
    return [
        dataclasses.replace(n, inputs=[t if t is None else others.get(t, t) for t in n.inputs])
        for n in nodes
    ]


def _family(layer: Layer) -> Hashable:
    """Equal for products that may be done as one: of the same normalisation, which add a bias."""
    norm, product, *rest = layer.nodes
    if [n.op for n in rest] not in ([], ["Add"]):
        return None
    attrs = (tuple(sorted(x.attrs.items())) for x in (norm, product))
    return (norm.op, product.op, *attrs, *norm.inputs, layer.outputs[0].dtype, norm.precision)


@dataclasses.dataclass
class _Product:
    """A product whose bias is taken out of its nodes."""

    node: Node
    rest: list[Node]
    bias: Constant | None

    @classmethod
    def of(cls, layer: Layer) -> _Product:
        """The product behind the normalisation.

        Raises:
            UnsupportedError: its weights are computed, or it adds something else than a vector.
        """
        _, node, *rest = layer.nodes
        if given(node, 1).constant is None:
            raise UnsupportedError("a product with computed weights")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            if bias.constant is None or bias.constant.size not in (1, _width(node)):
                raise UnsupportedError("something else than a vector is added to the product")
            return cls(dataclasses.replace(node, inputs=node.inputs[:2]), rest, bias.constant)
        found = _bias(rest, _width(node))
        if found is None:
            return cls(node, rest, None)
        (old,), (new,) = rest[0].writes(), node.writes()
        if len(rest) == 1:
            return cls(dataclasses.replace(node, outputs=[old]), [], found)
        return cls(node, _reading(rest[1:], {old: new}), found)

    def layer(self, output: Tensor) -> Layer:
        """It and what follows, as a product without a bias of its own."""
        return Layer("gemm", [self.node, *self.rest], [output])


def _width(product: Node) -> int:
    weights = given(product, 1).constant
    assert weights is not None
    return weights.shape[0 if product.attrs.get("transB", 0) else -1]


def _bias(nodes: Sequence[Node], columns: int) -> Constant | None:
    """The constant vector that the first of the nodes adds."""
    if not nodes or nodes[0].op != "Add":
        return None
    found = [t.constant for t in nodes[0].inputs if t is not None and t.constant is not None]
    vector = len(found) == 1 and found[0].size == columns == found[0].shape[-1]
    return found[0] if vector else None


def _vectors(norm: Node, width: int) -> tuple[Constant, Constant | None]:
    """Scale and offset of a normalisation over the last `width` elements."""
    scale, offset = (None if t is None else t.constant for t in [*norm.inputs, None][1:3])
    if scale is None or (offset is None and len(norm.inputs) > 2 and norm.inputs[2] is not None):
        raise UnsupportedError("a normalisation with a computed scale")
    if width % PART or any(c is not None and c.size != width for c in (scale, offset)):
        raise UnsupportedError("a normalisation of other rows than the product's")
    return scale, offset


def _multiplied(rec: Recorder, layers: Sequence[Layer]) -> None:
    norm = layers[0].nodes[0]
    x = given(norm, 0)
    rows = rec.dense(rec.view(x))
    k = rows.shape[-1]
    products = [_Product.of(layer) for layer in layers]
    matrices = [given(p.node, 1).constant for p in products]
    turned = bool(products[0].node.attrs.get("transB", 0))
    known = tuple(m for m in matrices if m is not None and m.shape[1 if turned else 0] == k)
    if len(known) < len(layers) or (len(layers) > 1 and any(p.rest for p in products)):
        raise UnsupportedError("products that do not fit beside one another")
    weights = NormalizedWeights(
        known, tuple(p.bias for p in products), *_vectors(norm, k),
        norm.op == "LayerNormalization", turned,
    )  # fmt: skip
    n = sum(weights.widths)
    output = layers[0].outputs[0]
    rank = len(rec.shape(output))
    shift = rec.temporary(DType.FLOAT, (n,), f"{output.name}:shift")
    rec.define(shift, rec.constant(weights.shift, (n,), DType.FLOAT, ("shift", weights)))
    epilogue, views = epilogue_of(rec, products[0].layer(output), shift, rank - 1, None)
    packed = rec.constant(weights.packed, (n, k), rows.dtype, ("normalized", weights))
    factor = rec.constant(weights.factor, (1,), DType.FLOAT, ("factor", weights))
    whole = View.new(epilogue.dtype, (*rows.shape[:-1], n))
    problem = Matrix(rows.count // k, n, k)
    operation = RowNorm.of(k, float(norm.attrs.get("epsilon", 1e-5)), weights.centred)
    operands = [rows, packed, *views, moments_of(rec, x), factor, whole]
    normalized_product(rec, epilogue, problem, operation, operands)
    start = 0
    for layer, width in zip(layers, weights.widths, strict=True):
        rec.define(layer.outputs[0], whole.sliced(rank - 1, start, width))
        start += width
