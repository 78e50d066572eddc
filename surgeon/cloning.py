"""Copies of nodes, with the bodies inside of them."""

from __future__ import annotations

from polytool.surgeon.graph import Graph, Node, Value


def copy_nodes(source: Graph, target: Graph, found: dict[Value, Value]) -> None:
    """Append copies of the nodes of `source`, which is sorted, to `target`.

    Args:
        source: has no sparse tensors; its constants are shared.
        target: a graph in which everything that the nodes read is visible.
        found: what stands for values of `source`, to which those of the copies are added.
    """
    for node in source.nodes:
        target.nodes.append(_node(node, target, found))


def _node(node: Node, graph: Graph, found: dict[Value, Value]) -> Node:
    copy = Node(node.proto, graph)
    for value in node.inputs:
        new = found.get(value, value) if value is not None else None
        copy.inputs.append(new)
        if new is not None:
            new.add_user(copy)
    for value in node.outputs:
        copy.outputs.append(_value(value, graph, found, copy) if value is not None else None)
    copy.bodies = {name: _graph(body, graph, found) for name, body in node.bodies.items()}
    return copy


def _value(value: Value, graph: Graph, found: dict[Value, Value], producer: Node | None) -> Value:
    copy = Value(graph.workspace.fresh(value.name), graph, producer)
    copy.tensor, copy.is_input, copy.type = value.tensor, value.is_input, value.type
    found[value] = copy
    return copy


def _graph(source: Graph, parent: Graph, found: dict[Value, Value]) -> Graph:
    graph = Graph(source.workspace, parent, source.opsets, source.name)
    graph.proto, graph.output_infos = source.proto, list(source.output_infos)
    for value in source.inputs:
        graph.inputs.append(found.get(value) or _value(value, graph, found, None))
    for value in source.constants:
        graph.constants[found.get(value) or _value(value, graph, found, None)] = None
    copy_nodes(source, graph, found)
    graph.infos = {found[v]: info for v, info in source.infos.items() if v in found}
    for value in source.outputs:
        new = found.get(value, value)
        graph.outputs.append(new)
        new.add_user(graph)
    return graph
