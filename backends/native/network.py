"""The typed SSA graph that the engine optimises and runs.

A `Network` is a list of `Layer`s in execution order. A layer is what is executed, timed and
observed; it holds one `Node` (one operator) before fusion and several after it. Tensors between
the nodes of one layer are never stored. What a fused layer computes is, by definition, what its
nodes compute one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Operator, find
from polytool.tensors import DType, Shape, TensorSpec

CONTROL = ("If", "Loop", "Scan")  # the operators of the standard domain that have bodies


@dataclass(frozen=True)
class ValueOf:
    """The ONNX tensor that a stored tensor equals.

    Attributes:
        tensor: the ONNX name; inside If, Loop, Scan and functions prefixed with the path there.
        map: the exact steps from the ONNX value to the stored one, such as `("cast", "float16")`
            or `("transpose", (0, 2, 3, 1))`; empty when they are equal.
    """

    tensor: str
    map: tuple[tuple[str, Any], ...] = ()

    def suffixes(self) -> Iterator[str]:
        """The name with less and less of its path."""
        name = self.tensor
        while "/" in name:
            name = name.split("/", 1)[1]
            yield name


class Constant:
    """A value known at build time, read when first needed.

    Attributes:
        dtype: the stored element type.
        shape: dimensions.
    """

    __slots__ = ("_load", "dtype", "shape")

    def __init__(
        self, dtype: DType, shape: tuple[int, ...], load: Callable[[], np.ndarray]
    ) -> None:
        self.dtype, self.shape, self._load = dtype, shape, load

    @classmethod
    def of(cls, array: np.ndarray) -> Constant:
        """A constant that is already in memory."""
        return cls(DType.of(array), array.shape, lambda: array)

    def array(self) -> np.ndarray:
        """The value in its ONNX layout; read-only and mapped where it comes from a file."""
        return self._load()

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(eq=False, slots=True)
class Tensor:
    """One SSA value. Bodies refer to outer tensors by the same object."""

    name: str
    dtype: DType | None = None
    shape: Shape | None = None
    container: str = "tensor"
    value_of: ValueOf | None = None
    constant: Constant | None = None
    place: str = "device"

    @property
    def spec(self) -> TensorSpec:
        """What is known of the tensor."""
        return TensorSpec(self.name, self.dtype, self.shape, self.container)

    def __repr__(self) -> str:
        return f"Tensor({self.spec})"


@dataclass(eq=False)
class Node:
    """One operator in its newest form.

    Attributes:
        sources: display names of the ONNX nodes it stands for; empty for what a pass added.
        bodies: the Networks of If (`then_branch`, `else_branch`), Loop and Scan (`body`).
        precision: `fp32`, `tf32`, `fp16`, `bf16` or `fp64`: the grid of the operands.
    """

    op: str
    domain: str
    version: int
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    bodies: dict[str, Network] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    precision: str = "fp32"

    @property
    def operator(self) -> Operator | None:
        """The registered operator; None for If, Loop and Scan."""
        return find(self.domain, self.op, self.version)

    @property
    def captures(self) -> list[Tensor]:
        """Outer tensors that the bodies read, each once, in order of first use."""
        if not self.bodies:
            return []
        seen = dict.fromkeys(t for body in self.bodies.values() for t in body.captures)
        return list(seen)

    def reads(self) -> Iterator[Tensor]:
        """Every tensor that must exist before the node runs, constants included."""
        yield from (t for t in self.inputs if t is not None)
        yield from self.captures

    def writes(self) -> Iterator[Tensor]:
        """Every tensor that the node produces."""
        yield from (t for t in self.outputs if t is not None)


@dataclass(eq=False)
class Layer:
    """What is executed: one node, or several fused ones.

    Attributes:
        kind: what tactics look at: `conv`, `gemm`, `pointwise` ... for fused layers, else the
            operator's name.
        outputs: the tensors that are stored.
    """

    kind: str
    nodes: list[Node]
    outputs: list[Tensor]
    tactic: str = ""

    @classmethod
    def single(cls, node: Node) -> Layer:
        """A layer of one node."""
        return cls(node.op, [node], list(node.writes()))

    @property
    def name(self) -> str:
        """The ONNX tensor that the layer ends in, or its own name where it equals none."""
        if not self.outputs:
            return self.nodes[-1].op
        last = self.outputs[-1]
        return last.value_of.tensor if last.value_of and not last.value_of.map else last.name

    @property
    def inputs(self) -> list[Tensor]:
        """What the layer reads from outside, constants left out, each once."""
        inside: set[Tensor | None] = set()
        found: dict[Tensor, None] = {}
        for node in self.nodes:
            for tensor in (*node.inputs, *node.captures):
                if tensor is not None and tensor.constant is None and tensor not in inside:
                    found[tensor] = None
            inside.update(node.outputs)
        return list(found)

    @property
    def origin(self) -> tuple[str, ...]:
        """Display names of the ONNX nodes that the layer computes."""
        return tuple(dict.fromkeys(s for n in self.nodes for s in n.sources))

    @property
    def precision(self) -> str:
        """The precision of its nodes, which is one: fusion never crosses two."""
        return self.nodes[0].precision if self.nodes else "fp32"

    def constants(self) -> Iterator[Tensor]:
        """The constants that the layer's nodes read, without those inside bodies."""
        seen = dict.fromkeys(t for n in self.nodes for t in n.inputs if t is not None)
        yield from (t for t in seen if t.constant is not None)


@dataclass(eq=False)
class Network:
    """Inputs, layers in execution order, outputs.

    Attributes:
        captures: for a body: the non-constant outer tensors that it reads.
        output_names: what the model calls its outputs.
    """

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    layers: list[Layer]
    captures: list[Tensor] = field(default_factory=list)
    output_names: tuple[str, ...] = ()

    @cached_property
    def entry(self) -> Layer:
        """A layer without nodes whose outputs are what a body is given, for observers."""
        return Layer("Input", [], list(self.inputs))

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Layer]]:
        """Every layer in the order of completion: those of bodies before the layer they are in.

        Each comes with its depth: 0 here, 1 in the bodies of this network's layers ...

        A body that has inputs begins with its `entry`.
        """
        for layer in self.layers:
            for node in layer.nodes:
                for body in node.bodies.values():
                    if body.inputs:
                        yield depth + 1, body.entry
                    yield from body.walk(depth + 1)
            yield depth, layer

    def bodies(self) -> Iterator[Network]:
        """The networks nested in this one, at every depth."""
        for layer in self.layers:
            for node in layer.nodes:
                for body in node.bodies.values():
                    yield body
                    yield from body.bodies()

    def consumers(self) -> dict[Tensor, list[Layer]]:
        """Which layers read a tensor, bodies' captures counted as the holder's reads."""
        table: dict[Tensor, list[Layer]] = {}
        for layer in self.layers:
            for tensor in layer.inputs:
                table.setdefault(tensor, []).append(layer)
        return table

    def replace_layers(self, layers: Iterable[Layer]) -> None:
        """Set the layers; they must already be in execution order."""
        self.layers = list(layers)


def captured(
    layers: Iterable[Layer], inputs: Iterable[Tensor], outputs: Iterable[Tensor]
) -> list[Tensor]:
    """The tensors that a body reads but neither receives nor produces, constants left out."""
    layers = list(layers)
    inside = {id(t) for t in inputs}
    inside |= {id(t) for layer in layers for n in layer.nodes for t in n.writes()}
    reads = [t for layer in layers for t in layer.inputs] + list(outputs)
    return list(dict.fromkeys(t for t in reads if t.constant is None and id(t) not in inside))
