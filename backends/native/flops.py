"""Floating-point operations of a network's layers, for given input shapes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from polytool.backends.native.network import Layer, Network, Node
from polytool.backends.native.ops.registry import Arg, flops_function
from polytool.backends.native.shapes import ShapePass


def layer_flops(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> dict[Layer, int]:
    """FLOPs of each top-level layer whose shapes are known; a multiply-add counts two.

    Args:
        network: the plan.
        shapes: input name to shape.

    Returns:
        Layers whose shapes data decides are left out. An operator without a formula of its own
        counts one for each element of its outputs, one that only moves data counts nothing.
    """
    walker = ShapePass({t: shapes[t.name] for t in network.inputs if t.name in shapes})
    walker.run(network.layers)
    counted = {layer: _layer(layer, walker) for layer in network.layers}
    return {layer: count for layer, count in counted.items() if count is not None}


def _layer(layer: Layer, walker: ShapePass) -> int | None:
    counts = [_node(node, walker) for node in layer.nodes]
    known = [c for c in counts if c is not None]
    return sum(known) if len(known) == len(counts) else None


def _node(node: Node, walker: ShapePass) -> int | None:
    outputs = [walker.shape(t) for t in node.writes()]
    if any(s is None for s in outputs):
        return None
    shapes = [s for s in outputs if s is not None]
    function = flops_function(node.domain, node.op)
    operator = node.operator
    if function is None:
        return 0 if operator is None or operator.exact else sum(prod(s) for s in shapes)
    arguments: list[Any] = []
    for tensor in node.inputs:
        shape = () if tensor is None else walker.shape(tensor)
        if shape is None:
            return None
        argument = None if tensor is None else Arg(shape, tensor.dtype, walker.value(tensor))
        arguments.append(argument)
    try:
        return int(function(*arguments, outputs=shapes, **node.attrs))
    except (ArithmeticError, IndexError, ValueError):  # shapes that the operator does not take
        return None
