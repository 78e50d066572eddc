"""Constants: nodes that only hold a value, and initializers that hold the same one.

Constant => initializer
two equal initializers => one
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import onnx

from polytool.arrays import dtype_of
from polytool.model import Model
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.tensors import DType

_TYPED = {
    "value_float": DType.FLOAT,
    "value_floats": DType.FLOAT,
    "value_int": DType.INT64,
    "value_ints": DType.INT64,
    "value_string": DType.STRING,
    "value_strings": DType.STRING,
}
_BLOCK = 4 << 20  # bytes that are read at once
_PROBE = 64  # bytes at the beginning, middle and end that tell most large tensors apart


def lift_constants(workspace: Workspace, report: Report) -> None:
    """Make initializers of Constant nodes (in functions they are written as nodes again)."""
    for graph in workspace.graphs:
        lifted = [n for n in graph.nodes if n.op == "Constant" and not n.domain and _lift(n)]
        if lifted:
            graph.compact()
            report.did("Constant nodes turned into initializers", len(lifted))


def _lift(node: Node) -> bool:
    graph, value = node.where, node.output
    if len(node.attributes) != 1 or node.has_references:
        return False
    (name,) = node.attributes
    if name == "value":
        tensor = node.attributes[name].t
    elif name in _TYPED:
        given = node.attribute(name)
        if given is None:  # this version of Constant has none of the name
            return False
        array = np.asarray(given, _TYPED[name].numpy)
        tensor = workspace_tensor(graph, array, _TYPED[name])
    else:  # sparse
        return False
    become_constant(value, tensor)
    return True


def workspace_tensor(graph: Graph, array: object, dtype: DType) -> onnx.TensorProto:
    """A tensor for an initializer of `graph`."""
    return graph.workspace.model.store(array, "", dtype)


def become_constant(value: Value, tensor: onnx.TensorProto) -> None:
    """Let `value` be an initializer; the node that computed it goes once it has no other output."""
    graph, producer = value.graph, value.producer
    assert graph is not None and producer is not None
    value.tensor, value.producer = tensor, None
    graph.constants[value] = None
    producer.outputs[producer.outputs.index(value)] = None
    if not any(v is not None for v in producer.outputs):
        graph.remove(producer)


def merge_constants(workspace: Workspace, report: Report) -> None:
    """Keep one of several equal initializers of a graph."""
    for graph in workspace.graphs:
        for group in _groups(workspace.model, graph):
            first, *rest = group
            for value in rest:
                if value.users and value not in graph.pinned:
                    graph.redirect(value, first)
                    report.did("equal initializers merged")


def _groups(model: Model, graph: Graph) -> Iterable[list[Value]]:
    """Lists of at least two constants with the same type, shape and bits."""
    alike: dict[object, list[Value]] = {}
    for value in graph.constants:
        tensor = value.constant
        if tensor is None:
            continue
        alike.setdefault((tensor.data_type, *tensor.dims, _probe(model, tensor)), []).append(value)
    for candidates in alike.values():
        if len(candidates) < 2:
            continue
        equal: dict[object, list[Value]] = {}
        for value in candidates:
            assert value.tensor is not None
            equal.setdefault(_content(model, value.tensor), []).append(value)
        yield from (group for group in equal.values() if len(group) > 1)


def _probe(model: Model, tensor: onnx.TensorProto) -> object:
    """A cheap key: the whole content of small tensors, samples of those that lie on disk."""
    if tensor.data_location != tensor.EXTERNAL:
        return _inline(model, tensor)
    if model.ignore_external_data:
        return tuple((e.key, e.value) for e in tensor.external_data)
    where = model.locate(tensor)
    assert where is not None
    data = model.file(where.location)
    starts = {0, where.length // 2, max(where.length - _PROBE, 0)}
    return tuple(
        bytes(data.read(where.offset + s, min(_PROBE, where.length - s))) for s in sorted(starts)
    )


def _content(model: Model, tensor: onnx.TensorProto) -> object:
    """A key that only equal contents share; large ones are read in blocks and not kept."""
    if tensor.data_location != tensor.EXTERNAL:
        return _inline(model, tensor)
    if model.ignore_external_data:
        return tuple((e.key, e.value) for e in tensor.external_data)
    where = model.locate(tensor)
    assert where is not None
    file, digest = model.file(where.location), hashlib.blake2b()
    for start in range(0, where.length, _BLOCK):
        digest.update(file.read(where.offset + start, min(_BLOCK, where.length - start)))
    return digest.digest()


def _inline(model: Model, tensor: onnx.TensorProto) -> object:
    if dtype_of(tensor) is DType.STRING:
        return tuple(tensor.string_data)
    return bytes(model.raw(tensor))
