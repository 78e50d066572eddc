"""Operators whose result has a size that data decides: NonZero, Compress, Unique, NMS.

Each becomes two layers: the first computes everything into memory for the largest result, and how
much of it there is; the second, in the next stretch, reads that number and cuts the result.
"""

from __future__ import annotations

import math

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, expansion, given, lowering
from polytool.backends.native.kernels.gather import Gather
from polytool.backends.native.kernels.ordering import NonMaxSuppression, NonZero
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_MOST_SLICES = 1 << 15  # Unique compares all pairs


def _inner(node: Node, suffix: str, op: str, *results: Tensor) -> Layer:
    return Layer.single(
        Node(
            f"{node.op}{suffix}", "polytool", 1, list(node.inputs), list(results), dict(node.attrs)
        )
    )


def _int64(node: Node, name: str) -> Tensor:
    first = next(node.writes())
    return Tensor(f"{first.name}:{name}", DType.INT64)


def _last(node: Node, inputs: list[Tensor | None], outputs: list[Tensor | None]) -> Layer:
    """The layer that cuts; it keeps the node's name for whoever asks what ran."""
    tail = Node(
        f"{node.op}Cut", "polytool", 1, inputs, outputs, dict(node.attrs), sources=node.sources
    )
    return Layer.single(tail)


def _new(rec: Recorder, tensor: Tensor, shape: tuple[int, ...]) -> View:
    """Memory for an inner tensor."""
    rec.shapes.shapes[tensor] = shape
    return rec.output(tensor)


def _count(rec: Recorder, node: Node, index: int) -> int:
    return int(rec.attribute(node.inputs[index]).reshape(-1)[0])


def _cut(rec: Recorder, tensor: Tensor | None, view: View, axis: int, count: int) -> None:
    if tensor is None:
        return
    part = view.sliced(axis, 0, count)
    rec.shapes.shapes[tensor] = part.shape
    rec.define(tensor, part)


@expansion("NonZero")
def expand_nonzero(node: Node) -> list[Layer]:
    """Coordinates for all elements, and how many count."""
    places, count = _int64(node, "places"), _int64(node, "count")
    return [
        _inner(node, "Places", "", places, count),
        _last(node, [places, count], list(node.outputs)),
    ]


@lowering("NonZeroPlaces", domain="polytool")
def nonzero_places(rec: Recorder, layer: Layer) -> None:
    """Flat positions in order, and from them a row of indices a dimension."""
    node = layer.nodes[0]
    x = rec.dense(rec.view(given(node, 0)))
    places, count = layer.outputs
    flat, number = View.new(DType.INT64, (x.count,)), _new(rec, count, (1,))
    rec.launch([NonZero(x.dtype).plan(x.count)], [x, flat, number], writes=2)
    rank = len(x.shape)
    if not rank:  # one column for a scalar that is not zero, and no row
        rec.shapes.shapes[places] = (0, 1)
        rec.define(places, View.new(DType.INT64, (0, 1)))
        return
    body = """
        if ((i64)at[1] >= number[0]) break;
        i64 rest = flat[at[1]], index = 0;
        for (int d = DIMS - 1; d >= (int)at[0]; d--) {
            index = rest % size.step[d];
            rest /= size.step[d];
        }
        y[unit] = index;"""
    compute(
        rec, node.op, (rank, x.count), {"flat": flat, "number": number},
        {"y": _new(rec, places, (rank, x.count))}, body, defines={"DIMS": rank}, size=x.shape,
    )  # fmt: skip


@lowering("NonZeroCut", domain="polytool", reads=(1,))
def nonzero_cut(rec: Recorder, layer: Layer) -> None:
    """The columns that count."""
    node = layer.nodes[0]
    _cut(rec, node.outputs[0], rec.view(given(node, 0)), 1, _count(rec, node, 1))


@expansion("Compress")
def expand_compress(node: Node) -> list[Layer]:
    """Positions where the condition holds, then a gather of so many."""
    places, count = _int64(node, "places"), _int64(node, "count")
    condition = Node("CompressPlaces", "polytool", 1, [given(node, 1)], [places, count])
    return [
        Layer.single(condition),
        _last(node, [given(node, 0), places, count], list(node.outputs)),
    ]


