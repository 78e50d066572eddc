"""Which tensors of two models hold the same values: by name, or else by the structure around them.

Models differ in names when they come from two exports, in operators when they come from two
opsets, in constants when one was simplified, in casts when one was converted. Both are simplified,
raised to the newest operators, and written-out patterns become operators; then every tensor gets
two numbers: one stands for all that it is computed from, the other for all that is computed from
it. Weights count by their shapes, casts between float types not at all. Tensors with equal numbers
correspond; where one number differs, as behind a node that is wrong, the other still tells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from polytool.backends.base import Feeds, LayerOracle, Outputs, Trace
from polytool.backends.native.builder import prepared
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.oracle import NativeOracle
from polytool.backends.native.parser import parse
from polytool.backends.native.passes.fuse_attention import fuse_attention
from polytool.backends.native.passes.fuse_gelu import fuse_gelu
from polytool.backends.native.passes.fuse_normalization import fuse_normalizations
from polytool.backends.native.same_values import correspond_by_values
from polytool.errors import UsageError
from polytool.model import Model
from polytool.tensors import DType

_SMALL = 64  # elements up to which integers count by value: axes, shapes, pads

Names = dict[str, str]


def oracle_of(model: Model, other: Model, feeds: Feeds | None = None) -> LayerOracle:
    """An oracle that answers for the tensors of `model` with what `other` computes.

    Args:
        model: the model that asks.
        other: the model that is asked.
        feeds: inputs of `model`; with them tensors also correspond that hold the same values.

    Raises:
        UsageError: the models do not have equally many inputs.
    """
    if _same_names(model, other):
        return NativeOracle(other)
    names = correspond(model, other)
    oracle = NativeOracle(other)
    if feeds is not None:
        same = correspond_by_values(NativeOracle(model).network, oracle.network, feeds, names)
        taken = set(same.values())
        names = {a: b for a, b in names.items() if b not in taken} | same
    return CorrespondingOracle(oracle, _with_casts(model, other, names), other.name)


def _with_casts(model: Model, other: Model, names: Names) -> Names:
    """The pairs, and those of outputs, and of what only converts to another float type."""
    found = dict(names)
    outputs = [[o.name for o in m.proto.graph.output] for m in (model, other)]
    if set(outputs[0]) <= set(outputs[1]):
        outputs[1] = outputs[0]
    if len(outputs[0]) == len(outputs[1]):
        for one, two in zip(*outputs, strict=True):
            found.setdefault(one, two)
    for node in model.proto.graph.node:
        if node.op_type != "Cast" or node.input[0] not in found:
            continue
        if DType(onnx.helper.get_node_attr_value(node, "to")).is_float:
            found.setdefault(node.output[0], found[node.input[0]])
    return found


def _same_names(model: Model, other: Model) -> bool:
    """Whether every node of `model` has one of the same type and outputs in `other`."""
    types = [
        {tuple(node.output): node.op_type for node in m.proto.graph.node} for m in (model, other)
    ]
    inputs = [{i.name for i in m.proto.graph.input} for m in (model, other)]
    return types[0].items() <= types[1].items() and inputs[0] == inputs[1]


class CorrespondingOracle(LayerOracle):
    """An oracle under the names of another model.

    Args:
        oracle: of the model that is asked.
        names: tensor of the model that asks -> tensor of the model that is asked.
        who: what the model that is asked is called.
    """

    def __init__(self, oracle: LayerOracle, names: Mapping[str, str], who: str) -> None:
        self._oracle, self._names, self._who = oracle, dict(names), who
        self._back: dict[str, list[str]] = {}
        for name, other in names.items():
            self._back.setdefault(other, []).append(name)

    def trace(self, wanted: str, available: Collection[str]) -> Trace:
        """How `wanted` is computed; see `LayerOracle`. Its nodes have other names there."""
        given = _Given(available, self._back)
        same = given.names(self._name(wanted), but=wanted)
        if same:
            return Trace((same[-1],), ("Cast",), ())
        found = self._oracle.trace(self._name(wanted), given)
        inputs = tuple(given.name(n) for n in found.inputs)
        return Trace(inputs, found.operators, ())

    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute `wanted`; see `LayerOracle`."""
        names = {name: self._name(name) for name in wanted}
        given = {self._name(name): value for name, value in inputs.items()}
        found = self._oracle.evaluate(given, list(names.values()), noise=noise, seed=seed)
        return {name: found[other] for name, other in names.items()}

    def _name(self, name: str) -> str:
        if name not in self._names:
            raise UsageError(f"{name!r} corresponds to no tensor of {self._who}")
        return self._names[name]


