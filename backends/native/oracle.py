"""Any slice of a model, evaluated in float64 without fusion: the native `LayerOracle`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, LayerOracle, Outputs, with_noise
from polytool.backends.native.network import Layer, Network, Node, Tensor, ValueOf
from polytool.backends.native.numerics import load as to_stored
from polytool.backends.native.parser import parse
from polytool.backends.native.program import Program
from polytool.backends.native.tactics.base import Mode
from polytool.errors import UsageError
from polytool.model import load

_WIDE = Mode(wide=True)
_BIAS = 1 << 14  # elements up to which a constant is a bias or a scale, not a weight
_CACHED = 1 << 22  # elements of weights up to which a slice is kept for its next evaluation
_BOUND = frozenset({"Cast", "CastLike"})


class NativeOracle(LayerOracle):
    """The original graph, node by node, with every real float type in float64.

    It is independent of fusion, kernels and precision, not of polytool's operator semantics.

    Args:
        model: a path, `onnx.ModelProto`, bytes, or a `polytool.model.Model`.
    """

    def __init__(self, model: Any) -> None:
        self.network = parse(load(model))
        self._tensors: dict[str, Tensor] = {}
        self._below: dict[str, list[Tensor]] = {}
        self._producers: dict[Tensor, Layer] = {}
        for network in (self.network, *self.network.bodies()):
            self._index(network)
            for layer in network.layers:
                self._carry(layer.nodes[0])
        self._programs: dict[tuple[frozenset[str], tuple[str, ...], bool], Program] = {}
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

    def frontier(self, wanted: str, available: Collection[str]) -> tuple[str, ...]:
        """The nearest available tensors that `wanted` is computed from; see `LayerOracle`."""
        target = self._find(wanted)
        found: dict[str, None] = {}
        stack, seen = [target], {target}
        while stack:
            tensor = stack.pop()
            name = tensor.value_of.tensor if tensor.value_of is not None else tensor.name
            if tensor is not target and name in available:
                found[name] = None
                continue
            layer = self._producers.get(tensor)
            if layer is None:
                raise UsageError(f"{wanted!r} depends on {tensor.name!r}, which is not available")
            for source in layer.inputs:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return tuple(found)

    def operators(self, inputs: Iterable[str], wanted: str) -> tuple[str, ...]:
        """The operators between `inputs` and `wanted`; see `LayerOracle`."""
        layers = self._slice({self._find(n) for n in inputs}, [self._find(wanted)])
        return tuple(node.op for layer in layers for node in layer.nodes)

    def nodes(self, inputs: Iterable[str], wanted: str) -> tuple[str, ...]:
        """The nodes through which `wanted` depends on `inputs`; see `LayerOracle`."""
        reached = {self._find(n) for n in inputs}
        layers = self._slice(reached, [self._find(wanted)])
        chosen = []
        for layer in layers:
            if not reached.isdisjoint(layer.inputs):
                reached.update(layer.outputs)
                chosen.append(layer)
        return tuple(dict.fromkeys(s for layer in chosen or layers for s in layer.origin))

    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute `wanted` (float64 where they are floats) from `inputs`; see `LayerOracle`."""
        names = tuple(wanted)
        program = self._program(frozenset(inputs), names, noise > 0)
        values = [self._stored(t, inputs) for t in program.network.inputs]
        alter = None
        if noise:
            rng = np.random.default_rng(seed)
            values = [with_noise(v, noise, rng) for v in values]
            alter = lambda v: with_noise(v, noise, rng)  # noqa: E731  (two lines for one thing)
        with np.errstate(all="ignore"):
            results = program.run(values, alter=alter)
        return dict(zip(names, results, strict=True))

    def _stored(self, tensor: Tensor, inputs: Mapping[str, Any]) -> Any:
        if tensor in self._bias_values:
            return self._bias_values[tensor]
        name = tensor.value_of.tensor if tensor.value_of is not None else tensor.name
        value = inputs[name] if name in inputs else inputs[tensor.name]
        if isinstance(value, np.ndarray) and tensor.dtype is not None:
            return to_stored(value, tensor.dtype, wide=True)
        return value

    def _program(self, given: frozenset[str], wanted: tuple[str, ...], noisy: bool) -> Program:
        key = given, wanted, noisy
        if key in self._programs:
            return self._programs[key]
        inputs = {self._find(n) for n in given}
        outputs = [self._find(n) for n in wanted]
        layers = self._slice(inputs, outputs)
        used = [t for t in sorted(inputs, key=lambda t: t.name) if t.constant is None]
        biases: list[Tensor] = []
        if noisy:
            layers, biases = self._open(layers)
        weights = sum(t.constant.size for x in layers for t in x.constants() if t.constant)
        program = Program(Network("slice", [*used, *biases], outputs, layers), _WIDE)
        if weights <= _CACHED:
            self._programs[key] = program
        return program

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
                host = node.operator.host if node.operator is not None else ()
                inputs = [t if i in host else swap(t) for i, t in enumerate(node.inputs)]
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

    def _slice(self, inputs: set[Tensor], wanted: list[Tensor]) -> list[Layer]:
        order: list[Layer] = []
        done: set[int] = set()
        stack = [(t, False) for t in reversed(wanted)]
        while stack:
            tensor, ready = stack.pop()
            if tensor in inputs or tensor.constant is not None:
                continue
            layer = self._producers.get(tensor)
            if layer is None:
                raise UsageError(f"{tensor.name!r} is needed to evaluate the slice, but not given")
            if id(layer) in done:
                continue
            if ready:
                done.add(id(layer))
                order.append(layer)
                continue
            stack.append((tensor, True))
            stack.extend((t, False) for t in reversed(layer.inputs))
        return order
