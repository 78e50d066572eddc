"""What the fuzzer does to model files: every mutation, drawn from one seeded generator.

Models are mutated as bytes, as protobuf messages (any field of any message), and as graphs: names
rewired into cycles, operators exchanged, weights and baked inputs replaced by hostile numbers,
bodies and functions nested, external data that leads elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import numpy_helper

from polytool.wire import varint
from scripts.fuzz_graphs import MUTATIONS, Corpus, Feeds, mutation
from scripts.fuzz_values import INTEGERS, REALS, TEXTS

_NUMBERS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_NARROW = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}


def mutated_model(rng: random.Random, corpus: Corpus) -> bytes:
    """A model file that was sound before."""
    source, feeds = corpus.draw(rng)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if rng.random() < 0.5:
        _bake(rng, model, feeds)
    kind = rng.random()
    if kind >= 0.25:
        mutations = [m for _, m in MUTATIONS]
        weights = [w for w, _ in MUTATIONS]
        for mutate in rng.choices(mutations, weights, k=1 + (rng.random() < 0.4)):
            mutate(rng, model, corpus)
    content = model.SerializeToString()
    if rng.random() < 0.02:
        content += _deep(rng.choice([20, 30, 33, 34, 60, 100, 1000, 20_000]))
    if kind < 0.25 or rng.random() < 0.03:
        content = mutated_bytes(rng, content, lambda: corpus.draw(rng)[0].SerializeToString())
    return content


def _bake(rng: random.Random, model: onnx.ModelProto, feeds: Feeds) -> None:
    """Turn inputs into weights, so that shapes and indices can be folded, and mutated."""
    for info in list(model.graph.input):
        value = feeds.get(info.name)
        if isinstance(value, np.ndarray) and value.dtype != object and rng.random() < 0.6:
            model.graph.initializer.append(numpy_helper.from_array(value, info.name))
            model.graph.input.remove(info)


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
