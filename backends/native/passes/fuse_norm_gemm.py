"""A large normalisation joins the products that read it.

`LayerNormalization | RMSNormalization -> MatMul | Gemm -> pointwise*  =>  norm_gemm`

On a GPU the normalised rows are neither written nor read then: the product reads what would be
normalised, with weights that take in scale and mean, and multiplies its sums by one factor a row.
Of several products each has a copy of the normalisation.

Refused, all or nothing: whatever else reads the normalised rows, small tensors, another type than
float16 and bfloat16, weights that are computed, two precisions, another axis than the last, a
product to which something computed is added.
"""

from __future__ import annotations

from dataclasses import replace

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.passes.match import NORMALIZATIONS
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.sizes import LARGE, Sizes
from polytool.tensors import DType

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
    gone: set[Layer] = set()
    joined: dict[Layer, Layer] = {}
    for layer in graph.layers:
        norm = layer.nodes[0]
        reading = readers.get(layer.outputs[0], []) if _is_normalization(layer) else []
        if not any(_multiplies(x, layer.outputs[0]) for x in reading):
            continue
        reason = _refusal(layer, leaving, sizes) or next(
            (why for x in reading if (why := _reader_refusal(norm, x))), None
        )
        if reason is not None:
            result.refused.append(f"{layer.name}: {reason}")
            continue
        gone.add(layer)
        for x in reading:
            joined[x] = _with_copy(norm, x)
    graph.replace_layers(joined.get(x, x) for x in graph.layers if x not in gone)
    result.changed += len(joined)


def _is_normalization(layer: Layer) -> bool:
    norm = layer.nodes[0]
    known = norm.op in NORMALIZATIONS and not norm.domain
    return known and len(layer.nodes) == 1 and len(layer.outputs) == 1


def _multiplies(layer: Layer, normalized: Tensor) -> bool:
    product = layer.nodes[0]
    return product.op in _PRODUCTS and product.inputs[0] is normalized


def _refusal(layer: Layer, leaving: set[Tensor], sizes: Sizes) -> str | None:
    """Why a normalisation stays a layer of its own."""
    (norm,), (normalized,) = layer.nodes, layer.outputs
    x, scale = norm.inputs[:2]
    if normalized in leaving:
        return "the network returns the normalised rows"
    if x is None or scale is None or x.constant is not None:
        return "what is normalised is a constant"
    if any(t is not None and t.constant is None for t in norm.inputs[1:]):
        return "the scale is computed"
    if x.dtype is not normalized.dtype or x.dtype not in (DType.FLOAT16, DType.BFLOAT16):
        return "the type has no tensor cores"
    return None if sizes.elements(x) >= LARGE else "the tensor is small"


def _reader_refusal(norm: Node, layer: Layer) -> str | None:
    """Why a layer cannot take the normalisation in."""
    (normalized,), scale = norm.writes(), norm.inputs[1]
    if not _multiplies(layer, normalized) or layer.inputs != [normalized]:
        return "something else than products without an addend reads the normalised rows"
    product = layer.nodes[0]
    weights = product.inputs[1]
    if weights is None or weights.constant is None or len(weights.constant.shape) != 2:
        return "the weights are computed, or no matrix"
    if any(product.attrs.get(name, plain) != plain for name, plain in _PLAIN.items()):
        return "a product transposes or scales"
    if norm.precision != product.precision:
        return "two precisions"
    depth = weights.constant.shape[1 if product.attrs.get("transB", 0) else 0]
    assert scale is not None and scale.constant is not None
    if depth % _PART or scale.constant.size != depth:
        return "the normalisation is of other rows than a product's"
    return None


def _with_copy(norm: Node, reader: Layer) -> Layer:
    """The reader with a normalisation of its own."""
    (normalized,) = norm.writes()
    own = replace(normalized, name=f"{normalized.name}:{reader.outputs[0].name}")
    nodes = [
        replace(n, inputs=[own if t is normalized else t for t in n.inputs]) for n in reader.nodes
    ]
    return Layer("norm_gemm", [replace(norm, outputs=[own]), *nodes], reader.outputs)
