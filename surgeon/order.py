"""The order of nodes, and the way to graphs inside of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from polytool.errors import ModelError
from polytool.surgeon.graph import Graph, Node, Workspace


def sort(graph: Graph) -> bool:
    """Put the nodes of `graph` and its bodies into topological order; see `Graph.sort`."""
    graph.compact()
    changed = False
    for node in graph.nodes:
        for body in node.bodies.values():
            changed |= sort(body)
    seen: set[Node] = set()
    for node in graph.nodes:
        if any(p not in seen for p in _needs(graph, node)):
            graph.nodes = _ordered(graph)
            return True
        seen.add(node)
    return changed


def _needs(graph: Graph, node: Node) -> Iterator[Node]:
    for value in node.reads():
        if value.graph is graph and value.producer is not None:
            yield value.producer


def _ordered(graph: Graph) -> list[Node]:
    """Depth first from each node in turn, so that what is in order stays so."""
    order: list[Node] = []
    state: dict[Node, int] = {}  # 1: on the way, 2: done
    for root in graph.nodes:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in state:
                stack.pop()
                if state[node] == 1:
                    state[node] = 2
                    order.append(node)
                continue
            state[node] = 1
            pending = [p for p in dict.fromkeys(_needs(graph, node)) if state.get(p) != 2]
            if any(state.get(p) == 1 for p in pending):
                raise ModelError(f"the graph has a cycle through node {node.label!r}: re-export it")
            stack.extend(reversed(pending))
    return order


def named_graphs(workspace: Workspace) -> Iterable[tuple[Graph, str]]:
    """Every graph, and a prefix for the labels of its nodes."""
    yield from _bodies(workspace.main, "")
    for function in workspace.functions:
        yield from _bodies(function, f"{function.proto.domain}.{function.name}/")


def _bodies(graph: Graph, prefix: str) -> Iterable[tuple[Graph, str]]:
    yield graph, prefix
    for node in graph.nodes:
        for name, body in node.bodies.items():
            yield from _bodies(body, f"{prefix}{node.label}/{name}/")
