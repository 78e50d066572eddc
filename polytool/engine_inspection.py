"""What an engine file consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polytool.arrays import Array, packed_size
from polytool.backends.native.cuda.fallback import host_layers
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Constant, Layer, Network
from polytool.cost import Cost, measure_network
from polytool.files import StrPath
from polytool.inspection import (
    Description,
    LayerInfo,
    WeightInfo,
    parameters_of,
    statistics_of,
)
from polytool.tensors import DType, TensorSpec

_NOT_KEPT = ("timing_cache", "tactics")  # of a configuration in an engine file
_BLOCK = 1 << 20  # elements of a weight that are looked at together


@dataclass(frozen=True)
class EngineLayer:
    """One layer: what it computes, how, what it costs, and which ONNX nodes it comes from."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    origin: tuple[str, ...]
    attributes: Mapping[str, Any]
    flops: int | None
    bytes_moved: int | None


@dataclass(frozen=True)
class EngineDescription:
    """Everything that `inspect model` says of an engine.

    Attributes:
        on_host: layers that a GPU leaves to the host, and why.
    """

    path: str
    device: str
    config: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[EngineLayer, ...]
    kinds: Mapping[str, int]
    weights: tuple[WeightInfo, ...]
    cost: Cost
    devices: tuple[str, ...] = ()
    on_host: Mapping[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """How many ONNX nodes the layers stand for."""
        return sum(len(layer.origin) for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each once."""
        return sum(w.nbytes for w in self.weights)

    @property
    def parameters(self) -> int:
        """Elements of all weights that are parameters; see `Description.parameters`."""
        return parameters_of(self.weights)

    def as_graph(self) -> Description:
        """The layers as the nodes of a graph, to be drawn as a model is."""
        layers = [
            LayerInfo(
                name=layer.name,
                op=layer.kind,
                domain="",
                graph="",
                inputs=layer.inputs,
                outputs=layer.outputs,
                attributes={
                    "tactic": layer.tactic,
                    "ONNX nodes": ", ".join(layer.origin),
                    **layer.attributes,
                },
                flops=layer.flops,
                bytes_moved=layer.bytes_moved,
            )
            for layer in self.layers
        ]
        return Description(
            path=self.path, ir_version=0, opsets={}, producer="", graph="", doc="", metadata={},
            inputs=self.inputs, outputs=self.outputs, layers=tuple(layers), weights=self.weights,
            functions=(), cost=self.cost, operators=self.kinds,
        )  # fmt: skip


def inspect_engine(
    path: StrPath,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    statistics: bool = False,
) -> EngineDescription:
    """Describe an engine file; its kernels are not loaded.

    Args:
        path: the file.
        input_shapes: shapes of inputs, for what the layers cost; names may be patterns.
        statistics: read the weights and describe their values.

    Raises:
        ModelError: the file is damaged or no engine.
        UsageError: an input shape does not fit.
    """
    engine = Engine.load(Path(path), device="cpu", kernels=False)
    network = engine.network
    cost = measure_network(network, input_shapes)
    return EngineDescription(
        path=str(path),
        device=engine.device,
        config={k: v for k, v in asdict(engine.config).items() if k not in _NOT_KEPT},
        inputs=tuple(t.spec for t in network.inputs),
        outputs=tuple(t.spec for t in network.outputs),
        layers=tuple(_layer(layer, cost) for layer in network.layers),
        kinds=dict(Counter(layer.kind for layer in network.layers).most_common()),
        weights=tuple(_weights(network, statistics)),
        cost=cost,
        devices=tuple(replay.device for replay in engine.built_tactics()),
        on_host=host_layers(network),
    )


def _layer(layer: Layer, cost: Cost) -> EngineLayer:
    read = {t.name: None for node in layer.nodes for t in node.reads() if t.constant is not None}
    attributes = {
        name if len(layer.nodes) == 1 else f"{node.op}.{name}": value
        for node in layer.nodes
        for name, value in node.attrs.items()
        if isinstance(value, int | float | str | list | tuple)
    }
    return EngineLayer(
        name=layer.name,
        kind=layer.kind,
        tactic=layer.tactic,
        inputs=(*(t.name for t in layer.inputs), *read),
        outputs=tuple(t.spec for t in layer.outputs),
        origin=layer.origin,
        attributes=attributes,
        flops=cost.flops.get(layer.name),
        bytes_moved=cost.bytes_moved.get(layer.name),
    )


def _weights(network: Network, statistics: bool) -> Iterator[WeightInfo]:
    seen: set[int] = set()
    for layer in network.layers:
        for node in layer.nodes:
            for tensor in node.reads():
                constant = tensor.constant
                if constant is None or id(constant) in seen:
                    continue
                seen.add(id(constant))
                counted = statistics and constant.dtype is not DType.STRING
                yield WeightInfo(
                    name=tensor.name,
                    dtype=constant.dtype.label,
                    shape=constant.shape,
                    nbytes=_size(constant),
                    location="",
                    graph="",
                    statistics=statistics_of(_blocks(constant)) if counted else None,
                )


def _size(constant: Constant) -> int:
    if constant.dtype is DType.STRING:
        return sum(len(str(s)) for s in constant.array().reshape(-1))
    return packed_size(constant.dtype, constant.shape)


def _blocks(constant: Constant) -> Iterator[Array]:
    flat = np.asarray(constant.array()).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]
