"""Dimensions that data decides: where they arise, and how large they can become.

Such a dimension gets a symbol of its own, `tensor#dim`, which then travels through the graph like
those of the inputs; so only its source is listed, and not everything behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from polytool.arrays import MAX_RANK, MAX_SIZE
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.infer import infer
from polytool.surgeon.intervals import Dims, Interval, Ranges
from polytool.surgeon.order import named_graphs
from polytool.surgeon.propagation import propagate
from polytool.surgeon.report import Report
from polytool.surgeon.shape_values import Known, Reader, content_of
from polytool.surgeon.types import Type, type_proto

_MOST_ROUNDS = 8


@dataclass(frozen=True)
class Source:
    """A dimension that data decides.

    Attributes:
        tensor: whose dimension it is.
        dim: which one.
        node: the operator that causes it, with the way to it.
        op: of that node.
        bound: what the graph implies as an upper bound; None if nothing does.
        reason: why data decides it, or where the bound comes from.
    """

    tensor: str
    dim: int
    node: str
    op: str
    bound: int | None
    reason: str

    def __str__(self) -> str:
        limit = f"at most {self.bound}" if self.bound is not None else "unbounded"
        return f"{self.tensor}, dim {self.dim}: {limit} ({self.op} {self.node!r}: {self.reason})"


@dataclass(frozen=True)
class Decided:
    """What an operator says of a dimension of one of its outputs.

    Attributes:
        output: which output.
        dim: which dimension of it.
        size: its interval; nothing is decided by data where `size.data` is False.
        reason: for messages.
        element: which element of the shape-deciding input decides it.
    """

    output: int
    dim: int
    size: Interval
    reason: str
    element: int = 0


@dataclass
class Analysis:
    """What was found, and where.

    Attributes:
        sources: every dimension that data decides, in the order of the graph.
        places: node, and what it says, of each source.
        ranges: the intervals that were used.
    """

    sources: list[Source]
    places: list[tuple[Node, Decided]]
    ranges: Ranges


def analyse(workspace: Workspace) -> Analysis:
    """Find the dimensions that data decides. The workspace is sorted; types are inferred here."""
    dims = Dims({}, set())
    found: dict[tuple[Value, int], tuple[Source, Node, Decided]] = {}
    ranges = Ranges(dims)
    for _ in range(_MOST_ROUNDS):
        infer(workspace, Report())
        before = len(found), workspace.refinements
        ranges = Ranges(dims)
        known: dict[Value, Known] = {}
        for graph, path in dict(named_graphs(workspace)).items():
            for node in graph.nodes:
                _visit(node, path, ranges, known, found)
        if (len(found), workspace.refinements) == before:
            break
    values = list(found.values())
    return Analysis([s for s, _, _ in values], [(n, d) for _, n, d in values], ranges)


def _visit(
    node: Node,
    path: str,
    ranges: Ranges,
    known: dict[Value, Known],
    found: dict[tuple[Value, int], tuple[Source, Node, Decided]],
) -> None:
    dims = ranges.dims
    if node.outputs and node.outputs[0] is not None and not node.bodies:
        propagate(node, Reader(known))
        if (content := content_of(node, Reader(known))) is not None:
            known[node.output] = content
    reads = [v for v in node.inputs if v is not None]
    if any(v in dims.tainted or _has_symbol(v, dims) for v in reads):
        dims.tainted.update(v for v in node.outputs if v is not None)
    for decided in decisions(node, ranges, known):
        value = node.outputs[decided.output] if decided.output < len(node.outputs) else None
        if value is None or not decided.size.data or not _is_open(value, decided.dim, dims):
            continue
        high = decided.size.high
        bound = int(max(high, 0)) if high <= MAX_SIZE else None  # None for nan too
        symbol = f"{value.name}#{decided.dim}"
        label = f"{path}{node.label}"
        source = Source(value.name, decided.dim, label, node.op, bound, decided.reason)
        found[value, decided.dim] = (source, node, decided)
        dims.bounds[symbol] = bound
        _set_symbol(value, decided.dim, symbol)
    ranges.visit(node)


def _has_symbol(value: Value, dims: Dims) -> bool:
    return value.shape is not None and any(d in dims.bounds for d in value.shape)


def _is_open(value: Value, dim: int, dims: Dims) -> bool:
    """Whether nothing says the size; an own symbol from the last round is renewed."""
    if value.shape is None:
        return True
    size = value.shape[dim] if dim < len(value.shape) else None
    if size is None or size == f"{value.name}#{dim}":
        return True
    return isinstance(size, str) and size.startswith("unk__")


def _set_symbol(value: Value, dim: int, symbol: str) -> None:
    if value.shape is None or dim >= len(value.shape) or value.dtype is None:
        return
    shape = list(value.shape)
    if shape[dim] == symbol:
        return
    shape[dim] = symbol
    value.type = Type("tensor", value.dtype, tuple(shape), type_proto(value.dtype, tuple(shape)))
    if value.graph is not None:
        value.graph.workspace.refined[value] = None
        value.graph.workspace.refinements += 1


def decisions(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    """What `node` says of the dimensions of its outputs."""
    rule = _RULES.get(node.op) if not node.domain and not node.has_references else None
    if rule is None or (node.op != "Loop" and any(v is None for v in node.inputs[:1])):
        return  # a Loop may do without a count
    if not _axes_fit(node) or not _kinds_fit(node):
        return  # the model is broken, and nothing can be told
    yield from rule(node, ranges, known)


def _kinds_fit(node: Node) -> bool:
    """Whether inputs are numbers, text or sequences as the operator takes them."""
    from polytool.backends.native.types import misfit

    return not any(
        misfit(node, index, value.type.kind if value.type else "tensor", value.dtype)
        for index, value in enumerate(node.inputs)
        if value is not None
    )


def _axes_fit(node: Node) -> bool:
    """Whether the first input has the axes that the node's attributes name."""
    value = node.input(0)
    if value is None or value.shape is None:
        return True
    rank = len(value.shape) + (node.op == "OneHot")  # its axis is one of the result
    axis = node.attribute("axis")
    named = [*(node.attribute("axes") or ()), *([] if axis is None else [axis])]
    return all(-rank <= a < rank for a in named)


