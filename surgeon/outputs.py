"""The interface of a model: which tensors it returns, and the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from polytool.errors import UsageError
from polytool.patterns import check_used, lookup
from polytool.surgeon.graph import Value, Workspace
from polytool.surgeon.types import Type, read_type, type_proto


def values_by_name(workspace: Workspace) -> dict[str, Value]:
    """Every value of the main graph, in the order in which it is made."""
    graph = workspace.main
    made = (v for node in graph.nodes for v in node.outputs if v is not None)
    return {v.name: v for v in (*graph.inputs, *graph.constants, *made)}


def set_outputs(workspace: Workspace, names: Iterable[str]) -> None:
    """Let the model return exactly the tensors `names`; types are filled in where inferred.

    Raises:
        UsageError: a name does not exist.
    """
    graph, values = workspace.main, values_by_name(workspace)
    wanted = list(dict.fromkeys(names))
    missing = [n for n in wanted if n not in values]
    if missing:
        check_used(dict.fromkeys(missing), values, "an output")
    declared = {info.name: info for info in graph.output_infos}
    for value in graph.outputs:
        value.drop_user(graph)
    graph.outputs, graph.output_infos = [], []
    for name in wanted:
        value = values[name]
        known = declared.get(name) or graph.infos.get(value) or onnx.ValueInfoProto(name=name)
        graph.outputs.append(value)
        graph.output_infos.append(known)
        value.add_user(graph)


def override_input_shapes(
    workspace: Workspace, shapes: Mapping[str, Sequence[int | str | None]]
) -> None:
    """Declare other shapes of inputs; what the model says of everything else is inferred anew.

    Raises:
        UsageError: a name is no input, or the rank differs from the declared one.
    """
    graph = workspace.main
    check_used(shapes, [v.name for v in graph.inputs], "an input shape")
    for value in graph.inputs:
        shape = lookup(shapes, value.name)
        if shape is None:
            continue
        if value.dtype is None or not value.is_tensor:
            raise UsageError(f"input {value.name!r} is no tensor of a known type")
        if value.shape is not None and len(value.shape) != len(shape):
            raise UsageError(
                f"input {value.name!r} has {len(value.shape)} dimensions, "
                f"but {list(shape)} has {len(shape)}"
            )
        proto = type_proto(value.dtype, tuple(shape))
        value.type = Type("tensor", value.dtype, tuple(shape), proto)
        info = onnx.ValueInfoProto()
        info.CopyFrom(graph.infos[value])
        info.type.CopyFrom(proto)
        graph.infos[value] = info
    _forget_declared_shapes(workspace)


def _forget_declared_shapes(workspace: Workspace) -> None:
    """Declarations beside the inputs may no longer be true."""
    graph = workspace.main
    for node in graph.nodes:
        for value in node.outputs:
            if value is not None and value.type is not None and value.type.kind == "tensor":
                dtype = value.type.dtype
                value.type = read_type(type_proto(dtype, None)) if dtype is not None else None
    for index, value in enumerate(graph.outputs):
        if value.producer is not None and value.is_tensor and value.dtype is not None:
            graph.output_infos[index] = onnx.ValueInfoProto(
                name=value.name, doc_string=graph.output_infos[index].doc_string
            )
