"""A network as plain JSON and back; constants go into a table beside it.

Every tensor of the network and of its bodies stands once in a table; nodes refer to it by index.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx

from polytool.backends.native.network import (
    CONTROL,
    Constant,
    Layer,
    Network,
    Node,
    Tensor,
    ValueOf,
)
from polytool.backends.native.numerics import PRECISIONS
from polytool.backends.native.types import misfit, most_outputs, output_dtypes
from polytool.tensors import DType

JSON = dict[str, Any]
_CONTAINERS = ("tensor", "sequence", "optional", "map", "sparse")
_PLACES = ("device", "host")
_BRANCHES = {"then_branch", "else_branch"}


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
            value_of = ValueOf(as_text(name), tuple((as_text(s[0]), _frozen(s[1])) for s in steps))
        constant = self._constant(_number(row["constant"])) if "constant" in row else None
        tensor = Tensor(
            as_text(row["name"]),
            DType(row["dtype"]) if "dtype" in row else None,
            tuple(_dim(d) for d in row["shape"]) if "shape" in row else None,
            _one_of(_CONTAINERS, row.get("container", "tensor")),
            value_of,
            constant,
            _one_of(_PLACES, row.get("place", "device")),
        )
        if constant is not None and (tensor.dtype, tensor.shape) != (
            constant.dtype,
            constant.shape,
        ):
            raise ValueError(f"{tensor} has a constant {constant.dtype.label}{constant.shape}")
        return tensor

    def _pick(self, indexes: Iterable[int]) -> list[Tensor]:
        return [self._tensors[_index(i, len(self._tensors))] for i in indexes]

    def _optional(self, index: int) -> Tensor | None:
        return None if index == -1 else self._pick([index])[0]

    def _network(self, data: JSON) -> Network:
        return Network(
            as_text(data["name"]),
            self._pick(data["inputs"]),
            self._pick(data["outputs"]),
            [self._layer(row) for row in data["layers"]],
            self._pick(data["captures"]),
            tuple(map(as_text, data["output_names"])),
        )

    def _layer(self, data: JSON) -> Layer:
        return Layer(
            as_text(data["kind"]),
            [self._node(n) for n in data["nodes"]],
            self._pick(data["outputs"]),
            as_text(data["tactic"]),
        )

    def _node(self, data: JSON) -> Node:
        node = Node(
            as_text(data["op"]),
            as_text(data["domain"]),
            _number(data["version"]),
            [self._optional(i) for i in data["inputs"]],
            [self._optional(i) for i in data["outputs"]],
            {k: self._attribute(v) for k, v in data["attrs"].items()},
            {k: self._network(b) for k, b in data["bodies"].items()},
            tuple(map(as_text, data["sources"])),
            _one_of(PRECISIONS, data["precision"]),
        )
        if node.op in CONTROL and not node.domain:
            _check_bodies(node)
        elif node.operator is None:
            raise ValueError(f"there is no operator {node.op}-{node.version} of {node.domain!r}")
        elif why := node.operator.misfit(node.inputs, node.attrs):
            raise ValueError(f"node {node.op}: {why}")
        else:
            _check_types(node)
        return node

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return self._constant(value["array"]).array()
            return onnx.TypeProto.FromString(base64.b64decode(value["type"]))
        if isinstance(value, list):
            return [self._attribute(v) for v in value]
        return value


def check_order(network: Network) -> None:
    """Every layer reads what is there when it runs, and stores what its nodes produce.

    Raises:
        ValueError: it does not.
    """
    _check_order(network, set())


def _check_order(network: Network, outer: set[Tensor]) -> None:
    if not set(network.captures) <= outer:
        raise ValueError(f"body {network.name!r} captures what is not there")
    known = {*network.inputs, *network.captures}
    if len(network.output_names) != len(network.outputs):
        raise ValueError(f"graph {network.name!r} has {len(network.output_names)} output names")
    for layer in network.layers:
        if not layer.nodes:
            raise ValueError(f"a layer {layer.kind!r} has no nodes")
        made: set[Tensor] = set()
        for node in layer.nodes:
            for tensor in node.reads():
                if tensor.constant is None and tensor not in known and tensor not in made:
                    raise ValueError(f"node {node.op} reads {tensor.name!r} before it is there")
            for body in node.bodies.values():
                _check_order(body, {t for t in node.reads() if t.constant is None})
            for tensor in node.writes():
                if tensor in made or tensor in known:
                    raise ValueError(f"tensor {tensor.name!r} is made twice")
                made.add(tensor)
        if not set(layer.outputs) <= made:
            raise ValueError(f"layer {layer.name!r} stores what none of its nodes produces")
        known.update(layer.outputs)
    for tensor in network.outputs:
        if tensor.constant is None and tensor not in known:
            raise ValueError(f"output {tensor.name!r} of graph {network.name!r} is never computed")


def _check_types(node: Node) -> None:
    """Inputs are of its kind, no type that they decide is missing, it has no outputs too many."""
    for index, tensor in enumerate(node.inputs):
        if tensor is not None and (why := misfit(node, index, tensor.container, tensor.dtype)):
            raise ValueError(f"node {node.op} {why.format(f'its input {index}')}")
    most = most_outputs(node.domain, node.op, node.version)
    if most is not None and len(node.outputs) > most:
        raise ValueError(f"node {node.op} has {len(node.outputs)} outputs, not {most}")
    given = [None if t is None else t.dtype for t in node.inputs]
    found = output_dtypes(node.domain, node.op, node.version, given, len(node.outputs), node.attrs)
    for tensor, dtype in zip(node.outputs, found, strict=True):
        if tensor is not None and tensor.dtype is None and dtype is not None:
            raise ValueError(f"tensor {tensor.name!r} has no element type")


def _check_bodies(node: Node) -> None:
    """The counts on which the drivers of If, Loop and Scan rely."""
    given, returned = len(node.inputs), len(node.outputs)
    if node.op == "If":
        fits = given == 1 and node.inputs[0] is not None and set(node.bodies) == _BRANCHES
        fits = fits and all(
            not b.inputs and len(b.outputs) >= returned for b in node.bodies.values()
        )
    elif node.op == "Loop":
        carried = max(0, given - 2)
        fits = set(node.bodies) == {"body"}
        fits = fits and len(node.bodies["body"].inputs) == carried + 2
        fits = fits and len(node.bodies["body"].outputs) >= max(carried, returned) + 1
    else:
        fits = set(node.bodies) == {"body"} and 1 <= node.attrs["num_scan_inputs"] <= given
        fits = fits and len(node.bodies["body"].inputs) == given - (node.version < 9)
        fits = fits and len(node.bodies["body"].outputs) >= returned
    if not fits:
        raise ValueError(f"the bodies of a node {node.op} do not fit its inputs and outputs")


def as_text(value: Any) -> str:
    """`value`, which is a string.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _dim(value: Any) -> int | str | None:
    if value is None or isinstance(value, str):
        return value
    if _number(value) < 0:
        raise ValueError(f"{value} is no size")
    return int(value)


def _one_of(allowed: Iterable[str], value: Any) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return as_text(value)


def _index(index: int, size: int) -> int:
    if not 0 <= _number(index) < size:
        raise IndexError(f"tensor {index} of {size}")
    return index


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
