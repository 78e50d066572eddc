"""Reshape, Flatten, Squeeze and Unsqueeze: the resulting shape is worked out once per input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.memo import Memo
from polytool.backends.native.tactics.numpy_generic import Generic

_NAMES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class View(Tactic):
    """A new shape for the same elements."""

    name = "numpy.view"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op not in _NAMES:
            return False
        x, *others = node.inputs
        if x is None or x.constant is not None or x.container != "tensor":
            return False
        return all(t is not x for t in others)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        resolve = Generic().compile(layer, mode)
        shapes: Memo[Any, tuple[int, ...]] = Memo()

        def remember(key: Any, *args: Any) -> Sequence[Any]:
            result = resolve(*args)
            shapes.keep(key, result[0].shape)
            return result

        def launch(x: Any) -> Sequence[Any]:
            shape = shapes.get(x.shape)
            return remember(x.shape, x) if shape is None else (x.reshape(shape),)

        def launch_with_dims(x: Any, dims: Any) -> Sequence[Any]:
            key = (x.shape, dims.tobytes())
            shape = shapes.get(key)
            return remember(key, x, dims) if shape is None else (x.reshape(shape),)

        if len(layer.inputs) == 1:
            return launch
        in_order = layer.inputs[0] is layer.nodes[0].inputs[0]
        return launch_with_dims if in_order else lambda dims, x: launch_with_dims(x, dims)
