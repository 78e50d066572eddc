"""Shapes that are known before anything runs.

Shape(x), Size(x) of a static x => initializer
"""

from __future__ import annotations

import math

import numpy as np

from polytool.surgeon.constants import become_constant
from polytool.surgeon.graph import Node, Workspace
from polytool.surgeon.report import Report


def fold_static_shapes(workspace: Workspace, report: Report) -> None:
    """Replace Shape and Size where inference knows the answer."""
    for graph in workspace.graphs:
        for node in graph.nodes:
            if node.op in ("Shape", "Size") and not node.domain and _fold(node):
                report.did("shapes of static tensors folded")
        graph.compact()


def _fold(node: Node) -> bool:
    value = node.input(0)
    if value is None or value.shape is None or node.has_references:
        return False
    dims = value.shape
    if node.op == "Shape":
        rank = len(dims)
        start, end = node.attribute("start", 0), node.attribute("end", rank)
        dims = dims[_clamp(start, rank) : max(_clamp(end, rank), _clamp(start, rank))]
    if not all(isinstance(d, int) for d in dims):
        return False
    sizes = [int(d) for d in dims if isinstance(d, int)]
    array = np.array(sizes if node.op == "Shape" else math.prod(sizes), np.int64)
    become_constant(node.output, node.where.workspace.model.store(array, ""))
    return True


def _clamp(index: int, rank: int) -> int:
    return min(max(index + rank if index < 0 else index, 0), rank)
