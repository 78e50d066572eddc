"""Faults planted in sound models: what goes wrong in converters, exporters and kernels.

Each fault changes one place of a ModelProto, chosen by a seeded generator, and says what it did;
None where the model has no such place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

Fault = Callable[[onnx.ModelProto, np.random.Generator], "str | None"]
LAYERS = {"Conv": 1, "MatMul": 1, "Gemm": 1, "ConvTranspose": 1, "FusedMatMul": 1}
RECURRENT = {"LSTM": (1, 2), "GRU": (1, 2), "DynamicQuantizeLSTM": (1, 2)}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def nodes(model: onnx.ModelProto, *ops: str) -> list[onnx.NodeProto]:
    return [n for g in graphs(model.graph) for n in g.node if not ops or n.op_type in ops]


class Constants:
    """Initializers and Constant nodes by name, as arrays that can be written back."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {}
        for graph in graphs(model.graph):
            self.tensors.update({t.name: t for t in graph.initializer})
            for node in graph.node:
                if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                    self.tensors[node.output[0]] = node.attribute[0].t
                if node.op_type == "Identity" and node.input[0] in self.tensors:
                    self.tensors[node.output[0]] = self.tensors[node.input[0]]

    def get(self, name: str) -> np.ndarray | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor).copy()

    def put(self, name: str, array: np.ndarray) -> None:
        tensor = self.tensors[name]
        tensor.CopyFrom(numpy_helper.from_array(array.astype(self.get(name).dtype), tensor.name))


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def layer_weights(model: onnx.ModelProto, constants: Constants) -> list[tuple[onnx.NodeProto, str]]:
    found = []
    for node in nodes(model, *LAYERS, *RECURRENT):
        positions = RECURRENT.get(node.op_type) or (LAYERS[node.op_type],)
        for position in positions:
            array = constants.get(node.input[position])
            if array is not None and array.ndim >= 2 and array.size >= 16:
                found.append((node, node.input[position]))
    return found


def pick(rng, items):
    return items[int(rng.integers(len(items)))] if items else None


def change_weight(change):
    """A fault that changes the weight of one layer; `change` returns None where it cannot."""

    def fault(model, rng):
        constants = Constants(model)
        found = layer_weights(model, constants)
        for at in rng.permutation(len(found)):
            node, name = found[at]
            old = constants.get(name)
            new = change(old.copy(), node, rng)
            if new is not None and not np.array_equal(new, old):
                constants.put(name, new)
                return f"{change.__name__} {name} of {node.op_type}"
        return None

    fault.__name__ = change.__name__
    return fault


def channel_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type in ("MatMul", "Gemm", "FusedMatMul", *RECURRENT) else 0


@change_weight
def permuted_weight(weight, node, rng):
    axis = channel_axis(node)
    return np.take(weight, rng.permutation(weight.shape[axis]), axis)


@change_weight
def two_channels_swapped(weight, node, rng):
    axis = channel_axis(node)
    if weight.shape[axis] < 2:
        return None
    order = np.arange(weight.shape[axis])
    a, b = rng.choice(len(order), 2, replace=False)
    order[[a, b]] = order[[b, a]]
    return np.take(weight, order, axis)


@change_weight
def eight_bit_weight(weight, node, rng):
    if weight.dtype.kind != "f":
        return None
    scale = np.abs(weight).max() / 127
    return (np.round(weight / scale) * scale).astype(weight.dtype)


@change_weight
def transposed_weight(weight, node, rng):
    if node.op_type == "Conv" and weight.ndim == 4 and weight.shape[2] > 1:
        return np.swapaxes(weight, 2, 3) if weight.shape[2] == weight.shape[3] else None
    return weight.T if weight.ndim == 2 and weight.shape[0] == weight.shape[1] else None


@change_weight
def channel_negated(weight, node, rng):
    channel = [slice(None)] * weight.ndim
    channel[channel_axis(node)] = int(rng.integers(weight.shape[channel_axis(node)]))
    weight[tuple(channel)] *= -1
    return weight


@change_weight
def gates_swapped(weight, node, rng):
    if node.op_type not in ("LSTM", "GRU"):
        return None
    gates = 4 if node.op_type == "LSTM" else 3
    parts = np.split(weight, gates, axis=1)
    parts[0], parts[1] = parts[1], parts[0]
    return np.concatenate(parts, axis=1)


def bias_lost(model, rng):
    constants = Constants(model)
    places = [(n, n.input[2]) for n in nodes(model, "Conv", "Gemm") if len(n.input) > 2]
    places += [(n, i) for n in nodes(model, "Add") for i in n.input]
    places = [
        (n, i) for n, i in places
        if (b := constants.get(i)) is not None and b.dtype.kind == "f" and b.size > 3 and b.any()
    ]  # fmt: skip
    place = pick(rng, places)
    if place is None:
        return None
    constants.put(place[1], np.zeros_like(constants.get(place[1])))
    return f"bias_lost {place[1]} of {place[0].op_type}"


