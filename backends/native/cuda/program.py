"""Running a network on the GPU: straight lines of layers from one arena, the rest between them.

For each new set of input shapes a stretch of layers is recorded, its memory planned, its
alternatives timed, and its launches captured as one CUDA graph; the next time only the graph is
launched. Between stretches stand control flow, which drives programs of its bodies, operators on
sequences, which move references, and layers without a GPU form, which run on the host. A stretch
ends where a layer must know a value that the device computes.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.backends.native.control import drive_bodies
from polytool.backends.native.cuda import sequences
from polytool.backends.native.cuda.fallback import host_reason
from polytool.backends.native.cuda.recorder import expand, host_reads
from polytool.backends.native.cuda.stretch import Arena, Stretch
from polytool.backends.native.cuda.tuning import Tuning
from polytool.backends.native.cuda.values import DeviceValues
from polytool.backends.native.cuda.weights import Weights
from polytool.backends.native.kernels import driver
from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.numerics import load, unload
from polytool.backends.native.profiler import Profiler
from polytool.backends.native.program import Program, Watch
from polytool.backends.native.tactics.base import Mode
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_KEPT_SHAPES = 8
_KEPT_VALUES = 64  # of a line that reads values: a loop comes back to them at the next inference
_HOST = Mode()
_LOG = logging.getLogger(__name__)

Values = dict[Tensor, Any]


@dataclass(eq=False)
class _Line:
    """Layers that run as one stretch for each set of shapes.

    Attributes:
        inputs: what they read from outside.
        read: those of the inputs whose values must be known to record the layers.
        wanted: outputs that others read.
    """

    layers: list[Layer]
    inputs: list[Tensor]
    read: frozenset[Tensor]
    wanted: list[Tensor]
    stretches: OrderedDict[Any, Stretch] = field(default_factory=OrderedDict)
    memory: Arena = field(default_factory=Arena)


@dataclass(eq=False)
class _Single:
    """A layer that runs by itself.

    Attributes:
        launch: takes the values and a watch, and puts the layer's outputs among the values.
    """

    layer: Layer
    launch: Callable[[Values, Watch | None], None]


class CudaProgram:
    """One context's way to run `network` on a device.

    Args:
        network: the plan, as on the CPU.
        weights: the constants on the device, shared by all contexts of an engine.
        tuning: which candidates are taken.
        cuda_graph: whether launches are captured.
        parent: the program whose control flow runs this one as a body.

    Attributes:
        on_host: layers that run on the host, by name, and why; those of bodies included.
        tune: whether candidates may be timed for the shapes that come next.
        profiler: told how long layers take while it is set.
    """

    def __init__(
        self,
        network: Network,
        weights: Weights,
        tuning: Tuning,
        cuda_graph: bool = True,
        parent: CudaProgram | None = None,
    ) -> None:
        self.network, self._weights, self._tuning = network, weights, tuning
        self.tune = True
        self.profiler: Profiler | None = None
        self.device = weights.device
        self.device.activate()
        self._cuda_graph, self._parent = cuda_graph, parent
        self._root: CudaProgram = self if parent is None else parent._root
        self._stream: int = driver.create_stream() if parent is None else parent._stream
        self._values: DeviceValues = (
            DeviceValues(self.device, self._stream) if parent is None else parent._values
        )
        self.on_host: dict[str, str] = {} if parent is None else parent.on_host
        self._bodies: list[CudaProgram] = []
        self._layers = [part for layer in network.layers for part in expand(layer)]
        self._items = self._plan(self._layers)

    @property
    def stream(self) -> int:
        """What everything runs on."""
        return self._stream

    @property
    def arena_size(self) -> int:
        """Bytes of memory for inputs, outputs and what lies between them, those of bodies too."""
        lines = (item for item in self._items if isinstance(item, _Line))
        return sum(x.memory.size for x in lines) + sum(b.arena_size for b in self._bodies)

    @property
    def workspace(self) -> int:
        """Bytes of that which are for tactics and not for tensors, at the largest shapes."""
        return sum(
            max((s.workspace for s in x.stretches.values()), default=0)
            for x in self._items
            if isinstance(x, _Line)
        ) + sum(b.workspace for b in self._bodies)

    @property
    def stretches(self) -> list[Stretch]:
        """Those that are ready to run, for all shapes, without those of bodies."""
        lines = (item for item in self._items if isinstance(item, _Line))
        return [s for line in lines for s in line.stretches.values() if not s.closed]

    def whole(self) -> Stretch | None:
        """The stretch that ran last, where it is the whole network and only shapes decide it."""
        only = self._items[0] if len(self._items) == 1 else None
        if not isinstance(only, _Line) or only.read or not only.stretches:
            return None
        return next(reversed(only.stretches.values()))

    def run(
        self, inputs: Sequence[Any], watch: Watch | None = None, *, on_device: bool = False
    ) -> list[Any]:
        """Run once.

        Args:
            inputs: one a network input, then one a capture: NumPy arrays in their declared types,
                arrays on the device, lists of them.
            watch: called with every layer and its outputs, in order.
            on_device: leave outputs where they are; they are valid until the next run.

        Returns:
            NumPy arrays in their declared types, and with `on_device`, or as the body of another
            program, also DeviceArrays.
        """
        self.device.activate()
        network = self.network
        values: Values = dict(zip([*network.inputs, *network.captures], inputs, strict=True))
        if watch is not None and self._parent is not None and network.inputs:
            watch(network.entry, [self._values.download(values[t]) for t in network.inputs])
        position = 0
        while position < len(self._items):
            item = self._items[position]
            if isinstance(item, _Single):
                if self._root.profiler is not None:
                    self._root.profiler.start()
                item.launch(values, watch)
            elif not self._run_line(item, values, watch):
                self._split(position, item)  # a layer turned out to need the host
                continue
            position += 1
        results = [self._value(values, t) for t in network.outputs]
        if self._parent is not None:
            return [self._values.keep(r) for r in results]
        if on_device:
            return results
        return [self._values.download(r) for r in results]

    def run_until(self, inputs: Sequence[Any], tensor: Tensor) -> Any:
        """What `tensor` holds in an unwatched run that ends with its layer; None for constants."""
        self.run(inputs)  # whatever is needed is recorded then
        values: Values = dict(zip(self.network.inputs, inputs, strict=True))
        for item in self._items:
            if isinstance(item, _Single):
                item.launch(values, None)
                if tensor in item.layer.outputs:
                    return self._values.download(values[tensor])
                continue
            if any(tensor in layer.outputs for layer in item.layers):
                values.update({t: self._values.download(values[t]) for t in item.read})
                return next(reversed(item.stretches.values())).run_until(values, tensor)
            self._run_line(item, values, None)
        return None

    @staticmethod
    def _value(values: Values, tensor: Tensor) -> Any:
        return tensor.constant.array() if tensor.constant is not None else values[tensor]

    def _plan(self, layers: Sequence[Layer]) -> list[_Line | _Single]:
        """Lines as long as they can be, and what stands between them."""
        items: list[_Line | _Single] = []
        line: list[Layer] = []

        def end() -> None:
            if line:
                items.append(self._line(list(line)))
                line.clear()

        for layer in layers:
            single = self._single(layer)
            if single is not None:
                end()
                items.append(single)
                continue
            made = {t for other in line for t in other.outputs if t.place != "host"}
            if any(t in made for t in host_reads(layer)):
                end()
            line.append(layer)
        end()
        return items

    def _single(self, layer: Layer) -> _Single | None:
        """The layer by itself, where it cannot be part of a line."""
        reason = host_reason(layer)
        if reason is not None:
            return self._fallback(layer, reason)
        if layer.nodes[0].bodies:
            return self._control(layer)
        return self._sequence(layer) if sequences.handles(layer) else None

    def _line(self, layers: list[Layer]) -> _Line:
        inputs = _inputs(layers)
        read = frozenset(t for layer in layers for t in host_reads(layer)) & frozenset(inputs)
        inside = set(map(id, layers))
        outside = [x for x in self._layers if id(x) not in inside]
        wanted = {t for layer in outside for t in layer.inputs} | set(self.network.outputs)
        made = dict.fromkeys(t for layer in layers for t in layer.outputs)
        return _Line(layers, inputs, read, [t for t in made if t in wanted])

    def _run_line(self, item: _Line, values: Values, watch: Watch | None) -> bool:
        for tensor in item.read:
            values[tensor] = self._values.download(values[tensor])
        key = tuple(_key(values[t], t.place == "host" or t in item.read) for t in item.inputs)
        known = item.stretches
        if key not in known or known[key].closed:
            made = self._record(item, values)
            if made is None:
                return False
            known[key] = made
            while len(known) > (_KEPT_VALUES if item.read else _KEPT_SHAPES):
                known.popitem(last=False)[1].close()
        known.move_to_end(key)
        if self._root.profiler is not None:
            known[key].profiled(values, self._root.profiler)
        else:
            known[key].run(values, watch)
        return True

    def _record(self, item: _Line, values: Values) -> Stretch | None:
        try:
            return Stretch(
                item.layers,
                item.inputs,
                item.wanted,
                values,
                self._weights,
                self._stream,
                self._tuning,
                item.memory,
                self._cuda_graph,
                self._root.tune,
                item.read,
            )
        except UnsupportedError as err:
            self._failed = getattr(err, "layer", item.layers[0]), str(err)
            return None

    def _split(self, position: int, item: _Line) -> None:
        """Replace a line by what stands before the layer that failed, that one, and the rest."""
        item.memory.close()
        failed, reason = self._failed
        at = item.layers.index(failed)
        before, behind = item.layers[:at], item.layers[at + 1 :]
        self._items[position : position + 1] = [
            *([self._line(before)] if before else []),
            self._fallback(failed, reason),
            *([self._line(behind)] if behind else []),
        ]

    def _fallback(self, layer: Layer, reason: str) -> _Single:
        """Run one layer with its CPU tactic on copies."""
        if layer.name not in self.on_host:
            level = logging.INFO if self.on_host else logging.WARNING  # once is enough
            _LOG.log(level, "layer %r runs on the host: %s", layer.name, reason)
        self.on_host[layer.name] = reason
        program: list[Program] = []

        def launch(values: Values, watch: Watch | None) -> None:
            if not program:
                program.append(
                    Program(Network("host", layer.inputs, layer.outputs, [layer]), _HOST)
                )
            given = (self._values.download(values[t]) for t in layer.inputs)
            arguments = [_stored(v, t) for v, t in zip(given, layer.inputs, strict=True)]
            results = program[0].run(arguments, watch)
            for tensor, result in zip(layer.outputs, results, strict=True):
                values[tensor] = _declared(result, tensor)

        return _Single(layer, launch)

    def _sequence(self, layer: Layer) -> _Single:
        def launch(values: Values, watch: Watch | None) -> None:
            results = sequences.run(layer, lambda t: self._value(values, t), self._values)
            values.update(zip(layer.outputs, results, strict=True))
            if watch is not None:
                watch(layer, [self._values.download(r) for r in results])

        return _Single(layer, launch)

    def _control(self, layer: Layer) -> _Single:
        """If, Loop or Scan over programs of its bodies."""
        (node,) = layer.nodes
        programs = {
            name: CudaProgram(body, self._weights, self._tuning, self._cuda_graph, self)
            for name, body in node.bodies.items()
        }
        self._bodies += programs.values()
        constants = {t: t.constant.array() for t in node.reads() if t.constant is not None}
        plain, watched = drive_bodies(layer, programs, constants, self._values)

        def launch(values: Values, watch: Watch | None) -> None:
            arguments = [values[t] for t in layer.inputs]
            results = plain(*arguments) if watch is None else watched(watch, *arguments)
            values.update(zip(layer.outputs, results, strict=True))
            if watch is not None:
                watch(layer, [self._values.download(r) for r in results])

        return _Single(layer, launch)

    def close(self) -> None:
        """Free device memory and the stream."""
        for body in self._bodies:
            body.close()
        for item in self._items:
            if isinstance(item, _Line):
                item.memory.close()
        if self._stream and self._parent is None:
            self._values.pool.close()
            driver.destroy_stream(self._stream)
            self._stream = 0


def _inputs(layers: Sequence[Layer]) -> list[Tensor]:
    made = {t for layer in layers for t in layer.outputs}
    reads = dict.fromkeys(t for layer in layers for t in layer.inputs)
    return [t for t in reads if t not in made]


def _key(value: Any, by_value: bool) -> Any:
    """What a recording depends on: the shape, and the value where shapes follow from it."""
    if by_value and isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    return tuple(value.shape)


def _stored(value: Any, tensor: Tensor) -> Any:
    if isinstance(value, list):
        return [_stored(v, tensor) for v in value]
    if isinstance(value, np.ndarray) and tensor.dtype is not None:
        return load(value, tensor.dtype, wide=False)
    return value


def _declared(value: Any, tensor: Tensor) -> Any:
    if isinstance(value, list):
        return [_declared(v, tensor) for v in value]
    if isinstance(value, np.ndarray) and tensor.dtype not in (None, DType.STRING):
        assert tensor.dtype is not None
        return unload(value, tensor.dtype)
    return value
