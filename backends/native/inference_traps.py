"""Nodes and types on which ONNX's shape inference ends the process instead of refusing them.

It takes the size -1, which exporters write for an open one, for a size, and indexes by it; and
some operators' inference reads the type of an input without asking whether it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto

from polytool.arrays import MAX_RANK
from polytool.model import graphs, nodes

# Operators whose inference reads the type of its first input, known or not.
_READS_TYPE = {
    *(("", name) for name in ("EyeLike", "RegexFullMatch")),
    *(("ai.onnx.ml", name) for name in ("DictVectorizer", "LabelEncoder", "TreeEnsemble")),
}
_HIDDEN = "polytool.hidden."
Types = dict[str, TypeProto]


def infer_untrapped(proto: ModelProto, data_prop: bool = False) -> ModelProto:
    """`onnx.shape_inference.infer_shapes`, with dangerous nodes seen only when that is safe.

    They are hidden at first, which leaves the types of their outputs open, and seen as soon as
    the types of their inputs are known to be harmless; a chain of them takes a round for each.
    """
    _refuse_endless_shapes(proto.graph)
    if not any(_is_trap(n) for n in _every_node(proto)):
        return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    copy = ModelProto()
    copy.CopyFrom(proto)
    for importer in (copy, *copy.functions):
        for domain in ("", "ai.onnx", "ai.onnx.ml"):
            importer.opset_import.add(domain=_HIDDEN + domain, version=1)
    for node in _every_node(copy):
        if _is_trap(node):
            node.domain = _HIDDEN + node.domain
    while True:
        inferred = onnx.shape_inference.infer_shapes(copy, data_prop=data_prop)
        if not _show(copy.graph, inferred.graph, {}):
            break
    for node in _every_node(inferred):
        node.domain = node.domain.removeprefix(_HIDDEN)
    for importer in (inferred, *inferred.functions):
        del importer.opset_import[-3:]
    return inferred


def infer_node(
    schema: Any,
    node: NodeProto,
    types: Types,
    data: Mapping[str, onnx.TensorProto] | None = None,
    opsets: Sequence[onnx.OperatorSetIdProto] = (),
) -> Types:
    """`onnx.shape_inference.infer_node_outputs` of a node that `polytool.validation` accepts.

    Args:
        types: of every input that the node has.
        data: what inputs hold, where that is known.

    Raises:
        onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError,
            ValueError: the node is broken, or more than this can tell.
    """
    if _has_endless_shape(node, types):
        raise ValueError("no tensor has so many axes")
    sound = {}
    for name, type_ in types.items():
        sound[name] = copy = TypeProto()
        copy.CopyFrom(type_)
        for dim in _negative(copy):
            dim.ClearField("dim_value")
    try:
        found: Types = onnx.shape_inference.infer_node_outputs(
            schema, node, sound, dict(data or {}), opset_imports=list(opsets)
        )
    except IndexError as err:
        raise ValueError(str(err)) from err
    return found


def _every_node(proto: ModelProto) -> Iterator[NodeProto]:
    yield from nodes(proto.graph.node)
    for function in proto.functions:
        yield from nodes(function.node)


def _is_trap(node: NodeProto) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return (domain, node.op_type) in _READS_TYPE or (not domain and node.op_type == "GatherND")


def _show(graph: GraphProto, inferred: GraphProto, outer: Mapping[str, TypeProto]) -> bool:
    """Stop hiding the nodes whose inputs turned out harmless; whether there were any."""
    types = {**outer, **_types(inferred)}
    found = False
    for node, other in zip(graph.node, inferred.node, strict=True):
        for body, inner in zip(graphs(node), graphs(other), strict=True):
            found |= _show(body, inner, types)
        if node.domain.startswith(_HIDDEN) and _is_harmless(node, types):
            node.domain = node.domain.removeprefix(_HIDDEN)
            found = True
    return found


def _refuse_endless_shapes(graph: GraphProto) -> None:
    """Expand-8 makes an axis of every element of a declared vector, in all the memory there is."""
    expands = [n for n in nodes(graph.node) if n.op_type == "Expand"]
    types = _types(graph) if expands else {}
    if any(_has_endless_shape(n, types) for n in expands):
        raise ValueError("Expand is given a shape of more axes than a tensor has")


def _has_endless_shape(node: NodeProto, types: Mapping[str, TypeProto]) -> bool:
    if node.op_type != "Expand" or node.domain or len(node.input) < 2:
        return False
    dims = types.get(node.input[1], TypeProto()).tensor_type.shape.dim
    return len(dims) == 1 and dims[0].dim_value > MAX_RANK


def _types(graph: GraphProto) -> Types:
    found = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return found


def _is_harmless(node: NodeProto, types: Mapping[str, TypeProto]) -> bool:
    type_ = types.get(node.input[-1 if node.op_type == "GatherND" else 0])
    if type_ is None or type_.WhichOneof("value") is None:
        return False
    return node.op_type != "GatherND" or all(d.dim_value >= 0 for d in type_.tensor_type.shape.dim)


def without_negative_sizes(proto: ModelProto) -> ModelProto:
    """The model with the negative sizes that it declares left open; itself if it has none."""
    if not any(_negative(t) for t in _declared(proto)):
        return proto
    copy = ModelProto()
    copy.CopyFrom(proto)
    for type_ in _declared(copy):
        for dim in _negative(type_):
            dim.ClearField("dim_value")
    return copy


def _declared(proto: ModelProto) -> Iterator[TypeProto]:
    """Every type that is written in a model."""
    yield from _declared_in(proto.graph)
    for function in proto.functions:
        yield from (v.type for v in function.value_info)
        for node in function.node:
            yield from _declared_by(node)


def _declared_in(graph: GraphProto) -> Iterator[TypeProto]:
    for infos in (graph.input, graph.value_info, graph.output):
        yield from (v.type for v in infos)
    for node in graph.node:
        yield from _declared_by(node)


def _declared_by(node: NodeProto) -> Iterator[TypeProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TYPE_PROTO:
            yield attribute.tp
    for body in graphs(node):
        yield from _declared_in(body)


def _negative(type_: TypeProto) -> list[Any]:
    kind = type_.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _negative(getattr(type_, kind).elem_type)
    if kind == "map_type":
        return _negative(type_.map_type.value_type)
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return []
    return [d for d in getattr(type_, kind).shape.dim if d.dim_value < 0]