class _Given(Collection[str]):
    """Available tensors, under the names of the model that is asked."""

    def __init__(self, available: Collection[str], back: Mapping[str, list[str]]) -> None:
        self._available, self._back = available, back

    def names(self, other: str, but: str) -> list[str]:
        """The available tensors that `other` corresponds to, without one of them."""
        return [n for n in self._back[other] if n in self._available and n != but]

    def name(self, other: str) -> str:
        """The one that is computed last."""
        return self.names(other, "")[-1]

    def __contains__(self, other: object) -> bool:
        return any(n in self._available for n in self._back.get(str(other), ()))

    def __iter__(self) -> Iterator[str]:
        return (other for other in self._back if other in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def correspond(model: Model, other: Model) -> Names:
    """The tensor of `other` that holds the same values, for each tensor of `model` that has one.

    Raises:
        UsageError: the models do not have equally many inputs.
    """
    ready = [prepared(m).simplified for m in (model, other)]
    found: Names = {}
    for patterns in (True, False):  # then what lies inside of written-out patterns
        a, b = (_canonical(m, patterns) for m in ready)
        inputs = _inputs(a, b, (model.name, other.name))
        pairs = _matched(a, b, inputs)
        taken = set(found.values())
        found |= {n: m for n, m in pairs.items() if n not in found and m not in taken}
    for node in model.proto.graph.node:  # what simplifying has merged
        pair = (*node.input, *node.output)
        if node.op_type == "Identity" and len(known := [n for n in pair if n in found]) == 1:
            found.update(dict.fromkeys(pair, found[known[0]]))
    return found


def _matched(one: Network, two: Network, inputs: Names) -> Names:
    numbers = _Numbers()
    a, b = (_Side(network, numbers, inputs) for network in (one, two))
    found = dict(inputs)
    keys: list[Callable[[_Side, str], Hashable]] = [
        lambda side, name: (side.above[name], side.below[name]),
        lambda side, name: side.above[name],
        lambda side, name: side.below[name],
    ]
    for key in keys:
        _pair(a, b, key, found)
    named = set(found.values())
    for name, op in a.made.items():
        if name not in found and b.made.get(name) == op and name not in named:
            found[name] = name
    return found


def _canonical(model: Model, patterns: bool) -> Network:
    network = parse(model)
    for rewrite in (fuse_normalizations, fuse_gelu, fuse_attention) if patterns else ():
        rewrite(network, BuilderConfig())
    return network


def _inputs(a: Network, b: Network, who: tuple[str, str]) -> Names:
    """Inputs by name where all have one, else in order."""
    names = [[t.name for t in network.inputs] for network in (a, b)]
    if set(names[0]) == set(names[1]):
        return {name: name for name in names[0]}
    if len(names[0]) != len(names[1]):
        raise UsageError(
            f"{who[0]} has {len(names[0])} inputs and {who[1]} {len(names[1])}: they cannot be "
            f"compared"
        )
    return dict(zip(*names, strict=True))


class _Numbers:
    """Equal numbers for equal things."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def of(self, *thing: Hashable) -> int:
        return self._known.setdefault(thing, len(self._known))


class _Side:
    """One of the two networks.

    Attributes:
        made: the tensors that layers make, in order, with the operators.
        places: numbers of the inputs, equal for those that correspond.
    """

    def __init__(self, network: Network, numbers: _Numbers, inputs: Names) -> None:
        self.network, self.numbers = network, numbers
        self.places = {name: i for i, pair in enumerate(inputs.items()) for name in pair}
        self.made: dict[str, Hashable] = {}
        for layer in network.layers:
            if not _is_cast(layer):
                for tensor in layer.outputs:
                    self.made[_name(tensor)] = tuple(node.op for node in layer.nodes)

    @cached_property
    def above(self) -> dict[str, int]:
        """The number of what each tensor is computed from."""
        return self._above(weigh=False)

    @cached_property
    def weighed(self) -> dict[str, int]:
        """The same, with the values of the weights."""
        return self._above(weigh=True)

    @cached_property
    def below(self) -> dict[str, int]:
        """The number of what is computed from each tensor."""
        return {_name(t): number for t, number in self._below(self.numbers).items()}

    def _above(self, *, weigh: bool) -> dict[str, int]:
        table: dict[Tensor, int] = {}
        for tensor in self.network.inputs:
            table[tensor] = self.numbers.of("input", self.places.get(tensor.name, -1))
        for layer in self.network.layers:
            _number_layer(layer, table, self.numbers, weigh=weigh)
        return {_name(t): number for t, number in table.items()}

    def _below(self, numbers: _Numbers) -> dict[Tensor, int]:
        uses: dict[Tensor, list[int]] = {}
        for place, tensor in enumerate(self.network.outputs):
            uses.setdefault(tensor, []).append(numbers.of("output", place))
        found: dict[Tensor, int] = {}
        for layer in reversed(self.network.layers):
            for tensor in layer.outputs:
                found[tensor] = numbers.of("used", *sorted(uses.get(tensor, ())))
            if _is_cast(layer):
                uses.setdefault(layer.inputs[0], []).extend(uses.get(layer.outputs[0], ()))
                continue
            results = tuple(found[t] for t in layer.outputs)
            for node in layer.nodes:
                for place, source in enumerate(node.inputs):
                    if source is not None and source.constant is None:
                        use = numbers.of("use", _operator(node), place, results)
                        uses.setdefault(source, []).append(use)
        return found


def _number_layer(
    layer: Layer, table: dict[Tensor, int], numbers: _Numbers, *, weigh: bool
) -> None:
    if _is_cast(layer):
        table[layer.outputs[0]] = table[layer.inputs[0]]
        return
    for node in layer.nodes:
        sources = []
        for source in (*node.inputs, *node.captures):
            if source is None:
                sources.append(-1)
            elif source.constant is None:
                sources.append(table[source])
            else:
                sources.append(numbers.of("constant", _constant(source, weigh)))
        for place, result in enumerate(node.outputs):
            if result is not None:
                table[result] = numbers.of("made", _operator(node), tuple(sources), place)


def _name(tensor: Tensor) -> str:
    return tensor.value_of.tensor if tensor.value_of is not None else tensor.name


def _is_cast(layer: Layer) -> bool:
    """A cast from one float type to another."""
    node = layer.nodes[0]
    if len(layer.nodes) > 1 or node.op not in ("Cast", "Identity") or len(layer.inputs) != 1:
        return False
    types = layer.inputs[0].dtype, layer.outputs[0].dtype
    return all(t is not None and t.is_float for t in types)


def _operator(node: Node) -> Hashable:
    attrs = tuple(sorted((name, _attribute(value)) for name, value in node.attrs.items()))
    bodies = tuple(
        (name, tuple(n.op for layer in body.layers for n in layer.nodes))
        for name, body in sorted(node.bodies.items())
    )
    return node.op, node.domain, "" if node.op == "Cast" else repr(attrs), bodies


def _attribute(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype.kind}{value.shape}"
    if isinstance(value, list | tuple):
        return repr([_attribute(v) for v in value])
    return repr(value)


def _constant(tensor: Tensor, weigh: bool) -> Hashable:
    """Small integers by value, everything else by its shape; with `weigh` all by value."""
    constant = tensor.constant
    assert constant is not None
    kind = "float" if constant.dtype.is_float else constant.dtype.label
    if weigh or (kind != "float" and constant.size <= _SMALL):
        array = constant.array()
        value = array.astype(np.float32) if kind == "float" else array
        return kind, constant.shape, hash(value.tobytes())
    return kind, constant.shape


def _pair(a: _Side, b: _Side, key: Callable[[_Side, str], Hashable], found: Names) -> None:
    """Pair the tensors whose keys are equal, where both sides have equally many of them."""
    taken = set(found.values())
    groups: dict[Hashable, tuple[list[str], list[str]]] = {}
    for place, side in enumerate((a, b)):
        for name in side.made:
            if name not in (taken if place else found):
                groups.setdefault(key(side, name), ([], []))[place].append(name)
    for left, right in groups.values():
        if len(left) == len(right):
            found.update(_pairs(left, right, a, b))


def _pairs(left: list[str], right: list[str], a: _Side, b: _Side) -> Iterator[tuple[str, str]]:
    """The same name first, then the same weights, then the same place in order."""
    rest = list(right)
    pending = []
    for name in left:
        if name in rest:
            rest.remove(name)
            yield name, name
        else:
            pending.append(name)
    later = []
    for name in pending:
        same = [n for n in rest if b.weighed[n] == a.weighed[name]]
        if len(same) == 1:
            rest.remove(same[0])
            yield name, same[0]
        else:
            later.append(name)
    yield from zip(later, rest, strict=True)