@lowering("CompressPlaces", domain="polytool")
def compress_places(rec: Recorder, layer: Layer) -> None:
    """Flat positions of what is true."""
    x = rec.dense(rec.view(given(layer.nodes[0], 0)))
    places, count = layer.outputs
    views = [x, _new(rec, places, (x.count,)), _new(rec, count, (1,))]
    rec.launch([NonZero(x.dtype).plan(x.count)], views, writes=2)


@lowering("CompressCut", domain="polytool", reads=(2,))
def compress_cut(rec: Recorder, layer: Layer) -> None:
    """The entries at those positions."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, count = rec.dense(rec.view(given(node, 0))), _count(rec, node, 2)
    axis = node.attrs.get("axis")
    if axis is None:
        x, axis = x.reshaped((x.count,)) or x, 0
    axis = int(axis) % len(x.shape)
    where = rec.dense(rec.view(given(node, 1)).sliced(0, 0, count))
    rec.shapes.shapes[output] = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    plan = Gather("Gather", x.dtype, DType.INT64).plan(x.shape, (count,), axis=axis)
    rec.launch([plan], [x, where, rec.output(output)])


@expansion("NonMaxSuppression")
def expand_nms(node: Node) -> list[Layer]:
    """Rows for all boxes that may be kept, and how many are."""
    rows, count = _int64(node, "rows"), _int64(node, "count")
    return [_inner(node, "Rows", "", rows, count), _last(node, [rows, count], list(node.outputs))]


@lowering("NonMaxSuppressionRows", domain="polytool", reads=(2, 3, 4))
def nms_rows(rec: Recorder, layer: Layer) -> None:
    """Sorted by score, then by overlap."""
    node = layer.nodes[0]
    boxes, scores = (rec.dense(rec.view(given(node, i))) for i in range(2))
    if DType.FLOAT is not boxes.dtype or boxes.dtype is not scores.dtype:
        raise UnsupportedError("boxes that are not float32")
    given_values = [rec.attribute(t) for t in [*node.inputs[2:], None, None, None][:3]]
    most, overlap, score = (
        default if v is None or not v.size else v.reshape(-1)[0].item()
        for v, default in zip(given_values, (0, 0.0, -math.inf), strict=True)
    )
    batches, classes, count = scores.shape
    most = max(0, min(int(most), count))
    op = NonMaxSuppression(bool(node.attrs.get("center_point_box", 0)))
    rows, number = layer.outputs
    plan = op.plan(batches, classes, count, most, overlap=float(overlap), score=float(score))
    room = _new(rec, rows, (batches * classes * most, 3))
    rec.launch([plan], [boxes, scores, room, _new(rec, number, (1,))], writes=2)


@lowering("NonMaxSuppressionCut", domain="polytool", reads=(1,))
def nms_cut(rec: Recorder, layer: Layer) -> None:
    """The rows that count."""
    node = layer.nodes[0]
    _cut(rec, node.outputs[0], rec.view(given(node, 0)), 0, _count(rec, node, 1))


@expansion("Unique")
def expand_unique(node: Node) -> list[Layer]:
    """Where each distinct entry is first, which one each is, how often; then the entries."""
    names = ("first", "inverse", "counts", "count")
    inner = [_int64(node, name) for name in names]
    outputs = [*node.outputs, None, None, None][:4]
    return [
        _inner(node, "Ranks", "", *inner),
        _last(node, [given(node, 0), *inner], outputs),
    ]


_COMPARE = """
// the order of two slices: below zero, zero, above; NaN equals NaN and comes last
DEVICE int order(const T_x* x, i64 a, i64 b, i64 outer, i64 count, i64 inner) {
    for (i64 o = 0; o < outer; o++)
        for (i64 k = 0; k < inner; k++) {
            const R_x u = widen(x[(o * count + a) * inner + k]);
            const R_x v = widen(x[(o * count + b) * inner + k]);
            if (u != u || v != v) {
                if (u != u && v != v) continue;
                return u != u ? 1 : -1;
            }
            if (u != v) return u < v ? -1 : 1;
        }
    return 0;
}
"""


@lowering("UniqueRanks", domain="polytool")
def unique_ranks(rec: Recorder, layer: Layer) -> None:
    """Compare all pairs: the first of its kind, then its rank among the firsts."""
    node = layer.nodes[0]
    x = rec.dense(rec.view(given(node, 0)))
    axis = node.attrs.get("axis")
    if axis is None:
        outer, count, inner = 1, x.count, 1
    else:
        at = int(axis) % len(x.shape)
        outer, count, inner = math.prod(x.shape[:at]), x.shape[at], math.prod(x.shape[at + 1 :])
    if count > _MOST_SLICES:
        raise UnsupportedError(f"a Unique of {count} entries")
    first, inverse, counts, number = layer.outputs
    holder, rank = (View.new(DType.INT64, (count,)) for _ in range(2))
    body = """
        i64 j = 0;
        while (order(x, j, unit, outer, count, inner)) j++;
        holder[unit] = j;"""
    compute(
        rec, "unique_first", (count,), {"x": x}, {"holder": holder}, body, functions=_COMPARE,
        outer=outer, count=count, inner=inner,
    )  # fmt: skip
    before = (
        "order(x, j, unit, outer, count, inner) < 0"
        if node.attrs.get("sorted", 1)
        else "j < (i64)unit"
    )
    body = f"""
        if (holder[unit] != (i64)unit) break;
        i64 place = 0, often = 0;
        for (i64 j = 0; j < count; j++) {{
            if (holder[j] == (i64)unit) often++;
            if (holder[j] == j && j != (i64)unit && {before}) place++;
        }}
        rank[unit] = place;
        first[place] = unit;
        counts[place] = often;"""
    outputs = {
        "rank": rank,
        "first": _new(rec, first, (count,)),
        "counts": _new(rec, counts, (count,)),
    }
    compute(
        rec, "unique_rank", (count,), {"x": x, "holder": holder}, outputs, body,
        functions=_COMPARE, outer=outer, count=count, inner=inner,
    )  # fmt: skip
    body = "inverse[unit] = rank[holder[unit]];"
    compute(
        rec, "unique_inverse", (count,), {"rank": rank, "holder": holder},
        {"inverse": _new(rec, inverse, (count,))}, body,
    )  # fmt: skip
    body = """
        i64 total = 0;
        for (i64 j = 0; j < count; j++) total += holder[j] == j;
        number[0] = total;"""
    compute(
        rec, "unique_count", (1,), {"holder": holder}, {"number": _new(rec, number, (1,))}, body,
        count=count,
    )  # fmt: skip


@lowering("UniqueCut", domain="polytool", reads=(4,))
def unique_cut(rec: Recorder, layer: Layer) -> None:
    """The entries at their first places, and the tables of as many."""
    node = layer.nodes[0]
    x, count = rec.dense(rec.view(given(node, 0))), _count(rec, node, 4)
    values, first, inverse, counts = node.outputs
    where = rec.view(given(node, 1))
    if values is not None:
        axis = node.attrs.get("axis")
        flat = (x.reshaped((x.count,)) or x) if axis is None else x
        at = 0 if axis is None else int(axis) % len(x.shape)
        rec.shapes.shapes[values] = (*flat.shape[:at], count, *flat.shape[at + 1 :])
        plan = Gather("Gather", x.dtype, DType.INT64).plan(flat.shape, (count,), axis=at)
        rec.launch([plan], [flat, rec.dense(where.sliced(0, 0, count)), rec.output(values)])
    _cut(rec, first, where, 0, count)
    _cut(rec, counts, rec.view(given(node, 3)), 0, count)
    if inverse is not None:
        whole = rec.view(given(node, 2))
        rec.shapes.shapes[inverse] = whole.shape
        rec.define(inverse, whole)
