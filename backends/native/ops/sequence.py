"""Sequences (Python lists) and optionals (None when empty)."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.movement import cut
from polytool.backends.native.ops.registry import Arg, Array, dtypes, entries, op, shape
from polytool.errors import ModelError, RunnerError
from polytool.tensors import DType

Sequence = list[Any]


@op("SequenceConstruct", since=11, exact=True)
def sequence_construct(xp: Any, *inputs: Any) -> Sequence:
    """A sequence of the inputs."""
    return list(inputs)


def _common(inputs: list[DType | None]) -> list[DType | None]:
    known = [d for d in inputs if d is not None]
    if DType.STRING in known and set(known) != {DType.STRING}:
        raise ModelError("a sequence holds numbers or text, not both")
    return [known[0] if known else None]


@dtypes("SequenceConstruct")
def sequence_dtypes(inputs: list[DType | None]) -> list[DType | None]:
    """The type of the elements, which is one."""
    return _common(inputs)


@dtypes("SequenceInsert")
def sequence_insert_dtypes(inputs: list[DType | None]) -> list[DType | None]:
    """The type of the elements, without that of the position."""
    return _common(inputs[:2])


@op("SequenceEmpty", since=11, exact=True)
def sequence_empty(xp: Any, *, dtype: int = 1) -> Sequence:
    """A sequence without elements."""
    return []


@dtypes("SequenceEmpty")
def sequence_empty_dtypes(inputs: list[DType | None], *, dtype: int = 1) -> list[DType | None]:
    """The elements' type; SequenceMap writes 0 where its body does not say it."""
    return [DType(dtype) if dtype else None]


@op("SequenceAt", since=11, exact=True, host=(1,))
def sequence_at(xp: Any, sequence: Sequence, position: Array) -> Any:
    """One element; negative positions count from the end."""
    return sequence[_position(sequence, position, len(sequence) - 1)]


@op("SequenceInsert", since=11, exact=True, host=(2,))
def sequence_insert(
    xp: Any, sequence: Sequence, tensor: Any, position: Array | None = None
) -> Sequence:
    """A sequence with one element more, at the end by default."""
    place = len(sequence)
    if position is not None:
        place = _position(sequence, position, len(sequence))
    return [*sequence[:place], tensor, *sequence[place:]]


@op("SequenceErase", since=11, exact=True, host=(1,))
def sequence_erase(xp: Any, sequence: Sequence, position: Array | None = None) -> Sequence:
    """A sequence with one element less, the last by default."""
    place = len(sequence) - 1
    if position is not None or not sequence:
        place = _position(sequence, np.array(-1) if position is None else position, place)
    return [*sequence[:place], *sequence[place + 1 :]]


def _position(sequence: Sequence, position: Array, last: int) -> int:
    place = int(position.item())
    if not -len(sequence) <= place <= last:
        raise RunnerError(f"position {place} is outside a sequence of {len(sequence)} elements")
    return place + len(sequence) if place < 0 else place


@op("SequenceLength", since=11, exact=True)
def sequence_length(xp: Any, sequence: Sequence) -> Array:
    """The number of elements; it lives on the host."""
    return np.array(len(sequence), np.int64)


@op("SplitToSequence", since=11, exact=True, host=(1,))
def split_to_sequence(
    xp: Any, x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1
) -> Sequence:
    """Parts of `x` along `axis`: of the given lengths, of one length, or of one element each."""
    length = x.shape[axis]
    if split is None:
        parts = cut(x, [1] * length, axis)
        return list(parts) if keepdims else [xp.squeeze(p, axis) for p in parts]
    if split.ndim:
        return list(cut(x, entries(split), axis))
    step = int(split.item())
    return list(cut(x, [min(step, length - i) for i in range(0, length, step)], axis))


@op("ConcatFromSequence", since=11, exact=True)
def concat_from_sequence(xp: Any, sequence: Sequence, *, axis: int, new_axis: int = 0) -> Array:
    """The elements joined along an axis that they have, or along a new one."""
    return xp.stack(sequence, axis) if new_axis else xp.concatenate(sequence, axis)


@op("Optional", since=15, exact=True)
def optional(xp: Any, x: Any = None, *, type: Any = None) -> Any:
    """The input as an optional; empty without one."""
    return x


@dtypes("Optional")
def optional_dtypes(inputs: list[DType | None], *, type: Any = None) -> list[DType | None]:
    """The type of the element."""
    if inputs:
        return [inputs[0]]
    inner = type.sequence_type.elem_type if type.HasField("sequence_type") else type
    dtype = inner.tensor_type.elem_type
    return [DType(dtype) if dtype else None]


@op("OptionalHasElement", since=15, exact=True)
def optional_has_element(xp: Any, x: Any = None) -> Array:
    """Whether there is an element; it lives on the host."""
    return np.array(x is not None)


@op("OptionalGetElement", since=15, exact=True)
def optional_get_element(xp: Any, x: Any) -> Any:
    """The element."""
    if x is None:
        raise RunnerError("OptionalGetElement was given an empty optional: it has no element")
    return x


@shape(
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceAt",
    "SequenceInsert",
    "SequenceErase",
    "SplitToSequence",
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
)
def unknown_shape(*_: Arg | None, **__: Any) -> None:
    """What a sequence or optional holds is known when it exists."""


@shape("SequenceLength", "OptionalHasElement")
def scalar_shape(*_: Arg | None, **__: Any) -> tuple[int, ...]:
    """A scalar."""
    return ()
