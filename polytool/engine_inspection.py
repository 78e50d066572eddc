"""What an engine file consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polytool.backends.native.cuda.fallback import host_layers
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Network
from polytool.files import StrPath
from polytool.tensors import TensorSpec

_NOT_KEPT = ("timing_cache", "tactics")  # of a configuration in an engine file


@dataclass(frozen=True)
class EngineLayer:
    """One layer: what it computes, how, and which ONNX nodes it comes from."""

    name: str
    kind: str
    tactic: str
    outputs: tuple[TensorSpec, ...]
    origin: tuple[str, ...]


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
    weight_bytes: int
    devices: tuple[str, ...] = ()
    on_host: Mapping[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """How many ONNX nodes the layers stand for."""
        return sum(len(layer.origin) for layer in self.layers)


def inspect_engine(path: StrPath) -> EngineDescription:
    """Describe an engine file; its kernels are not loaded, its weights not read.

    Raises:
        ModelError: the file is damaged or no engine.
    """
    engine = Engine.load(Path(path), device="cpu", kernels=False)
    network = engine.network
    layers = [
        EngineLayer(
            layer.name, layer.kind, layer.tactic, tuple(t.spec for t in layer.outputs), layer.origin
        )
        for layer in network.layers
    ]
    return EngineDescription(
        path=str(path),
        device=engine.device,
        config={k: v for k, v in asdict(engine.config).items() if k not in _NOT_KEPT},
        inputs=tuple(t.spec for t in network.inputs),
        outputs=tuple(t.spec for t in network.outputs),
        layers=tuple(layers),
        kinds=dict(Counter(layer.kind for layer in layers).most_common()),
        weight_bytes=_weight_bytes(network),
        devices=tuple(replay.device for replay in engine.built_tactics()),
        on_host=host_layers(network),
    )


def _weight_bytes(network: Network) -> int:
    constants = {
        id(t.constant): t.constant
        for layer in network.layers
        for node in layer.nodes
        for t in node.reads()
        if t.constant is not None
    }
    return sum((c.size * max(c.dtype.bits, 8) + 7) // 8 for c in constants.values())
