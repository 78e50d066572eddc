"""Initial states of recurrent layers.

LSTM, GRU, RNN from a state of zeros => the same without it
"""

from __future__ import annotations

import numpy as np

from polytool.surgeon.graph import Node, Value, Workspace
from polytool.surgeon.report import Report

_RECURRENT = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
_SAME_CONTENT = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
_LARGEST = 1 << 20  # bytes of a constant that is looked at
_DEEPEST = 16


def drop_zero_states(workspace: Workspace, report: Report) -> None:
    """Leave out initial states that are zero whatever the sizes are: that is the default."""
    for graph in workspace.graphs:
        for node in graph.nodes:
            for index in _RECURRENT.get(node.op, ()) if not node.domain else ():
                value = node.input(index)
                if value is not None and is_zero(value):
                    node.set_input(index, None)
                    report.did("initial states of zeros left out")


def is_zero(value: Value, depth: int = 0) -> bool:
    """Whether every element is known to be zero."""
    if value.constant is not None and value.graph is not None:
        model = value.graph.workspace.model
        if model.nbytes(value.constant) > _LARGEST or value.dtype is None:
            return False
        array = model.array(value.constant)
        return array.dtype != np.object_ and not array.any()
    node = value.producer
    if node is None or node.domain or node.has_references or depth > _DEEPEST:
        return False
    if node.op == "ConstantOfShape":
        return _fills_with_zero(node)
    if node.op in _SAME_CONTENT:
        source = node.input(0)
        return source is not None and is_zero(source, depth + 1)
    if node.op == "Concat":
        return all(v is not None and is_zero(v, depth + 1) for v in node.inputs)
    return False


def _fills_with_zero(node: Node) -> bool:
    tensor = node.attribute("value")
    return tensor is None or not node.where.workspace.model.array(tensor).any()
