"""Chains of data movement that one node can do.

Slice -> Slice along other axes => Slice
Unsqueeze -> Unsqueeze, Squeeze -> Squeeze => one of them
Concat of a Concat along the same axis => Concat
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from polytool.surgeon.graph import Node, Value, Workspace
from polytool.surgeon.noops import integers
from polytool.surgeon.report import Report
from polytool.surgeon.shape_values import Reader, slice_bounds


def merge_chains(workspace: Workspace, report: Report) -> None:
    """Shorten chains whose inner tensors nobody else reads. The workspace is sorted."""
    for graph in workspace.graphs:
        for node in graph.nodes:
            rule = _RULES.get(node.op) if not node.domain and not node.has_references else None
            if rule is not None and node.graph is not None and rule(node):
                report.did(f"{node.op} of a {node.op} made one")
        graph.compact()


def _inner(value: Value | None, op: str) -> Node | None:
    """The node of the same kind that alone feeds this one."""
    if value is None or value.producer is None or sum(value.users.values()) != 1:
        return None
    node = value.producer
    same = node.op == op and not node.domain and not node.has_references
    return node if same and node.graph is value.graph and not value.is_output else None


def _slice(node: Node) -> bool:
    inner = _inner(node.input(0), "Slice")
    if inner is None or node.version < 10 or inner.graph is not node.graph:
        return False
    source = inner.input(0)
    first, second = slice_bounds(inner, Reader({})), slice_bounds(node, Reader({}))
    if source is None or source.shape is None or first is None or second is None:
        return False
    rank = len(source.shape)
    if not _exist([axis for axis, *_ in (*first, *second)], rank):
        return False
    bounds = [(axis % rank, *rest) for axis, *rest in (*first, *second)]
    if len({axis for axis, *_ in bounds}) < len(bounds):
        return False
    graph, base = node.where, node.output.name
    names = ("axes", "starts", "ends", "steps")
    columns = dict(zip(names, zip(*bounds, strict=True), strict=True))
    node.set_input(0, source)
    for index, name in enumerate(("starts", "ends", "axes", "steps")):
        array = np.array(columns[name], np.int64)
        node.set_input(index + 1, graph.add_array(array, f"{base}_{name}"))
    return True


def _axes(node: Node) -> list[int] | None:
    if node.version >= 13:
        return integers(node.input(1))
    axes: list[int] | None = node.attribute("axes")
    return axes


def _squeeze(node: Node) -> bool:
    """Axes of the inner node count before those of the outer one are gone."""
    inner = _inner(node.input(0), "Squeeze")
    if inner is None or inner.graph is not node.graph:
        return False
    source, first, second = inner.input(0), _axes(inner), _axes(node)
    if source is None or source.shape is None or not first or not second:
        return False
    rank = len(source.shape)
    if not _exist(first, rank):
        return False
    gone = {a % rank for a in first}
    left = [a for a in range(rank) if a not in gone]
    if not _exist(second, len(left)):
        return False
    return _set_axes(node, source, sorted(gone | {left[a % len(left)] for a in second}))


def _unsqueeze(node: Node) -> bool:
    inner = _inner(node.input(0), "Unsqueeze")
    if inner is None or inner.graph is not node.graph or node.output.shape is None:
        return False
    source, first, second = inner.input(0), _axes(inner), _axes(node)
    if source is None or not first or not second:
        return False
    rank = len(node.output.shape)
    if not _exist(second, rank):
        return False
    new = {a % rank for a in second}
    old = [a for a in range(rank) if a not in new]
    if not _exist(first, len(old)):
        return False
    return _set_axes(node, source, sorted(new | {old[a % len(old)] for a in first}))


def _exist(axes: Sequence[int], rank: int) -> bool:
    """Whether a tensor of `rank` has these axes; those of a broken model need not be there."""
    return all(-rank <= a < rank for a in axes)


def _set_axes(node: Node, source: Value, axes: list[int]) -> bool:
    node.set_input(0, source)
    if node.version >= 13:
        array = np.array(axes, np.int64)
        node.set_input(1, node.where.add_array(array, f"{node.output.name}_axes"))
    else:
        node.set_attributes(axes=axes)
    return True


def _concat(node: Node) -> bool:
    axis = node.attribute("axis")
    shape = node.output.shape
    for index, value in enumerate(node.inputs):
        inner = _inner(value, "Concat")
        if inner is None or inner.graph is not node.graph or axis is None or shape is None:
            continue
        own = inner.attribute("axis")
        if own is None or not _exist([own, axis], len(shape)):
            continue
        if own % len(shape) != axis % len(shape):
            continue
        inputs = [*node.inputs[:index], *inner.inputs, *node.inputs[index + 1 :]]
        for position, new in enumerate(inputs):
            node.set_input(position, new)
        return True
    return False


_RULES: dict[str, Callable[[Node], bool]] = {
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
}
