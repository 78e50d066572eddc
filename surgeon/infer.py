"""Types and shapes of every value, by ONNX's own inference.

Declarations of intermediate values and outputs are ignored: real files contain wrong ones, and
runtimes do not rely on them. Declared inputs are believed, as runtimes enforce them.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto

from polytool.backends.native.inference import infer_shapes
from polytool.backends.native.inference_traps import infer_node
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.surgeon.types import Type, read_type, type_proto
from polytool.surgeon.writing import write
from polytool.validation import node_faults

_REFUSALS = (
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
)


def infer(workspace: Workspace, report: Report | None = None) -> None:
    """Set `type` of all values of the main graph and of its bodies."""
    stub = write(workspace, bare=True)
    try:
        inferred = infer_shapes(stub)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as err:
        if report is not None:
            report.refuse("the graph", f"shapes cannot be inferred: {_first_line(err)}")
        infer_one_by_one(workspace.main)
        return
    _assign(workspace.main, inferred.graph)


def _first_line(err: Exception) -> str:
    return str(err).strip().splitlines()[0]


def _assign(graph: Graph, proto: onnx.GraphProto) -> None:
    found = {v.name: v.type for v in (*proto.value_info, *proto.output)}
    for node, inferred in zip(graph.nodes, proto.node, strict=True):
        for value in node.outputs:
            if value is not None:
                type_ = found.get(value.name)
                value.type = (read_type(type_) if type_ is not None else None) or _declared(value)
        if node.bodies:
            _assign_bodies(node, inferred)


def _assign_bodies(node: Node, proto: onnx.NodeProto) -> None:
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            _assign_body(node.bodies[attribute.name], attribute.g)
        for index, graph in enumerate(attribute.graphs):
            _assign_body(node.bodies[f"{attribute.name}/{index}"], graph)


def _assign_body(body: Graph, proto: onnx.GraphProto) -> None:
    for value, info in zip(body.inputs, proto.input, strict=True):
        value.type = read_type(info.type) or value.type
    _assign(body, proto)


def _declared(value: Value) -> Type | None:
    """The element type alone is believed where nothing can be inferred."""
    known = value.type
    if known is None or known.kind != "tensor" or known.dtype is None:
        return known
    return Type("tensor", known.dtype, None, type_proto(known.dtype, None))


def infer_one_by_one(graph: Graph) -> None:
    """What can be told although a node is broken, in bodies too."""
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in graph.opsets.items()]
    for node in graph.nodes:
        for body in node.bodies.values():
            infer_one_by_one(body)
        for value, proto in _outputs_alone(node, opsets):
            value.type = read_type(proto) or value.type


def _outputs_alone(
    node: Node, opsets: list[onnx.OperatorSetIdProto]
) -> list[tuple[Value, onnx.TypeProto]]:
    if node.bodies:
        return []  # they may be broken too, and inference would look into them
    types: dict[str, onnx.TypeProto] = {}
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    for value in node.inputs:
        proto.input.append(value.name if value is not None else "")
        if value is None:
            continue
        if value.dtype is None or not value.is_tensor:
            return []
        types[value.name] = type_proto(value.dtype, value.shape)
    if any(node_faults(proto, node.version)):
        return []  # inference may crash on it
    try:
        schema = onnx.defs.get_schema(node.op, node.version, node.domain)
        found = infer_node(schema, proto, types, opsets=opsets)
    except _REFUSALS:
        return []
    names = dict(zip(proto.output, node.outputs, strict=True))
    return [(v, found[n]) for n, v in names.items() if v is not None and n in found]
