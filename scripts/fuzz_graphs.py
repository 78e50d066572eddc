"""What the fuzzer does to the graphs of models: one mutation a function, each with its weight."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polytool.model import graphs
from scripts.fuzz_values import (
    INTEGERS,
    KINDS,
    REALS,
    SHAPES,
    TYPES,
    any_attribute,
    any_tensor,
)

LOCATIONS = [
    *("/etc/passwd", "../../../../etc/passwd", "", ".", "..", "\0", "fuzz.onnx", "missing.bin"),
    *("a/../../fuzz.onnx", "/dev/zero", "/dev/stdin", "file:///etc/passwd", "~/x", "a" * 5000),
]
Feeds = Mapping[str, Any]
Mutation = Callable[[random.Random, onnx.ModelProto, "Corpus"], None]
MUTATIONS: list[tuple[int, Mutation]] = []

Seed = tuple[onnx.ModelProto, Feeds]


class Corpus:
    """The sound models that mutations start from, each with inputs that fit."""

    def __init__(self, seeds: list[Seed]) -> None:
        self.seeds = seeds

    def draw(self, rng: random.Random) -> Seed:
        """One model, not to be changed, and its inputs."""
        return rng.choice(self.seeds)


def mutation(weight: int) -> Callable[[Mutation], Mutation]:
    """Register a mutation of a model in place; those of more weight are drawn more often."""

    def register(function: Mutation) -> Mutation:
        MUTATIONS.append((weight, function))
        return function

    return register


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in graphs(node):
            yield from _graphs(body)


def _node(rng: random.Random, model: onnx.ModelProto) -> tuple[onnx.GraphProto, onnx.NodeProto]:
    graphs = [g for g in _graphs(model.graph) if g.node]
    if not graphs:
        return model.graph, model.graph.node.add()
    graph = rng.choice(graphs)
    return graph, rng.choice(graph.node)


def _names(graph: onnx.GraphProto) -> list[str]:
    names = [i.name for i in graph.input] + [t.name for t in graph.initializer]
    return names + [o for n in graph.node for o in n.output]


@mutation(4)
def rewire(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Read another tensor, perhaps a later one, or write a name that is taken."""
    graph, node = _node(rng, model)
    names = [*_names(graph), "", "nowhere"]
    targets = node.output if rng.random() < 0.25 and node.output else node.input
    if targets and rng.random() < 0.9:
        targets[rng.randrange(len(targets))] = rng.choice(names)
    else:
        targets.append(rng.choice(names))


@mutation(3)
def exchange_operator(rng: random.Random, model: onnx.ModelProto, corpus: Corpus) -> None:
    """Another operator on the same tensors, with its own attributes or the old ones."""
    _, node = _node(rng, model)
    _, other = _node(rng, corpus.draw(rng)[0])
    node.op_type, node.domain = other.op_type, other.domain
    if rng.random() < 0.5:
        node.ClearField("attribute")
        node.attribute.extend(other.attribute)


