"""Lint of graphs: what is not used, out of order, there twice, or too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx

from polytool import arrays
from polytool.surgeon.dead import is_dead
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.known import is_standard
from polytool.tensors import DType
from polytool.validation import node_faults

if TYPE_CHECKING:
    from polytool.surgeon.linting import Lint

_CHECKED = frozenset({DType.FLOAT, DType.DOUBLE, DType.BFLOAT16})
_READ_UP_TO = 512 << 20  # bytes of one weight


def check_graphs(workspace: Workspace, paths: Mapping[Graph, str], found: Lint) -> None:
    """Everything that needs neither types nor a run."""
    _check_opsets(workspace, paths, found)
    for graph, path in paths.items():
        _check_order(graph, path, found)
        _check_names(graph, path, found)
        _check_unused(graph, path, found)
        _check_references(graph, path, found)
        for value in graph.constants:
            if value.tensor is not None:
                _check_weight(workspace, value.tensor, f"{path}{value.name}", found)
        for node in graph.nodes:
            if node.op == "Constant" and not node.domain and (tensor := _value(node)) is not None:
                _check_weight(workspace, tensor, path + node.label, found)


def _check_references(graph: Graph, path: str, found: Lint) -> None:
    outer = graph
    while outer.parent is not None:
        outer = outer.parent
    names = [path + n.label for n in graph.nodes if n.has_references]
    if names and not outer.is_function:
        message = "these nodes take an attribute from a function, but are in none"
        found.add("exception", "polytool", message, names)


def _check_opsets(workspace: Workspace, paths: Mapping[Graph, str], found: Lint) -> None:
    functions = {(f.proto.domain, f.name) for f in workspace.functions}
    newest = onnx.defs.onnx_opset_version()
    used: set[str] = set()
    for graph, path in paths.items():
        for node in graph.nodes:
            used.add(node.domain)
            name = path + node.label
            if (node.proto.domain, node.op) in functions:
                continue
            if node.domain not in graph.opsets:
                what = f"the model imports no opset for its domain {node.domain or 'ai.onnx'!r}"
                found.add("exception", "polytool", what, [name])
            elif not node.domain and not is_standard(node.op, node.version):
                what = f"ONNX defines no {node.op} in opset {node.version}"
                found.add("exception", "onnx_checker", what, [name])
            elif node.domain and not onnx.defs.has(node.op, node.domain):
                what = f"{node.domain}.{node.op} is a custom operator: its types are not checked"
                found.add("info", "polytool", what, [name])
    opsets = workspace.main.opsets
    if opsets.get("", 0) > newest:
        what = f"opset {opsets['']} is newer than {newest}, the newest that the onnx here knows"
        found.add("warning", "polytool", what)
    unused = [repr(d) for d in opsets if d and d not in used]
    if unused:
        found.add("info", "polytool", f"imported and not used: {', '.join(unused)}")


def _check_order(graph: Graph, path: str, found: Lint) -> None:
    seen = {v for node in graph.nodes for v in node.outputs if v is not None}
    late: list[str] = []
    done: set[Value] = set()
    for node in graph.nodes:
        if any(v in seen and v not in done for v in node.reads()):
            late.append(path + node.label)
        done.update(v for v in node.outputs if v is not None)
    if late:
        found.add("warning", "polytool", "nodes stand before nodes that they depend on", late)


def _check_names(graph: Graph, path: str, found: Lint) -> None:
    counts = Counter(n.proto.name for n in graph.nodes if n.proto.name)
    for name, count in counts.items():
        if count > 1:
            what = f"{count} nodes have this name, which onnxruntime refuses"
            found.add("warning", "polytool", what, [path + name])


def _check_unused(graph: Graph, path: str, found: Lint) -> None:
    where = f" of {path.rstrip('/')}" if path else ""
    for value in graph.inputs:
        if not value.users and not graph.is_body:
            found.add("warning", "polytool", f"input {value.name!r}{where} is not used")
        if value.tensor is not None:
            what = f"initializer {value.name!r} is also an input, so that it cannot be folded"
            found.add("warning", "polytool", what)
    unused = [v.name for v in graph.constants if not v.users and v not in graph.pinned]
    if unused:
        shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if unused[5:] else "")
        found.add("warning", "polytool", f"initializers{where} are not used: {shown}")
    dead = [path + n.label for n in graph.nodes if is_dead(n)]
    if dead:
        found.add("warning", "polytool", "nothing uses what these nodes compute", dead)


def _value(node: Node) -> onnx.TensorProto | None:
    """What a Constant node holds, where it is a tensor or floats."""
    if node.has_references or any(node_faults(node.proto, node.version)):
        return None
    for name in ("value_float", "value_floats"):
        if name in node.attributes:
            return arrays.to_tensor(np.asarray(node.attribute(name), np.float32))
    value = node.attribute("value")
    return value if isinstance(value, onnx.TensorProto) else None


def _check_weight(workspace: Workspace, tensor: onnx.TensorProto, name: str, found: Lint) -> None:
    model = workspace.model
    if tensor.data_type not in _CHECKED:
        return
    if not model.has_content(tensor) or model.nbytes(tensor) > _READ_UP_TO:
        found.add("info", "polytool", f"the values of {name} are not checked")
        return
    array = model.array(tensor)
    if not array.size:
        return
    if np.isnan(array).any():
        found.add("warning", "polytool", f"weight {name} has NaNs")
    if arrays.overflows(array, DType.FLOAT16):
        largest = float(np.abs(array[np.isfinite(array)]).max())
        what = f"weight {name} has {largest:.4g}, which float16 cannot hold"
        found.add("warning", "polytool", what)
