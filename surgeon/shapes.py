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

from collections.abc import Callable, Sequence, Set

import numpy as np

from polytool.surgeon.constants import become_constant
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.propagation import propagate, refine, remaining
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
    nonzero: set[str] = set()
    for graph in workspace.graphs:
        if graph is workspace.main:
            for node in graph.nodes:
                if (found := content_of(node, Reader(known))) is not None:
                    known[node.output] = found
            nonzero = _nonzero_symbols(graph, known)
        for node in graph.nodes:
            if node.bodies or not node.outputs or node.outputs[0] is None:
                continue
            propagate(node, Reader(known, nonzero))
            found = content_of(node, Reader(known))
            if found is not None:
                known[node.output] = found
                if found.complete and _store(node, found):
                    report.did("values that follow from shapes folded")
                    continue
            use = _USES.get(node.op) if not node.domain else None
            done = use(node, Reader(known, nonzero)) if use is not None else None
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
    if node.version < 5 or node.has_references or value.shape is None:
        return None
    if node.attribute("allowzero", 0) and 0 in found.entries:
        return None  # an empty dimension, which cannot stand beside a copied one
    entries = _resolved(value.shape, list(found.entries), read.nonzero)
    fixed = _as_constants(value, entries, read.nonzero)
    if fixed is None:
        return None
    if node.attribute("allowzero", 0):
        node.set_attributes(allowzero=None)
    if 0 not in entries and -1 not in entries:
        refine(node, entries)  # the constant says less
    return _set_shape(node, fixed, "shapes of Reshape made constant")


def _resolved(have: Sequence[Entry], wanted: list[Entry], nonzero: Set[str]) -> list[Entry]:
    """`wanted` with sizes that follow from the other side: both have the same product."""
    if wanted.count(-1) == 1:
        rest = remaining(list(have), [e for e in wanted if e != -1])
        if rest is not None:
            wanted[wanted.index(-1)] = rest
    for index, entry in enumerate(wanted):
        if not isinstance(entry, str) or entry in have or 0 in wanted or -1 in wanted:
            continue
        others = [e for i, e in enumerate(wanted) if i != index]
        if {e for e in others if isinstance(e, str)} <= nonzero:
            rest = remaining(list(have), others)
            wanted[index] = rest if isinstance(rest, int) else entry
    return wanted


def _as_constants(value: Value, wanted: list[Entry], nonzero: Set[str]) -> list[int] | None:
    """Numbers for a Reshape: sizes, 0 for a copied dimension, -1 for one that is left."""
    copied = {e for i, e in enumerate(wanted) if isinstance(e, str) and dim(value, i) == e}
    fixed = [0 if isinstance(e, str) and dim(value, i) == e else e for i, e in enumerate(wanted)]
    unknown = [i for i, e in enumerate(fixed) if not isinstance(e, int)]
    if len(unknown) > 1:
        return None
    if unknown:
        # Beside an empty dimension -1 is an error, where the size itself would not have been.
        others = [e for i, e in enumerate(wanted) if i != unknown[0] and e not in copied]
        if not all(isinstance(e, int) and e > 0 for e in others) or not copied <= nonzero:
            return None
        fixed[unknown[0]] = -1
    return [e for e in fixed if isinstance(e, int)]


def _nonzero_symbols(graph: Graph, known: dict[Value, Known]) -> set[str]:
    """Symbols that the model does not survive being 0: they stand beside a -1 in a Reshape."""
    found: set[str] = set()
    read = Reader(known)
    for node in graph.nodes:
        wanted = read(node.input(1)) if node.op == "Reshape" and not node.domain else None
        value = node.input(0)
        if wanted is None or value is None or -1 not in wanted.entries:
            continue
        copies = not node.attribute("allowzero", 0)
        for index, entry in enumerate(wanted.entries):
            size = dim(value, index) if entry == 0 and copies else entry
            found.update([size] if isinstance(size, str) else [])
    return found


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