_Rule = Callable[[Node, Ranges, dict[Value, Known]], Iterator[Decided]]
_RULES: dict[str, _Rule] = {}


def _rule(*ops: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def _elements(value: Value | None, ranges: Ranges) -> float:
    if value is None or value.shape is None:
        return math.inf
    return math.prod(ranges.size(value, i).high for i in range(len(value.shape)))


def _size(value: Value | None, axis: int, ranges: Ranges) -> float:
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return math.inf
    return ranges.size(value, axis % len(value.shape)).high


@_rule("NonZero")
def _nonzero(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    most = _elements(node.input(0), ranges)
    yield Decided(0, 1, Interval(0, most, True), "as many as elements of its input are not zero")


@_rule("Unique")
def _unique(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    axis = node.attribute("axis")
    value = node.input(0)
    most = _elements(value, ranges) if axis is None else _size(value, axis, ranges)
    reason = "as many as its input has different elements"
    rank = len(value.shape) if value is not None and value.shape is not None else 1
    yield Decided(0, 0 if axis is None else axis % rank, Interval(0, most, True), reason)
    for output in (1, 3):
        yield Decided(output, 0, Interval(0, most, True), reason)


@_rule("Compress")
def _compress(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    axis, value = node.attribute("axis"), node.input(0)
    condition = ranges.hull(node.input(1))
    most = _elements(value, ranges) if axis is None else _size(value, axis, ranges)
    most = min(most, _elements(node.input(1), ranges))
    rank = len(value.shape) if value is not None and value.shape is not None else 1
    where = 0 if axis is None else axis % rank
    yield Decided(0, where, Interval(0, most, condition.data), "as many as its condition selects")


@_rule("Range")
def _range(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    start, limit, delta = (ranges.hull(node.input(i)) for i in range(3))
    data = start.data or limit.data or delta.data
    most = math.inf
    if delta.low > 0:
        most = (limit.high - start.low) / delta.low
    elif delta.high < 0:
        most = (limit.low - start.high) / delta.high
    most = max(math.ceil(most), 0) if math.isfinite(most) else math.inf
    yield Decided(0, 0, Interval(0, most, data), "its limits are computed from data")


@_rule("TopK")
def _topk(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value = node.input(0)
    if node.version < 10 or value is None or value.shape is None:
        return
    axis = node.attribute("axis", -1) % max(len(value.shape), 1)
    k = ranges.hull(node.input(1))
    most = min(k.high, _size(value, axis, ranges))
    for output in (0, 1):
        yield Decided(output, axis, Interval(0, most, k.data), "K is computed from data")


@_rule("NonMaxSuppression")
def _nms(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    boxes, scores = node.input(0), node.input(1)
    each = ranges.hull(node.input(2)).high if node.input(2) is not None else 0
    each = min(each, _size(boxes, 1, ranges))
    most = each * _size(scores, 0, ranges) * _size(scores, 1, ranges) if each else 0
    yield Decided(0, 0, Interval(0, most, True), "as many as boxes are selected")


@_rule("OneHot")
def _onehot(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value = node.input(0)
    if value is None or value.shape is None:
        return
    axis = node.attribute("axis", -1) % (len(value.shape) + 1)
    yield Decided(0, axis, ranges.hull(node.input(1)), "its depth is computed from data")


def _shaped(
    node: Node, index: int, ranges: Ranges, known: dict[Value, Known], reason: str
) -> Iterator[Decided]:
    """Dimensions that the elements of an input are."""
    wanted = node.input(index)
    if wanted is None or wanted.shape is None or len(wanted.shape) != 1:
        return
    count = wanted.shape[0]
    if not isinstance(count, int) or count > MAX_RANK:
        return
    content = known.get(wanted)
    for dim in range(count):
        entry = content.entries[dim] if content is not None and len(content.entries) > dim else None
        if entry is None:
            yield Decided(0, dim, ranges.entry(wanted, dim), reason, dim)


_SHAPE_INPUTS = {"ConstantOfShape": 0, "Reshape": 1}


@_rule(*_SHAPE_INPUTS)
def _from_shape(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    index = _SHAPE_INPUTS[node.op]
    most = _elements(node.input(0), ranges) if node.op == "Reshape" else math.inf
    for decided in _shaped(node, index, ranges, known, "its shape is computed from data"):
        size = decided.size
        high = min(size.high, most)
        yield Decided(0, decided.dim, Interval(0, high, size.data), decided.reason, decided.dim)


@_rule("Expand")
def _expand(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    value = node.input(0)
    if value is None or value.shape is None or node.output.shape is None:
        return
    wanted = node.input(1)
    count = wanted.shape[0] if wanted is not None and wanted.shape else 0
    offset = len(node.output.shape) - count if isinstance(count, int) else 0
    for decided in _shaped(node, 1, ranges, known, "its shape is computed from data"):
        dim = decided.dim + offset
        at = dim - (len(node.output.shape) - len(value.shape))
        own = _size(value, at, ranges) if at >= 0 else 1
        size = decided.size
        yield Decided(
            0, dim, Interval(0, max(size.high, own), size.data), decided.reason, decided.dim
        )


@_rule("Tile")
def _tile(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    for decided in _shaped(node, 1, ranges, known, "its repeats are computed from data"):
        size = decided.size
        most = size.high * _size(node.input(0), decided.dim, ranges)
        yield Decided(0, decided.dim, Interval(0, most, size.data), decided.reason, decided.dim)


@_rule("Pad")
def _pad(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value, pads = node.input(0), node.input(1)
    if node.version < 11 or value is None or value.shape is None or node.input(3) is not None:
        return
    rank = len(value.shape)
    for dim in range(rank):
        before, after = ranges.entry(pads, dim), ranges.entry(pads, dim + rank)
        most = _size(value, dim, ranges) + max(before.high, 0) + max(after.high, 0)
        data = before.data or after.data
        yield Decided(0, dim, Interval(0, most, data), "its pads are computed from data", dim)


@_rule("Resize", "Upsample")
def _resize(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    if node.op == "Resize" and node.input(3) is not None:
        yield from _shaped(node, 3, ranges, known, "its sizes are computed from data")
        return
    index = 1 if node.op == "Upsample" or node.version < 11 else 2
    for decided in _shaped(node, index, ranges, {}, "its scales are computed from data"):
        size = decided.size
        most = size.high * _size(node.input(0), decided.dim, ranges)
        yield Decided(0, decided.dim, Interval(0, most, size.data), decided.reason, decided.dim)


@_rule("Slice")
def _slice(node: Node, ranges: Ranges, known: dict[Value, Known]) -> Iterator[Decided]:
    value, axes = node.input(0), node.input(3)
    if node.version < 10 or value is None or value.shape is None:
        return
    starts, ends = node.input(1), node.input(2)
    where = Reader(known).numbers(axes) if axes is not None else None
    count = starts.shape[0] if starts is not None and starts.shape else 0
    rank = len(value.shape)
    named = range(count) if where is None and isinstance(count, int) else where or ()
    if not isinstance(count, int) or len(named) != count or count > MAX_RANK:
        return
    if not all(-rank <= a < rank for a in named):
        return
    for index in range(count):
        axis = where[index] if where is not None else index
        if where is None and axes is not None:
            return
        first, last = ranges.entry(starts, index), ranges.entry(ends, index)
        most = _size(value, axis, ranges)
        if first.low >= 0 and last.high >= 0:
            most = min(most, max(last.high - first.low, 0))
        dim = axis % len(value.shape)
        data = first.data or last.data
        yield Decided(0, dim, Interval(0, most, data), "its ends are computed from data", index)


@_rule("Split")
def _split(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value, parts = node.input(0), node.input(1)
    if parts is None or value is None or value.shape is None:
        return
    axis = node.attribute("axis", 0) % max(len(value.shape), 1)
    whole = _size(value, axis, ranges)
    for index in range(len(node.outputs)):
        size = ranges.entry(parts, index)
        most = Interval(0, min(size.high, whole), size.data)
        yield Decided(index, axis, most, "its parts are computed from data")


@_rule("CenterCropPad")
def _crop(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value, sizes = node.input(0), node.input(1)
    if value is None or value.shape is None:
        return
    rank = len(value.shape)
    for index, axis in enumerate(node.attribute("axes", list(range(rank)))):
        reason = "its shape is computed from data"
        yield Decided(0, axis % rank, ranges.entry(sizes, index), reason, index)


@_rule("StringSplit")
def _string_split(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    value = node.input(0)
    if value is not None and value.shape is not None:
        reason = "as many as the longest text has parts"
        yield Decided(0, len(value.shape), Interval(0, math.inf, True), reason)


@_rule("HannWindow", "HammingWindow", "BlackmanWindow")
def _window(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    yield Decided(0, 0, ranges.hull(node.input(0)), "its size is computed from data")


@_rule("Loop")
def _loop(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    body = node.bodies.get("body")
    if body is None:
        return
    trips = ranges.hull(node.input(0))
    states = len(body.inputs) - 2
    again = _stays_true(node, body)
    for output in range(states, len(node.outputs)):
        size = Interval(0, trips.high, trips.data or not again)
        yield Decided(output, 0, size, "as many as the loop has iterations")


def _stays_true(node: Node, body: Graph) -> bool:
    """Whether the loop's condition is passed on as it is, so that only the count ends it."""
    result = body.outputs[0]
    while result.producer is not None and result.producer.op == "Identity":
        source = result.producer.input(0)
        if source is None:
            return False
        result = source
    return result is body.inputs[1] or result.constant is not None


@_rule("If")
def _if(node: Node, ranges: Ranges, _: dict[Value, Known]) -> Iterator[Decided]:
    branches = [node.bodies.get("then_branch"), node.bodies.get("else_branch")]
    if any(b is None for b in branches):
        return
    for output in range(len(node.outputs)):
        values = [b.outputs[output] for b in branches if b is not None]
        shapes = [v.shape for v in values if v.shape is not None]
        if len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
            continue
        for dim in range(len(shapes[0])):
            if shapes[0][dim] != shapes[1][dim]:
                most = max(ranges.size(v, dim).high for v in values)
                reason = "its branches have other sizes"
                yield Decided(output, dim, Interval(0, most, True), reason)


DECIDING: Collection[str] = _RULES.keys()
"""Operators that can let data decide a dimension."""
