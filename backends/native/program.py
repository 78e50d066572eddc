"""A network made ready to run on the CPU: bound functions over slots.

Everything that can be decided once is decided here: which tactic runs a layer, where its inputs
and outputs lie, what may be freed after it. A `Program` is read-only once built, so any number of
threads can run it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.numerics import load, storage, store
from polytool.backends.native.tactics import choose
from polytool.backends.native.tactics.base import Launch, Mode
from polytool.backends.native.tactics.numpy_generic import stored_constant
from polytool.collection import paused_collection
from polytool.errors import PolytoolError, RunnerError
from polytool.tensors import DType

Watch = Callable[[Layer, Sequence[Any]], None]
"""Called with a layer and its stored outputs, right after the layer ran."""

Alter = Callable[[Any], Any]

_REDUCED = (DType.FLOAT16, DType.BFLOAT16)


@dataclass(slots=True)
class Step:
    """One layer, bound.

    Attributes:
        wants: the NumPy dtype of each output; None where every value must be looked at.
        dead: slots that nothing reads after this step.
        exact: whether the layer only moves values, so that nothing is rounded.
        watched: runs the layer with a `Watch` for the layers of its bodies; control flow only.
    """

    layer: Layer
    launch: Callable[..., Sequence[Any]]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    wants: tuple[Any, ...]
    dead: tuple[int, ...]
    exact: bool
    watched: Callable[..., Sequence[Any]] | None = None


@dataclass(slots=True)
class Bound:
    """What of a step does not depend on the program around it; see `Step`."""

    layer: Layer
    launch: Callable[..., Sequence[Any]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    wants: tuple[Any, ...]
    exact: bool
    watched: Callable[..., Sequence[Any]] | None


class _Slots(dict[Tensor, int]):
    """Where each tensor lies; one that comes anew gets the next place.

    Attributes:
        base: what lies there before a run: the constants.
    """

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.base: list[Any] = []
        self._mode = mode

    def __missing__(self, tensor: Tensor) -> int:
        self[tensor] = place = len(self.base)
        constant = tensor.constant is not None
        self.base.append(stored_constant(tensor, self._mode) if constant else None)
        return place


class Program:
    """The steps of one network; `run` takes its inputs followed by its captures.

    Args:
        network: what is run.
        mode: how values are stored.
        body: it is the body of an If, Loop or Scan.
        bound: layers that are bound already; those that are not are added. For programs of parts
            of one network.
    """

    def __init__(
        self,
        network: Network,
        mode: Mode,
        *,
        body: bool = False,
        bound: dict[Layer, Bound] | None = None,
    ) -> None:
        self.network, self.mode = network, mode
        self._entry = network.entry if body and network.inputs else None
        slots = _Slots(mode)
        self._n_inputs = len([slots[t] for t in (*network.inputs, *network.captures)])
        with paused_collection():
            parts = [_bind(layer, mode, bound) for layer in network.layers]
            last = _last_reads([(p.inputs, p.outputs) for p in parts], network.outputs)
            self._steps = [_step(i, part, slots, last) for i, part in enumerate(parts)]
        self._outputs = [slots[t] for t in network.outputs]
        self._base = slots.base

    @staticmethod
    def last_reads(network: Network) -> dict[Tensor, int]:
        """The layer that reads each tensor last; past the end for what the network returns."""
        return _last_reads([(x.inputs, x.outputs) for x in network.layers], network.outputs)

    def run(
        self, inputs: Sequence[Any], watch: Watch | None = None, alter: Alter | None = None
    ) -> list[Any]:
        """Run every step.

        Args:
            inputs: stored arrays for the network's inputs, then for its captures.
            watch: called after each layer, those of bodies included.
            alter: gives what is stored in place of a result; not called inside bodies.

        Raises:
            RunnerError: a layer failed; the message names it.
        """
        slots = self._base.copy()
        slots[: self._n_inputs] = inputs
        if watch is not None and self._entry is not None:
            watch(self._entry, inputs[: len(self.network.inputs)])
        if watch is None and alter is None:
            self._run_unwatched(slots)
            return [slots[i] for i in self._outputs]
        for step in self._steps:
            arguments = [slots[i] for i in step.sources]
            try:
                if watch is not None and step.watched is not None:
                    produced = step.watched(watch, *arguments)
                else:
                    produced = step.launch(*arguments)
            except PolytoolError:
                raise
            except Exception as err:
                raise _failure(step.layer, arguments, err) from err
            self._store(step, produced, slots, alter)
            if watch is not None:
                watch(step.layer, [slots[i] for i in step.targets])
            for index in step.dead:
                slots[index] = None
        return [slots[i] for i in self._outputs]

    def _run_unwatched(self, slots: list[Any]) -> None:
        """The same with nobody looking: as little as possible between two layers."""
        ndarray, get = np.ndarray, slots.__getitem__
        step = None
        try:
            for step in self._steps:
                produced = step.launch(*map(get, step.sources))
                if len(step.targets) == 1:
                    value = produced[0]
                    if type(value) is ndarray and value.dtype is step.wants[0]:
                        slots[step.targets[0]] = value
                    else:
                        self._store(step, produced, slots, None)
                else:
                    self._store(step, produced, slots, None)
                for index in step.dead:
                    slots[index] = None
        except PolytoolError:
            raise
        except Exception as err:
            assert step is not None
            raise _failure(step.layer, [slots[i] for i in step.sources], err) from err

    def _store(
        self, step: Step, produced: Sequence[Any], slots: list[Any], alter: Alter | None
    ) -> None:
        tensors = step.layer.outputs
        for target, value, want, tensor in zip(
            step.targets, produced, step.wants, tensors, strict=False
        ):
            if type(value) is not np.ndarray or value.dtype is not want:
                value = as_stored(value, tensor, step.exact, self.mode)
            slots[target] = value if alter is None else alter(value)


def _last_reads(
    touched: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]], returned: Sequence[Tensor]
) -> dict[Tensor, int]:
    """For each tensor the last pair of inputs and outputs that holds it."""
    last: dict[Tensor, int] = {}
    for index, (inputs, outputs) in enumerate(touched):
        for tensor in outputs:
            last[tensor] = index
        for tensor in inputs:
            last[tensor] = index
    for tensor in returned:
        last[tensor] = len(touched)
    return last


def _step(index: int, part: Bound, slots: _Slots, last: dict[Tensor, int]) -> Step:
    inputs, outputs = part.inputs, part.outputs
    return Step(
        part.layer,
        part.launch,
        tuple([slots[t] for t in inputs]),
        tuple([slots[t] for t in outputs]),
        part.wants,
        tuple([slots[t] for t in (*inputs, *outputs) if last[t] == index]),
        part.exact,
        part.watched,
    )


def _bind(layer: Layer, mode: Mode, bound: dict[Layer, Bound] | None) -> Bound:
    """The layer with its function; from what other programs have bound, where they share."""
    if bound is not None and layer in bound:
        return bound[layer]
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
    part = Bound(layer, launch, tuple(layer.inputs), tuple(layer.outputs), wants, exact, watched)
    if bound is not None:
        bound[layer] = part
    return part


def _compile(layer: Layer, mode: Mode) -> Launch:
    try:
        return choose(layer, mode).compile(layer, mode)
    except (ValueError, IndexError) as err:
        nodes = ", ".join(layer.origin) or layer.name
        raise RunnerError(
            f"node {nodes} ({layer.kind}) cannot be prepared: {err}; check the shapes of its "
            f"weights"
        ) from err


class LazyProgram:
    """The same for what runs once: each layer is bound when its turn comes, and then forgotten.

    So the weights need not be in memory together.
    """

    def __init__(self, network: Network, mode: Mode) -> None:
        self.network, self.mode = network, mode

    def run(
        self, inputs: Sequence[Any], watch: Watch | None = None, alter: Alter | None = None
    ) -> list[Any]:
        """Run every layer; see `Program.run`."""
        network = self.network
        last = Program.last_reads(network)
        values = dict(zip([*network.inputs, *network.captures], inputs, strict=True))
        for index, layer in enumerate(network.layers):
            reads = layer.inputs
            program = Program(Network(layer.name, reads, layer.outputs, [layer]), self.mode)
            results = program.run([values[t] for t in reads], watch, alter)
            values.update(zip(layer.outputs, results, strict=True))
            for tensor in (*reads, *layer.outputs):
                if last.get(tensor) == index:
                    values.pop(tensor, None)
        return [
            values[t] if t.constant is None else stored_constant(t, self.mode)
            for t in network.outputs
        ]


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
