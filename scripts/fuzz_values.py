"""The values that the fuzzer puts into models: numbers, texts, tensors and attributes."""

from __future__ import annotations

import math
import random
from typing import Any

from onnx import AttributeProto, TensorProto, TypeProto, helper

INTEGERS = [
    *(0, 1, -1, 2, 3, 7, -2, 64, 255, 256, 1000, -1000, 65536, 100_000, 10**7, 10**9),
    *(2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)),
]
REALS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, 1e300, float("inf"), float("nan")]
SMALL = [0, 1, 2, 3, 4, -1, -2]
TEXTS = ["", "x", "\0", "a" * 5000, "%s%n", "../..", "ä\u2028", "sum", "axis", "-1", "ai.onnx.ml"]
WORDS = [
    *("", "x", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "reverse", "bidirectional", "linear"),
    *("cubic", "nearest", "ij,jk->ik", "...i,i...->...", "ii", "->", "stretch", "mean", "none"),
    *("edge", "reflect", "wrap", "Tanh", "TO_STRING", "TF", "IDF", "half_pixel", "add", "mul"),
]
SHAPES = [[], [1], [2], [3], [4], [0], [2, 2], [4, 2], [3, 2, 1], [4, 2, 3], [2, 3, 1, 1]]
TYPES = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int64)": TensorProto.INT64,
    "tensor(int8)": TensorProto.INT8,
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(string)": TensorProto.STRING,
}


def any_number(rng: random.Random, hostile: float, name: str = "") -> int:
    """A small integer or, in `hostile` of all cases, any; mostly a type if `name` asks for one."""
    if name in ("to", "dtype") and rng.random() < 0.9:
        return rng.choice(list(TYPES.values()))
    return rng.choice(INTEGERS if rng.random() < hostile else SMALL)


def any_real(rng: random.Random, hostile: float) -> float:
    """A whole number or, in `hostile` of all cases, any."""
    return rng.choice(REALS) if rng.random() < hostile else float(rng.choice(SMALL))


def any_tensor(
    rng: random.Random, hostile: float, kind: int, dims: list[int], name: str = ""
) -> TensorProto:
    """A tensor of small numbers or hostile ones."""
    tensor = TensorProto(name=name, data_type=kind, dims=dims)
    count = range(math.prod(dims))
    values = [any_number(rng, hostile) for _ in count]
    if kind == TensorProto.STRING:
        tensor.string_data.extend(str(v).encode() for v in values)
    elif kind == TensorProto.FLOAT:
        reals = [any_real(rng, hostile) for _ in count]
        tensor.float_data.extend(math.copysign(math.inf, r) if abs(r) > 1e39 else r for r in reals)
    elif kind == TensorProto.DOUBLE:
        tensor.double_data.extend(any_real(rng, hostile) for _ in count)
    elif kind == TensorProto.INT64:
        tensor.int64_data.extend(values)
    elif kind == TensorProto.FLOAT16:
        tensor.int32_data.extend(v & 0x7FFF for v in values)
    else:
        tensor.int32_data.extend(max(-128, min(v, 127)) for v in values)
    return tensor


def any_attribute(
    rng: random.Random, hostile: float, name: str, kind: int
) -> AttributeProto | None:
    """An attribute of a kind; None for bodies and what no operator without them needs."""
    several = range(rng.randrange(5))

    def tensor() -> TensorProto:
        return any_tensor(rng, hostile, rng.choice(list(TYPES.values())), rng.choice(SHAPES))

    make: dict[int, Any] = {
        AttributeProto.INT: lambda: any_number(rng, hostile, name),
        AttributeProto.INTS: lambda: [any_number(rng, hostile, name) for _ in several],
        AttributeProto.FLOAT: lambda: any_real(rng, hostile),
        AttributeProto.FLOATS: lambda: [any_real(rng, hostile) for _ in several],
        AttributeProto.STRING: lambda: rng.choice(WORDS),
        AttributeProto.STRINGS: lambda: [rng.choice(WORDS) for _ in several],
        AttributeProto.TENSOR: tensor,
        AttributeProto.TYPE_PROTO: lambda: _type(rng),
    }
    if kind not in make:
        return None
    return helper.make_attribute(name, make[kind](), attr_type=kind)


KINDS = [
    *(AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS),
    *(AttributeProto.STRING, AttributeProto.STRINGS, AttributeProto.TENSOR),
]
"""Those that most attributes have."""


def _type(rng: random.Random) -> TypeProto:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    sequence = helper.make_sequence_type_proto(tensor)
    return rng.choice([tensor, sequence, TypeProto()])
