"""What is known of the content of small integer tensors: numbers, and dimensions of tensors.

A dimension is a size, a symbol (ONNX: equal symbols are equal sizes), or unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from polytool.arrays import MAX_RANK
from polytool.surgeon.graph import Node, Value
from polytool.tensors import DType

Entry = int | str | None
MOST_ENTRIES = 64


@dataclass(frozen=True)
class Known:
    """What is known of the content of an integer scalar or vector."""

    entries: tuple[Entry, ...]
    scalar: bool = False

    @property
    def complete(self) -> bool:
        """Whether every entry is a number."""
        return all(isinstance(e, int) for e in self.entries)


class Reader:
    """Looks up inputs: constants, and what has been found so far.

    Attributes:
        known: what has been found.
        nonzero: symbols that cannot be 0.
    """

    def __init__(self, known: dict[Value, Known], nonzero: Set[str] = frozenset()) -> None:
        self.known, self.nonzero = known, nonzero

    def __call__(self, value: Value | None) -> Known | None:
        if value is None:
            return None
        tensor = value.constant
        if tensor is None:
            return self.known.get(value)
        if tensor.data_type not in (DType.INT64, DType.INT32) or len(tensor.dims) > 1:
            return None
        if math.prod(tensor.dims) > MOST_ENTRIES or value.graph is None:
            return None
        array = value.graph.workspace.model.array(tensor)
        return Known(tuple(int(i) for i in array.reshape(-1)), array.ndim == 0)

    def numbers(self, value: Value | None) -> list[int] | None:
        """The entries, if all of them are numbers."""
        found = self(value)
        if found is None:
            return None
        numbers = [e for e in found.entries if isinstance(e, int)]
        return numbers if len(numbers) == len(found.entries) else None


Content = Callable[[Node, Reader], Known | None]
_CONTENT: dict[str, Content] = {}


def content(*ops: str) -> Callable[[Content], Content]:
    """Register what is known of the first output of `ops`."""

    def register(function: Content) -> Content:
        _CONTENT.update(dict.fromkeys(ops, function))
        return function

    return register


def content_of(node: Node, read: Reader) -> Known | None:
    """What is known of the first output of `node`; None when nothing is, or when it is large."""
    if node.domain or node.bodies or not node.outputs or node.outputs[0] is None:
        return None
    rule = _CONTENT.get(node.op)
    if rule is None or node.has_references:
        return None
    found = rule(node, read)
    if found is None or len(found.entries) > MOST_ENTRIES:
        return None
    if any(isinstance(e, int) and not -(1 << 63) <= e < 1 << 63 for e in found.entries):
        return None  # the sum or product wraps around
    return found


def dim(value: Value, index: int) -> Entry:
    """A dimension of `value`; None where it is not known, or does not exist."""
    shape = value.shape
    return shape[index] if shape is not None and -len(shape) <= index < len(shape) else None


@content("Shape", "Size")
def _shape(node: Node, read: Reader) -> Known | None:
    value = node.input(0)
    if value is None or value.shape is None or not value.is_tensor:
        return None
    dims = value.shape
    if node.op == "Size":
        sizes = [d for d in dims if isinstance(d, int)]
        return Known((math.prod(sizes),), True) if len(sizes) == len(dims) else None
    rank = len(dims)
    start = _clamp(node.attribute("start", 0), rank)
    return Known(dims[start : max(_clamp(node.attribute("end", rank), rank), start)])


def _clamp(index: int, rank: int) -> int:
    return min(max(index + rank if index < 0 else index, 0), rank)


@content("Identity", "Cast")
def _same(node: Node, read: Reader) -> Known | None:
    found = read(node.input(0))
    wide = node.op == "Identity" or node.attribute("to") == DType.INT64
    return found if wide or (found is not None and _fits_int32(node, found)) else None


def _fits_int32(node: Node, found: Known) -> bool:
    numbers = [e for e in found.entries if isinstance(e, int)]
    return node.attribute("to") == DType.INT32 and all(abs(e) < 1 << 31 for e in numbers)


@content("Gather")
def _gather(node: Node, read: Reader) -> Known | None:
    data, where = read(node.input(0)), read(node.input(1))
    indices = read.numbers(node.input(1))
    if data is None or data.scalar or indices is None or where is None:
        return None
    size = len(data.entries)
    if node.attribute("axis", 0) not in (0, -1):
        return None
    if not all(-size <= i < size for i in indices):
        return None
    return Known(tuple(data.entries[i] for i in indices), where.scalar)


@content("Slice")
def _slice(node: Node, read: Reader) -> Known | None:
    data = read(node.input(0))
    bounds = slice_bounds(node, read)
    if data is None or data.scalar or bounds is None or len(bounds) != 1:
        return None
    ((_, start, end, step),) = bounds
    if step == 0 or not isinstance(end, int):
        return None
    size = len(data.entries)
    # ONNX clamps as Python does, but for an end below -size that means "to the front".
    stop = None if step < 0 and end < -size else end
    return Known(data.entries[start:stop:step])


def slice_bounds(node: Node, read: Reader) -> list[tuple[int, int, Entry, int]] | None:
    """(axis, start, end, step) for each sliced axis; an end may be a symbol."""
    if node.has_references:
        return None
    if node.version < 10:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        axes = node.attribute("axes") or list(range(len(starts)))
        if not len(starts) == len(ends) == len(axes):
            return None
        return [(a, s, e, 1) for a, s, e in zip(axes, starts, ends, strict=True)]
    first, last = read.numbers(node.input(1)), read(node.input(2))
    if first is None or last is None or len(first) != len(last.entries):
        return None
    axes = read.numbers(node.input(3)) if node.input(3) is not None else list(range(len(first)))
    steps = read.numbers(node.input(4)) if node.input(4) is not None else [1] * len(first)
    if axes is None or steps is None or not len(axes) == len(steps) == len(first):
        return None
    return list(zip(axes, first, last.entries, steps, strict=True))


@content("Concat")
def _concat(node: Node, read: Reader) -> Known | None:
    entries: list[Entry] = []
    any_known = False
    for value in node.inputs:
        found = read(value)
        if found is not None and not found.scalar:
            entries.extend(found.entries)
            any_known = True
            continue
        if value is None or value.shape is None or len(value.shape) != 1:
            return None
        size = value.shape[0]
        if not isinstance(size, int) or size > MAX_RANK:
            return None
        entries.extend([None] * size)
    return Known(tuple(entries)) if any_known else None


@content("Unsqueeze", "Squeeze", "Reshape", "Flatten")
def _rearrange(node: Node, read: Reader) -> Known | None:
    found, shape = read(node.input(0)), node.output.shape
    if found is None or shape is None or len(shape) > 1:
        return None
    if not shape:
        return Known(found.entries, True) if len(found.entries) == 1 else None
    return Known(found.entries)


@content("Split")
def _split(node: Node, read: Reader) -> Known | None:
    found, size = read(node.input(0)), node.output.shape
    if found is None or found.scalar or not size or not isinstance(size[0], int):
        return None
    return Known(found.entries[: size[0]])


_ARITHMETIC: dict[str, Callable[[int, int], int | None]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "Max": max,
    "Min": min,
}


@content(*_ARITHMETIC)
def _arithmetic(node: Node, read: Reader) -> Known | None:
    if len(node.inputs) != 2 or node.version < 7:
        return None
    a, b = read(node.input(0)), read(node.input(1))
    if a is None or b is None:
        return None
    size = max(len(a.entries), len(b.entries))
    if not {len(a.entries), len(b.entries)} <= {1, size}:
        return None
    left, right = _stretched(a.entries, size), _stretched(b.entries, size)
    entries = [_combined(node.op, x, y) for x, y in zip(left, right, strict=True)]
    return Known(tuple(entries), a.scalar and b.scalar)


def _stretched(entries: Sequence[Entry], size: int) -> Sequence[Entry]:
    return list(entries) * size if len(entries) == 1 else entries


def _combined(op: str, a: Entry, b: Entry) -> Entry:
    if isinstance(a, int) and isinstance(b, int):
        return _ARITHMETIC[op](a, b)
    neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(op)
    if neutral is not None and b == neutral:
        return a
    if op in ("Add", "Mul") and a == neutral:
        return b
    return a if op in ("Max", "Min") and a == b else None


@content("ReduceProd")
def _reduce_prod(node: Node, read: Reader) -> Known | None:
    numbers, shape = read.numbers(node.input(0)), node.output.shape
    if numbers is None or shape is None or len(shape) > 1:
        return None
    return Known((math.prod(numbers),), not shape)
