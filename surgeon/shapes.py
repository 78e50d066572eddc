"""What is known of shapes before anything runs.

    Shape(x), Size(x) of a static x                      => initializer
    Gather(Shape(x), 1), and so on, where dim 1 is known => initializer
    Reshape(x, [Shape(x)[0], 8, 16])                     => Reshape(x, [0, 8, 16])
    Reshape(x, [n, 8, 16]), n unknown                    => Reshape(x, [-1, 8, 16])
    Expand(x, [Shape(x)[0], 8])                          => Expand(x, [1, 8])
    Slice(x, 0, Shape(x)[1], axis 1)                     => x

A dimension is a size, a symbol (ONNX: equal symbols are equal sizes), or unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from polytool.surgeon.constants import become_constant
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.propagation import propagate
from polytool.surgeon.report import Report
from polytool.surgeon.shape_values import Entry, Known, Reader, content_of, dim, slice_bounds
from polytool.tensors import DType

_INT64 = (-(1 << 63), (1 << 63) - 1)

Use = Callable[[Node, Reader], "str | None"]
_USES: dict[str, Use] = {}


def fold_shapes(workspace: Workspace, report: Report) -> dict[Value, Known]:
    """Replace what follows from known shapes. The workspace is sorted and has types.

    Returns:
        What is known of every small integer tensor.
    """
    known: dict[Value, Known] = {}
    for graph in workspace.graphs:
        for node in graph.nodes:
            if node.domain or node.bodies or not node.outputs or node.outputs[0] is None:
                continue
            propagate(node, Reader(known))
            found = content_of(node, Reader(known))
            if found is not None:
                known[node.output] = found
                if found.complete and _store(node, found):
                    report.did("values that follow from shapes folded")
                    continue
            use = _USES.get(node.op)
            done = use(node, Reader(known)) if use is not None else None
            if done:
                report.did(done)
        graph.compact()
    return known


def _store(node: Node, found: Known) -> bool:
    """Make an initializer of what `node` computes."""
    dtype = node.output.dtype
    if dtype not in (DType.INT64, DType.INT32) or node.has_references:
        return False
    low, high = _INT64 if dtype is DType.INT64 else (-(1 << 31), (1 << 31) - 1)
    if not all(isinstance(e, int) and low <= e <= high for e in found.entries):
        return False
    array = np.array(found.entries, dtype.numpy)
    array = array.reshape(()) if found.scalar else array
    become_constant(node.output, node.where.workspace.model.store(array, ""))
    return True


def use(*ops: str) -> Callable[[Use], Use]:
    """Register a rewrite that uses what is known of the inputs of `ops`."""

    def register(function: Use) -> Use:
        _USES.update(dict.fromkeys(ops, function))
        return function

    return register


@use("Reshape")
def _reshape(node: Node, read: Reader) -> str | None:
    value, wanted = node.input(0), node.input(1)
    found = read(wanted)
    if value is None or wanted is None or wanted.constant is not None or found is None:
        return None
    if node.version < 5 or node.has_references or node.attribute("allowzero", 0):
        return None
    entries = list(found.entries)
    for index, entry in enumerate(entries):
        if isinstance(entry, str) and dim(value, index) == entry:
            entries[index] = 0
    unknown = [i for i, e in enumerate(entries) if not isinstance(e, int)]
    if len(unknown) == 1 and all(
        isinstance(e, int) and e > 0 for e in entries if e is not None and not isinstance(e, str)
    ):
        entries[unknown[0]] = -1
    elif unknown:
        return None
    return _set_shape(node, entries, "shapes of Reshape made constant")


def _set_shape(node: Node, entries: Sequence[Entry], done: str) -> str:
    shape = node.where.add_array(np.array(entries, np.int64), f"{node.output.name}_shape")
    node.set_input(1, shape)
    return done


@use("Expand")
def _expand(node: Node, read: Reader) -> str | None:
    value, wanted = node.input(0), node.input(1)
    found = read(wanted)
    if value is None or value.shape is None or wanted is None or found is None:
        return None
    if wanted.constant is not None or len(found.entries) == 0:
        return None
    entries = list(found.entries)
    for index, entry in enumerate(entries):
        if isinstance(entry, str) and dim(value, index - len(entries)) == entry:
            entries[index] = 1
    if not all(isinstance(e, int) for e in entries):
        return None
    return _set_shape(node, entries, "shapes of Expand made constant")


@use("Slice")
def _slice_of_everything(node: Node, read: Reader) -> str | None:
    value, bounds = node.input(0), slice_bounds(node, read)
    if value is None or value.shape is None or not bounds or node.output in node.where.pinned:
        return None
    for axis, start, end, step in bounds:
        if start != 0 or step != 1 or not isinstance(end, str) or dim(value, axis) != end:
            return None
    graph: Graph = node.where
    if not graph.redirect(node.output, value):
        return None
    graph.remove(node)
    return "Slice without effect removed"
