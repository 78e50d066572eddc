"""Nodes that keep a dimension below a bound, and how to see whether they ever had to.

Expand(x, shape)  => Expand(x, Min(shape, bound))       likewise ConstantOfShape, Resize, Tile,
                     Pad, TopK, OneHot, CenterCropPad, Loop, windows
Range(a, b, c)    => Range(a, Min(b, a + c * bound), c)
y = NonZero(x)    => Slice(y) up to the bound           likewise Unique, Compress, Slice, Split,
                     NonMaxSuppression, Reshape, If, and where an input cannot be clamped: Tile
                     of an open size, Range with an unknown step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polytool.errors import ModelError
from polytool.surgeon import dds
from polytool.surgeon.graph import Graph, Node, Value
from polytool.surgeon.intervals import Ranges
from polytool.surgeon.types import Type, type_proto
from polytool.tensors import DType

_FLOAT32_EXACT = 1 << 24
_MOST_SIZES = 1 << 12  # as many parts as a tensor is split into


@dataclass(frozen=True)
class Record:
    """A bound that was set, and how to see whether it was ever hit.

    Attributes:
        tensor, dim: what was bounded.
        node, op: what decides it.
        bound: the largest size.
        watched: the tensor that was clamped.
        limits: what its elements, flattened, are clamped to (null for those that are not); for
            `kind` "dim", its dimension `dim` was cut to `bound`; for `kind` "tensor", it was
            clamped to the value of the tensor `limit`.
    """

    tensor: str
    dim: int
    node: str
    op: str
    bound: int
    watched: str
    kind: str = "value"
    limits: tuple[float | None, ...] = ()
    limit: str = ""


def hit(record: Record, values: Mapping[str, Any]) -> bool:
    """Whether a run exceeded a bound.

    Args:
        record: the bound.
        values: the tensor `record.watched`, and `record.limit` if that is not empty, of the run.

    Raises:
        ModelError: the bound is none of that tensor.
    """
    try:
        return _hit(record, values)
    except (IndexError, TypeError, ValueError) as err:
        raise ModelError(
            f"the model's metadata gives {record.watched!r} a bound that does not fit it ({err}): "
            f"bound the model again"
        ) from err


def _hit(record: Record, values: Mapping[str, Any]) -> bool:
    watched = np.asarray(values[record.watched])
    if record.kind == "dim":
        return bool(watched.shape[record.dim] > record.bound)
    if record.kind == "tensor":
        return bool((watched > np.asarray(values[record.limit])).any())
    pairs = zip(watched.reshape(-1).tolist(), record.limits, strict=True)
    return any(limit is not None and value > limit for value, limit in pairs)


@dataclass(frozen=True)
class Wish:
    """A bound to set for one dimension, and what is known of the values that decide it."""

    source: dds.Source
    decided: dds.Decided
    bound: int
    ranges: Ranges

    def record(self, watched: str, **how: Any) -> Record:
        """The bound, set by clamping `watched`."""
        s = self.source
        return Record(s.tensor, s.dim, s.node, s.op, self.bound, watched, **how)


def clamp(node: Node, wishes: list[Wish]) -> list[Record]:
    """Bound dimensions of the outputs of `node`: by its inputs where they decide, else by a cut."""
    rule = BY_INPUT.get(node.op)
    records = rule(node, wishes) if rule is not None else None
    return _cut(node, wishes) if records is None else records


def clamped(graph: Graph, value: Value, limits: list[float | None]) -> Value:
    """`Min(value, limits)` in the type of `value`, at any opset; None is no limit."""
    dtype = value.dtype
    assert dtype is not None
    opset = graph.opsets.get("", 1)
    lowest, largest = -math.inf, math.inf
    if not dtype.is_float:
        lowest, largest = int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max)
    exact = [largest if x is None else max(min(x, largest), lowest) for x in limits]
    array = np.array(exact, dtype.numpy)
    array = array.reshape(()) if value.shape == () else array
    limit = graph.add_array(array, f"{value.name}_bound", dtype)
    out = f"{value.name}_bounded"
    if dtype.is_float or (opset >= 12 and dtype.bits >= 32):
        node = graph.add_node("Min", [value, limit], [out])
    elif opset >= 9 and dtype in (DType.INT32, DType.INT64):
        less = graph.add_node("Less", [value, limit], [f"{value.name}_less"])
        node = graph.add_node("Where", [less.output, value, limit], [out])
    else:  # Min takes floats only; below 2**24 they are exact, above they are larger all the same
        wide = graph.add_array(
            np.minimum(array.astype(np.float64), _FLOAT32_EXACT).astype(np.float32), limit.name
        )
        cast = graph.add_node("Cast", [value], [f"{value.name}_float"], to=int(DType.FLOAT))
        least = graph.add_node("Min", [cast.output, wide], [f"{value.name}_least"])
        node = graph.add_node("Cast", [least.output], [out], to=int(dtype))
    node.output.type = value.type
    return node.output


Rule = Callable[[Node, list[Wish]], "list[Record] | None"]
"""Sets bounds by clamping an input; None where that is not possible."""


def _clamp_input(
    node: Node, index: int, limits: Mapping[int, float], wishes: list[Wish]
) -> list[Record] | None:
    """Clamp some elements of an input, for this node only."""
    value = node.input(index)
    if value is None or value.dtype is None or value.shape is None:
        return None
    if not (value.dtype.is_float or value.dtype.is_integer) or value.dtype.bits < 8:
        return None
    count = value.shape[0] if len(value.shape) == 1 else 1
    if not isinstance(count, int) or any(i >= count for i in limits) or count > _MOST_SIZES:
        return None
    vector = [limits.get(i) for i in range(count)]
    node.set_input(index, clamped(node.where, value, vector))
    return [wish.record(value.name, limits=tuple(vector)) for wish in wishes]


def _elements(index: int) -> Rule:
    """A rule for operators whose input at `index` holds the sizes themselves."""

    def rule(node: Node, wishes: list[Wish]) -> list[Record] | None:
        limits: dict[int, float] = {}
        for wish in wishes:  # several outputs may have the size that one element says
            at = wish.decided.element
            limits[at] = min(float(wish.bound), limits.get(at, math.inf))
        return _clamp_input(node, index, limits, wishes)

    return rule


def _loop(node: Node, wishes: list[Wish]) -> list[Record] | None:
    bound = min(w.bound for w in wishes)
    if node.input(0) is not None:
        return _clamp_input(node, 0, {0: bound}, wishes)
    # One more than allowed, which is cut off: so it can be seen whether the loop would go on.
    limit = node.where.add_array(np.array(bound + 1, np.int64), f"{node.label}_trips")
    node.set_input(0, limit)
    return None


def _tile(node: Node, wishes: list[Wish]) -> list[Record] | None:
    limits = {w.decided.element: _size(node, w) for w in wishes}
    factors = {w.decided.element: w.bound // limits[w.decided.element] for w in wishes
               if limits[w.decided.element]}  # fmt: skip
    return _clamp_input(node, 1, factors, wishes) if len(factors) == len(limits) else None


def _size(node: Node, wish: Wish) -> int:
    """The size of the first input along the dimension that is bounded; 0 where it is open."""
    value = node.input(0)
    shape = () if value is None else value.shape or ()
    size = shape[wish.source.dim] if wish.source.dim < len(shape) else None
    return size if isinstance(size, int) else 0


def _resize(node: Node, wishes: list[Wish]) -> list[Record] | None:
    if node.op == "Resize" and node.input(3) is not None:
        if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        return _elements(3)(node, wishes)
    index = 1 if node.op == "Upsample" or node.version < 11 else 2
    sizes = {w.decided.element: (_size(node, w), w.bound) for w in wishes}
    if not all(size for size, _ in sizes.values()):
        return None
    scales = {at: _scale(size, bound) for at, (size, bound) in sizes.items()}
    return _clamp_input(node, index, scales, wishes)


def _scale(size: int, bound: int) -> float:
    """The largest float32 with which `size` becomes `bound` and no more."""
    scale = np.float32((bound + 1) / size)
    while np.floor(np.float32(size) * scale) > bound:
        scale = np.nextafter(scale, np.float32(0))
    return float(scale)


def _pad(node: Node, wishes: list[Wish]) -> list[Record] | None:
    value, pads = node.input(0), node.input(1)
    if value is None or value.shape is None or pads is None or pads.constant is not None:
        return None
    rank = len(value.shape)
    limits: dict[int, float] = {}
    for wish in wishes:
        size = _size(node, wish)
        if not isinstance(value.shape[wish.source.dim], int):
            return None
        room = max(wish.bound - size, 0)
        ends = [wish.decided.element, wish.decided.element + rank]
        intervals = [wish.ranges.entry(pads, end) for end in ends]
        fixed = [
            int(i.low) if i.low == i.high and math.isfinite(i.low) else None for i in intervals
        ]
        if fixed[0] is not None and fixed[1] is None:
            limits[ends[1]] = room - fixed[0]
        elif fixed[1] is not None and fixed[0] is None:
            limits[ends[0]] = room - fixed[1]
        else:  # shared by both sides, so that neither has to know the other
            limits.update(zip(ends, (room // 2, room - room // 2), strict=True))
    return _clamp_input(node, 1, limits, wishes)


def _range(node: Node, wishes: list[Wish]) -> list[Record] | None:
    start, limit, delta = node.input(0), node.input(1), node.input(2)
    if start is None or limit is None or delta is None or delta.constant is None:
        return None
    steps = node.where.workspace.model.array(delta.constant).reshape(-1)
    if limit.dtype is None or limit.dtype.bits < 32 or not steps.size or steps[0] == 0:
        return None
    step, (wish,) = steps[0].item(), wishes
    if limit.dtype.is_float:  # rounding may add one more: what is left of it is cut off
        _limit_of_range(node, start, limit, step, wish.bound + 1)
        return None
    first = wish.ranges.hull(start)
    info = np.iinfo(limit.dtype.numpy)
    if not info.min <= step * wish.bound <= info.max:
        return None
    ends = first.low + min(step, 0) * wish.bound, first.high + max(step, 0) * wish.bound
    if limit.dtype.bits < 64 and not info.min <= ends[0] <= ends[1] <= info.max:
        return None  # the sum would wrap around
    top = _limit_of_range(node, start, limit, step, wish.bound)
    below, above = (limit, top) if step > 0 else (top, limit)
    return [wish.record(below.name, kind="tensor", limit=above.name)]


def _limit_of_range(node: Node, start: Value, limit: Value, step: float, count: int) -> Value:
    """Let Range end after `count` numbers at the latest; returns where that is."""
    assert limit.dtype is not None
    graph, integer = node.where, limit.dtype.is_integer
    span = graph.add_array(np.array(step * count, limit.dtype.numpy), f"{limit.name}_span")
    top = graph.add_node("Add", [start, span], [f"{limit.name}_bound"]).output
    top.type = limit.type
    if integer and graph.opsets.get("", 1) < 12:  # Min and Max take no integers
        pair = [limit, top] if step > 0 else [top, limit]
        less = graph.add_node("Less", pair, [f"{limit.name}_less"])
        inputs = [less.output, limit, top]
        chosen = graph.add_node("Where", inputs, [f"{limit.name}_bounded"]).output
    else:
        op = "Min" if step > 0 else "Max"
        chosen = graph.add_node(op, [limit, top], [f"{limit.name}_bounded"]).output
    chosen.type = limit.type
    node.set_input(1, chosen)
    return top


def _cut(node: Node, wishes: list[Wish]) -> list[Record]:
    """Cut the outputs themselves, where no input decides their size."""
    if node.op == "Unique":
        wishes = _all_of_unique(node, wishes)
    records = []
    for wish in wishes:
        value = node.outputs[wish.decided.output]
        assert value is not None
        _cut_output(node.where, value, wish)
        records.append(wish.record(value.name, kind="dim"))
    return records


def _cut_output(graph: Graph, value: Value, wish: Wish) -> None:
    dim, bound = wish.source.dim, wish.bound
    readers = value.used_by()
    name = f"{value.name}_bounded"
    if graph.opsets.get("", 1) >= 10:
        parts = [graph.add_array(np.array([n], np.int64), f"{name}_{what}")
                 for what, n in (("start", 0), ("end", bound), ("axis", dim))]  # fmt: skip
        cut = graph.add_node("Slice", [value, *parts], [name])
    else:
        cut = graph.add_node("Slice", [value], [name], starts=[0], ends=[bound], axes=[dim])
    cut.output.type = value.type
    _let_read(graph, value, cut.output, readers)


def _let_read(graph: Graph, value: Value, new: Value, readers: list[Node]) -> None:
    """Let `readers`, and whoever reads the output of the graph, have `new` in place of `value`."""
    for reader in readers:
        for index, read in enumerate(reader.inputs):
            if read is value:
                reader.set_input(index, new)
    returned = [i for i, v in enumerate(graph.outputs) if v is value]
    for index in returned:
        graph.set_output(index, new)
    if returned:
        value.name, new.name = new.name, value.name


def _all_of_unique(node: Node, wishes: list[Wish]) -> list[Wish]:
    """Y, indices and counts have one size, and the inverse indices must stay below it."""
    bound, first = min(w.bound for w in wishes), wishes[0]
    whole = []
    for output in (0, 1, 3):
        value = node.outputs[output] if output < len(node.outputs) else None
        if value is None:
            continue
        dim = first.source.dim if output == first.decided.output else 0
        if output == 0:
            axis, rank = node.attribute("axis"), len(value.shape or ())
            dim = axis % rank if axis is not None and rank else 0
        source = replace(first.source, tensor=value.name, dim=dim)
        whole.append(replace(first, source=source, bound=bound,
                             decided=replace(first.decided, output=output, dim=dim)))  # fmt: skip
    inverse = node.outputs[2] if len(node.outputs) > 2 else None
    if inverse is not None and inverse.users:
        readers = inverse.used_by()
        inverse.type = Type("tensor", DType.INT64, (None,), type_proto(DType.INT64, (None,)))
        limit = node.where.add_array(np.array([bound - 1], np.int64), f"{inverse.name}_limit")
        opset = node.where.opsets.get("", 1)
        if opset >= 12:
            least = node.where.add_node("Min", [inverse, limit], [f"{inverse.name}_bounded"])
        else:
            less = node.where.add_node("Less", [inverse, limit], [f"{inverse.name}_less"])
            inputs = [less.output, inverse, limit]
            least = node.where.add_node("Where", inputs, [f"{inverse.name}_bounded"])
        least.output.type = inverse.type
        _let_read(node.where, inverse, least.output, readers)
    return whole


BY_INPUT: Mapping[str, Rule] = {
    "BlackmanWindow": _elements(0),
    "CenterCropPad": _elements(1),
    "ConstantOfShape": _elements(0),
    "Expand": _elements(1),
    "HammingWindow": _elements(0),
    "HannWindow": _elements(0),
    "Loop": _loop,
    "OneHot": _elements(1),
    "Pad": _pad,
    "Range": _range,
    "Resize": _resize,
    "Tile": _tile,
    "TopK": _elements(1),
    "Upsample": _resize,
}
"""Operators whose sizes can be bounded by their inputs."""
