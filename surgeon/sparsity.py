"""2:4 sparsity: of four neighbours along the reduced axis of a weight, two are zero."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.arrays import Array
from polytool.model import Model, Source
from polytool.patterns import check_used
from polytool.surgeon.constants import lift_constants
from polytool.surgeon.graph import Node, Value, Workspace
from polytool.surgeon.gs_graph import open_sound
from polytool.surgeon.report import Report
from polytool.tensors import DType

_TYPES = (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16)
_SEEN_THROUGH = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


@dataclass(frozen=True)
class Weight:
    """A weight that could be 2:4 sparse.

    Attributes:
        name: of the initializer.
        axis: the one that the operator sums over.
        shape: of the weight.
        reason: why it can not; empty when it can.
    """

    name: str
    axis: int
    shape: tuple[int, ...]
    reason: str = ""


def candidates(workspace: Workspace) -> dict[Value, Weight]:
    """The weights of Conv, MatMul and Gemm, in the order of the model.

    Raises:
        ModelError: the nodes form a cycle, which would be followed for ever.
    """
    workspace.sort()
    found: dict[Value, Weight] = {}
    for graph in workspace.graphs:
        for node in graph.nodes:
            for index, axis in _reduced_axes(node):
                traced = _trace(node.input(index), axis)
                if traced is not None and traced[0] not in found:
                    found[traced[0]] = _weight(*traced)
    return found


def _reduced_axes(node: Node) -> list[tuple[int, int]]:
    """(input, axis) of each operand that may be a weight; the axis may count from the end."""
    if node.domain or node.has_references:
        return []
    if node.op == "Conv":
        return [(1, 1)]
    if node.op == "MatMul":
        return [(0, -1), (1, -2)]
    if node.op == "Gemm":
        return [(0, 0 if node.attribute("transA", 0) else 1),
                (1, 1 if node.attribute("transB", 0) else 0)]  # fmt: skip
    return []


def _trace(value: Value | None, axis: int) -> tuple[Value, int] | None:
    """The initializer behind quantisation, casts and transposes, and what the axis is there."""
    while value is not None and (value.tensor is None or value.is_input):
        node = value.producer
        if node is None or node.domain:
            return None
        if node.op == "Transpose":
            source = node.input(0)
            if source is None or source.shape is None:
                return None
            order = node.attribute("perm") or list(range(len(source.shape)))[::-1]
            if not -len(order) <= axis < len(order):
                return None
            axis = order[axis]
        elif node.op not in _SEEN_THROUGH:
            return None
        value = node.input(0)
    if value is None or value.tensor is None or len(value.tensor.dims) < 2:
        return None
    return value, axis % len(value.tensor.dims)


def _weight(value: Value, axis: int) -> Weight:
    assert value.tensor is not None
    shape = tuple(value.tensor.dims)
    dtype, reason = value.dtype, ""
    if dtype not in _TYPES:
        reason = f"its type is {dtype.label if dtype else 'unknown'}"
    elif shape[axis] % 4:
        reason = f"axis {axis} has {shape[axis]} elements, no multiple of 4"
    return Weight(value.name, axis, shape, reason)


def _groups(array: Array, axis: int) -> Array:
    """A view or copy of shape (..., n, 4) with the four neighbours last."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(*moved.shape[:-1], moved.shape[-1] // 4, 4)


def is_sparse(array: Array, axis: int) -> bool:
    """Whether every four neighbours along `axis` have two zeros."""
    return bool(((_groups(array, axis) == 0).sum(-1) >= 2).all())


def pruned(array: Array, axis: int) -> Array:
    """A copy in which the two smallest of every four neighbours along `axis` are zero."""
    groups = _groups(array, axis).copy()
    size = np.abs(groups.astype(np.float32))
    smallest = np.argsort(size, axis=-1, kind="stable")[..., :2]
    np.put_along_axis(groups, smallest, np.zeros((), groups.dtype), -1)
    moved = np.moveaxis(array, axis, -1).shape
    return np.moveaxis(groups.reshape(moved), -1, axis)


@dataclass(frozen=True)
class Pruned:
    """A model with 2:4 sparse weights.

    Attributes:
        model: the result.
        done: names of the weights that were pruned.
        skipped: name to reason.
    """

    model: Model
    done: tuple[str, ...]
    skipped: dict[str, str]

    def summary(self) -> str:
        """What was done, for people."""
        lines = [f"{len(self.done)} weights made 2:4 sparse, {len(self.skipped)} left as they are"]
        return "\n".join([*lines, *(f"  {n}: {r}" for n, r in self.skipped.items())])

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        return {"pruned": list(self.done), "skipped": self.skipped}


def prune(source: Source, *, exclude: Collection[str] = ()) -> Pruned:
    """Make the weights of Conv, MatMul and Gemm 2:4 sparse, to see how fast that would be.

    Args:
        source: what `polytool.model.load` takes.
        exclude: initializers to leave as they are.

    Raises:
        UsageError: `exclude` names an initializer that does not exist.
        ModelError: the nodes form a cycle.
    """
    workspace = Workspace(open_sound(source))
    lift_constants(workspace, Report())
    every = [v.name for graph in workspace.graphs for v in graph.constants]
    check_used(dict.fromkeys(exclude), every, "an exclusion")
    done, skipped = [], {}
    for value, weight in candidates(workspace).items():
        assert value.tensor is not None
        there = workspace.model.has_content(value.tensor)
        reason = "excluded" if weight.name in exclude else weight.reason
        reason = reason or ("" if there else "its content is not there")
        if reason:
            skipped[weight.name] = reason
            continue
        array = pruned(workspace.model.array(value.tensor), weight.axis)
        value.tensor = workspace.model.store(array, value.name, value.dtype)
        done.append(weight.name)
    return Pruned(workspace.to_model(), tuple(done), skipped)


def inspect_sparsity(source: Source) -> dict[str, str]:
    """Name of each weight of Conv, MatMul and Gemm to `2:4`, `dense`, or why it cannot be 2:4."""
    workspace = Workspace(open_sound(source))
    lift_constants(workspace, Report())
    model = workspace.model
    found = {}
    for value, weight in candidates(workspace).items():
        assert value.tensor is not None
        if weight.reason or not model.has_content(value.tensor):
            found[weight.name] = weight.reason or "its content is not there"
        else:
            sparse = is_sparse(model.array(value.tensor), weight.axis)
            found[weight.name] = "2:4" if sparse else "dense"
    return found
