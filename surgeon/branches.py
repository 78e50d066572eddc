"""Branches that are decided.

If(constant) => the nodes of the branch that is taken
"""

from __future__ import annotations

from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report


def inline_decided_branches(workspace: Workspace, report: Report) -> None:
    """Put the branch of every If whose condition is constant in its place."""
    for top in (workspace.main, *workspace.functions):
        _inline_all(top, report)


def _inline_all(graph: Graph, report: Report) -> None:
    for node in list(graph.nodes):
        condition = node.input(0) if node.op == "If" and not node.domain else None
        if condition is not None and condition.constant is not None:
            flag = graph.workspace.model.array(condition.constant)
            if flag.size == 1:
                inline(node, "then_branch" if bool(flag.reshape(-1)[0]) else "else_branch")
                report.did("If nodes with a constant condition replaced by their branch")
    graph.compact()
    for node in graph.nodes:
        for body in node.bodies.values():
            _inline_all(body, report)


def inline(node: Node, name: str) -> None:
    """Replace an If by one of its branches."""
    graph = node.where
    body = node.bodies.pop(name)
    results = body.outputs
    body.outputs = []
    for value in results:
        value.drop_user(body)
    move(body, graph)
    outputs = node.outputs
    node.outputs = [None] * len(outputs)
    graph.remove(node)
    for old, new in zip(outputs, results, strict=True):
        if old is not None:
            old.producer = None
            graph.substitute(old, new)


def move(body: Graph, graph: Graph) -> None:
    """Make everything that `body` defines part of `graph`, under names that are free there."""
    for node in body.nodes:
        node.graph = graph
        for inner in node.bodies.values():
            inner.parent = graph
        for value in node.outputs:
            if value is not None:
                adopt(value, graph)
    for value in (*body.constants, *body.sparse):
        adopt(value, graph)
    graph.nodes.extend(body.nodes)
    graph.constants.update(body.constants)
    graph.sparse.update(body.sparse)
    graph.infos.update(body.infos)
    graph.pinned |= body.pinned
    body.nodes, body.constants, body.sparse = [], {}, {}


def adopt(value: Value, graph: Graph) -> None:
    """Make `value`, of a body inside, one of `graph`."""
    value.graph = graph
    if not graph.workspace.is_unique(value.name):
        value.name = graph.workspace.fresh(value.name)
