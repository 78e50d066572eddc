"""A network as plain JSON and back; constants go into a table beside it.

Every tensor of the network and of its bodies stands once in a table; nodes refer to it by index.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx

from polytool.backends.native.network import Constant, Layer, Network, Node, Tensor, ValueOf
from polytool.tensors import DType

JSON = dict[str, Any]


class PlanWriter:
    """Collects tensors and constants while a network is turned into JSON.

    Attributes:
        constants: the values that the plan refers to by index.
    """

    def __init__(self) -> None:
        self.constants: list[Constant] = []
        self._constants: dict[int, int] = {}
        self._tensors: dict[Tensor, int] = {}
        self._table: list[JSON] = []

    def write(self, network: Network) -> JSON:
        """The whole plan."""
        body = self._network(network)
        return {"tensors": self._table, "network": body}

    def _network(self, network: Network) -> JSON:
        return {
            "name": network.name,
            "inputs": [self._tensor(t) for t in network.inputs],
            "captures": [self._tensor(t) for t in network.captures],
            "layers": [self._layer(layer) for layer in network.layers],
            "outputs": [self._tensor(t) for t in network.outputs],
            "output_names": list(network.output_names),
        }

    def _layer(self, layer: Layer) -> JSON:
        return {
            "kind": layer.kind,
            "tactic": layer.tactic,
            "nodes": [self._node(n) for n in layer.nodes],
            "outputs": [self._tensor(t) for t in layer.outputs],
        }

    def _node(self, node: Node) -> JSON:
        return {
            "op": node.op,
            "domain": node.domain,
            "version": node.version,
            "inputs": [self._optional(t) for t in node.inputs],
            "outputs": [self._optional(t) for t in node.outputs],
            "attrs": {k: self._attribute(v) for k, v in node.attrs.items()},
            "bodies": {k: self._network(b) for k, b in node.bodies.items()},
            "sources": list(node.sources),
            "precision": node.precision,
        }

    def _optional(self, tensor: Tensor | None) -> int:
        return -1 if tensor is None else self._tensor(tensor)

    def _tensor(self, tensor: Tensor) -> int:
        if tensor not in self._tensors:
            self._tensors[tensor] = len(self._table)
            row: JSON = {"name": tensor.name}
            if tensor.dtype is not None:
                row["dtype"] = int(tensor.dtype)
            if tensor.shape is not None:
                row["shape"] = list(tensor.shape)
            if tensor.container != "tensor":
                row["container"] = tensor.container
            if tensor.place != "device":
                row["place"] = tensor.place
            if tensor.value_of is not None:
                row["value_of"] = [tensor.value_of.tensor, [list(m) for m in tensor.value_of.map]]
            if tensor.constant is not None:
                row["constant"] = self._constant(tensor.constant)
            self._table.append(row)
        return self._tensors[tensor]

    def _constant(self, constant: Constant) -> int:
        if id(constant) not in self._constants:
            self._constants[id(constant)] = len(self.constants)
            self.constants.append(constant)
        return self._constants[id(constant)]

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"array": self._constant(Constant.of(value))}
        if isinstance(value, onnx.TypeProto):
            return {"type": base64.b64encode(value.SerializeToString()).decode()}
        if isinstance(value, list):
            return [self._attribute(v) for v in value]
        return value


class PlanReader:
    """The inverse of `PlanWriter`; raises KeyError, TypeError, ValueError, IndexError on damage."""

    def __init__(self, constant: Callable[[int], Constant]) -> None:
        self._constant = constant
        self._tensors: list[Tensor] = []

    def read(self, plan: JSON) -> Network:
        """The network of `plan`."""
        self._tensors = [self._tensor(row) for row in plan["tensors"]]
        return self._network(plan["network"])

    def _tensor(self, row: JSON) -> Tensor:
        value_of = None
        if "value_of" in row:
            name, steps = row["value_of"]
            value_of = ValueOf(name, tuple((s[0], _frozen(s[1])) for s in steps))
        return Tensor(
            row["name"],
            DType(row["dtype"]) if "dtype" in row else None,
            tuple(row["shape"]) if "shape" in row else None,
            row.get("container", "tensor"),
            value_of,
            self._constant(row["constant"]) if "constant" in row else None,
            row.get("place", "device"),
        )

    def _pick(self, indexes: Iterable[int]) -> list[Tensor]:
        return [self._tensors[_index(i, len(self._tensors))] for i in indexes]

    def _optional(self, index: int) -> Tensor | None:
        return None if index == -1 else self._pick([index])[0]

    def _network(self, data: JSON) -> Network:
        return Network(
            data["name"],
            self._pick(data["inputs"]),
            self._pick(data["outputs"]),
            [self._layer(row) for row in data["layers"]],
            self._pick(data["captures"]),
            tuple(data["output_names"]),
        )

    def _layer(self, data: JSON) -> Layer:
        return Layer(
            data["kind"],
            [self._node(n) for n in data["nodes"]],
            self._pick(data["outputs"]),
            data["tactic"],
        )

    def _node(self, data: JSON) -> Node:
        return Node(
            data["op"],
            data["domain"],
            data["version"],
            [self._optional(i) for i in data["inputs"]],
            [self._optional(i) for i in data["outputs"]],
            {k: self._attribute(v) for k, v in data["attrs"].items()},
            {k: self._network(b) for k, b in data["bodies"].items()},
            tuple(data["sources"]),
            data["precision"],
        )

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return self._constant(value["array"]).array()
            return onnx.TypeProto.FromString(base64.b64decode(value["type"]))
        if isinstance(value, list):
            return [self._attribute(v) for v in value]
        return value


def _index(index: int, size: int) -> int:
    if not 0 <= index < size:
        raise IndexError(f"tensor {index} of {size}")
    return index


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
