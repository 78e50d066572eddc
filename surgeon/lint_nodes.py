"""Lint of nodes: attributes, numbers of inputs, types and shapes, each node by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from polytool import arrays
from polytool.backends.native.inference_traps import infer_node
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.tensors import DType
from polytool.validation import node_faults

if TYPE_CHECKING:
    from polytool.surgeon.linting import Lint

_ONNX_NAMES = {DType.FLOAT: "float", DType.DOUBLE: "double"}
_MOST_DATA = 1024  # elements of a constant that shape inference is told


def check_nodes(
    workspace: Workspace, paths: Mapping[Graph, str], found: Lint, *, loads: bool
) -> None:
    """Check every node of operators that ONNX defines; types are inferred before.

    Where onnxruntime `loads` the model, findings are warnings, and shapes have been checked: the
    inference of single nodes objects to some that are sound.
    """
    for graph, path in paths.items():
        context = onnx.checker.C.CheckerContext()
        context.ir_version = max(workspace.model.proto.ir_version, 4)
        context.opset_imports = graph.opsets
        for node in graph.nodes:
            schema = schema_of(node)
            level = "warning" if loads else "exception"
            if schema is None:  # what else is refused of those that came later, or are functions
                for text in node_faults(_renamed(node), node.version):
                    found.add(level, "polytool", f"it {text}", [path + node.label])
            else:
                for source, message in _faults(node, schema, context, shapes=not loads):
                    found.add(level, source, message, [path + node.label])
                if schema.deprecated:
                    message = f"{node.op} is deprecated since opset {schema.since_version}"
                    found.add("warning", "onnx_checker", message, [path + node.label])


def schema_of(node: Node) -> Any:
    """The definition that ONNX gives of the operator, or None."""
    functions = node.where.workspace.functions
    if any(f.proto.domain == node.proto.domain and f.name == node.op for f in functions):
        return None
    return _schema(node.domain, node.op, node.version)


@cache
def _schema(domain: str, op: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return None


def _faults(node: Node, schema: Any, context: Any, *, shapes: bool) -> list[tuple[str, str]]:
    if schema.deprecated:
        return []
    # The checker would check bodies with all they contain, and knows no references.
    if not node.bodies and not _has_outside_data(node):
        try:
            onnx.checker.check_node(node.proto, context)
        except onnx.checker.ValidationError as err:
            return [("onnx_checker", _first_line(err))]
    broken = [("polytool", f"it {text}") for text in node_faults(_renamed(node), node.version)]
    if broken:
        return broken
    faults = [("onnx_checker", text) for text in _type_faults(node, schema)]
    if faults or not shapes:
        return faults
    return [("onnx_checker", text) for text in _shape_faults(node, schema)]


def _has_outside_data(node: Node) -> bool:
    return any(
        a.type == onnx.AttributeProto.TENSOR and a.t.data_location == onnx.TensorProto.EXTERNAL
        for a in node.attributes.values()
    )


def _first_line(err: Exception) -> str:
    return str(err).strip().splitlines()[0]


def _type_faults(node: Node, schema: Any) -> list[str]:
    """Inputs whose types the operator does not take, or that should have the same type."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, tuple[str, str]] = {}
    faults = []
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
        if value is None or formal is None or (kind := type_string(value)) is None:
            continue
        types = allowed.get(formal.type_str, {formal.type_str})
        if kind not in types:
            faults.append(f"input {value.name!r} is {kind}, which {node.op} does not take there")
        elif formal.is_homogeneous:
            first, other = bound.setdefault(formal.type_str, (kind, value.name))
            if kind != first:
                faults.append(
                    f"inputs {other!r} and {value.name!r} are {first} and {kind}, "
                    "which have to be equal"
                )
    return faults


def type_string(value: Value) -> str | None:
    """The type as schemas write it: `tensor(float)`, `seq(tensor(int64))`."""
    dtype = value.dtype
    if dtype is None:
        return None
    inner = f"tensor({_ONNX_NAMES.get(dtype, dtype.label)})"
    kind = value.type.kind if value.type is not None else "tensor"
    if kind == "tensor":
        return inner
    return f"seq({inner})" if kind == "sequence" else None


def _shape_faults(node: Node, schema: Any) -> list[str]:
    """What shape inference says of the node alone."""
    if node.bodies or node.has_references or not schema.has_type_and_shape_inference_function:
        return []
    values = {v.name: v for v in node.inputs if v is not None}
    types = {name: proto for name, v in values.items() if (proto := _proto(v)) is not None}
    if len(types) < len(values):
        return []
    data = {
        name: tensor
        for name, v in values.items()
        if (tensor := _content(v)) is not None
        and len(tensor.dims) <= 1
        and sum(tensor.dims) <= _MOST_DATA
        and tensor.data_location != tensor.EXTERNAL
    }
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in node.where.opsets.items()]
    proto = _renamed(node)
    try:
        infer_node(schema, proto, types, data, opsets)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as err:
        return [_first_line(err).removeprefix("[ShapeInferenceError] ").removeprefix(
            "[TypeInferenceError] ")]  # fmt: skip
    except (RuntimeError, ValueError, TypeError):
        return []  # inference of single nodes does not do everything
    return []


def _content(value: Value) -> onnx.TensorProto | None:
    """What a value holds, also where a Constant node says it."""
    node = value.producer
    if node is None or node.op != "Constant" or node.domain or node.has_references:
        return value.constant
    tensor = node.attribute("value")
    if isinstance(tensor, onnx.TensorProto):
        return tensor
    numbers = node.attribute("value_ints")
    return None if numbers is None else arrays.to_tensor(np.asarray(numbers, np.int64))


def _renamed(node: Node) -> onnx.NodeProto:
    """The node with the names that its values have in the working graph."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(v.name if v is not None else "" for v in node.inputs)
    return proto


def _proto(value: Value) -> onnx.TypeProto | None:
    if value.type is not None:
        return value.type.proto
    if value.tensor is not None:
        dims = list(value.tensor.dims)
        return onnx.helper.make_tensor_type_proto(value.tensor.data_type, dims)
    return None
