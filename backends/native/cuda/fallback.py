"""Which layers the GPU leaves to the host, as far as their operators and types tell."""

from __future__ import annotations

from polytool.backends.native.cuda import sequences
from polytool.backends.native.cuda.recorder import expand, find_lowering
from polytool.backends.native.network import Layer, Network
from polytool.tensors import DType


def host_reason(layer: Layer) -> str | None:
    """Why a layer runs on the host; None where it may run on the device."""
    (node, *_) = layer.nodes
    if node.bodies:
        old = node.op == "Scan" and node.version < 9
        return "the Scan of opset 8 runs on the host" if old else None
    if sequences.handles(layer):
        return None
    on_host = layer.outputs and all(t.place == "host" for t in layer.outputs)
    if find_lowering(layer) is None and not on_host:
        return f"{node.op} has no GPU kernel"
    tensors = [t for n in layer.nodes for t in (*n.reads(), *n.writes())]
    if any(t.dtype is DType.STRING or t.container != "tensor" for t in tensors):
        return "strings and sequences live on the host"
    return None


def host_layers(network: Network) -> dict[str, str]:
    """The layers of a network and its bodies that run on the host, by name, and why.

    A type or a shape that a kernel does not take shows only when shapes are known; an execution
    context tells of those (`on_host`).
    """
    found = {}
    for _, layer in network.walk():
        for part in expand(layer) if layer.nodes else ():
            reason = host_reason(part)
            if reason is not None:
                found[layer.name] = reason
    return found
