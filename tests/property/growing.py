"""A random ONNX graph under construction: a pool of tensors whose types and shapes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
DOUBLE, INT32, UINT8 = TensorProto.DOUBLE, TensorProto.INT32, TensorProto.UINT8
NUMPY = {
    FLOAT: np.float32,
    DOUBLE: np.float64,
    BOOL: np.bool_,
    INT: np.int64,
    INT32: np.int32,
    UINT8: np.uint8,
}
REAL, WHOLE = (FLOAT, DOUBLE), (INT, INT32, UINT8)
MAX_SIZE = 512
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; `exact` when no rounding took place on the way to it."""

    name: str
    kind: int
    shape: Dims
    exact: bool = True

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))


class Skip(Exception):
    """The operator cannot be put on what was drawn."""


@dataclass
class Growing:
    """A graph under construction."""

    draw: Any
    rng: np.random.Generator
    pool: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    feeds: dict[str, Any] = field(default_factory=dict)

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def one(self, options: Sequence[Any]) -> Any:
        if not options:
            raise Skip
        return self.draw(st.sampled_from(list(options)))

    def pick(
        self,
        kind: int | None = FLOAT,
        *,
        exact: bool = False,
        rank: int | None = None,
        least: int = 0,
        filled: bool = False,
    ) -> Value:
        """A tensor of the pool that fits, most often the newest: chains are what is fused."""
        fits = [
            v
            for v in reversed(self.pool)
            if (kind is None or v.kind == kind)
            and (v.exact or not exact)
            and (rank is None or v.rank == rank)
            and v.rank >= least
            and (v.size or not filled)
        ]
        return self.one(fits[:1] if self.number(0, 2) else fits)

    def values(self, kind: int, shape: Sequence[int]) -> Any:
        drawn = np.asarray(self.rng.integers(-4, 5, tuple(shape)))
        if kind == BOOL:
            return np.asarray(drawn > 0)
        if kind == UINT8:
            drawn = np.abs(drawn)
        return np.asarray(drawn / 2 if kind in REAL else drawn, NUMPY[kind])

    def input(self, kind: int, shape: Dims) -> Value:
        value = Value(f"x{len(self.inputs)}", kind, shape)
        self.inputs.append(value)
        self.pool.append(value)
        self.feeds[value.name] = self.values(kind, shape)
        return value

    def constant(self, array: Any) -> Value:
        """An initializer."""
        array = np.asarray(array)
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        kind = {np.dtype(t): k for k, t in NUMPY.items()}.get(array.dtype, 0)
        return Value(name, kind, array.shape)

    def ints(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    def axis(self, value: Value) -> int:
        """An axis of `value`, half of the time counted from the end."""
        if not value.rank:
            raise Skip
        return self.number(-value.rank, value.rank - 1)

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        results: Sequence[tuple[int, Dims]],
        *,
        exact: bool | None = None,
        **attributes: Any,
    ) -> None:
        """Append a node whose outputs have these types and shapes."""
        if any(np.prod(shape, dtype=int) > MAX_SIZE for _, shape in results):
            raise Skip
        kept = all(v.exact for v in inputs if v is not None) if exact is None else exact
        names = [f"t{len(self.pool)}_{i}" for i in range(len(results))]
        given = ["" if v is None else v.name for v in inputs]
        self.nodes.append(helper.make_node(op, given, names, **attributes))
        self.pool += [
            Value(n, kind, tuple(shape), kept)
            for n, (kind, shape) in zip(names, results, strict=True)
        ]

    def model(self, symbolic: bool) -> onnx.ModelProto:
        """The model; with `symbolic`, no dimension of an input or output is told."""
        read = {name for node in self.nodes for name in node.input}
        made = [v for v in self.pool if v not in self.inputs]
        outputs = [v for v in made if v.name not in read or self.number(0, 4) == 0]
        infos = [[_info(v, symbolic) for v in values] for values in (self.inputs, outputs)]
        graph = helper.make_graph(self.nodes, "g", infos[0], infos[1], self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _info(value: Value, symbolic: bool) -> onnx.ValueInfoProto:
    names = [f"{value.name}_{axis}" for axis in range(value.rank)]
    return helper.make_tensor_value_info(value.name, value.kind, names if symbolic else value.shape)


def draw_shape(draw: Any) -> Dims:
    """Up to four dimensions, with zeros and ones among them."""
    dims = st.sampled_from([2, 3, 4, 1, 5, 2, 3, 4, 1, 2, 3, 4, 0])
    shape = tuple(draw(st.lists(dims, max_size=4)))
    return shape if np.prod(shape, dtype=int) <= MAX_SIZE else shape[:3]
