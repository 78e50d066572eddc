"""Softmax, LogSoftmax and Hardmax."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.ops.registry import Arg, Array, Node, op, shape, upgrade


@op("Softmax", since=13)
def softmax(xp: Any, x: Array, *, axis: int = -1) -> Array:
    """Exponentials of `x`, normalised to sum to one along `axis`."""
    if x.size == 0:
        return x
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    return xp.asarray(e / e.sum(axis=axis, keepdims=True))


@op("LogSoftmax", since=13)
def log_softmax(xp: Any, x: Array, *, axis: int = -1) -> Array:
    """The logarithm of Softmax, without its underflow."""
    if x.size == 0:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    return xp.asarray(shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True)))


@op("Hardmax", since=13)
def hardmax(xp: Any, x: Array, *, axis: int = -1) -> Array:
    """One at the first maximum along `axis`, else zero."""
    if x.size == 0:
        return x
    place = xp.expand_dims(x.argmax(axis=axis), axis)
    steps = xp.arange(x.shape[axis]).reshape((-1,) + (1,) * (x.ndim - 1 - axis % x.ndim))
    return (steps == place).astype(x.dtype)


@shape("Softmax", "LogSoftmax", "Hardmax")
def softmax_shape(x: Arg, *, axis: int = -1) -> tuple[int, ...]:
    """The shape of the input."""
    return x.shape


def _coerce_to_matrix(node: Node) -> list[Node]:
    """Before version 13 all axes from `axis` on are normalised together, as one row."""
    axis = node.attrs.get("axis", 1)
    newest = node.raised(attrs=node.attrs | {"axis": -1}, version=13)
    if axis == -1:
        return [newest]
    rows, result, dims = (node.fresh(name) for name in ("rows", "result", "shape"))
    x = node.inputs[0]
    return [
        Node("Shape", "", 13, [x], [dims], {}, node.name),
        Node("Flatten", "", 13, [x], [rows], {"axis": axis}, node.name),
        newest.raised(inputs=[rows], outputs=[result]),
        Node("Reshape", "", 13, [result, dims], node.outputs, {}, node.name),
    ]


for _name in ("Softmax", "LogSoftmax", "Hardmax"):
    upgrade(_name, since=1)(_coerce_to_matrix)
