"""A network made ready to run on the CPU: its layers, bound to functions over slots.

Everything that can be decided once is decided here: which tactic runs a layer, where its inputs
and outputs lie, what may be freed after it. A `Program` is read-only once built, so any number of
threads can run it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.numerics import load, storage, store
from polytool.backends.native.tactics import choose
from polytool.backends.native.tactics.base import Launch, Mode
from polytool.backends.native.tactics.numpy_generic import stored_constant
from polytool.backends.native.types import misfit
from polytool.collection import paused_collection
from polytool.errors import PolytoolError, RunnerError
from polytool.tensors import DType

Watch = Callable[[Layer, Sequence[Any]], None]
"""Called with a layer and its stored outputs, right after the layer ran."""

Alter = Callable[[Any], Any]

_Around = tuple[tuple[int, ...], tuple[int, ...]]
_Place = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_REDUCED = (DType.FLOAT16, DType.BFLOAT16)


@dataclass(slots=True)
class Step:
    """One layer, bound: what any program that holds it runs.

    Attributes:
        inputs: what the layer reads, constants left out.
        wants: the NumPy dtype of each output; None where every value must be looked at.
        single: it has one output.
        exact: whether the layer only moves values, so that nothing is rounded.
        watched: runs the layer with a `Watch` for the layers of its bodies; control flow only.
    """

    layer: Layer
    launch: Callable[..., Sequence[Any]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    wants: tuple[Any, ...]
    single: bool
    exact: bool
    watched: Callable[..., Sequence[Any]] | None


@dataclass(slots=True)
class Known:
    """What programs of parts of one network share.

    Attributes:
        layers: those that are bound.
        places: where layers find and put values, by structure, which repeats in a model.
    """

    layers: dict[Layer, Step] = field(default_factory=dict)
    places: dict[tuple[tuple[_Around, ...], tuple[int, ...]], Sequence[_Place]] = field(
        default_factory=dict
    )


class Program:
    """The bound layers of one network; `run` takes its inputs followed by its captures.

    Args:
        network: what is run.
        mode: how values are stored.
        body: it is the body of an If, Loop or Scan.
        known: what programs of other parts of the same network have found out, and this one adds.
    """

    def __init__(
        self,
        network: Network,
        mode: Mode,
        *,
        body: bool = False,
        known: Known | None = None,
    ) -> None:
        self.network, self.mode = network, mode
        self._entry = network.entry if body and network.inputs else None
        with paused_collection():
            self._steps = self._bind(known)
            slots = _Slots()
            self._inputs = [slots[t] for t in (*network.inputs, *network.captures)]
            around = [
                (tuple([slots[t] for t in x.inputs]), tuple([slots[t] for t in x.outputs]))
                for x in self._reading()
            ]
            self._outputs = [slots[t] for t in network.outputs]
            self._places = _places(around, self._outputs, known)
        self._base: list[Any] = [None] * len(slots)
        for tensor in network.outputs:
            if tensor.constant is not None:
                self._base[slots[tensor]] = stored_constant(tensor, mode)

    def _bind(self, known: Known | None) -> Iterable[Step]:
        layers, mode = self.network.layers, self.mode
        if known is None:
            return [_step(layer, mode) for layer in layers]
        for layer in layers:
            if layer not in known.layers:
                known.layers[layer] = _step(layer, mode)
        return [*map(known.layers.__getitem__, layers)]

    def _reading(self) -> Iterable[Step | Layer]:
        """What tells the inputs and outputs of each layer."""
        return self._steps

    def run(
        self, inputs: Sequence[Any], watch: Watch | None = None, alter: Alter | None = None
    ) -> list[Any]:
        """Run every layer.

        Args:
            inputs: stored arrays for the network's inputs, then for its captures.
            watch: called after each layer, those of bodies included.
            alter: gives what is stored in place of a result; not called inside bodies.

        Raises:
            RunnerError: a layer failed; the message names it.
        """
        ndarray, mode = np.ndarray, self.mode
        slots = self._base.copy()
        for place, value in zip(self._inputs, inputs, strict=True):
            slots[place] = value
        if watch is not None and self._entry is not None:
            watch(self._entry, inputs[: len(self.network.inputs)])
        get = slots.__getitem__
        for step, (sources, targets, dead) in zip(self._steps, self._places, strict=True):
            try:
                if watch is None or step.watched is None:
                    produced = step.launch(*map(get, sources))
                else:
                    produced = step.watched(watch, *map(get, sources))
                value = produced[0] if step.single else None
                if type(value) is ndarray and value.dtype is step.wants[0] and alter is None:
                    slots[targets[0]] = value
                else:
                    stored = _stored(step, produced, mode)
                    for place, value in zip(targets, stored, strict=False):
                        slots[place] = value if alter is None else alter(value)
            except PolytoolError:
                raise
            except Exception as err:
                given = [*map(get, sources)]
                _refuse_kinds(step.layer, given)
                raise _failure(step.layer, given, err) from err
            if watch is not None:
                watch(step.layer, [*map(get, targets)])
            for place in dead:
                slots[place] = None
        return [*map(get, self._outputs)]


class LazyProgram(Program):
    """The same for what runs once: each layer is bound when its turn comes, and then forgotten.

    So the weights need not be in memory together.
    """

    def _bind(self, known: Known | None) -> Iterable[Step]:
        return _Unbound(self.network.layers, self.mode)

    def _reading(self) -> Iterable[Step | Layer]:
        return self.network.layers


class _Unbound:
    """Layers that are bound one by one, whenever they are gone through."""

    def __init__(self, layers: Sequence[Layer], mode: Mode) -> None:
        self._layers, self._mode = layers, mode

    def __iter__(self) -> Iterator[Step]:
        return (_step(layer, self._mode) for layer in self._layers)


class _Slots(dict[Tensor, int]):
    """Where each tensor lies; one that comes anew gets the next place."""

    def __missing__(self, tensor: Tensor) -> int:
        self[tensor] = place = len(self)
        return place


def _places(
    around: list[_Around], returned: Sequence[int], known: Known | None
) -> Sequence[_Place]:
    """The slots around each layer, with those that are dead after it."""
    key = tuple(around), tuple(returned)
    if known is not None and key in known.places:
        return known.places[key]
    later = set(returned)
    places = []
    for sources, targets in reversed(around):
        dead = tuple([place for place in sources + targets if place not in later])
        later.update(dead)
        places.append((sources, targets, dead))
    places.reverse()
    if known is not None:
        known.places[key] = places
    return places


def _step(layer: Layer, mode: Mode) -> Step:
    """The layer with its function."""
    operator = layer.nodes[-1].operator
    exact = len(layer.nodes) == 1 and operator is not None and operator.exact
    wants = tuple(
        None
        if t.dtype is None or (t.dtype in _REDUCED and not exact) or t.container != "tensor"
        else storage(t.dtype, wide=mode.wide)
        for t in layer.outputs
    )
    watched = None
    launch: Callable[..., Sequence[Any]]
    if layer.nodes[0].bodies:
        from polytool.backends.native.control import compile_control

        launch, watched = compile_control(layer, mode)
    else:
        launch = _compile(layer, mode)
    inputs, outputs = tuple(layer.inputs), tuple(layer.outputs)
    return Step(layer, launch, inputs, outputs, wants, len(outputs) == 1, exact, watched)


def _compile(layer: Layer, mode: Mode) -> Launch:
    try:
        return choose(layer, mode).compile(layer, mode)
    except (ValueError, IndexError, ArithmeticError) as err:
        nodes = ", ".join(layer.origin) or layer.name
        raise RunnerError(
            f"node {nodes} ({layer.kind}) cannot be prepared: {err}; check the shapes of its "
            f"weights"
        ) from err


def _stored(step: Step, produced: Sequence[Any], mode: Mode) -> Iterator[Any]:
    for tensor, value, want in zip(step.outputs, produced, step.wants, strict=False):
        if type(value) is np.ndarray and value.dtype is want:
            yield value
        else:
            yield as_stored(value, tensor, step.exact, mode)


def as_stored(value: Any, tensor: Tensor, exact: bool, mode: Mode) -> Any:
    """What a layer returned, as `tensor` is stored: rounded unless the layer is exact."""
    if isinstance(value, (list, dict)) or value is None:
        return value
    array = np.asarray(value)
    if tensor.dtype is None:
        return array
    if tensor.dtype is DType.STRING:
        return array if array.dtype == object else array.astype(object)
    if exact:
        return load(array, tensor.dtype, wide=mode.wide)
    return store(array, tensor.dtype, wide=mode.wide)


def _refuse_kinds(layer: Layer, arguments: Sequence[Any]) -> None:
    """Say so if a layer that failed was given a sequence, a map or text that it does not take.

    Nobody knows before which branch of an If gives one.
    """
    given = dict(zip(layer.inputs, arguments, strict=False))
    for node in layer.nodes:
        for index, tensor in enumerate(node.inputs):
            value = given.get(tensor) if tensor is not None else None
            if value is None or tensor is None:
                continue
            kind = "map" if isinstance(value, dict) else "tensor"
            kind = "sequence" if isinstance(value, list) else kind
            text = getattr(getattr(value, "dtype", None), "kind", "") == "O"
            if why := misfit(node, index, kind, DType.STRING if text else DType.FLOAT):
                nodes = ", ".join(layer.origin) or layer.name
                shown = why.format(f"its input {index} ({tensor.name!r})")
                raise RunnerError(f"node {nodes} ({node.op}) {shown}; re-export the model")


def _failure(layer: Layer, arguments: Sequence[Any], err: Exception) -> RunnerError:
    if isinstance(err, MemoryError):
        return RunnerError(f"not enough memory for layer {layer.name!r} ({layer.kind})")
    shown = ", ".join(
        f"{t.name}{list(np.shape(a))}" if not isinstance(a, list) else f"{t.name}[{len(a)} items]"
        for t, a in zip(layer.inputs, arguments, strict=False)
    )
    nodes = ", ".join(layer.origin) or layer.name
    return RunnerError(
        f"node {nodes} ({layer.kind}) cannot run on inputs {shown}: {err}; check the input shapes"
    )
