"""From a ModelProto to the working graph: names are resolved once, scope by scope."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
from onnx import AttributeProto

from polytool.arrays import dtype_of
from polytool.errors import ModelError
from polytool.surgeon.graph import Graph, Node, Value
from polytool.surgeon.types import Type, read_type, type_proto

if TYPE_CHECKING:
    from polytool.surgeon.graph import Workspace

Scope: TypeAlias = "ChainMap[str, Value]"

_MAX_DEPTH = 64
_FIRST_IR_WITH_FREE_INITIALIZERS = 4


def read(workspace: Workspace) -> list[tuple[str, str]]:
    """Fill `workspace` from its model.

    Returns:
        What is broken: the label of a node or graph, and what is wrong with it. A name that is
        read and never defined gets a value without a graph; of two definitions the last counts.
    """
    proto = workspace.model.proto
    reader = _Reader(workspace)
    workspace.main = reader.graph(proto.graph, None, workspace.model.opsets, ChainMap())
    workspace.functions = [reader.function(f) for f in proto.functions]
    return reader.problems


class _Reader:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.problems: list[tuple[str, str]] = []
        # Before IR version 4 every initializer had to be an input too; that says nothing.
        ir_version = workspace.model.proto.ir_version
        self.overridable = ir_version >= _FIRST_IR_WITH_FREE_INITIALIZERS

    def graph(
        self, proto: onnx.GraphProto, parent: Graph | None, opsets: dict[str, int], outer: Scope
    ) -> Graph:
        if len(outer.maps) > _MAX_DEPTH:
            raise ModelError(f"graphs are nested deeper than {_MAX_DEPTH} at {proto.name!r}")
        graph = Graph(self.workspace, parent, opsets, proto.name)
        graph.proto = proto
        scope = outer.new_child()
        for info in proto.input:
            value = self.define(info.name, graph, scope)
            value.is_input, value.type = True, read_type(info.type)
            graph.inputs.append(value)
            graph.infos[value] = info
        self.initializers(proto, graph, scope)
        self.nodes(proto.node, graph, scope)
        self.declarations(proto, graph, scope)
        for info in proto.output:
            graph.output_infos.append(info)
            self.returns(info.name, graph, scope)
        for annotation in proto.quantization_annotation:
            named = [e.value for e in annotation.quant_parameter_tensor_names]
            graph.pinned.update(scope[name] for name in named if name in scope)
        return graph

    def function(self, proto: onnx.FunctionProto) -> Graph:
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
        graph = Graph(self.workspace, None, opsets or self.workspace.model.opsets, proto.name)
        graph.proto = proto
        scope: Scope = ChainMap()
        for name in proto.input:
            value = self.define(name, graph, scope)
            value.is_input = True
            graph.inputs.append(value)
        self.nodes(proto.node, graph, scope)
        for name in proto.output:
            self.returns(name, graph, scope)
        return graph

    def define(self, name: str, graph: Graph, scope: Scope) -> Value:
        local = scope.maps[0]
        if name in local:
            self.problems.append((f"graph {graph.name!r}", f"{name!r} is defined twice"))
        # A body may hide an outer name; another name for the inner value frees passes from scopes.
        hides = len(scope.maps) > 1 and name in scope
        value = Value(self.workspace.fresh(name) if hides else name, graph)
        self.workspace.define(value.name)
        local[name] = value
        return value

    def initializers(self, proto: onnx.GraphProto, graph: Graph, scope: Scope) -> None:
        local = scope.maps[0]
        for tensor in proto.initializer:
            value = local.get(tensor.name)
            if value is None or value.tensor is not None:
                value = self.define(tensor.name, graph, scope)
            elif not self.overridable:
                value.is_input = False
                graph.inputs.remove(value)
            value.tensor = tensor
            graph.constants[value] = None
        for sparse in proto.sparse_initializer:
            value = self.define(sparse.values.name, graph, scope)
            dtype, dims = dtype_of(sparse.values), tuple(sparse.dims)
            value.type = Type("tensor", dtype, dims, type_proto(dtype, dims))
            graph.sparse[value] = sparse

    def nodes(self, protos: Any, graph: Graph, scope: Scope) -> None:
        for proto in protos:
            node = Node(proto, graph)
            for name in proto.output:
                value = self.define(name, graph, scope) if name else None
                if value is not None:
                    value.producer = node
                node.outputs.append(value)
            graph.nodes.append(node)
        local, outer = scope.maps[0], scope.parents
        for node in graph.nodes:
            for name in node.proto.input:
                value = (local.get(name) or outer.get(name)) if name else None
                if name and value is None:
                    problem = f"it reads {name!r}, which is never defined"
                    self.problems.append((f"node {node.label!r}", problem))
                    value = Value(name, None)
                if value is not None:
                    value.add_user(node)
                node.inputs.append(value)
            for attribute in node.proto.attribute:
                if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                    self.bodies(attribute, node, graph, scope)

    def bodies(
        self, attribute: onnx.AttributeProto, node: Node, graph: Graph, scope: Scope
    ) -> None:
        if attribute.type == AttributeProto.GRAPH:
            node.bodies[attribute.name] = self.graph(attribute.g, graph, graph.opsets, scope)
        for index, body in enumerate(attribute.graphs):
            key = f"{attribute.name}/{index}"
            node.bodies[key] = self.graph(body, graph, graph.opsets, scope)

    def declarations(self, proto: onnx.GraphProto, graph: Graph, scope: Scope) -> None:
        local = scope.maps[0]
        for info in (*proto.value_info, *proto.output):
            value = local.get(info.name)
            if value is not None and value.type is None:
                value.type = read_type(info.type)
        for info in proto.value_info:
            if info.name in local:
                graph.infos.setdefault(local[info.name], info)

    def returns(self, name: str, graph: Graph, scope: Scope) -> None:
        value = scope.get(name)
        if value is None:
            self.problems.append((f"graph {graph.name!r}", f"output {name!r} is never defined"))
            value = Value(name, None)
        graph.outputs.append(value)
        value.add_user(graph)
