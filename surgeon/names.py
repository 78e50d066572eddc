"""Names of nodes: onnxruntime refuses two nodes of one graph that share one.

a, a => a, a_1
"""

from __future__ import annotations

from onnx import NodeProto

from polytool.surgeon.graph import Node, Workspace
from polytool.surgeon.report import Report


def rename_duplicates(workspace: Workspace, report: Report) -> None:
    """Give every named node of a graph a name of its own; the first keeps it."""
    for graph in workspace.graphs:
        names = [n.proto.name for n in graph.nodes if n.proto.name]
        taken = set(names)
        if len(taken) == len(names):
            continue
        seen: set[str] = set()
        for node in graph.nodes:
            name = node.proto.name
            if name and name in seen:
                _rename(node, _free(name, taken))
                report.did("duplicate node names made unique")
            seen.add(name)


def _free(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    taken.add(f"{name}_{count}")
    return f"{name}_{count}"


def _rename(node: Node, name: str) -> None:
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    proto.name = name
    node.proto = proto
