"""Nodes and types on which ONNX's shape inference ends the process instead of refusing them.

It takes the size -1, which exporters write for an open one, for a size, and indexes by it; and
some operators' inference reads the type of an input without asking whether it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from polytool import arrays
from polytool.arrays import MAX_RANK
from polytool.backends.native.inference_apart import infer_apart, may_abort
from polytool.errors import ModelError
from polytool.model import graphs, nodes

# Operators whose inference reads the type of its first input, known or not.
_READS_TYPE = {
    *(("", name) for name in ("EyeLike", "RegexFullMatch")),
    *(("ai.onnx.ml", name) for name in ("DictVectorizer", "LabelEncoder", "TreeEnsemble")),
}
_HIDDEN = "polytool.hidden."
_SHAPED = ("tensor_type", "sparse_tensor_type")
_FEW = 64  # numbers in a tensor that may be sizes
_HUGE = 1 << 20  # elements of a vector that inference may follow, each by itself
Types = dict[str, TypeProto]


def infer_untrapped(proto: ModelProto, data_prop: bool = False) -> ModelProto:
    """`onnx.shape_inference.infer_shapes`, with dangerous nodes seen only when that is safe.

    They are hidden at first, which leaves the types of their outputs open, and seen as soon as
    the types of their inputs are known to be harmless; a chain of them takes a round for each.
    """
    _refuse_negative_weights(proto)
    traps = _READS_TYPE | {("", "GatherND")}
    if _has_huge_sizes(proto):
        traps.add(("", "Expand"))  # Expand-8 makes an axis of each element of its shape
    if _has_huge_numbers(proto, "iu"):
        traps.add(("", "ConstantOfShape"))
    keys = {_key(n) for n in _every_node(proto)}
    infer = infer_apart if may_abort(keys) else onnx.shape_inference.infer_shapes
    if not keys & traps:
        return infer(proto, data_prop=data_prop)
    copy = ModelProto()
    copy.CopyFrom(proto)
    for importer in (copy, *copy.functions):
        for domain in ("", "ai.onnx", "ai.onnx.ml"):
            importer.opset_import.add(domain=_HIDDEN + domain, version=1)
    for node in _every_node(copy):
        if _key(node) in traps:
            node.domain = _HIDDEN + node.domain
    while True:
        inferred = infer(copy, data_prop=data_prop)
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
    if any(_length(type_) > _HUGE for type_ in types.values()):
        raise ValueError("inference would follow every element of a huge vector")
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


def _refuse_negative_weights(proto: ModelProto) -> None:
    """Slice-10 ends the process on a tensor of negative size."""
    tensors = [*_initializers(proto.graph)]
    tensors += [a.t for n in _every_node(proto) for a in n.attribute if a.HasField("t")]
    for tensor in tensors:
        if min(tensor.dims, default=0) < 0:
            raise ValueError(f"tensor {tensor.name!r} has a negative dimension")


def _every_node(proto: ModelProto) -> Iterator[NodeProto]:
    yield from nodes(proto.graph.node)
    for function in proto.functions:
        yield from nodes(function.node)


def _key(node: NodeProto) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _length(type_: TypeProto) -> int:
    """The elements of a vector; 0 for what is none, or of unknown size."""
    dims = type_.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) == 1 else 0


def _has_huge_sizes(proto: ModelProto) -> bool:
    """Whether a huge vector may be somewhere, each element of which inference would follow."""
    sizes = [math.prod(_sizes(type_)) for type_ in _declared(proto)]
    sizes += [size for tensor in _initializers(proto.graph) for size in tensor.dims]
    return max(sizes, default=0) > _HUGE or _has_huge_numbers(proto, "iuf")


def _has_huge_numbers(proto: ModelProto, kinds: str) -> bool:
    """Whether a number of one of these kinds of NumPy might become the length of a vector.

    Those that only say where a Slice ends do not count.
    """
    every = list(_every_node(proto))
    others = [n for n in every if n.op_type != "Slice"]
    ends = {name for n in every if n.op_type == "Slice" for name in n.input[1:]}
    ends -= {name for n in others for name in n.input}
    constants = [n for n in others if not ends.intersection(n.output)]
    tensors = [t for t in _initializers(proto.graph) if t.name not in ends]
    tensors += [a.t for n in constants for a in n.attribute if a.type == AttributeProto.TENSOR]
    numbers = (number for n in others for a in n.attribute for number in (a.i, *a.ints))
    return max(numbers, default=0) > _HUGE or any(exceeds(t, _HUGE, kinds) for t in tensors)


def _sizes(type_: TypeProto) -> list[int]:
    kind = type_.WhichOneof("value")
    dims = getattr(type_, kind).shape.dim if kind in _SHAPED else ()
    return [max(d.dim_value, 1) for d in dims]


def exceeds(tensor: TensorProto, limit: int, kinds: str = "iuf") -> bool:
    """Whether a tensor of a few numbers holds one that is larger; False where nobody can tell."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
        return False
    if sum(tensor.dims) > _FEW:
        return False
    try:
        values = arrays.decode(tensor)
    except ModelError:
        return False
    # As float64: a limit beyond float16 would overflow in being compared.
    return values.dtype.kind in kinds and bool((np.abs(values.astype(np.float64)) > limit).any())


def _initializers(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for body in graphs(node):
            yield from _initializers(body)


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


def _types(graph: GraphProto) -> Types:
    found = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return found


def _is_harmless(node: NodeProto, types: Mapping[str, TypeProto]) -> bool:
    if node.op_type == "ConstantOfShape":
        return False  # a number may be huge, and of how many elements it is no type tells
    type_ = types.get(node.input[-1 if node.op_type in ("GatherND", "Expand") else 0])
    if type_ is None or type_.WhichOneof("value") is None:
        return False
    if node.op_type == "Expand":
        return _length(type_) <= MAX_RANK
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
    if kind not in _SHAPED:
        return []
    return [d for d in getattr(type_, kind).shape.dim if d.dim_value < 0]
