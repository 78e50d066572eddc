"""Reading ONNX protos: names, types, order and function definitions of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from polytool.backends.native.ops import registry
from polytool.errors import ModelError
from polytool.tensors import DType, Shape, TensorSpec


def without_inputs(node: NodeProto, absent: set[str]) -> NodeProto:
    """A function's node with the optional inputs that its caller leaves out made empty."""
    if not absent.intersection(node.input):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(copy.input):
        if name in absent:
            copy.input[index] = ""
    return copy


def function_of_schema(
    proto: NodeProto, node: registry.Node, specs: list[TensorSpec | None]
) -> onnx.FunctionProto | None:
    """The definition of an operator in the ONNX standard, if it is a function."""
    try:
        schema = onnx.defs.get_schema(
            node.op, max_inclusive_version=node.version, domain=node.domain
        )
    except onnx.defs.SchemaError:
        return None
    function = onnx.FunctionProto()
    if schema.has_function:  # type: ignore[attr-defined]  # the stub lacks it
        function.CopyFrom(schema.function_body)
        defaults = (a.default_value for a in schema.attributes.values())
        function.attribute_proto.extend(d for d in defaults if d.type)
        return function
    if not schema.has_context_dependent_function:  # type: ignore[attr-defined]  # likewise
        return None
    # Its definition reads types that a broken model need not have, and crashes.
    if node.op == "SequenceMap" and (specs[0] is None or specs[0].container != "sequence"):
        raise ModelError(f"node {display(node)} ({node.op}) needs a sequence, and is given none")
    types = [_type_proto(spec).SerializeToString() for spec in specs]
    while len(types) < len(proto.input):
        types.append(b"")
    try:
        text = schema.get_context_dependent_function(  # type: ignore[attr-defined]  # likewise
            proto.SerializeToString(), types
        )
    except (RuntimeError, ValueError):
        return None
    function.ParseFromString(text)
    return function if function.node else None


_ANONYMOUS = frozenset({"", "?", "-1", "None"})  # what exporters write for "any size"


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return dim.dim_value
    return None if dim.dim_param in _ANONYMOUS else dim.dim_param


def read_type(type_: onnx.TypeProto) -> tuple[DType | None, Shape | None, str]:
    """Element type, shape and container of a TypeProto."""
    kind = type_.WhichOneof("value")
    if kind == "sequence_type":
        dtype, shape, _ = read_type(type_.sequence_type.elem_type)
        return dtype, shape, "sequence"
    if kind == "optional_type":
        dtype, shape, _ = read_type(type_.optional_type.elem_type)
        return dtype, shape, "optional"
    if kind == "map_type":
        return None, None, "map"
    inner = type_.sparse_tensor_type if kind == "sparse_tensor_type" else type_.tensor_type
    dtype = DType(inner.elem_type) if inner.elem_type else None
    if not inner.HasField("shape"):
        return dtype, None, "tensor"
    dims = [_dim(d) for d in inner.shape.dim]
    return dtype, tuple(dims), "tensor"


def display(node: registry.Node | NodeProto) -> str:
    """How a node is shown: its name, else its operator and first output."""
    outputs = node.outputs if isinstance(node, registry.Node) else node.output
    op = node.op if isinstance(node, registry.Node) else node.op_type
    return node.name or f"{op}:{next((o for o in outputs if o), '')}"


def sort_nodes(nodes: list[NodeProto], model: str) -> list[NodeProto]:
    """The nodes in topological order; the given order where that already is one.

    Raises:
        ModelError: the nodes form a cycle.
    """
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [
        {producer[n] for n in _reads(node) if n in producer and producer[n] != i}
        for i, node in enumerate(nodes)
    ]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return nodes
    order: list[int] = []
    state = [0] * len(nodes)
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            index = stack[-1]
            if state[index] == 0:
                state[index] = 1
                pending = sorted(n for n in needs[index] if state[n] != 2)
                if any(state[n] == 1 for n in pending):
                    raise ModelError(
                        f"{model} has a cycle through node {display(nodes[index])}; re-export it"
                    )
                stack.extend(pending)
            else:
                stack.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
    return [nodes[i] for i in order]


def _reads(node: NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _reads(inner)
            yield from (o.name for o in attribute.g.output)


def _type_proto(spec: TensorSpec | None) -> onnx.TypeProto:
    if spec is None or (spec.dtype is None and spec.container == "tensor"):
        return onnx.TypeProto()
    tensor = onnx.helper.make_tensor_type_proto(spec.dtype or 0, None)
    if spec.container == "sequence":
        return onnx.helper.make_sequence_type_proto(tensor)
    if spec.container == "optional":
        return onnx.helper.make_optional_type_proto(tensor)
    return tensor


def constant_value(attrs: Mapping[str, Any]) -> np.ndarray:
    """The array of a Constant node, from the one attribute that it has."""
    ((kind, value),) = attrs.items()
    if kind.startswith("value_string"):
        return np.array(value, dtype=object)
    dtype = {"value_f": np.float32, "value_i": np.int64}.get(kind[:7])
    return np.asarray(value, dtype=dtype)


def normal_domain(domain: str) -> str:
    """`ai.onnx` is another way to write the empty domain."""
    return "" if domain == "ai.onnx" else domain
