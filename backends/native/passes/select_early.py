"""Of what only one row is read, only that row is computed.

`x -> Add -> LayerNormalization -> MatMul -> ... -> Gather(0, axis=1)
   =>  x -> Slice -> Add -> LayerNormalization -> MatMul -> ... -> Squeeze`

A vision transformer reads its class token only, a language model often its last token: the last
block's products and norms are then as many times smaller as there are tokens. Selections are a
Gather with a constant index, and a Slice of one axis, that take the first or the last element. They
move up through operators that work row by row (`row_wise`); where they stop, a Slice of length one
stands behind the tensor that is needed whole, which on a GPU is a view.

Refused: another element, rows of what leaves the network, of what several selections or other
operators read (those stay whole, with a Slice beside), selections that make no product smaller.
Runs after precisions are lowered, so that patterns of `--layer-precisions` see the model's nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Constant, Layer, Network, Node, Tensor, ValueOf
from polytool.backends.native.passes.match import Graph, drop_unread
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.passes.row_wise import (
    PRODUCTS,
    Axes,
    integers,
    row_of_reshape,
    rows_read,
    same_rows,
    shape_of,
)
from polytool.backends.native.passes.sizes import Sizes
from polytool.tensors import DType

_END = (1 << 63) - 1


@dataclass(frozen=True)
class Row:
    """The first (0) or the last (-1) element of an axis."""

    axis: int
    index: int


Demand = Row | None
"""How a tensor is read; None: the whole of it."""


def select_early(network: Network, config: BuilderConfig) -> PassResult:
    """Rewrite in `network` and in every body below it."""
    result = PassResult()
    _learn_ranks(network, config)
    taken = {
        t.name for g in (network, *network.bodies()) for x in g.layers for n in x.nodes
        for t in (*n.reads(), *n.writes())
    }  # fmt: skip
    for graph in (network, *network.bodies()):
        plan = _plan(graph, result)
        if plan.selected:
            result.changed += len(plan.selected)
            _Rewrite(graph, plan, taken).run()
    return result


def _learn_ranks(network: Network, config: BuilderConfig) -> None:
    """Probe where ONNX does not know shapes, as behind operators of other domains."""
    nodes = [node for layer in network.layers for node in layer.nodes]
    unknown = {
        t for node in nodes for t in node.writes()
        if t.shape is None and t.place != "host" and t.container == "tensor"
    }  # fmt: skip
    if unknown.isdisjoint(n.inputs[0] for n in nodes if n.op in ("Gather", "Slice")):
        return
    if any(n.op == "Squeeze" and len(n.inputs) < 2 for n in nodes):
        return  # other sizes may have other ranks
    sizes = Sizes(network, config)
    for tensor in unknown:
        rank = sizes.rank(tensor)
        if rank is not None:
            tensor.shape = (None,) * rank


@dataclass
class _Plan:
    """What is read of every tensor.

    Attributes:
        selections: the Gathers and Slices that move up.
        demands: how each tensor is read.
        selected: layers that compute one row, with the axes of their inputs that are cut down.
    """

    selections: dict[Layer, Row]
    demands: dict[Tensor, set[Demand]]
    selected: dict[Layer, tuple[Row, Axes]]


def _plan(graph: Network, result: PassResult) -> _Plan:
    """The selections that make a product smaller, and what they do."""
    producers = Graph(graph).producer
    found = ((layer, _selection(layer, producers)) for layer in graph.layers)
    selections = {layer: row for layer, row in found if row is not None}
    while True:
        plan = _Plan(selections, *_demands(graph, selections))
        useless = [x for x in selections if not _gains(x, plan, producers)]
        if not useless:
            return plan
        for layer in useless:
            del selections[layer]
            names = ", ".join(layer.origin) or layer.name
            result.refused.append(f"{names}: no product becomes smaller")


def _selection(layer: Layer, producers: dict[Tensor, Layer]) -> Row | None:
    """What a Gather or Slice selects of a tensor that the graph computes."""
    node = layer.nodes[0]
    if len(layer.nodes) > 1 or node.op not in ("Gather", "Slice") or node.domain:
        return None
    source, (output,) = node.inputs[0], node.outputs
    shape = shape_of(source)
    if source not in producers or source is None or not shape or output is None:
        return None
    if source.place == "host" or output.place == "host" or source.container != "tensor":
        return None
    axis, index = _taken(node, len(shape))
    if not 0 <= axis < len(shape) - 1 or shape[axis] == 1:
        return None
    size = shape[axis]
    if isinstance(size, int) and index == size - 1:
        index = -1
    return Row(axis, index) if index in (0, -1) else None


def _taken(node: Node, rank: int) -> tuple[int, int]:
    """The axis and the element of it that a node takes; -1 for no such axis."""
    if node.op == "Gather":
        index = integers(node.inputs[1])
        where = int(node.attrs.get("axis", 0)) % rank
        shape = shape_of(node.inputs[1])
        return (where, index[0]) if index is not None and shape in ((), (1,)) else (-1, 0)
    start, end, axis, step = (_single(t) for t in (*node.inputs[1:], None, None, None, None)[:4])
    stepped = len(node.inputs) > 4 and node.inputs[4] is not None and step != 1
    if start is None or end is None or axis is None or stepped:
        return -1, 0
    first = start == 0 and end == 1
    last = start == -1 and end >= (1 << 31) - 1
    return (axis % rank, 0 if first else -1) if first or last else (-1, 0)


def _single(tensor: Tensor | None) -> int | None:
    """The element of a constant that has one."""
    numbers = integers(tensor)
    return numbers[0] if numbers is not None and len(numbers) == 1 else None


def _demands(
    graph: Network, selections: dict[Layer, Row]
) -> tuple[dict[Tensor, set[Demand]], dict[Layer, tuple[Row, Axes]]]:
    """How each tensor is read, found from the last layer to the first, and which layers shrink."""
    demands: dict[Tensor, set[Demand]] = {t: {None} for t in graph.outputs}
    selected: dict[Layer, tuple[Row, Axes]] = {}
    for layer in reversed(graph.layers):
        node = layer.nodes[0]
        if demands.keys().isdisjoint(layer.outputs):
            continue  # such as the target of a Reshape that got another one
        read: list[Demand] = [None] * len(node.inputs)
        if layer in selections:
            read[0] = selections[layer]
        elif (found := _selected(layer, demands)) is not None:
            selected[layer] = found
            row, axes = found
            read = [None if axis is None else replace(row, axis=axis) for axis in axes]
        known = layer in selected and node.op == "Reshape"  # it gets another target
        for tensor, demand in zip(node.inputs[: 1 if known else None], read, strict=False):
            if tensor is not None:
                demands.setdefault(tensor, set()).add(demand)
        for tensor in node.captures:
            demands.setdefault(tensor, set()).add(None)
    return demands, selected


def _selected(layer: Layer, demands: dict[Tensor, set[Demand]]) -> tuple[Row, Axes] | None:
    """The one row that is read of what a layer computes, and of what it reads for it."""
    node = layer.nodes[0]
    used = [t for t in node.writes() if t in demands]
    wanted = {d for t in used for d in demands[t]}
    (row,) = wanted if len(wanted) == 1 else (None,)
    if row is None or len(layer.nodes) > 1 or not all(same_rows(node, t) for t in used):
        return None
    axes = rows_read(node, row.axis)
    return None if axes is None else (row, axes)


def _gains(layer: Layer, plan: _Plan, producers: dict[Tensor, Layer]) -> bool:
    """Whether a selection makes a product smaller."""
    seen: set[Tensor] = set()
    stack = [layer.nodes[0].inputs[0]]
    while stack:
        tensor = stack.pop()
        maker = producers.get(tensor) if tensor is not None and tensor not in seen else None
        if tensor is None or maker is None or maker not in plan.selected:
            continue
        seen.add(tensor)
        node, (_, axes) = maker.nodes[0], plan.selected[maker]
        if node.op in PRODUCTS:
            return True
        stack += [t for t, axis in zip(node.inputs, axes, strict=True) if axis is not None]
    return False


class _Rewrite:
    """Writes one graph anew."""

    def __init__(self, graph: Network, plan: _Plan, taken: set[str]) -> None:
        self.graph, self.plan, self.taken = graph, plan, taken
        self.rows: dict[tuple[Tensor, Row], Tensor] = {}
        self.layers: list[Layer] = []
        self.precisions = {t: x.precision for x in graph.layers for t in x.outputs}

    def run(self) -> None:
        for layer in self.graph.layers:
            if layer in self.plan.selections:
                self.end(layer)
            elif layer in self.plan.selected:
                self.shrink(layer)
            else:
                self.layers.append(layer)
        self.graph.replace_layers(drop_unread(self.layers, self.graph.outputs))

    def end(self, layer: Layer) -> None:
        """What gives the row the shape that the selection gave it."""
        node, row = layer.nodes[0], self.plan.selections[layer]
        source, index = node.inputs[:2]
        assert source is not None and index is not None
        inputs: list[Tensor | None] = [self.row(source, row)]
        if node.op == "Gather" and shape_of(index) == ():
            inputs.append(self.constant([row.axis]))
            node = replace(node, op="Squeeze", version=13, inputs=inputs, attrs={})
        else:
            node = replace(node, op="Identity", version=16, inputs=inputs, attrs={})
        self.layers.append(Layer.single(node))

    def shrink(self, layer: Layer) -> None:
        """The layer, on one row of what it reads."""
        node, (row, axes) = layer.nodes[0], self.plan.selected[layer]
        inputs = [
            t if t is None or axis is None else self.row(t, replace(row, axis=axis))
            for t, axis in zip(node.inputs, axes, strict=True)
        ]
        if node.op == "Reshape":
            assert axes[0] is not None
            dims = row_of_reshape(node, row.axis, axes[0])
            assert dims is not None
            inputs[1] = self.constant(dims)
        outputs: list[Tensor | None] = []
        for tensor in node.outputs:
            made = None
            if tensor is not None and same_rows(node, tensor):
                made = self.rows[tensor, row] = self.named(tensor, row)
            outputs.append(made)
        while outputs[-1] is None:
            outputs.pop()
        self.layers.append(Layer.single(replace(node, inputs=inputs, outputs=outputs)))

    def row(self, tensor: Tensor, row: Row) -> Tensor:
        """One row of a tensor: computed as such, a part of a constant, or cut out here."""
        if (tensor, row) in self.rows:
            return self.rows[tensor, row]
        made = self.rows[tensor, row] = self.named(tensor, row)
        if tensor.constant is not None:
            made.constant = _part(tensor.constant, row)
            return made
        end = row.index + 1 if row.index >= 0 else _END
        bounds = [self.constant([n]) for n in (row.index, end, row.axis)]
        node = Node("Slice", "", 13, [tensor, *bounds], [made])
        node.precision = self.precisions.get(tensor, "fp32")
        self.layers.append(Layer.single(node))
        return made

    def named(self, tensor: Tensor, row: Row) -> Tensor:
        """A new tensor for a row."""
        shape, known = shape_of(tensor), tensor.value_of
        assert shape is not None
        step = ("slice", (row.axis, row.index))
        name = known.tensor if known is not None and not known.map else tensor.name
        return replace(
            tensor,
            name=self.unused(f"{name}:row"),
            shape=(*shape[: row.axis], 1, *shape[row.axis + 1 :]),
            value_of=known and ValueOf(known.tensor, (*known.map, step)),
            constant=None,
        )

    def constant(self, values: list[int]) -> Tensor:
        """A vector of integers."""
        array = np.array(values, np.int64)
        name = self.unused(f"{self.graph.name}:row/{','.join(map(str, values))}")
        return Tensor(name, DType.INT64, array.shape, constant=Constant.of(array))

    def unused(self, name: str) -> str:
        """A name that no tensor has, which is taken from now on."""
        found = next(n for n in _variants(name) if n not in self.taken)
        self.taken.add(found)
        return found


def _variants(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}{number}"
        number += 1


def _part(constant: Constant, row: Row) -> Constant:
    """A row of a constant, read when it is needed."""
    shape = (*constant.shape[: row.axis], 1, *constant.shape[row.axis + 1 :])
    return Constant(constant.dtype, shape, lambda: np.take(constant.array(), [row.index], row.axis))
