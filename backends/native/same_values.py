"""Which tensors of two models hold the same values on one input.

Two exporters write the same computation with other operators, so that structure says little; the
numbers do. The second model is run layer by layer on the values of the first: where a result is one
that the first model has too, both correspond, and the run goes on from there. Where it is not, but
the same operator made it from tensors that correspond, one of the two models is wrong there: both
correspond all the same, and the run goes on from the first model's value.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds
from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.numerics import load
from polytool.backends.native.program import LazyProgram, Program
from polytool.backends.native.tactics.base import Mode

_WIDE = Mode(wide=True)
_ALIKE = 4e-6  # relative L2: constants that were folded in float32
_MOST = 1 << 31  # bytes of values of the first model that are kept

Names = dict[str, str]
Array = np.ndarray[Any, Any]


def correspond_by_values(
    one: Network, other: Network, feeds: Feeds, known: Mapping[str, str]
) -> Names:
    """The tensor of `other` that holds the same values, for tensors of `one`.

    Args:
        one: the unfused network that asks.
        other: the unfused network that is asked.
        feeds: inputs of `one`.
        known: pairs that hold by structure, the inputs among them; taken where values differ.

    Returns:
        The pairs; empty where the values of `one` are too many to be kept.
    """
    values = _values(one, feeds)
    if values is None:
        return {}
    search = _Search(one, values, known)
    back = {b: a for a, b in known.items()}
    env: dict[Tensor, Any] = {}
    for tensor in other.inputs:
        value = feeds[back[tensor.name]]
        env[tensor] = load(value, tensor.dtype, wide=True) if tensor.dtype is not None else value
    last = _last_reads(other)
    for index, layer in enumerate(other.layers):
        reads = layer.inputs
        program = Program(Network(layer.name, reads, layer.outputs, [layer]), _WIDE)
        with np.errstate(all="ignore"):
            results = program.run([env[t] for t in reads])
        for place, (tensor, value) in enumerate(zip(layer.outputs, results, strict=True)):
            env[tensor] = search.take(layer, place, tensor, value, back.get(_name(tensor)))
        for tensor in (*reads, *layer.outputs):
            if last.get(tensor) == index:
                env.pop(tensor, None)
    return search.found


def _last_reads(network: Network) -> dict[Tensor, int]:
    """The layer that reads each tensor last; past the end for what the network returns."""
    last: dict[Tensor, int] = {}
    for index, layer in enumerate(network.layers):
        last.update(dict.fromkeys((*layer.outputs, *layer.inputs), index))
    last.update(dict.fromkeys(network.outputs, len(network.layers)))
    return last


def _values(network: Network, feeds: Feeds) -> dict[str, Array] | None:
    """Every tensor of the top-level graph, in float64."""
    kept: dict[str, Array] = {}
    size = 0

    def watch(layer: Layer, results: Sequence[Any]) -> None:
        nonlocal size
        for tensor, value in zip(layer.outputs, results, strict=True):
            if tensor in top and isinstance(value, np.ndarray) and size <= _MOST:
                kept[_name(tensor)] = value
                size += value.nbytes

    top = {tensor for layer in network.layers for tensor in layer.outputs}
    given = [
        load(feeds[t.name], t.dtype, wide=True) if t.dtype is not None else feeds[t.name]
        for t in network.inputs
    ]
    with np.errstate(all="ignore"):
        LazyProgram(network, _WIDE).run(given, watch)
    return kept if size <= _MOST else None


class _Search:
    """The tensors of the first model that have no counterpart yet."""

    def __init__(
        self, network: Network, values: dict[str, Array], known: Mapping[str, str]
    ) -> None:
        self.values = values
        self.found: Names = {}
        self.back: Names = {known[t.name]: t.name for t in network.inputs if t.name in known}
        self.alike: dict[Hashable, list[str]] = {}
        for name, value in values.items():
            self.alike.setdefault(_bucket(value), []).append(name)
        self.made: dict[Hashable, list[str]] = {}
        for layer in network.layers:
            for place, tensor in enumerate(layer.outputs):
                key = _maker(layer, place, [_name(t) for t in layer.inputs])
                self.made.setdefault(key, []).append(_name(tensor))

    def take(
        self, layer: Layer, place: int, tensor: Tensor, value: Any, structural: str | None
    ) -> Any:
        """Find the counterpart of a result, and give the value to go on with."""
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return value
        name = _name(tensor)
        match = self._by_value(value) or self._by_maker(layer, place, value, structural)
        if match is None:
            return value
        self.found[match] = name
        self.back[name] = match
        kept = self.values[match]
        return kept if kept.dtype == value.dtype else kept.astype(value.dtype)

    def _by_value(self, value: Array) -> str | None:
        shape, kind, size = _bucket(value)
        near = (size,) if not isinstance(size, int) else (size, size - 1, size + 1)
        for bucket in near:
            for name in self.alike.get((shape, kind, bucket), ()):
                if name not in self.found and _same(self.values[name], value):
                    return name
        return None

    def _by_maker(
        self, layer: Layer, place: int, value: Array, structural: str | None
    ) -> str | None:
        names = [self.back.get(_name(t)) for t in layer.inputs]
        candidates = [structural] if structural is not None else []
        if names and all(n is not None for n in names):
            candidates += self.made.get(_maker(layer, place, names), ())
        for name in candidates:
            free = name in self.values and name not in self.found
            if free and self.values[name].shape == value.shape:
                return name
        return None


def _name(tensor: Tensor) -> str:
    return tensor.value_of.tensor if tensor.value_of is not None else tensor.name


def _maker(layer: Layer, place: int, names: Sequence[str | None]) -> Hashable:
    return tuple(node.op for node in layer.nodes), place, tuple(names)


def _bucket(value: Array) -> tuple[Any, Any, Any]:
    """Equal, or next to each other, for values that are alike."""
    if value.dtype.kind != "f":
        return value.shape, value.dtype.kind, "exact"
    with np.errstate(all="ignore"):
        size = float(np.linalg.norm(value[np.isfinite(value)]))
    bucket = round(math.log(size) * 1e4) if size > 0 and math.isfinite(size) else str(size)
    return value.shape, "f", bucket


def _same(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    both = np.isfinite(a)
    if not np.array_equal(both, np.isfinite(b)):
        return False
    difference = np.linalg.norm(np.where(both, a, 0) - np.where(both, b, 0))
    return bool(difference <= _ALIKE * np.linalg.norm(np.where(both, b, 0)))