@mutation(1)
def any_operator(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """An operator of those that the engine has, also those without a conformance case."""
    from polytool.backends.native.ops.registry import all_operators

    _, node = _node(rng, model)
    operator = rng.choice(all_operators())
    node.op_type, node.domain = operator.name, operator.domain
    if operator.domain and operator.domain not in {o.domain for o in model.opset_import}:
        model.opset_import.add(domain=operator.domain, version=operator.since)
    node.ClearField("attribute")
    for name in sorted(operator.wants):
        if rng.random() < 0.5:
            value = rng.choice([0, 1, 2, 8, -1, 0.5, "x", [1, 2], [0.5], 10**9])
            node.attribute.append(helper.make_attribute(name, value))
    names = [*_names(model.graph), ""]
    while names and len(node.input) < rng.randrange(8):
        node.input.append(rng.choice(names))


@cache
def _attributes() -> dict[tuple[str, str], dict[str, list[int]]]:
    """Domain and operator to the attributes that any of its versions has, with their kinds."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        names = found.setdefault((schema.domain, schema.name), {})
        for name, attribute in schema.attributes.items():
            names.setdefault(name, []).append(int(attribute.type))
    return found


@mutation(4)
def operator_attribute(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """One that some version of the operator has: left out, hostile, or of another kind."""
    _, node = _node(rng, model)
    names = _attributes().get((node.domain, node.op_type))
    if not names:
        return
    name = rng.choice(sorted(names))
    kept = [a for a in node.attribute if a.name != name]
    left_out = len(kept) < len(node.attribute) and rng.random() < 0.25
    kinds = KINDS if rng.random() < 0.2 else names[name]
    made = None if left_out else any_attribute(rng, 0.6, name, rng.choice(kinds))
    node.ClearField("attribute")
    node.attribute.extend([*kept, made] if made is not None else kept)


@mutation(4)
def operand(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Read nothing, or a weight, an input or a result of any type and rank."""
    _, node = _node(rng, model)
    if not node.input:
        return
    index, graph = rng.randrange(len(node.input)), model.graph
    kind, name = rng.random(), f"operand{len(graph.node)}_{len(graph.input)}"
    if kind < 0.15:
        name = ""
    elif kind < 0.6:
        dims, dtype = rng.choice(SHAPES), rng.choice(list(TYPES.values()))
        graph.initializer.append(any_tensor(rng, 0.4, dtype, dims, name))
    elif kind < 0.85:
        dims = rng.choice([None, [], [0], [2], ["N"], [None, 3], [2, 3], [1, 2, 4, 4], [2**31, 0]])
        dtype = rng.choice([1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 22])
        graph.input.append(helper.make_tensor_value_info(name, dtype, dims))
    else:
        op = rng.choice(["SequenceConstruct", "Optional", "Shape", "NonZero", "Size", "Identity"])
        source = rng.choice(_names(graph) or ["x"])
        graph.node.insert(0, helper.make_node(op, [source], [name]))
    node.input[index] = name


@mutation(2)
def row(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Select a row of a tensor, or of a product with it: such selections move to the front."""
    graph, names = model.graph, [n for n in _names(model.graph) if n]
    if not names:
        return
    source = rng.choice(names)
    weights = {
        "row_w": np.ones(rng.choice([[1, 1], [2, 2], [3, 2], [4, 4], [5, 2], [3], []]), np.float32),
        "row_i": np.array(rng.choice([0, -1, [0], [-1], [0, 1], [], [[0]]]), np.int64),
        "row_s": np.array(rng.choice([[0], [-1], [1], []]), np.int64),
        "row_e": np.array(rng.choice([[1], [2**63 - 1], [0], []]), np.int64),
        "row_a": np.array(rng.choice([[0], [1], [-1], [], [5], [-2]]), np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    if rng.random() < 0.7:
        op = rng.choice(["MatMul", "MatMul", "Gemm"])
        graph.node.append(helper.make_node(op, [source, "row_w"], ["row_p"]))
        source = "row_p"
    if rng.random() < 0.5:
        inputs = [source, "row_s", "row_e", "row_a"][: rng.choice([3, 4, 4])]
        graph.node.append(helper.make_node("Slice", inputs, ["row_y"]))
    else:
        axis = rng.choice([0, 1, -1, 2, -2])
        graph.node.append(helper.make_node("Gather", [source, "row_i"], ["row_y"], axis=axis))
    graph.output.add(name="row_y")


@mutation(2)
def graft(rng: random.Random, model: onnx.ModelProto, corpus: Corpus) -> None:
    """A node of another model, reading and feeding tensors of this one."""
    graph, _ = _node(rng, model)
    _, other = _node(rng, corpus.draw(rng)[0])
    names = _names(graph) or ["x"]
    new = graph.node.add()
    new.CopyFrom(other)
    for targets, chance in ((new.input, 0.9), (new.output, 0.3)):
        for index in range(len(targets)):
            if rng.random() < chance:
                targets[index] = rng.choice(names)


@mutation(2)
def another_opset(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """The same nodes in another version of the standard."""
    for entry in model.opset_import:
        newest = onnx.defs.onnx_opset_version()
        hostile = rng.random() < 0.3
        entry.version = rng.choice([0, -1, 1000, 2**62]) if hostile else rng.randint(1, newest)


@mutation(5)
def hostile_values(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """A weight, often a shape or an index, that holds other numbers."""
    tensors = [t for g in _graphs(model.graph) for t in g.initializer]
    tensors += [a.t for g in _graphs(model.graph) for n in g.node for a in n.attribute if a.t.dims]
    if tensors:
        tensor = rng.choice(tensors)
        if tensor.data_location == TensorProto.EXTERNAL:
            return
        try:
            array = numpy_helper.to_array(tensor).copy()
        except (ValueError, TypeError, KeyError):
            return
        if array.size and array.dtype.kind in "iuf":
            flat = array.reshape(-1)
            values = INTEGERS if array.dtype.kind in "iu" else REALS
            for _ in range(rng.choice([1, 1, flat.size])):
                with np.errstate(all="ignore"):
                    value = np.array(rng.choice(values)).astype(array.dtype)
                flat[rng.randrange(flat.size)] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation(2)
def hostile_sizes(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """An input, output or weight that says it is huge, negative, or of another rank."""
    graph = model.graph
    if graph.initializer and rng.random() < 0.5:
        dims = rng.choice(graph.initializer).dims
    else:
        infos = [*graph.input, *graph.output, *graph.value_info]
        if not infos:
            return
        shape = rng.choice(infos).type.tensor_type.shape
        if shape.dim and rng.random() < 0.7:
            rng.choice(shape.dim).dim_value = rng.choice(INTEGERS)
        else:
            shape.dim.add().dim_value = rng.choice(INTEGERS)
        return
    if dims and rng.random() < 0.7:
        dims[rng.randrange(len(dims))] = rng.choice(INTEGERS)
    else:
        dims.extend([rng.choice(INTEGERS)] * rng.choice([1, 1, 2, 70]))


@mutation(2)
def huge_result(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """A few bytes that ask for a tensor of gigabytes or more."""
    size = rng.choice([10**9, 2**31, 2**40, 2**62, 2**63 - 1, -1])
    model.graph.initializer.append(numpy_helper.from_array(np.array([size, 4]), "hostile_shape"))
    first = next((i.name for i in model.graph.input), "hostile_shape")
    data, shape = rng.choice([first, "hostile_shape"]), "hostile_shape"
    op = rng.choice(["Expand", "ConstantOfShape", "Tile", "Range", "Pad", "Resize", "OneHot"])
    inputs = {
        "ConstantOfShape": [shape],
        "Range": [shape, shape, shape],
        "Resize": [data, "", "", shape],
        "OneHot": [shape, shape, shape],
    }.get(op, [data, shape])
    model.graph.node.append(helper.make_node(op, inputs, ["hostile_result"]))
    if rng.random() < 0.7:
        model.graph.output.add(name="hostile_result")


@mutation(2)
def nest(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """The graph inside of If after If, which read its tensors from outside or not."""
    depth = rng.choice([1, 2, 5, 10, 20])
    depth = min(depth, 20 - _depth(model.graph))  # what protobuf can still build
    outputs = list(model.graph.output)
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    inner.ClearField("input")
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "go"))
    for level in range(depth):
        bodies = {"then_branch": inner, "else_branch": inner if depth < 8 else onnx.GraphProto()}
        names = [o.name for o in outputs]
        node = helper.make_node("If", ["go"], names, **bodies)
        inner = helper.make_graph([node], f"level{level}", [], outputs)
    del model.graph.node[:]
    model.graph.node.extend(inner.node)


def _depth(graph: onnx.GraphProto) -> int:
    bodies = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return 1 + max((_depth(body) for body in bodies), default=0)


@mutation(2)
def functions(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Functions that call themselves, each other, or the next one several times."""
    if not model.graph.node:
        return
    count, calls = rng.choice([(1, 1), (2, 2), (20, 2), (64, 1), (40, 3), (200, 1), (3, 20)])
    cyclic = rng.random() < 0.3
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("fuzz", 1)]
    for index in range(count):
        last = index == count - 1
        callee = ("f0", "fuzz") if last and cyclic else (f"f{index + 1}", "fuzz")
        op, domain = ("Neg", "") if last and not cyclic else callee
        names = ["x", *(f"t{i}" for i in range(calls - 1)), "y"]
        nodes = [
            helper.make_node(op, [a], [b], domain=domain) for a, b in itertools.pairwise(names)
        ]
        model.functions.append(
            helper.make_function("fuzz", f"f{index}", ["x"], ["y"], nodes, opsets)
        )
    model.opset_import.append(opsets[1])
    node = rng.choice(model.graph.node)
    node.op_type, node.domain = "f0", "fuzz"


@mutation(2)
def long_chain(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Thousands of nodes one after the other."""
    names = _names(model.graph)
    if not names:
        return
    name, op = rng.choice(names), rng.choice(["Identity", "Neg", "Relu", "Not", "Cast"])
    for index in range(rng.choice([100, 1500, 3000])):
        node = helper.make_node(op, [name], [f"chain{index}"])
        if op == "Cast":
            node.attribute.append(helper.make_attribute("to", rng.choice([1, 7, 10, 11])))
        model.graph.node.append(node)
        name = f"chain{index}"
    model.graph.output.add(name=name).type.tensor_type.elem_type = 1


@mutation(2)
def external_data(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """A weight whose content lies elsewhere."""
    tensors = list(model.graph.initializer)
    tensors += [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    tensor = rng.choice(tensors) if tensors else model.graph.initializer.add(name="e", data_type=1)
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    numbers = [*map(str, INTEGERS), "", "x", "1e3", "0x10", " 4", "4.0"]
    for key, values in (("location", LOCATIONS), ("offset", numbers), ("length", numbers)):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=rng.choice(values))


@mutation(1)
def sparse_weight(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """A sparse initializer whose indices and dimensions need not fit."""
    dims = rng.choice([[4], [2, 3], [10**6, 10**6], [2**40], [-1], [0], []])
    indices = rng.choice([[0], [1, 2], [-1], [10**12], [[0, 0]], [[5, 5], [1, 1]], []])
    sparse = model.graph.sparse_initializer.add(dims=dims)
    values = np.ones(rng.choice([1, 2, 0]), np.float32)
    name = rng.choice([*_names(model.graph), "sparse"])
    sparse.values.CopyFrom(numpy_helper.from_array(values, name))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "i"))
