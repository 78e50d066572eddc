"""ONNX's own shape inference, kept from what makes it crash, take all memory, or guess."""

from __future__ import annotations

import onnx
from onnx import AttributeProto

from polytool.backends.native.inference_traps import (
    exceeds,
    infer_untrapped,
    without_negative_sizes,
)
from polytool.backends.native.protos import normal_domain
from polytool.errors import ModelError
from polytool.model import graphs, nodes
from polytool.validation import validate

_LONGEST_VALUE = 1 << 16
_MOST_FOLLOWED = 1 << 20  # elements of all vectors; each becomes a symbol of some 60 bytes
_LARGE_NUMBER = 512
_OPAQUE = "polytool.opaque"


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX's shape inference, which follows the values of shapes where that is affordable.

    Following values, it makes a symbol of every element of every vector of known length, so that
    a file of a few bytes could take all memory; and it may crash on nodes that lack inputs.

    Raises:
        onnx.shape_inference.InferenceError, RuntimeError, ValueError: it gives up.
    """
    try:
        validate(proto)
    except ModelError as err:
        raise ValueError(str(err)) from err
    proto = without_negative_sizes(proto)
    try:
        follow = True
        if _has_large_numbers(proto.graph) or _has_long_chains(proto.graph):
            inferred = infer_untrapped(proto)
            follow = not _has_long_vectors(inferred.graph)
            follow = follow and _vector_elements(inferred.graph) <= _MOST_FOLLOWED
        if follow:
            inferred = infer_untrapped(proto, data_prop=True)
        if any(o.version == 10 and not normal_domain(o.domain) for o in proto.opset_import):
            return _without_guesses(proto, inferred, follow)
        return inferred
    except MemoryError:
        return infer_untrapped(proto)
    except (onnx.checker.ValidationError, IndexError) as err:
        raise ValueError(str(err)) from err


def _without_guesses(
    proto: onnx.ModelProto, inferred: onnx.ModelProto, follow: bool
) -> onnx.ModelProto:
    """Infer again without what ONNX makes up: its Slice-10 is said to keep sizes that are open."""
    slices = [n for n in nodes(proto.graph.node) if n.op_type == "Slice" and not n.domain]
    if not slices:
        return inferred
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.opset_import.add(domain=_OPAQUE, version=1)
    _make_opaque(copy.graph, inferred.graph)
    again = infer_untrapped(copy, data_prop=follow)
    del again.opset_import[-1]
    for node in nodes(again.graph.node):
        if node.domain == _OPAQUE:
            node.domain = ""
    return again


def _make_opaque(graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
    """Let inference see no Slice, but the types of what they make, without open sizes."""
    known = {v.name: v for v in (*inferred.value_info, *inferred.output)}
    declared = {v.name: v for v in (*graph.value_info, *graph.output)}
    for node, other in zip(graph.node, inferred.node, strict=True):
        for body, inner in zip(graphs(node), graphs(other), strict=True):
            _make_opaque(body, inner)
        if node.op_type != "Slice" or node.domain or node.output[0] not in known:
            continue
        node.domain = _OPAQUE
        info = declared.get(node.output[0]) or graph.value_info.add(name=node.output[0])
        info.type.CopyFrom(known[node.output[0]].type)
        for dim in info.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")


def _has_large_numbers(graph: onnx.GraphProto) -> bool:
    """Whether something in the graph could be a large dimension."""
    if _has_long_vectors(graph):
        return True
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                tensors.append(attribute.t)
            elif (
                attribute.type == AttributeProto.GRAPH and _has_large_numbers(attribute.g)
            ) or max(attribute.ints, default=attribute.i) > _LARGE_NUMBER:
                return True
    return any(
        max(t.dims, default=0) > _LONGEST_VALUE or exceeds(t, _LARGE_NUMBER) for t in tensors
    )


def _has_long_chains(graph: onnx.GraphProto) -> bool:
    """Whether vectors as long as a declared axis could be too many, one a node."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    sizes = (d.dim_value for i in infos for d in i.type.tensor_type.shape.dim)
    return max(sizes, default=0) * sum(1 for _ in nodes(graph.node)) > _MOST_FOLLOWED


def _vector_elements(graph: onnx.GraphProto) -> int:
    """Elements of all tensors of one axis, in bodies too."""
    shapes = (i.type.tensor_type.shape.dim for i in (*graph.value_info, *graph.output))
    own: int = sum(dims[0].dim_value for dims in shapes if len(dims) == 1)
    return own + sum(_vector_elements(body) for node in graph.node for body in graphs(node))


def _has_long_vectors(graph: onnx.GraphProto) -> bool:
    infos = (*graph.input, *graph.value_info, *graph.output)
    shapes = (i.type.tensor_type.shape.dim for i in infos)
    if any(len(dims) == 1 and dims[0].dim_value > _LONGEST_VALUE for dims in shapes):
        return True
    bodies = (a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH)
    return any(map(_has_long_vectors, bodies))
