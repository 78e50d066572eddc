"""Running a network on the GPU: straight lines of layers from one arena, the rest on the host.

For each new set of input shapes a stretch of layers is recorded, its memory planned, its
alternatives timed, and its launches captured as one CUDA graph; the next time only the graph is
launched. Layers without a GPU form, and those whose shapes data decides, run on the host between
such stretches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.arrays import DeviceArray
from polytool.backends.native.cuda.recorder import find_lowering
from polytool.backends.native.cuda.stretch import Arena, Stretch
from polytool.backends.native.cuda.tuning import Tuning
from polytool.backends.native.cuda.weights import Weights
from polytool.backends.native.kernels import driver
from polytool.backends.native.network import Layer, Network, Tensor
from polytool.backends.native.numerics import load, unload
from polytool.backends.native.program import Program, Watch
from polytool.backends.native.tactics.base import Mode
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_KEPT_SHAPES = 8
_HOST = Mode()

Values = dict[Tensor, Any]


class CudaProgram:
    """One context's way to run `network` on a device.

    Args:
        network: the plan, as on the CPU.
        weights: the constants on the device, shared by all contexts of an engine.
        tuning: which candidates are taken.
        cuda_graph: whether launches are captured.

    Attributes:
        tune: whether candidates may be timed for the shapes that come next.
    """

    def __init__(
        self,
        network: Network,
        weights: Weights,
        tuning: Tuning,
        cuda_graph: bool = True,
    ) -> None:
        self.network, self._weights, self._tuning = network, weights, tuning
        self.tune = True
        self._device = weights.device
        self._device.activate()
        self._cuda_graph = cuda_graph
        self._stream = driver.create_stream()
        self._items = _items(network.layers)
        self._stretches: dict[int, OrderedDict[Any, Stretch]] = {}
        self._memories: dict[int, Arena] = {}
        self._hosts: dict[int, Program] = {}
        self.on_host: dict[str, str] = {}

    @property
    def stream(self) -> int:
        """What everything runs on."""
        return self._stream

    @property
    def stretches(self) -> list[Stretch]:
        """Those that are ready to run, for all shapes."""
        return [s for known in self._stretches.values() for s in known.values() if not s.closed]

    def whole(self) -> Stretch | None:
        """The stretch that ran last, where it is the whole network."""
        if len(self._items) != 1 or not self._stretches.get(0):
            return None
        return next(reversed(self._stretches[0].values()))

    def run(
        self, inputs: Sequence[Any], watch: Watch | None = None, *, on_device: bool = False
    ) -> list[Any]:
        """Run once.

        Args:
            inputs: one a network input: NumPy arrays in their declared types, or arrays on the
                device.
            watch: called with every layer and its outputs, in order.
            on_device: leave outputs where they are; they are valid until the next run.

        Returns:
            NumPy arrays in their declared types, and with `on_device` also DeviceArrays.
        """
        self._device.activate()
        values: Values = dict(zip(self.network.inputs, inputs, strict=True))
        for index, item in enumerate(self._items):
            if isinstance(item, Layer):
                self._host_layer(index, item, values, watch)
            else:
                self._device_layers(index, item, values, watch)
        if on_device:
            return [values.get(t, t.constant and t.constant.array()) for t in self.network.outputs]
        return [self._to_host(values, t) for t in self.network.outputs]

    def _to_host(self, values: Values, tensor: Tensor) -> Any:
        if tensor.constant is not None:
            return tensor.constant.array()
        value = values[tensor]
        return value.numpy(self._stream) if isinstance(value, DeviceArray) else value

    def _host_layer(self, index: int, layer: Layer, values: Values, watch: Watch | None) -> None:
        """Run one layer with its CPU tactic on copies."""
        if index not in self._hosts:
            inputs, outputs = layer.inputs, layer.outputs
            self._hosts[index] = Program(Network("host", inputs, outputs, [layer]), _HOST)
        arguments = [_stored(self._to_host(values, t), t) for t in layer.inputs]
        results = self._hosts[index].run(arguments, watch)
        for tensor, result in zip(layer.outputs, results, strict=True):
            values[tensor] = _declared(result, tensor)

    def _device_layers(
        self, index: int, layers: list[Layer], values: Values, watch: Watch | None
    ) -> None:
        inputs = _inputs(layers)
        key = tuple(_key(values[t], t) for t in inputs)
        known = self._stretches.setdefault(index, OrderedDict())
        if key not in known or known[key].closed:
            memory = self._memories.setdefault(index, Arena())
            made = self._record(layers, inputs, values, memory)
            if made is None:  # a layer turned out to need the host
                self._items[index : index + 1] = self._split(layers, inputs, values)
                self._stretches = {i: s for i, s in self._stretches.items() if i < index}
                for later in [i for i in self._memories if i >= index]:
                    self._memories.pop(later).close()
                self._hosts = {i: h for i, h in self._hosts.items() if i < index}
                self._resume(index, values, watch)
                return
            known[key] = made
            while len(known) > _KEPT_SHAPES:
                known.popitem(last=False)[1].close()
        known.move_to_end(key)
        known[key].run(values, watch)

    def _resume(self, index: int, values: Values, watch: Watch | None) -> None:
        """Run what the item at `index` was split into; `run` goes on behind it."""
        item = self._items[index]
        if isinstance(item, Layer):
            self._host_layer(index, item, values, watch)
        else:
            self._device_layers(index, item, values, watch)

    def _record(
        self, layers: list[Layer], inputs: list[Tensor], values: Values, memory: Arena
    ) -> Stretch | None:
        wanted = self._wanted(layers)
        try:
            return Stretch(
                layers, inputs, wanted, values, self._weights, self._stream, self._tuning, memory,
                self._cuda_graph, self.tune,
            )  # fmt: skip
        except UnsupportedError as err:
            self._failed = getattr(err, "layer", layers[0])
            self.on_host[self._failed.name] = str(err)
            return None

    def _split(
        self, layers: list[Layer], inputs: list[Tensor], values: Values
    ) -> list[Layer | list[Layer]]:
        """The layers before the one that failed, that one alone, and those behind it."""
        at = layers.index(self._failed)
        parts: list[Layer | list[Layer]] = [layers[:at], self._failed, layers[at + 1 :]]
        return [p for p in parts if isinstance(p, Layer) or p]

    def _wanted(self, layers: list[Layer]) -> list[Tensor]:
        """What later items, or the caller, read of these layers."""
        inside = set(map(id, layers))
        made = {t for layer in layers for t in layer.outputs}
        outside = [x for x in self.network.layers if id(x) not in inside]
        read = {t for layer in outside for t in layer.inputs} | set(self.network.outputs)
        return [t for t in made if t in read]

    def close(self) -> None:
        """Free device memory and the stream."""
        for memory in self._memories.values():
            memory.close()
        self._stretches.clear()
        if self._stream:
            driver.destroy_stream(self._stream)
            self._stream = 0


def _items(layers: Sequence[Layer]) -> list[Layer | list[Layer]]:
    """Stretches of layers that may run on the device, and single layers that cannot."""
    items: list[Layer | list[Layer]] = []
    for layer in layers:
        on_host = layer.outputs and all(t.place == "host" for t in layer.outputs)
        if find_lowering(layer) is None and not on_host:
            items.append(layer)
        elif items and isinstance(items[-1], list):
            items[-1].append(layer)
        else:
            items.append([layer])
    return items


def _inputs(layers: Sequence[Layer]) -> list[Tensor]:
    made = {t for layer in layers for t in layer.outputs}
    reads = dict.fromkeys(t for layer in layers for t in layer.inputs)
    return [t for t in reads if t not in made]


def _key(value: Any, tensor: Tensor) -> Any:
    """What a recording depends on: the shape, and the value where shapes follow from it."""
    if tensor.place == "host" and isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    return tuple(value.shape)


def _stored(value: Any, tensor: Tensor) -> Any:
    if isinstance(value, np.ndarray) and tensor.dtype is not None:
        return load(value, tensor.dtype, wide=False)
    return value


def _declared(value: Any, tensor: Tensor) -> Any:
    if isinstance(value, np.ndarray) and tensor.dtype not in (None, DType.STRING):
        assert tensor.dtype is not None
        return unload(value, tensor.dtype)
    return value
