"""From the working graph to a ModelProto: what nobody touched is written as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto

from polytool.surgeon.graph import Graph, Node, Value
from polytool.surgeon.types import Type

if TYPE_CHECKING:
    from polytool.surgeon.graph import Workspace

_FIRST_IR_WITH_FREE_INITIALIZERS = 4
_MADE_UP = "unk__"


def write(workspace: Workspace, *, bare: bool = False) -> onnx.ModelProto:
    """The model that `workspace` describes; the source's proto is not changed.

    `bare` leaves out what is declared of intermediate values and outputs, but not what was found
    out.
    """
    source = workspace.model.proto
    proto = onnx.ModelProto()
    _copy(source, proto, {"graph", "functions"})
    proto.ir_version = max(source.ir_version, _FIRST_IR_WITH_FREE_INITIALIZERS)
    if not proto.opset_import:
        proto.opset_import.add(version=1)
    for domain, version in workspace.extra_opsets.items():
        proto.opset_import.add(domain=domain, version=version)
    _write_graph(workspace.main, proto.graph, bare)
    for function in workspace.functions:
        _write_function(function, proto.functions.add(), bare)
    return proto


def _copy(source: Any, target: Any, but: Collection[str]) -> None:
    """Copy the fields that are set, except the named ones."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _write_graph(graph: Graph, proto: onnx.GraphProto, bare: bool) -> None:
    written = {"node", "initializer", "sparse_initializer", "input", "output", "value_info"}
    _copy(graph.proto, proto, {*written, "quantization_annotation"})
    for value in graph.inputs:
        renamed = _renamed(graph.infos[value], value.name)
        proto.input.append(_without_shape(renamed) if bare and graph.is_body else renamed)
    for value, info in zip(graph.outputs, graph.output_infos, strict=True):
        proto.output.append(ValueInfoProto(name=value.name) if bare else _output_info(value, info))
    for value in graph.constants:
        assert value.tensor is not None
        proto.initializer.append(_named(value.tensor, value.name))
    for value, sparse in graph.sparse.items():
        copy = proto.sparse_initializer.add()
        copy.CopyFrom(sparse)
        copy.values.name = value.name
    proto.node.extend(_node(node, bare) for node in graph.nodes)
    if bare:
        _add_refined(graph, proto)
        return
    returned = {id(value) for value in graph.outputs}
    for node in graph.nodes:
        for output in node.outputs:
            if output is not None and id(output) not in returned:
                _add_value_info(proto, output, graph.infos.get(output))
    if graph.proto.quantization_annotation:
        names = {v.name for v in _defined(graph)}
        proto.quantization_annotation.extend(
            a for a in graph.proto.quantization_annotation if a.tensor_name in names
        )


def _add_refined(graph: Graph, proto: onnx.GraphProto) -> None:
    for value in graph.workspace.refined:
        if value.graph is graph and value.producer is not None and value.type is not None:
            info = proto.value_info.add(name=value.name, type=value.type.proto)
            _forget_made_up(info)


def _defined(graph: Graph) -> Iterable[Value]:
    yield from graph.inputs
    yield from graph.constants
    for node in graph.nodes:
        yield from (v for v in node.outputs if v is not None)


def _write_function(graph: Graph, proto: onnx.FunctionProto, bare: bool) -> None:
    _copy(graph.proto, proto, {"node", "input", "output"})
    proto.input.extend(v.name for v in graph.inputs)
    proto.output.extend(v.name for v in graph.outputs)
    for value in graph.constants:  # a function has no initializers
        assert value.tensor is not None
        attribute = AttributeProto(name="value", type=AttributeProto.TENSOR, t=value.tensor)
        proto.node.add(op_type="Constant", output=[value.name], attribute=[attribute])
    proto.node.extend(_node(node, bare) for node in graph.nodes)


def _named(tensor: TensorProto, name: str) -> TensorProto:
    if tensor.name == name:
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _renamed(info: ValueInfoProto, name: str) -> ValueInfoProto:
    if info.name == name:
        return info
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = name
    return copy


def _without_shape(info: ValueInfoProto) -> ValueInfoProto:
    """A body's input may change its shape from iteration to iteration, whatever it declares."""
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    if copy.type.HasField("tensor_type"):
        copy.type.tensor_type.ClearField("shape")
    return copy


def _info(value: Value, info: ValueInfoProto) -> ValueInfoProto:
    changed = value.type is not None and info.type != value.type.proto
    if info.name == value.name and not changed:
        return info
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = value.name
    if changed and value.type is not None:
        copy.type.CopyFrom(value.type.proto)
    return copy


def _output_info(value: Value, info: ValueInfoProto) -> ValueInfoProto:
    """The declaration of an output stays; a missing type or shape is filled in."""
    missing = value.type is not None and _says_less(info.type, value.type)
    if info.name == value.name and not missing:
        return info
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = value.name
    if missing and value.type is not None:
        copy.type.CopyFrom(value.type.proto)
        _forget_made_up(copy)
    return copy


def _forget_made_up(info: ValueInfoProto) -> None:
    """Leave out symbols of inference, which makes up other ones each time."""
    for dim in info.type.tensor_type.shape.dim:
        if dim.dim_param.startswith(_MADE_UP):
            dim.ClearField("dim_param")


def _says_less(declared: onnx.TypeProto, known: Type) -> bool:
    """Whether a type is not declared at all, or without the shape that is known of it."""
    if declared.WhichOneof("value") is None:
        return True
    tensor = declared.tensor_type
    if not declared.HasField("tensor_type") or tensor.HasField("shape"):
        return False
    return known.kind == "tensor" and known.shape is not None and known.dtype == tensor.elem_type


def _add_value_info(proto: onnx.GraphProto, value: Value, info: ValueInfoProto | None) -> None:
    if value.type is None:
        return
    if info is not None:
        proto.value_info.append(_info(value, info))
    else:
        proto.value_info.add(name=value.name, type=value.type.proto)
    if value.shape is not None and any(str(d).startswith(_MADE_UP) for d in value.shape):
        _forget_made_up(proto.value_info[-1])


def write_node(node: Node) -> NodeProto:
    """One node, with the names that its values have now."""
    return _node(node, False)


def _node(node: Node, bare: bool) -> NodeProto:
    inputs = [v.name if v is not None else "" for v in node.inputs]
    outputs = [v.name if v is not None else "" for v in node.outputs]
    source = node.proto
    if not node.bodies and inputs == list(source.input) and outputs == list(source.output):
        return source
    proto = NodeProto()
    _copy(source, proto, {"input", "output", *(["attribute"] if node.bodies else [])})
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    if node.bodies:
        for attribute in source.attribute:
            _write_attribute(node, attribute, proto.attribute.add(), bare)
    return proto


def _write_attribute(
    node: Node, source: AttributeProto, target: AttributeProto, bare: bool
) -> None:
    if source.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        target.CopyFrom(source)
        return
    _copy(source, target, {"g", "graphs"})
    if source.type == AttributeProto.GRAPH:
        _write_graph(node.bodies[source.name], target.g, bare)
    for index in range(len(source.graphs)):
        _write_graph(node.bodies[f"{source.name}/{index}"], target.graphs.add(), bare)
