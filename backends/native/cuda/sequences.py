"""Sequences and optionals: lists of device arrays, which no kernel needs to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.values import DeviceValues
from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.numpy_generic import bind
from polytool.tensors import DType

_BY_REFERENCE = frozenset(
    (
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceAt",
        "SequenceInsert",
        "SequenceErase",
        "SequenceLength",
        "Optional",
        "OptionalHasElement",
        "OptionalGetElement",
        "Identity",
    )
)
"""Operators that hand their inputs on, and look at nothing but positions."""
_POSITIONS = {"SequenceAt": 1, "SequenceInsert": 2, "SequenceErase": 1, "SplitToSequence": 1}


def handles(layer: Layer) -> bool:
    """Whether the layer only moves references to arrays, or cuts and joins them."""
    node = layer.nodes[0]
    if len(layer.nodes) > 1 or node.domain or any(t.dtype is DType.STRING for t in node.writes()):
        return False
    if node.op == "Identity":
        return layer.outputs[0].container != "tensor"
    return node.op in _BY_REFERENCE or node.op in ("SplitToSequence", "ConcatFromSequence")


def run(layer: Layer, values: Callable[[Any], Any], device: DeviceValues) -> Sequence[Any]:
    """The outputs of a layer.

    Args:
        values: the value of an input tensor.
    """
    (node,) = layer.nodes
    arguments = [None if t is None else values(t) for t in node.inputs]
    position = _POSITIONS.get(node.op)
    if position is not None and position < len(arguments):
        arguments[position] = device.download(arguments[position])
    if node.op == "ConcatFromSequence":
        parts, axis = values(node.inputs[0]), int(node.attrs["axis"])
        return [(device.stack if node.attrs.get("new_axis", 0) else device.join)(parts, axis)]
    if node.op == "SplitToSequence":
        return [_split(arguments[0], [*arguments, None][1], node.attrs, device)]
    result = bind(node)(*arguments)
    return result if isinstance(result, tuple) else (result,)


def _split(value: Any, split: Any, attrs: dict[str, Any], device: DeviceValues) -> list[Any]:
    axis = int(attrs.get("axis", 0)) % len(value.shape)
    length = value.shape[axis]
    if split is None:
        if not attrs.get("keepdims", 1):
            return list(device.parts(value, axis))
        return list(device.cut(value, axis, [1] * length))
    sizes = np.asarray(split)
    if sizes.ndim:
        return list(device.cut(value, axis, [int(n) for n in sizes]))
    step = int(sizes)
    lengths = [min(step, length - i) for i in range(0, length, step)]
    return list(device.cut(value, axis, lengths))
