"""A normalisation joins the one product that reads it.

`LayerNormalization | RMSNormalization -> MatMul | Gemm -> pointwise*  =>  norm_gemm`

Of large tensors on a GPU the normalised rows are neither written nor read then: the product reads
what would be normalised, with weights that take in scale and mean, and multiplies its sums by one
factor a row. Refused: whatever else reads the normalised rows, small tensors, another type than
float16 and bfloat16, weights that are computed, two precisions, another axis than the last, a
product to which something computed is added.
"""

from __future__ import annotations

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.sizes import LARGE, Sizes
from polytool.tensors import DType

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
_PLAIN = {"transA": 0, "alpha": 1.0, "beta": 1.0, "transBatchA": 0, "transBatchB": 0}
_PART = 64  # elements of a row that are measured together


def fuse_norm_gemms(network: Network, config: BuilderConfig) -> PassResult:
    """Fuse in `network` and in every body below it."""
    result = PassResult()
    sizes = Sizes(network, config)
    for graph in (network, *network.bodies()):
        _fuse(graph, sizes, result)
    return result


def _fuse(graph: Network, sizes: Sizes, result: PassResult) -> None:
    readers, leaving = graph.consumers(), {*graph.outputs}
    norms: dict[Layer, Layer] = {}  # by the product that reads it
    for layer in graph.layers:
        norm = layer.nodes[0]
        if len(layer.nodes) > 1 or norm.op not in _NORMALIZATIONS or norm.domain:
            continue
        reading = readers.get(layer.outputs[0], [])
        if len(reading) != 1 or layer.outputs[0] in leaving or len(layer.outputs) > 1:
            continue
        product = reading[0].nodes[0]
        if product.op in _PRODUCTS and product.inputs[0] is layer.outputs[0]:
            reason = _refusal(norm, product, reading[0], sizes)
            if reason is None:
                norms[reading[0]] = layer
            else:
                result.refused.append(f"{layer.name}: {reason}")
    gone = {*norms.values()}
    joined = {
        product: Layer("norm_gemm", [*norm.nodes, *product.nodes], product.outputs)
        for product, norm in norms.items()
    }
    graph.replace_layers(joined.get(layer, layer) for layer in graph.layers if layer not in gone)
    result.changed += len(joined)


def _refusal(norm: Node, product: Node, layer: Layer, sizes: Sizes) -> str | None:
    """Why the two nodes stay apart."""
    x, normalized, weights = norm.inputs[0], norm.outputs[0], product.inputs[1]
    if x is None or normalized is None or weights is None or weights.constant is None:
        return "the weights are computed"
    if any(t is not None and t.constant is None for t in norm.inputs[1:]) or x.constant is not None:
        return "the scale is computed"
    if x.dtype not in (DType.FLOAT16, DType.BFLOAT16) or x.dtype is not normalized.dtype:
        return "the type has no tensor cores"
    if norm.precision != product.precision:
        return "two precisions"
    if layer.inputs != [normalized]:
        return "something computed is added to the product"
    if any(product.attrs.get(name, plain) != plain for name, plain in _PLAIN.items()):
        return "the product transposes or scales"
    shape, scale = weights.constant.shape, norm.inputs[1]
    if len(shape) != 2 or scale is None or scale.constant is None:
        return "the weights are no matrix"
    depth = shape[1 if product.attrs.get("transB", 0) else 0]
    if depth % _PART or scale.constant.size != depth:
        return "the normalisation is of other rows than the product's"
    if sizes.elements(x) < LARGE:
        return "the tensor is small"
    return None
