"""Elementwise operators before opset 7: in-place hints and one-sided broadcasting along an axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, op, shape, upgrade

_UNARY = (
    *("Abs", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "LeakyRelu", "Log", "Neg"),
    *("Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh"),
    *("Max", "Mean", "Min", "Sum"),
)
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


def drop_in_place_hint(node: Node) -> Node:
    """Version 1 may say which inputs may be overwritten; version 6 does not."""
    return node.raised(attrs=node.without("consumed_inputs"))


def broadcast_along_axis(node: Node) -> list[Node]:
    """Before version 7 `axis` says where the second input's dimensions begin in the first's."""
    attrs = node.without("axis", "broadcast", "consumed_inputs")
    plain = node.raised(attrs=attrs, version=7)
    axis = node.attrs.get("axis")
    if axis is None or not node.attrs.get("broadcast", 0):
        return [plain]
    return aligned(plain, axis)


def aligned(node: Node, axis: int) -> list[Node]:
    """`node` with its second input's dimensions put at `axis` of the first's."""
    name = node.fresh("aligned")
    align = Node("AlignAxis", "polytool", 1, node.inputs[:2], [name], {"axis": axis}, node.name)
    return [align, node.raised(inputs=[node.inputs[0], name])]


for _name in _UNARY:
    upgrade(_name, since=1)(drop_in_place_hint)
for _name in _BINARY:
    upgrade(_name, since=1)(broadcast_along_axis)


@op("AlignAxis", since=1, domain="polytool", exact=True)
def align_axis(xp: Any, a: Array, b: Array, *, axis: int) -> Array:
    """`b` as a view whose dimensions lie at `axis` of `a`."""
    return b.reshape(_aligned_shape(a.shape, b.shape, axis))


@shape("AlignAxis", domain="polytool")
def align_axis_shape(a: Arg, b: Arg, *, axis: int) -> tuple[int, ...]:
    """The shape of `b` with ones behind it."""
    return _aligned_shape(a.shape, b.shape, axis)


def _aligned_shape(a: tuple[int, ...], b: tuple[int, ...], axis: int) -> tuple[int, ...]:
    start = axis + len(a) if axis < 0 else axis
    return b + (1,) * (len(a) - start - len(b))


@upgrade("PRelu", since=1)
def prelu_slope_per_channel(node: Node) -> list[Node]:
    """Before version 7 a slope of more than one value belongs to axis 1."""
    return aligned(node.raised(attrs=node.without("consumed_inputs"), version=7), 1)


@upgrade("Selu", since=1)
def selu_constants(node: Node) -> Node:
    """Version 1 has less precise default constants."""
    attrs = {"alpha": 1.673200011253357, "gamma": 1.0506999492645264}
    return node.raised(attrs=attrs | node.without("consumed_inputs"))


@upgrade("Clip", since=1)
def clip_attributes_to_inputs(node: Node) -> Node:
    """Before version 11 the bounds are attributes; a bound left out is no bound."""
    bounds = [node.attrs.get(name) for name in ("min", "max")]
    inputs = [None if b is None else np.array(b, np.float32) for b in bounds]
    attrs = node.without("min", "max", "consumed_inputs")
    return node.raised(inputs=[node.inputs[0], *inputs], attrs=attrs)
