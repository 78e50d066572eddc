"""Which values small integer tensors can have, and whether data decides them.

Constants and dimensions of tensors are no data; what is computed from them is none either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polytool.surgeon.graph import Node, Value
from polytool.surgeon.noops import constant, integers
from polytool.surgeon.shape_values import Reader, slice_bounds
from polytool.tensors import DType

_INF = math.inf
_MOST_ENTRIES = 64


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included; `data` says whether data decides where in between.

    Both are floats: an integer would grow beyond what arithmetic with infinity takes.
    """

    low: float
    high: float
    data: bool

    def union(self, other: Interval) -> Interval:
        """Everything between the two."""
        data = self.data or other.data
        return Interval(min(self.low, other.low), max(self.high, other.high), data)


Content = tuple[Interval, ...]
"""One interval an element, or a single one that holds for all elements of a large tensor."""


@dataclass
class Dims:
    """What is known of dimensions that data decides.

    Attributes:
        bounds: the symbol of each to its upper bound, None where there is none.
        tainted: values with dimensions that follow from such ones.
    """

    bounds: dict[str, int | None]
    tainted: set[Value]


class Ranges:
    """The content of every value that has been looked at, in topological order."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        self.table: dict[Value, Content] = {}

    def visit(self, node: Node) -> None:
        """Note the content of the outputs of `node`."""
        rule = _RULES.get(node.op) if not node.domain and not node.has_references else None
        found = rule(node, self) if rule is not None else None
        for index, value in enumerate(node.outputs):
            if value is None:
                continue
            if index == 0 and found is not None and len(found) <= _MOST_ENTRIES:
                self.table[value] = found
            else:
                self.table[value] = (self._unknown(value, node),)
        if node.op in ("TopK", "Unique") and len(node.outputs) > 1 and node.outputs[1] is not None:
            self.table[node.outputs[1]] = (_index(node, self),)

    def _unknown(self, value: Value, node: Node) -> Interval:
        low, high = _limits(value.dtype)
        inputs = [v for v in node.inputs if v is not None]
        return Interval(low, high, any(i.data for v in inputs for i in self(v)) or not inputs)

    def __call__(self, value: Value | None) -> Content:
        """What `value` can hold."""
        if value is None:
            return (Interval(-_INF, _INF, False),)
        if value in self.table:
            return self.table[value]
        array = constant(value)
        if array is not None and array.dtype != np.object_ and array.dtype.kind != "c":
            numbers = [float(x) for x in array.reshape(-1)[: _MOST_ENTRIES + 1]]
            if len(numbers) <= _MOST_ENTRIES and array.ndim <= 1:
                return tuple(Interval(x, x, False) for x in numbers)
            if not array.size:
                return ()
            return (Interval(float(array.min()), float(array.max()), False),)
        low, high = _limits(value.dtype)
        return (Interval(low, high, value.constant is None),)

    def hull(self, value: Value | None) -> Interval:
        """One interval for all elements."""
        content = self(value)
        found = content[0] if content else Interval(0, 0, False)
        for interval in content[1:]:
            found = found.union(interval)
        return found

    def entry(self, value: Value | None, index: int) -> Interval:
        """The interval of one element."""
        content = self(value)
        return content[index] if index < len(content) else self.hull(value)

    def size(self, value: Value, index: int) -> Interval:
        """The interval of a dimension."""
        shape = value.shape
        dim = shape[index] if shape is not None and index < len(shape) else None
        if isinstance(dim, int):
            return Interval(float(dim), float(dim), False)
        if isinstance(dim, str) and dim in self.dims.bounds:
            bound = self.dims.bounds[dim]
            return Interval(0, _INF if bound is None else bound, True)
        made_up = dim is None or dim.startswith("unk__")
        return Interval(0, _INF, made_up and value in self.dims.tainted)


def _limits(dtype: DType | None) -> tuple[float, float]:
    if dtype is DType.BOOL:
        return 0.0, 1.0
    if dtype is not None and dtype.is_integer and dtype.bits < 64:
        unsigned = dtype.name.startswith("U")
        top = 1 << (dtype.bits - (0 if unsigned else 1))
        return (0.0 if unsigned else -float(top)), top - 1.0
    return (0.0 if dtype is DType.UINT64 else -_INF), _INF


Rule = Callable[[Node, Ranges], "Content | None"]
_RULES: dict[str, Rule] = {}


def _rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, function))
        return function

    return register


@_rule("Shape", "Size")
def _shape(node: Node, ranges: Ranges) -> Content | None:
    value = node.input(0)
    if value is None or value.shape is None:
        return None
    sizes = [ranges.size(value, i) for i in range(len(value.shape))]
    if node.op == "Size":
        return (_product(sizes),)
    return tuple(sizes[node.attribute("start", 0) : node.attribute("end")])


def _product(sizes: list[Interval]) -> Interval:
    found = Interval(1, 1, False)
    for size in sizes:
        found = _binary("Mul", found, size)
    return found


@_rule("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand",
       "Tile", "Relu", "Ceil", "Floor", "Round")  # fmt: skip
def _same(node: Node, ranges: Ranges) -> Content | None:
    content = ranges(node.input(0))
    if node.op in ("Transpose", "Expand", "Tile"):
        content = (ranges.hull(node.input(0)),)
    if node.op == "Relu":
        return tuple(Interval(max(i.low, 0), max(i.high, 0), i.data) for i in content)
    if node.op in ("Ceil", "Floor", "Round", "Cast"):
        return tuple(Interval(_rounded(i.low, -1), _rounded(i.high, 1), i.data) for i in content)
    return content


def _rounded(x: float, away: int) -> float:
    if math.isinf(x) or math.isnan(x):
        return x
    return float(math.ceil(x) if away > 0 else math.floor(x))


@_rule("Gather")
def _gather(node: Node, ranges: Ranges) -> Content | None:
    data, where = node.input(0), node.input(1)
    indices = integers(where)
    content = ranges(data)
    if indices is None or data is None or data.shape is None or len(data.shape) != 1:
        hull, index = ranges.hull(data), ranges.hull(where)
        return (Interval(hull.low, hull.high, hull.data or index.data),)
    if len(content) == 1:
        return content
    fits = all(-len(content) <= i < len(content) for i in indices)
    return tuple(content[i] for i in indices) if fits else None


@_rule("Slice")
def _slice(node: Node, ranges: Ranges) -> Content | None:
    content, bounds = ranges(node.input(0)), slice_bounds(node, Reader({}))
    if len(content) == 1 or bounds is None or len(bounds) != 1:
        return (ranges.hull(node.input(0)),)
    ((_, start, end, step),) = bounds
    return content[start:end:step] if isinstance(end, int) and step > 0 else None


@_rule("Concat")
def _concat(node: Node, ranges: Ranges) -> Content | None:
    parts: list[Interval] = []
    for value in node.inputs:
        content = ranges(value)
        size = value.shape[0] if value is not None and value.shape and len(value.shape) == 1 else 0
        sized = size if isinstance(size, int) and size <= _MOST_ENTRIES else 0
        if not sized or len(content) not in (1, sized):
            hulls = [ranges.hull(v) for v in node.inputs]
            found = hulls[0]
            for hull in hulls[1:]:
                found = found.union(hull)
            return (found,)
        parts.extend(content if len(content) == sized else content * sized)
    return tuple(parts)


def _binary(op: str, a: Interval, b: Interval) -> Interval:
    data = a.data or b.data
    if op == "Add":
        return Interval(a.low + b.low, a.high + b.high, data)
    if op == "Sub":
        return Interval(a.low - b.high, a.high - b.low, data)
    if op == "Max":
        return Interval(max(a.low, b.low), max(a.high, b.high), data)
    if op == "Min":
        return Interval(min(a.low, b.low), min(a.high, b.high), data)
    pairs = [(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    if op == "Mul":
        products = [0.0 if x == 0 or y == 0 else x * y for x, y in pairs]
        return Interval(min(products), max(products), data)
    if not (min(b.low, b.high) > 0 or max(b.low, b.high) < 0):  # nan is neither, -1 of nothing both
        return Interval(-_INF, _INF, data)
    quotients = [0.0 if math.isinf(y) else x / y for x, y in pairs]
    return Interval(min(quotients), max(quotients), data)


@_rule("Add", "Sub", "Mul", "Div", "Max", "Min")
def _arithmetic(node: Node, ranges: Ranges) -> Content | None:
    if len(node.inputs) != 2:
        return None
    a, b = ranges(node.input(0)), ranges(node.input(1))
    size = max(len(a), len(b))
    if not {len(a), len(b)} <= {1, size} or not a or not b:
        return None
    a, b = a * (size // len(a)), b * (size // len(b))
    return tuple(_binary(node.op, x, y) for x, y in zip(a, b, strict=True))


@_rule("Clip")
def _clip(node: Node, ranges: Ranges) -> Content | None:
    low, high = node.attribute("min"), node.attribute("max")
    if node.version >= 11:
        low = ranges.hull(node.input(1)).low if node.input(1) is not None else None
        high = ranges.hull(node.input(2)).high if node.input(2) is not None else None
    low, high = -_INF if low is None else low, _INF if high is None else high
    return tuple(
        Interval(min(max(i.low, low), high), min(max(i.high, low), high), i.data)
        for i in ranges(node.input(0))
    )


@_rule("Abs", "Neg")
def _sign(node: Node, ranges: Ranges) -> Content | None:
    if node.op == "Neg":
        return tuple(Interval(-i.high, -i.low, i.data) for i in ranges(node.input(0)))
    return tuple(
        Interval(
            0 if i.low <= 0 <= i.high else min(abs(i.low), abs(i.high)),
            max(abs(i.low), abs(i.high)),
            i.data,
        )
        for i in ranges(node.input(0))
    )


@_rule("Mod")
def _mod(node: Node, ranges: Ranges) -> Content | None:
    divisor, value = ranges.hull(node.input(1)), ranges.hull(node.input(0))
    if divisor.low <= 0 or node.attribute("fmod", 0):
        return None
    return (Interval(0, min(divisor.high - 1, value.high if value.low >= 0 else _INF), value.data
                     or divisor.data),)  # fmt: skip


@_rule("ReduceMax", "ReduceMin")
def _extreme(node: Node, ranges: Ranges) -> Content | None:
    return (ranges.hull(node.input(0)),)


@_rule("ReduceProd", "ReduceSum")
def _reduce(node: Node, ranges: Ranges) -> Content | None:
    value, content = node.input(0), ranges(node.input(0))
    if value is None or value.shape is None or len(value.shape) != 1:
        return None
    if not isinstance(value.shape[0], int) or value.shape[0] > _MOST_ENTRIES:
        return None
    items = list(content) if len(content) > 1 else list(content) * value.shape[0]
    if node.op == "ReduceProd":
        return (_product(items),)
    found = Interval(0, 0, False)
    for item in items:
        found = _binary("Add", found, item)
    return (found,)


@_rule("Where")
def _where(node: Node, ranges: Ranges) -> Content | None:
    condition = ranges.hull(node.input(0))
    found = ranges.hull(node.input(1)).union(ranges.hull(node.input(2)))
    return (Interval(found.low, found.high, found.data or condition.data),)


@_rule("ArgMax", "ArgMin", "NonZero")
def _positions(node: Node, ranges: Ranges) -> Content | None:
    return (_index(node, ranges),)


def _index(node: Node, ranges: Ranges) -> Interval:
    """A position in the first input."""
    value = node.input(0)
    if value is None or value.shape is None:
        return Interval(0, _INF, True)
    sizes = [ranges.size(value, i).high for i in range(len(value.shape))]
    if node.op == "Unique" and "axis" not in node.attributes:
        return Interval(0, math.prod(sizes) - 1, True)
    if node.op in ("ArgMax", "ArgMin", "TopK", "Unique") and sizes:
        axis = node.attribute("axis", 0 if node.op.startswith("Arg") else -1)
        sizes = sizes[axis : axis + 1 or None] or sizes
    return Interval(0, max(sizes, default=1) - 1, True)
