"""Any slice of a model, evaluated in float64 without fusion: the native `LayerOracle`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, LayerOracle, Outputs, Trace, with_noise
from polytool.backends.native.network import Layer, Network, Node, Tensor, ValueOf
from polytool.backends.native.numerics import load as to_stored
from polytool.backends.native.numerics import storage
from polytool.backends.native.parser import parse
from polytool.backends.native.program import Known, LazyProgram, Program
from polytool.backends.native.tactics.base import Mode
from polytool.collection import paused_collection
from polytool.errors import UsageError
from polytool.model import load

_WIDE = Mode(wide=True)
_BIAS = 1 << 14  # elements up to which a constant is a bias or a scale, not a weight
_CACHED = 1 << 22  # elements of weights up to which a slice is kept for its next evaluation
_BOUND = frozenset({"Cast", "CastLike"})
# Inputs that must stay exact: noise on them would change shapes, or make the square of a negative
# number undefined.
EXACT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Resize": (1, 2),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Pow": (1,),
}


_Source = tuple[Any, "np.dtype[Any] | None"]
_Ready = tuple[Program, list[_Source]]


class NativeOracle(LayerOracle):
    """The original graph, node by node, with every real float type in float64.

    It is independent of fusion, kernels and precision, not of polytool's operator semantics.

    Args:
        model: a path, `onnx.ModelProto`, bytes, or a `polytool.model.Model`.
    """

    def __init__(self, model: Any) -> None:
        with paused_collection():
            self.network = parse(load(model))
        self._tensors: dict[str, Tensor] = {}
        self._below: dict[str, list[Tensor]] = {}
        self._producers: dict[Tensor, Layer] = {}
        self._reads: dict[Layer, list[Tensor]] = {}  # the last first
        for network in (self.network, *self.network.bodies()):
            self._index(network)
            for layer in network.layers:
                self._carry(layer.nodes[0])
        self._slices: dict[tuple[frozenset[str], tuple[str, ...]], list[Layer]] = {}
        self._programs: dict[
            tuple[frozenset[str], tuple[str, ...], bool], tuple[Program, list[_Source]]
        ] = {}
        self._known = Known()
        self._sizes: dict[Layer, int] = {}
        self._biases: dict[Tensor, Tensor] = {}
        self._bias_values: dict[Tensor, Any] = {}

    def _index(self, network: Network) -> None:
        for tensor in network.inputs:
            self._name(tensor)
        for layer in network.layers:
            for tensor in layer.outputs:
                self._producers[tensor] = layer
                self._name(tensor)
            for tensor in layer.constants():
                self._name(tensor)

    def _carry(self, node: Node) -> None:
        """What a Loop carries along unchanged is known in its body without watching the body."""
        if node.op != "Loop":
            return
        body = node.bodies["body"]
        pairs = zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False)
        for outer, inside, after in pairs:
            last = self._producers.get(after)
            kept = last.nodes[0].inputs[0] if last and last.nodes[0].op == "Identity" else after
            if outer is not None and kept is inside:
                copy = Node("Identity", "", 16, [outer], [inside])
                self._producers[inside] = Layer.single(copy)

    def _name(self, tensor: Tensor) -> None:
        self._tensors.setdefault(tensor.name, tensor)
        if tensor.value_of is None:
            return
        self._tensors.setdefault(tensor.value_of.tensor, tensor)
        for suffix in tensor.value_of.suffixes():
            self._below.setdefault(suffix, []).append(tensor)

    def trace(self, wanted: str, available: Collection[str]) -> Trace:
        """How `wanted` is computed from the nearest available tensors; see `LayerOracle`."""
        target = self._find(wanted)
        inputs: dict[str, Tensor] = {}

        def is_given(tensor: Tensor) -> bool:
            name = tensor.value_of.tensor if tensor.value_of is not None else tensor.name
            if tensor is target or name not in available:
                return False
            inputs[name] = tensor
            return True

        layers = self._layers([target], is_given)
        if all(self._tensors.get(name) is tensor for name, tensor in inputs.items()):
            self._slices[frozenset(inputs), (wanted,)] = layers
        reached, chosen, reads = set(inputs.values()), [], self._reads
        for layer in layers:
            if not reached.isdisjoint(reads[layer]):
                reached.update(layer.outputs)
                chosen.append(layer)
        return Trace(
            tuple(inputs),
            tuple([node.op for layer in layers for node in layer.nodes]),
            tuple(dict.fromkeys([s for x in chosen or layers for n in x.nodes for s in n.sources])),
        )

    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute `wanted` (float64 where they are floats) from `inputs`; see `LayerOracle`."""
        names = tuple(wanted)
        program, sources = self._program(frozenset(inputs), names, noise > 0)
        values = [_wide(inputs[s], k) if type(s) is str else s for s, k in sources]
        alter = None
        if noise:
            rng = np.random.default_rng(seed)
            values = [with_noise(v, noise, rng) for v in values]
            alter = lambda v: with_noise(v, noise, rng)  # noqa: E731  (two lines for one thing)
        with np.errstate(all="ignore"):
            results = program.run(values, alter=alter)
        return dict(zip(names, results, strict=True))

    def _source(self, tensor: Tensor, given: Collection[str]) -> _Source:
        """What stands for an input: the name of a given value and its dtype, or a bias."""
        if tensor in self._bias_values:
            return self._bias_values[tensor], None
        name = tensor.value_of.tensor if tensor.value_of is not None else tensor.name
        dtype = storage(tensor.dtype, wide=True) if tensor.dtype is not None else None
        return name if name in given else tensor.name, dtype

    def _program(self, given: frozenset[str], wanted: tuple[str, ...], noisy: bool) -> _Ready:
        key = given, wanted, noisy
        if key in self._programs:
            return self._programs[key]
        inputs = {self._find(n) for n in given}
        outputs = [self._find(n) for n in wanted]
        layers = self._slices.get((given, wanted))
        if layers is None:
            layers = self._layers(outputs, inputs.__contains__)
        used = [t for t in sorted(inputs, key=lambda t: t.name) if t.constant is None]
        biases: list[Tensor] = []
        if noisy:
            layers, biases = self._open(layers)
        network = Network("slice", [*used, *biases], outputs, layers)
        sources = [self._source(t, given) for t in network.inputs]
        if sum(map(self._size, layers)) > _CACHED:
            return LazyProgram(network, _WIDE), sources
        known = None if noisy else self._known  # opened layers are new ones each time
        made = self._programs[key] = Program(network, _WIDE, known=known), sources
        return made

    def _open(self, layers: list[Layer]) -> tuple[list[Layer], list[Tensor]]:
        """The layers with small float constants as inputs, so that noise reaches them.

        Noise on a weight matrix does what noise on its input does; biases and scales are what
        would be missed.
        """
        opened: dict[Tensor, Tensor] = {}

        def swap(tensor: Tensor | None) -> Tensor | None:
            constant = tensor.constant if tensor is not None else None
            if tensor is None or constant is None or constant.size > _BIAS:
                return tensor
            if not constant.dtype.is_float or constant.dtype.bits < 16:
                return tensor
            if tensor not in self._biases:
                new = self._biases[tensor] = Tensor(tensor.name, tensor.dtype, tensor.shape)
                self._bias_values[new] = to_stored(constant.array(), constant.dtype, wide=True)
            opened[tensor] = self._biases[tensor]
            return opened[tensor]

        copies = []
        for layer in layers:
            (node,) = layer.nodes
            if not node.bodies and node.op not in _BOUND:
                exact = set(EXACT_INPUTS.get(node.op, ()))
                exact.update(node.operator.host if node.operator is not None else ())
                inputs = [t if i in exact else swap(t) for i, t in enumerate(node.inputs)]
                layer = Layer.single(dataclasses.replace(node, inputs=inputs))
            copies.append(layer)
        return copies, list(opened.values())

    def _find(self, name: str) -> Tensor:
        """The tensor of that name; where a body was inlined, the one of that name below a path."""
        if name in self._tensors:
            return self._tensors[name]
        for suffix in ValueOf(name).suffixes():
            if len(self._below.get(suffix, ())) == 1:
                return self._below[suffix][0]
        raise UsageError(f"the model has no tensor {name!r}")

    def _layers(self, wanted: list[Tensor], is_given: Callable[[Tensor], bool]) -> list[Layer]:
        """What computes `wanted` from the given tensors, in execution order."""
        order: list[Layer] = []
        done: set[Layer] = set()
        producers, reads = self._producers, self._reads
        stack: list[Tensor | Layer] = [t for t in reversed(wanted) if t.constant is None]
        while stack:
            top = stack.pop()
            if isinstance(top, Layer):  # its inputs are done
                done.add(top)
                order.append(top)
                continue
            if is_given(top):
                continue
            layer = producers.get(top)
            if layer is None:
                raise UsageError(f"{top.name!r} is needed to evaluate the slice, but not given")
            if layer not in done:
                stack.append(layer)
                if layer not in reads:
                    reads[layer] = layer.inputs[::-1]
                stack.extend(reads[layer])
        return order

    def _size(self, layer: Layer) -> int:
        """The number of elements of its constants."""
        if layer not in self._sizes:
            self._sizes[layer] = sum(t.constant.size for t in layer.constants() if t.constant)
        return self._sizes[layer]


def _wide(value: Any, dtype: np.dtype[Any] | None) -> Any:
    """A given value as the oracle stores it."""
    if dtype is None or not isinstance(value, np.ndarray) or value.dtype == dtype:
        return value
    return value.astype(dtype)
