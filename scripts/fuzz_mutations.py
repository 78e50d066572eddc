"""What the fuzzer does to model and engine files: every mutation, drawn from one seeded generator.

Models are mutated as bytes, as protobuf messages (any field of any message), and as graphs: names
rewired into cycles, operators exchanged, weights and baked inputs replaced by hostile numbers,
bodies and functions nested, external data that leads elsewhere. Engines are mutated as bytes, and
as plans with a valid checksum.
"""

from __future__ import annotations

import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, helper, numpy_helper

from polytool.wire import varint

INTEGERS = [
    *(0, 1, -1, 2, 3, 7, -2, 64, 255, 256, 1000, -1000, 65536, 100_000, 10**7, 10**9),
    *(2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)),
]
REALS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, 1e300, float("inf"), float("nan")]
TEXTS = ["", "x", "\0", "a" * 5000, "%s%n", "../..", "ä\u2028", "sum", "axis", "-1", "ai.onnx.ml"]
LOCATIONS = [
    *("/etc/passwd", "../../../../etc/passwd", "", ".", "..", "\0", "fuzz.onnx", "missing.bin"),
    *("a/../../fuzz.onnx", "/dev/zero", "/dev/stdin", "file:///etc/passwd", "~/x", "a" * 5000),
]
Feeds = Mapping[str, Any]
Mutation = Callable[[random.Random, onnx.ModelProto, "Corpus"], None]
_MUTATIONS: list[tuple[int, Mutation]] = []
_NUMBERS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_NARROW = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}

Seed = tuple[onnx.ModelProto, Feeds]


class Corpus:
    """The sound models that mutations start from, each with inputs that fit."""

    def __init__(self, seeds: list[Seed]) -> None:
        self.seeds = seeds

    def draw(self, rng: random.Random) -> Seed:
        """One model, not to be changed, and its inputs."""
        return rng.choice(self.seeds)


def mutated_model(rng: random.Random, corpus: Corpus) -> bytes:
    """A model file that was sound before."""
    source, feeds = corpus.draw(rng)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if rng.random() < 0.5:
        _bake(rng, model, feeds)
    kind = rng.random()
    if kind >= 0.25:
        mutations = [m for _, m in _MUTATIONS]
        weights = [w for w, _ in _MUTATIONS]
        for mutate in rng.choices(mutations, weights, k=1 + (rng.random() < 0.4)):
            mutate(rng, model, corpus)
    content = model.SerializeToString()
    if rng.random() < 0.02:
        content += _deep(rng.choice([20, 30, 33, 34, 60, 100, 1000, 20_000]))
    if kind < 0.25 or rng.random() < 0.03:
        content = mutated_bytes(rng, content, lambda: corpus.draw(rng)[0].SerializeToString())
    return content


def _deep(levels: int) -> bytes:
    """A graph that is merged into a model's: If inside of If, deeper than protobuf can build."""
    inner = b""
    for _ in range(levels):
        graph = _field(6, inner) + _field(1, b"then_branch") + b"\xa0\x01\x05"
        inner = _field(1, _field(4, b"If") + _field(2, b"deep") + _field(5, graph))
    return _field(7, inner)


