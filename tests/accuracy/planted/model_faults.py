"""Faults of converters and exporters, and models that overflow in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from polytool.backends.native.protos import display
from scripts import made_models
from tests.comparators.planted import (
    Constants,
    change_weight,
    channel_axis,
    epsilon_lost,
    nodes,
    padding_shifted,
    pick,
)

Fault = Callable[[onnx.ModelProto, np.random.Generator], "str | None"]


def weight_of(bits: int) -> Fault:
    """The weight of one layer in `bits` bits, one scale an output channel."""

    def quantised(weight: Any, node: onnx.NodeProto, rng: np.random.Generator) -> Any:
        if weight.dtype.kind != "f":
            return None
        axes = tuple(i for i in range(weight.ndim) if i != channel_axis(node))
        largest = np.abs(weight).max(axis=axes, keepdims=True)
        scale = np.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
        return (np.round(weight / scale) * scale).astype(weight.dtype)

    return change_weight(quantised)


def axis_of_one_head(model: onnx.ModelProto, rng: np.random.Generator) -> str | None:
    """One head of one attention is normalised along the wrong axis."""
    node = pick(rng, nodes(model, "Softmax"))
    if node is None:
        return None
    graph, output = model.graph, node.output[0]
    at = next(i for i, n in enumerate(graph.node) if n is node or n == node)
    right, wrong = f"{output}/right", f"{output}/wrong"
    node.output[0] = right
    for name, value in (("from", [0]), ("one", [1]), ("end", [1 << 30]), ("axis", [1])):
        graph.initializer.append(numpy_helper.from_array(np.int64(value), f"{output}/{name}"))
    p = output + "/"
    new = [
        helper.make_node("Softmax", [node.input[0]], [wrong], axis=2),
        helper.make_node("Slice", [wrong, p + "from", p + "one", p + "axis"], [p + "head"]),
        helper.make_node("Slice", [right, p + "one", p + "end", p + "axis"], [p + "rest"]),
        helper.make_node("Concat", [p + "head", p + "rest"], [output], axis=1),
    ]
    for offset, extra in enumerate(new):
        graph.node.insert(at + 1 + offset, extra)
    return f"first head of {output} normalised along axis 2"


FAULTS: dict[str, Fault] = {
    "8-bit": weight_of(8),
    "10-bit": weight_of(10),
    "11-bit": weight_of(11),
    "epsilon": epsilon_lost,
    "head": axis_of_one_head,
    "padding": padding_shifted,
}


def changed_nodes(sound: onnx.ModelProto, faulty: onnx.ModelProto) -> frozenset[str]:
    """Display names of the nodes that differ, or that read a constant that does."""
    before = {tuple(n.output): n.SerializeToString() for n in nodes(sound)}
    old, new = Constants(sound).tensors, Constants(faulty).tensors
    changed = {name for name in new if name not in old or old[name] != new[name]}
    found = set()
    for node in nodes(faulty):
        same = before.get(tuple(node.output)) == node.SerializeToString()
        if node.op_type == "Constant" or (same and not changed.intersection(node.input)):
            continue
        if all(name in new for name in node.input) and node.input:
            changed.update(node.output)  # folded: its readers are what runs
        found.add(display(node))
    return frozenset(found)


def overflowing_norm(number: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A transformer one of whose decomposed LayerNormalizations squares values above 256."""
    model = made_models.transformer(layers=3, width=64, heads=4, vocabulary=500)
    squares = nodes(model, "Pow")
    centred = {n.output[0]: n for n in nodes(model, "Sub")}[squares[number].input[0]]
    residual = {n.output[0]: n for n in nodes(model, "Add")}[centred.input[0]]
    product = {n.output[0]: n for n in nodes(model, "Add")}[residual.input[0]]
    constants = Constants(model)
    matrix = {n.output[0]: n for n in nodes(model, "MatMul")}[product.input[0]].input[1]
    for name in (matrix, product.input[1]):
        constants.put(name, constants.get(name) * 600)
    rng = np.random.default_rng(number)
    feeds = {"ids": rng.integers(0, 500, (2, 12)), "mask": np.ones((2, 12), np.int64)}
    return model, feeds


def overflowing(model: onnx.ModelProto) -> frozenset[str]:
    """The squares of the norm that overflows: that whose input was made large."""
    constants = Constants(model)
    weights = [t for t in constants.tensors if t.endswith(".w")]
    largest = max(weights, key=lambda t: float(np.abs(constants.get(t)).max()))
    layer, kind = largest.split(".")[:2]
    number = 2 * int(layer.removeprefix("l")) + (kind == "down")
    return frozenset({display(nodes(model, "Pow")[number])})