def epsilon_lost(model, rng):
    constants = Constants(model)
    normal = nodes(model, "BatchNormalization", "LayerNormalization", "InstanceNormalization",
                   "SkipLayerNormalization", "GroupNormalization")  # fmt: skip
    tiny = [
        (n, i) for n in nodes(model, "Add") for i in n.input
        if (c := constants.get(i)) is not None and c.size == 1 and 0 < c.reshape(-1)[0] < 2e-3
    ]  # fmt: skip
    choice = pick(rng, [*[(n, None) for n in normal], *tiny])
    if choice is None:
        return None
    node, name = choice
    if name is not None:
        constants.put(name, np.zeros_like(constants.get(name)))
        return f"epsilon_lost {name}"
    old = attribute(node, "epsilon")
    if old is None:
        node.attribute.append(onnx.helper.make_attribute("epsilon", 0.0))
    else:
        old.f = 0.0
    return f"epsilon_lost in {node.op_type} {node.output[0]}"


def epsilon_other(model, rng):
    """1e-3 where 1e-5 stood, as between frameworks."""
    node = pick(rng, nodes(model, "BatchNormalization", "LayerNormalization"))
    if node is None:
        return None
    old = attribute(node, "epsilon")
    value = 1e-3 if old is None or old.f < 5e-4 else 1e-5
    if old is None:
        node.attribute.append(onnx.helper.make_attribute("epsilon", value))
    else:
        old.f = value
    return f"epsilon_other in {node.op_type} {node.output[0]}"


def padding_shifted(model, rng):
    """One more in front, one less behind."""
    places = []
    for node in nodes(model, "Conv", "MaxPool", "AveragePool"):
        pads = attribute(node, "pads")
        if pads is not None and any(p > 0 for p in pads.ints[len(pads.ints) // 2 :]):
            places.append((node, pads))
    place = pick(rng, places)
    if place is None:
        return None
    node, pads = place
    half = len(pads.ints) // 2
    for axis in range(half):
        if pads.ints[half + axis] > 0:
            pads.ints[axis] += 1
            pads.ints[half + axis] -= 1
    return f"padding_shifted in {node.op_type} {node.output[0]}"


def wrong_axis(model, rng):
    node = pick(rng, nodes(model, "Softmax", "LogSoftmax"))
    if node is None:
        return None
    axis = attribute(node, "axis")
    if axis is None:
        node.attribute.append(onnx.helper.make_attribute("axis", -2))
    else:
        axis.i = 1 if axis.i != 1 else 2
    return f"wrong_axis in {node.op_type} {node.output[0]}"


def concat_reversed(model, rng):
    constants = Constants(model)
    found = [
        n for n in nodes(model, "Concat")
        if len(set(n.input)) > 1 and not any(i in constants.tensors for i in n.input)
    ]  # fmt: skip
    node = pick(rng, found)
    if node is None:
        return None
    inputs = list(node.input)[::-1]
    del node.input[:]
    node.input.extend(inputs)
    return f"concat_reversed {node.output[0]}"


def activation_other(model, rng):
    found = nodes(model, "Relu", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Erf")
    node = pick(rng, found)
    if node is None:
        return None
    was = node.op_type
    if was == "HardSigmoid":
        alpha = attribute(node, "alpha")
        value = 0.2 if alpha is not None and abs(alpha.f - 0.2) > 1e-3 else 1 / 6
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("alpha", value))
    else:
        other = {"Relu": "LeakyRelu", "Sigmoid": "HardSigmoid", "LeakyRelu": "Relu",
                 "Tanh": "Softsign", "HardSwish": "Relu", "Erf": "Tanh"}  # fmt: skip
        node.op_type = other[was]
        del node.attribute[:]
    return f"activation_other {was} {node.output[0]}"


def constant_off(model, rng):
    """A scalar factor that is 1 % off, such as an attention scale."""
    constants = Constants(model)
    places = [
        (n, i) for n in nodes(model, "Mul", "Div") for i in n.input
        if (c := constants.get(i)) is not None and c.size == 1 and c.dtype.kind == "f" and c.any()
    ]  # fmt: skip
    place = pick(rng, places)
    if place is None:
        return None
    constants.put(place[1], constants.get(place[1]) * 1.01)
    return f"constant_off {place[1]} of {place[0].op_type}"


def pool_counts_padding(model, rng):
    found = [n for n in nodes(model, "AveragePool") if attribute(n, "pads") is not None]
    found = [n for n in found if any(attribute(n, "pads").ints)]
    node = pick(rng, found)
    if node is None:
        return None
    flag = attribute(node, "count_include_pad")
    if flag is None:
        node.attribute.append(onnx.helper.make_attribute("count_include_pad", 1))
    else:
        flag.i = 1 - flag.i
    return f"pool_counts_padding {node.output[0]}"


FAULTS: tuple[Fault, ...] = (
    permuted_weight, two_channels_swapped, eight_bit_weight, transposed_weight, channel_negated,
    gates_swapped, bias_lost, epsilon_lost, epsilon_other, padding_shifted, wrong_axis,
    concat_reversed, activation_other, constant_off, pool_counts_padding,
)  # fmt: skip