def _field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def mutated_bytes(rng: random.Random, content: bytes, other: Callable[[], bytes]) -> bytes:
    """`content` with some bytes changed, removed, repeated, or taken from another file."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 1, 2, 4, 8, 64]))
        kind = rng.randrange(8)
        if kind < 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 4:
            data[at:end] = rng.choice([b"\xff", b"\x00", b"\x80", b"\x7f"]) * (end - at)
        elif kind == 5:
            del data[at:end]
        elif kind == 6:
            data[at:at] = data[at:end]
        elif rng.random() < 0.5:
            del data[at:]
        else:
            foreign = other()
            start = rng.randrange(len(foreign) + 1)
            data[at:at] = foreign[start : start + 64]
    return bytes(data)


def mutation(weight: int) -> Callable[[Mutation], Mutation]:
    """Register a mutation of a model in place; those of more weight are drawn more often."""

    def register(function: Mutation) -> Mutation:
        _MUTATIONS.append((weight, function))
        return function

    return register


# --- any field


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


@mutation(8)
def any_field(rng: random.Random, model: onnx.ModelProto, _: Corpus) -> None:
    """Clear, repeat, reorder or overwrite a field of some message."""
    message = rng.choice(list(_messages(model)))
    present = [f for f, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.8 else message.DESCRIPTOR.fields)
    kind = rng.random()
    if kind < 0.25:
        message.ClearField(field.name)
    elif field.is_repeated:
        _repeated(rng, getattr(message, field.name), field, kind)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _scalar(rng, field))


def _repeated(rng: random.Random, items: Any, field: Any, kind: float) -> None:
    composite = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if kind < 0.4 and items:
        del items[rng.randrange(len(items))]
    elif kind < 0.6 and items:
        items.extend([items[rng.randrange(len(items))]])
    elif kind < 0.7 and len(items) > 1 and composite:
        items.reverse()
    elif composite:
        items.add()
    elif items and kind < 0.9:
        items[rng.randrange(len(items))] = _scalar(rng, field)
    else:
        items.append(_scalar(rng, field))


def _scalar(rng: random.Random, field: Any) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type in _NUMBERS:
        return rng.choice(REALS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    value = rng.choice(INTEGERS)
    bits = 32 if field.cpp_type in _NARROW else 64
    value &= (1 << bits) - 1
    signed = field.cpp_type not in _UNSIGNED and value >> (bits - 1)
    return value - (1 << bits) if signed else value


# --- graphs


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


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
        entry.version = rng.choice([1, 5, 6, 7, 9, 10, 11, 13, 18, 20, 22, 24, 0, -1, 1000, 2**62])


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


def _bake(rng: random.Random, model: onnx.ModelProto, feeds: Feeds) -> None:
    """Turn inputs into weights, so that shapes and indices can be folded, and mutated."""
    for info in list(model.graph.input):
        value = feeds.get(info.name)
        if isinstance(value, np.ndarray) and value.dtype != object and rng.random() < 0.6:
            model.graph.initializer.append(numpy_helper.from_array(value, info.name))
            model.graph.input.remove(info)


# --- engines


def mutated_engine(rng: random.Random, engines: list[bytes]) -> bytes:
    """An engine file that was sound before."""
    content = rng.choice(engines)
    if rng.random() < 0.35:
        return mutated_bytes(rng, content, lambda: rng.choice(engines))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    rows = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
    parts = {name: data[start:end] for name, (start, end) in rows.items()}
    plan = json.loads(parts["plan"][: int(header["__metadata__"]["plan_bytes"])])
    if rng.random() < 0.2:
        _mutate_json(rng, header)
        return _engine_file(header, parts)
    for _ in range(rng.choice([1, 1, 2])):
        _mutate_json(rng, plan)
    text = json.dumps(plan).encode()
    parts["plan"] = text
    header["__metadata__"] |= {"plan_bytes": str(len(text)), "plan_crc32": str(zlib.crc32(text))}
    offset = 0
    for name, part in parts.items():
        header[name] |= {"shape": [len(part)], "data_offsets": [offset, offset + len(part)]}
        offset += len(part)
    return _engine_file(header, parts)


def _engine_file(header: Any, parts: Mapping[str, bytes]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts.values())


def _mutate_json(rng: random.Random, root: Any) -> None:
    """Overwrite, remove or repeat one value anywhere in `root`."""
    spots: list[tuple[Any, Any]] = []
    pending = [root]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            spots.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                pending.append(holder[key])
    holder, key = rng.choice(spots)
    others = [h[k] for h, k in rng.sample(spots, min(len(spots), 3))]
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind < 0.6 and isinstance(holder[key], int):
        holder[key] = rng.choice([holder[key] + 1, holder[key] - 1, *INTEGERS])
    else:
        copies = json.loads(json.dumps(others))
        holder[key] = rng.choice([None, "", "x", [], {}, 1.5, True, *INTEGERS, *TEXTS, *copies])
