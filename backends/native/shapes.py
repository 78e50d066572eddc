"""Concrete shapes of every tensor for given input shapes, without running the network.

Values that shapes are computed from (`Tensor.place == "host"`) are computed on the way, with the
operators themselves. What data decides stays unknown, and so does what depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.ops.registry import Arg, shape_function
from polytool.backends.native.tactics.base import Mode
from polytool.backends.native.tactics.numpy_generic import bind
from polytool.tensors import DType

Dims = tuple[int, ...]
_ENLARGING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "OneHot", "Resize"})
_SMALL = 1 << 16  # elements up to which a constant's value is looked at
_LARGE = 1 << 24  # elements from which on a value on the host is not computed


class ShapePass:
    """Walks a network once for one set of input shapes.

    Args:
        shapes: shapes of the network's inputs (and captures) that are known.
        values: values of inputs that are on the host.

    Attributes:
        shapes: every tensor whose shape is known.
        values: every tensor whose value is known on the host.
        failures: why an operator's shape could not be told, by layer name.
    """

    def __init__(
        self,
        shapes: Mapping[Tensor, Dims],
        values: Mapping[Tensor, Any] | None = None,
        mode: Mode = Mode(),  # noqa: B008  (frozen)
    ) -> None:
        self.shapes: dict[Tensor, Dims] = dict(shapes)
        self.values: dict[Tensor, Any] = dict(values or {})
        self.failures: dict[str, str] = {}
        self._mode = mode

    def run(self, layers: Sequence[Layer]) -> None:
        """Visit `layers` in order."""
        with np.errstate(all="ignore"):
            for layer in layers:
                for node in layer.nodes:
                    self.node(node)

    def node(self, node: Node) -> None:
        """Find the shapes (and host values) of a node's outputs."""
        if node.bodies or any(t is not None and self.shape(t) is None for t in node.inputs):
            return
        try:
            on_host = all(t.place == "host" for t in node.writes()) and self._known(node)
            if on_host and not self._is_large(node):
                self._evaluate(node)
                return
            for tensor, shape in zip(node.outputs, self._infer(node), strict=False):
                if tensor is not None and shape is not None:
                    self.shapes[tensor] = tuple(int(d) for d in shape)
        except Exception as err:
            self.failures[next(node.writes()).name] = f"{type(err).__name__}: {err}"

    def shape(self, tensor: Tensor) -> Dims | None:
        """The shape of a tensor, or None."""
        if tensor.constant is not None:
            return tensor.constant.shape
        return self.shapes.get(tensor)

    def value(self, tensor: Tensor) -> Any:
        """The host value of a tensor, or None."""
        if tensor.constant is not None and tensor.constant.size <= _SMALL:
            return tensor.constant.array()
        return self.values.get(tensor)

    def _known(self, node: Node) -> bool:
        if node.op in ("Shape", "Size"):
            return True
        return all(t is None or self.value(t) is not None for t in node.inputs)

    def _is_large(self, node: Node) -> bool:
        """Whether a result has so many elements that nobody means it to be a shape."""
        if node.op not in _ENLARGING:
            return False
        shapes = (shape for shape in self._infer(node) if shape is not None)
        return any(math.prod(shape) >= _LARGE for shape in shapes)

    def _evaluate(self, node: Node) -> None:
        arguments: list[Any]
        if node.op in ("Shape", "Size"):
            assert node.inputs[0] is not None
            dims = self.shape(node.inputs[0])
            arguments = [np.broadcast_to(np.zeros((), np.int8), dims or ())]
        else:
            arguments = [None if t is None else self.value(t) for t in node.inputs]
        results = bind(node)(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        for tensor, value in zip(node.outputs, results, strict=False):
            if tensor is not None:
                array = np.asarray(value)
                if tensor.dtype is not None and tensor.dtype is not DType.STRING:
                    array = array.astype(tensor.dtype.numpy, copy=False)
                self.values[tensor], self.shapes[tensor] = array, array.shape

    def _infer(self, node: Node) -> Sequence[Dims | None]:
        shapes = [None if t is None else self.shape(t) for t in node.inputs]
        function = shape_function(node.domain, node.op)
        operator = node.operator
        if function is None:
            if operator is not None and operator.pointwise:
                return [np.broadcast_shapes(*(s for s in shapes if s is not None))]
            return []
        arguments = [
            None if t is None else Arg(self.shape(t) or (), t.dtype, self.value(t))
            for t in node.inputs
        ]
        options: dict[str, Any] = dict(node.attrs)
        wants = function.__kwdefaults__ or {}
        if "n_outputs" in wants:
            options["n_outputs"] = len(node.outputs)
        found = function(*arguments, **options)
        return found if isinstance(found, list) else [found]


def probe(network: Network, samples: Sequence[Mapping[str, Dims]]) -> list[ShapePass]:
    """One pass for each of `samples`: input name to shape."""
    passes = []
    for sample in samples:
        known = {t: sample[t.name] for t in network.inputs if t.name in sample}
        known |= {t: t.shape for t in network.inputs if t not in known and t.spec.is_static}  # type: ignore[misc]  # is_static: all ints
        walker = ShapePass(known)
        walker.run(network.layers)
        passes.append(walker)
    return passes


_PROBES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def sample_inputs(network: Network) -> list[dict[str, Dims]]:
    """Two guesses at the input shapes of a network with symbolic dimensions; one if it has none.

    Equal symbols get equal sizes, different ones different sizes, all multiples of 32 so that
    networks that halve them several times accept them.
    """
    symbols: dict[str, int] = {}

    def size(tensor: Tensor, axis: int, round_: int) -> int:
        dim = (tensor.shape or ())[axis]
        if isinstance(dim, int):
            return dim
        index = symbols.setdefault(dim or f"{tensor.name}:{axis}", len(symbols))
        return 32 * _PROBES[(index + 5 * round_) % len(_PROBES)]

    samples = [
        {
            t.name: tuple(size(t, axis, round_) for axis in range(len(t.shape)))
            for t in network.inputs
            if t.shape is not None and t.container == "tensor"
        }
        for round_ in range(2)
    ]
    return samples if symbols else samples[:1]
