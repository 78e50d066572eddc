"""Dead code: nodes whose results nobody reads, initializers and functions that nothing uses."""

from __future__ import annotations

from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report


def remove_dead(workspace: Workspace, report: Report) -> None:
    """Remove what does not contribute to an output. Graph inputs stay: they are the interface."""
    _remove_functions(workspace, report)
    for top in (workspace.main, *workspace.functions):
        report.did("unused nodes removed", _remove_nodes(top))
    for graph in workspace.graphs:
        unused = [
            v for v in graph.constants if not v.users and not v.is_input and v not in graph.pinned
        ]
        for value in unused:
            del graph.constants[value]
        for value in [v for v in graph.sparse if not v.users]:
            del graph.sparse[value]
        if not graph.is_function:
            report.did("unused initializers removed", len(unused))


def is_dead(node: Node) -> bool:
    """Whether nothing reads any output; a node without outputs is there for another reason."""
    return (
        node.graph is not None
        and any(v is not None for v in node.outputs)
        and all(v is None or not (v.users or v in node.where.pinned) for v in node.outputs)
    )


def _remove_nodes(top: Graph) -> int:
    removed = 0
    work = [n for graph in top.walk() for n in reversed(graph.nodes) if is_dead(n)]
    touched: set[Graph] = set()
    while work:
        node = work.pop()
        if node.graph is None:
            continue
        removed += 1
        feeds = {v.producer for v in _all_reads(node) if v.producer is not None}
        touched.add(node.where)
        node.where.remove(node)
        work.extend(n for n in feeds if is_dead(n))
    for graph in touched:
        graph.compact()
    return removed


def _all_reads(node: Node) -> list[Value]:
    return [
        *(v for v in node.inputs if v is not None),
        *(v for body in node.bodies.values() for v in body.reads()),
    ]


def _remove_functions(workspace: Workspace, report: Report) -> None:
    key = {(f.proto.domain, f.name): f for f in workspace.functions}
    used: set[Graph] = set()
    work = [workspace.main]
    while work:
        for graph in work.pop().walk():
            for node in graph.nodes:
                function = key.get((node.proto.domain, node.op))
                if function is not None and function not in used:
                    used.add(function)
                    work.append(function)
    unused = len(workspace.functions) - len(used)
    workspace.functions = [f for f in workspace.functions if f in used]
    report.did("unused functions removed", unused)
