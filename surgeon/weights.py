"""Arithmetic on weights that can be done once.

    Conv -> BatchNormalization => Conv      (ConvTranspose too)
    Conv -> Mul by a constant per channel => Conv
    Conv -> Add of a constant per channel => Conv with a bias
    MatMul -> Add => Gemm                    of matrices

Results change by rounding only; so float32 and float64 alone, computed in float64. The node that
is left computes the tensor with the name of the last one, which is what it is equal to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polytool.arrays import Array
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.tensors import DType

_FLOATS = (DType.FLOAT, DType.DOUBLE)
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def fold_weights(workspace: Workspace, report: Report) -> None:
    """Do it everywhere it is possible. The workspace is sorted and has types."""
    for graph in workspace.graphs:
        for node in list(graph.nodes):
            rule = _RULES.get(node.op) if node.graph is not None and not node.domain else None
            done = rule(node, report) if rule is not None else None
            if done:
                report.did(done)
        graph.compact()


def _batch_norm(node: Node, report: Report) -> str | None:
    conv = _only_source(node.input(0), _CONVOLUTIONS)
    if conv is None or not _is_inference(node):
        return None
    scale, shift, mean, variance = (_constant(v) for v in node.inputs[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        return None
    if not scale.shape == shift.shape == mean.shape == variance.shape:
        return None
    factor = scale / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    return _rescale(conv, node, factor, shift - mean * factor, report)


def _is_inference(node: Node) -> bool:
    if node.version < 7 or node.has_references or len(node.inputs) != 5:
        return False
    if any(v is not None and v.users for v in node.outputs[1:]):
        return False
    return not node.attribute("training_mode", 0) and bool(node.attribute("spatial", 1))


def _mul(node: Node, report: Report) -> str | None:
    for conv_at in (0, 1):
        conv = _only_source(node.input(conv_at), _CONVOLUTIONS)
        if conv is not None and node.version >= 7:
            factor = _per_channel(conv, node.input(1 - conv_at))
            if factor is not None:
                return _rescale(conv, node, factor, np.zeros_like(factor), report)
    return None


def _add(node: Node, report: Report) -> str | None:
    if node.version < 7:
        return None
    for at in (0, 1):
        conv = _only_source(node.input(at), _CONVOLUTIONS)
        if conv is not None:
            shift = _per_channel(conv, node.input(1 - at))
            if shift is not None:
                return _rescale(conv, node, np.ones_like(shift), shift, report)
        product = _only_source(node.input(at), ("MatMul",))
        if product is not None and _gemm(node, product, node.input(1 - at)):
            return "MatMul and Add made one Gemm"
    return None


_RULES: dict[str, Callable[[Node, Report], str | None]] = {
    "BatchNormalization": _batch_norm,
    "Mul": _mul,
    "Add": _add,
}


def _only_source(value: Value | None, ops: tuple[str, ...]) -> Node | None:
    """The producer of `value`, if it is one of `ops` in the same graph and has no other reader."""
    if value is None or value.producer is None or sum(value.users.values()) != 1:
        return None
    node = value.producer
    graph = node.graph
    fits = node.op in ops and not node.domain and not node.has_references and graph is not None
    return node if fits and graph in {u.graph for u in value.used_by()} else None


def _constant(value: Value | None) -> Array | None:
    """A float constant in float64."""
    if value is None or value.constant is None or value.graph is None:
        return None
    if value.dtype not in _FLOATS:
        return None
    return value.graph.workspace.model.array(value.constant).astype(np.float64)


def _channels(conv: Node) -> tuple[int, int] | None:
    """Output channels, and the rank of what the convolution gives; None if it is broken."""
    weight = conv.input(1)
    if weight is None or weight.constant is None or weight.dtype not in _FLOATS:
        return None
    dims = weight.constant.dims
    groups = conv.attribute("group", 1)
    if len(dims) < 3 or groups < 1 or dims[0] % groups:
        return None
    return (dims[0] if conv.op == "Conv" else dims[1] * groups), len(dims)


def _per_channel(conv: Node, value: Value | None) -> Array | None:
    """`value` as one number a channel, if it is a constant that varies in nothing else."""
    found = _channels(conv)
    if found is None or value is None or value.constant is None:
        return None
    channels, rank = found
    dims = list(value.constant.dims)
    if len(dims) > rank:
        return None
    aligned = [1] * (rank - len(dims)) + dims
    if any(d != 1 for i, d in enumerate(aligned) if i != 1) or aligned[1] not in (1, channels):
        return None
    array = _constant(value)
    return None if array is None else np.broadcast_to(array.reshape(-1), (channels,))


def _rescale(conv: Node, last: Node, factor: Array, shift: Array, report: Report) -> str | None:
    """Make `conv` compute `factor * conv + shift`, which is what `last` gives."""
    found, weight, bias = _channels(conv), conv.input(1), conv.input(2)
    if found is None or weight is None or factor.shape != (found[0],):
        return None
    if len(weight.users) > 1 or weight.graph is not conv.graph:
        report.refuse(last.label, f"not folded into {conv.label}: its weights are shared")
        return None
    old = _constant(weight)
    old_bias = _constant(bias) if bias is not None else np.zeros(found[0])
    if old is None or old_bias is None or old_bias.shape != factor.shape:
        return None
    dtype = weight.dtype
    assert dtype is not None
    with np.errstate(all="ignore"):
        new = (old * _along_channels(conv, factor, old)).astype(dtype.numpy)
        new_bias = (old_bias * factor + shift).astype(dtype.numpy)
    if not (np.isfinite(new).all() and np.isfinite(new_bias).all()):
        report.refuse(last.label, f"not folded into {conv.label}: weights would not be finite")
        return None
    graph, base = conv.where, conv.output.name
    if not (factor == 1).all():
        conv.set_input(1, graph.add_array(new, f"{base}_weight"))
    conv.set_input(2, graph.add_array(new_bias, f"{base}_bias"))
    take_over(conv, last)
    return f"{last.op} folded into {conv.op}"


def _along_channels(conv: Node, factor: Array, weight: Array) -> Array:
    ones = (1,) * (weight.ndim - 2)
    if conv.op == "Conv":
        return factor.reshape(-1, 1, *ones)
    groups = conv.attribute("group", 1)  # weights are (C, M / group, ...)
    per_group = factor.reshape(groups, 1, -1, *ones)
    block = np.broadcast_to(per_group, (groups, weight.shape[0] // groups, *per_group.shape[2:]))
    return block.reshape(weight.shape[0], -1, *ones)


def _gemm(add: Node, product: Node, addend: Value | None) -> bool:
    a, b = product.input(0), product.input(1)
    if a is None or b is None or addend is None or addend.dtype not in _FLOATS:
        return False
    if add.version < 7 or a.shape is None or b.shape is None or addend.shape is None:
        return False
    if len(a.shape) != 2 or len(b.shape) != 2 or not _fits(addend, (a.shape[0], b.shape[1])):
        return False
    graph = add.where
    name = product.proto.name or add.proto.name
    gemm = graph.add_node("Gemm", [a, b, addend], name=name)
    take_over(gemm, add)
    graph.remove(product)
    return True


def _fits(addend: Value, shape: tuple[object, object]) -> bool:
    """Whether `addend` broadcasts to `shape` and does not enlarge it."""
    dims = addend.shape
    if dims is None or len(dims) > 2:
        return False
    aligned = (1,) * (2 - len(dims)) + dims
    return all(d == 1 or (d is not None and d == s) for d, s in zip(aligned, shape, strict=True))


def take_over(node: Node, last: Node) -> None:
    """Let `node` compute the first output of `last`, which goes."""
    graph: Graph = last.where
    value = last.output
    old = node.output
    last.outputs[0] = None
    graph.remove(last)
    value.producer, node.outputs[0] = node, value
    old.producer = None
