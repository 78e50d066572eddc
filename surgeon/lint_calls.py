"""Lint of calls: what is in a function is checked with the types that each call gives it.

A function says nothing of types; the same one may be sound for one call and broken for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from polytool.surgeon.functions import resolve_attributes
from polytool.surgeon.graph import Graph, Node, Workspace
from polytool.surgeon.infer import infer
from polytool.surgeon.lint_nodes import check_nodes
from polytool.surgeon.order import named_graphs
from polytool.surgeon.report import Report

if TYPE_CHECKING:
    from polytool.surgeon.linting import Lint

_DEEPEST = 64


def check_calls(workspace: Workspace, found: Lint) -> None:
    """Check the nodes of every function that is called; types are inferred before."""
    functions = {(f.proto.domain, f.name): f for f in workspace.functions}
    _check(workspace, functions, found, set(), 0)


def _check(
    workspace: Workspace,
    functions: dict[tuple[str, str], Graph],
    found: Lint,
    seen: set[bytes],
    depth: int,
) -> None:
    known = {(e.message, e.nodes) for e in found.entries}
    for graph in workspace.main.walk():
        for node in graph.nodes:
            function = functions.get((node.proto.domain, node.op))
            if function is None or depth > _DEEPEST:
                continue
            body = _with_types(workspace, function, node)
            key = body.SerializeToString(deterministic=True)
            if key in seen:
                continue
            seen.add(key)
            inner = Workspace(workspace.model.derive(body), strict=False)
            inner.sort()
            infer(inner, Report())
            prefix = f"{function.proto.domain}.{function.name}/"
            paths = {g: prefix + path for g, path in named_graphs(inner) if not _in(g, inner)}
            fresh = type(found)()
            check_nodes(inner, paths, fresh, loads=False)
            for entry in fresh.entries:
                if (entry.message, entry.nodes) not in known:
                    known.add((entry.message, entry.nodes))
                    found.entries.append(entry)
            _check(inner, functions, found, seen, depth + 1)


def _in(graph: Graph, workspace: Workspace) -> bool:
    """Whether a graph belongs to a function, which a call of its own is needed for."""
    return any(graph in f.walk() for f in workspace.functions)


def _with_types(workspace: Workspace, function: Graph, call: Node) -> onnx.ModelProto:
    """The function as a model whose inputs have the types of the call, and its attributes."""
    source: onnx.FunctionProto = function.proto
    model = onnx.ModelProto(ir_version=max(workspace.model.proto.ir_version, 8))
    model.opset_import.extend(source.opset_import)
    model.functions.extend(workspace.model.proto.functions)
    graph = model.graph
    graph.name = source.name
    absent = set()
    for index, name in enumerate(source.input):
        value = call.input(index)
        if value is None:
            absent.add(name)
            continue
        info = graph.input.add(name=name)
        if value.type is not None:
            info.type.CopyFrom(value.type.proto)
        elif value.tensor is not None:
            dims = list(value.tensor.dims)
            info.type.CopyFrom(onnx.helper.make_tensor_type_proto(value.tensor.data_type, dims))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in source.output)
    given = {a.name: a for a in (*source.attribute_proto, *call.proto.attribute)}
    graph.node.extend(source.node)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in absent:
                node.input[index] = ""
    resolve_attributes(graph.node, given)
    return model
