"""Common subexpressions.

    op(x), op(x) => op(x)        the same operator, attributes and inputs

Across scopes, a node of a body uses an equal one outside. Left alone: what is random, has bodies,
or is an operator that ONNX does not define, which may have a state.
"""

from __future__ import annotations

from functools import cache

import onnx

from polytool.surgeon.fold import RANDOM
from polytool.surgeon.graph import Graph, Node, Workspace
from polytool.surgeon.report import Report

_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})


def merge_equal_nodes(workspace: Workspace, report: Report) -> None:
    """Compute equal things once. The workspace is sorted."""
    for top in (workspace.main, *workspace.functions):
        report.did("common subexpressions merged", _merge(top, []))


def _merge(graph: Graph, outer: list[dict[object, Node]]) -> int:
    seen: dict[object, Node] = {}
    scopes = [*outer, seen]
    merged = 0
    for node in graph.nodes:
        for body in node.bodies.values():
            merged += _merge(body, scopes)
        key = _key(node)
        if key is None:
            continue
        twin = next((s[key] for s in scopes if key in s), None)
        if twin is None:
            seen[key] = node
        elif _replace(graph, node, twin):
            merged += 1
    graph.compact()
    return merged


def _key(node: Node) -> object:
    if node.bodies or not _is_pure(node.domain, node.op):
        return None
    attributes = tuple(
        a.SerializeToString(deterministic=True)
        for a in sorted(node.proto.attribute, key=lambda a: a.name)
    )
    inputs = tuple(id(v) for v in node.inputs)
    wanted = tuple(v is not None for v in node.outputs)
    return node.op, node.domain, node.proto.overload, inputs, wanted, attributes


@cache
def _is_pure(domain: str, op: str) -> bool:
    if op in RANDOM or domain not in _KNOWN_DOMAINS:
        return False
    return domain != "" or onnx.defs.has(op)


def _replace(graph: Graph, node: Node, twin: Node) -> bool:
    """Use the outputs of `twin`; False where an output of the graph prevents that."""
    pairs = [
        (old, new)
        for old, new in zip(node.outputs, twin.outputs, strict=True)
        if old is not None and new is not None
    ]
    if any(old in graph.pinned for old, _ in pairs):
        return False
    done = True
    for old, new in pairs:
        done &= graph.redirect(old, new)
    if done:
        graph.remove(node)
    return done
