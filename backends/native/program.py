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
        bound: dict[Layer, Launch] | None = None,
    ) -> None:
        self.network, self.mode = network, mode
        self._bound = bound
        self._entry = network.entry if body and network.inputs else None
        self._slots: dict[Tensor, int] = {}
        self._base: list[Any] = []
        inputs = [*network.inputs, *network.captures]
        for tensor in inputs:
            self._slot(tensor)
        self._n_inputs = len(inputs)
        self._outputs: list[int] = []
        last = self.last_reads(network)
        with paused_collection():
            self._steps = [self._step(i, layer, last) for i, layer in enumerate(network.layers)]
        self._outputs = [self._slot(t) for t in network.outputs]

    def _slot(self, tensor: Tensor) -> int:
        if tensor not in self._slots:
            self._slots[tensor] = len(self._base)
            constant = tensor.constant is not None
            self._base.append(stored_constant(tensor, self.mode) if constant else None)
        return self._slots[tensor]

    @staticmethod
    def last_reads(network: Network) -> dict[Tensor, int]:
        """The layer that reads each tensor last; past the end for what the network returns."""
        last: dict[Tensor, int] = {}
        for index, layer in enumerate(network.layers):
            for tensor in (*layer.outputs, *layer.inputs):
                last[tensor] = index
        for tensor in network.outputs:
            last[tensor] = len(network.layers)
        return last

    def _step(self, index: int, layer: Layer, last: dict[Tensor, int]) -> Step:
        inputs = layer.inputs
        dead = tuple(self._slot(t) for t in (*inputs, *layer.outputs) if last.get(t) == index)
        operator = layer.nodes[-1].operator
        exact = len(layer.nodes) == 1 and operator is not None and operator.exact
        wants = tuple(
            None
            if t.dtype is None or (t.dtype in _REDUCED and not exact) or t.container != "tensor"
            else storage(t.dtype, wide=self.mode.wide)
            for t in layer.outputs
        )
        watched = None
        if layer.nodes[0].bodies:
            from polytool.backends.native.control import compile_control

            launch, watched = compile_control(layer, self.mode)
        else:
            launch = self._bind(layer)
        return Step(
            layer,
            launch,
            tuple(self._slot(t) for t in inputs),
            tuple(self._slot(t) for t in layer.outputs),
            wants,
            dead,
            exact,
            watched,
        )

    def _bind(self, layer: Layer) -> Launch:
        """The layer's function; from what other programs have bound, where they share."""
        if self._bound is not None and layer in self._bound:
            return self._bound[layer]
        try:
            launch = choose(layer, self.mode).compile(layer, self.mode)
        except (ValueError, IndexError) as err:
            nodes = ", ".join(layer.origin) or layer.name
            raise RunnerError(
                f"node {nodes} ({layer.kind}) cannot be prepared: {err}; check the shapes of its "
                f"weights"
            ) from err
        if self._bound is not None:
            self._bound[layer] = launch
        return launch

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
