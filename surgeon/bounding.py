"""Upper bounds for dimensions that data decides.

    Expand(x, shape)  => Expand(x, Min(shape, bound))       likewise ConstantOfShape, Reshape,
                         Resize, Tile, Pad, TopK, OneHot, Loop, windows
    Range(a, b, c)    => Range(a, Min(b, a + c * bound), c)
    y = NonZero(x)    => Slice(y) up to the bound           likewise Unique, Compress, Slice,
                         NonMaxSuppression, If

Only elements that data decides are touched, in the type that the tensor has, and only for the
node that they decide a shape of. What was bounded stands in the model's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from polytool.errors import UsageError
from polytool.model import Model, Source
from polytool.patterns import check_used, lookup
from polytool.surgeon import dds
from polytool.surgeon.constants import lift_constants
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.report import Report
from polytool.tensors import DType

METADATA_KEY = "polytool.bounds"
_FLOAT32_EXACT = 1 << 24


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


@dataclass
class Bounded:
    """A model whose sizes are bounded.

    Attributes:
        model: the result.
        records: the bounds that were set.
        implied: dimensions whose bound the graph implies already, and that were left alone.
        refused: tensor and dimension to why no bound could be set.
        open: dimensions that are still without a bound, because none was given.
    """

    model: Model
    records: list[Record] = field(default_factory=list)
    implied: list[dds.Source] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    open: list[dds.Source] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was done, for people."""
        found = [f"{len(self.records)} dimension(s) bounded"]
        found += [f"  {r.tensor}, dim {r.dim}: at most {r.bound}" for r in self.records]
        found += [f"  bounded by the graph: {source}" for source in self.implied]
        found += [f"  without a bound: {source}" for source in self.open]
        return [*found, *(f"  no bound for {k}: {why}" for k, why in self.refused.items())]

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        return {
            "bounds": [asdict(r) for r in self.records],
            "implied_bounds": [asdict(s) for s in self.implied],
            "unbounded": [asdict(s) for s in self.open],
            "refused_bounds": self.refused,
        }


def list_dds(source: Source) -> list[dds.Source]:
    """Every dimension that data decides, with its cause and the bound that the graph implies."""
    workspace = Workspace(open_model(source))
    lift_constants(workspace, Report())
    workspace.sort()
    return dds.analyse(workspace).sources


def bound_shapes(
    source: Source, bounds: Mapping[str, int] | None = None, *, auto: bool = False
) -> Bounded:
    """Set upper bounds for dimensions that data decides.

    Args:
        source: what `polytool.model.load` takes.
        bounds: tensor name or pattern to the largest size of its dimensions that data decides; ""
            for every one that the graph implies no bound of.
        auto: set the bounds that the graph implies too, where a node can be told of them.

    Raises:
        UsageError: a name fits no tensor with such a dimension, or a bound is negative.
    """
    bounds = bounds or {}
    negative = [name for name, bound in bounds.items() if bound < 0]
    if negative:
        raise UsageError(f"the bound of {negative[0] or 'all tensors'!r} is negative")
    workspace = Workspace(open_model(source))
    lift_constants(workspace, Report())
    workspace.sort()
    found = dds.analyse(workspace)
    check_used({k: v for k, v in bounds.items() if k}, [s.tensor for s in found.sources], "a bound")
    result = Bounded(workspace.model)
    wanted: dict[Node, list[_Wish]] = {}
    for place, one in zip(found.places, found.sources, strict=True):
        bound = _wanted(one, bounds, auto)
        if bound is not None:
            wanted.setdefault(place[0], []).append(_Wish(one, place[1], bound))
        elif one.bound is not None:
            result.implied.append(one)
        else:
            result.open.append(one)
    for node, wishes in wanted.items():
        _set(node, wishes, result)
    workspace.sort()
    result.model = workspace.to_model()
    _write_metadata(result)
    return result


@dataclass(frozen=True)
class _Wish:
    source: dds.Source
    decided: dds.Decided
    bound: int

    def record(self, watched: str, **how: Any) -> Record:
        s = self.source
        return Record(s.tensor, s.dim, s.node, s.op, self.bound, watched, **how)


def _wanted(one: dds.Source, bounds: Mapping[str, int], auto: bool) -> int | None:
    named = lookup({k: v for k, v in bounds.items() if k}, one.tensor)
    if one.bound is not None:
        if named is not None and named < one.bound:
            return named
        return one.bound if auto and one.op in _BY_INPUT else None
    return named if named is not None else bounds.get("")


def _write_metadata(result: Bounded) -> None:
    if not result.records:
        return
    proto = result.model.proto
    kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
    old = [p.value for p in proto.metadata_props if p.key == METADATA_KEY]
    before = json.loads(old[0]) if old else []
    rows = before + [asdict(r) for r in result.records]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(rows))


def recorded(model: Model) -> list[Record]:
    """The bounds that `bound_shapes` has set in `model`."""
    for prop in model.proto.metadata_props:
        if prop.key == METADATA_KEY:
            rows = json.loads(prop.value)
            return [Record(**{**row, "limits": tuple(row["limits"])}) for row in rows]
    return []


def hit(record: Record, values: Mapping[str, Any]) -> bool:
    """Whether a run exceeded a bound.

    Args:
        record: the bound.
        values: the tensor `record.watched`, and `record.limit` if that is not empty, of the run.
    """
    watched = np.asarray(values[record.watched])
    if record.kind == "dim":
        return bool(watched.shape[record.dim] > record.bound)
    if record.kind == "tensor":
        return bool((watched > np.asarray(values[record.limit])).any())
    pairs = zip(watched.reshape(-1).tolist(), record.limits, strict=True)
    return any(limit is not None and value > limit for value, limit in pairs)


# --- setting them


def _set(node: Node, wishes: list[_Wish], result: Bounded) -> None:
    rule = _BY_INPUT.get(node.op, _cut)
    reason = rule(node, wishes, result)
    if reason:
        for wish in wishes:
            result.refused[f"{wish.source.tensor}, dim {wish.source.dim}"] = reason


def clamped(graph: Graph, value: Value, limits: list[float | None]) -> Value:
    """`Min(value, limits)` in the type of `value`, at any opset; None is no limit."""
    dtype = value.dtype
    assert dtype is not None
    opset = graph.opsets.get("", 1)
    largest = math.inf if dtype.is_float else int(np.iinfo(dtype.numpy).max)
    array = np.array([largest if x is None else x for x in limits], dtype.numpy)
    array = array.reshape(()) if value.shape == () else array
    limit = graph.add_array(array, f"{value.name}_bound", dtype)
    out = f"{value.name}_bounded"
    if dtype.is_float or opset >= 12:
        node = graph.add_node("Min", [value, limit], [out])
    elif opset >= 9:
        less = graph.add_node("Less", [value, limit], [f"{value.name}_less"])
        node = graph.add_node("Where", [less.output, value, limit], [out])
    else:  # Min takes floats only; below 2**24 they are exact, above they are larger all the same
        wide = graph.add_array(np.minimum(array, _FLOAT32_EXACT).astype(np.float32), limit.name)
        cast = graph.add_node("Cast", [value], [f"{value.name}_float"], to=int(DType.FLOAT))
        least = graph.add_node("Min", [cast.output, wide], [f"{value.name}_least"])
        node = graph.add_node("Cast", [least.output], [out], to=int(dtype))
    node.output.type = value.type
    return node.output


def _clamp_input(
    node: Node, index: int, limits: Mapping[int, float], wishes: list[_Wish], result: Bounded
) -> str:
    """Clamp some elements of an input, for this node only."""
    value = node.input(index)
    if value is None or value.dtype is None or value.shape is None:
        return "the type of what decides the size is not known"
    count = value.shape[0] if len(value.shape) == 1 else 1
    if not isinstance(count, int):
        return "how many dimensions there are is not known"
    vector = [limits.get(i) for i in range(count)]
    for wish in wishes:
        result.records.append(wish.record(value.name, limits=tuple(vector)))
    node.set_input(index, clamped(node.where, value, vector))
    return ""


def _elements(index: int) -> Callable[[Node, list[_Wish], Bounded], str]:
    """A rule for operators whose input at `index` holds the sizes themselves."""

    def rule(node: Node, wishes: list[_Wish], result: Bounded) -> str:
        limits = {w.decided.element: float(w.bound) for w in wishes}
        return _clamp_input(node, index, limits, wishes, result)

    return rule


def _loop(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    bound = min(w.bound for w in wishes)
    value = node.input(0)
    if value is not None:
        return _clamp_input(node, 0, {0: bound}, wishes, result)
    limit = node.where.add_array(np.array(bound, np.int64), f"{node.label}_trips")
    node.set_input(0, limit)
    for wish in wishes:
        result.records.append(wish.record(wish.source.tensor, kind="dim"))
    return ""


def _per_element(node: Node, wishes: list[_Wish], index: int, result: Bounded) -> str:
    """Factors: the size is the element times that of the first input."""
    value = node.input(0)
    limits: dict[int, float] = {}
    for wish in wishes:
        size = value.shape[wish.source.dim] if value is not None and value.shape else None
        if not isinstance(size, int) or size < 1:
            return "the size before is open, so that no factor can be derived"
        wanted = wish.bound / size
        target = node.input(index)
        integer = target is not None and target.dtype is not None and target.dtype.is_integer
        limits[wish.decided.element] = math.floor(wanted) if integer else wanted
    return _clamp_input(node, index, limits, wishes, result)


def _tile(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    return _per_element(node, wishes, 1, result)


def _resize(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    if node.op == "Resize" and node.input(3) is not None:
        return _elements(3)(node, wishes, result)
    index = 1 if node.op == "Upsample" or node.version < 11 else 2
    return _per_element(node, wishes, index, result)


def _pad(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    value, pads = node.input(0), node.input(1)
    if value is None or value.shape is None:
        return "the rank is not known"
    rank = len(value.shape)
    limits: dict[int, float] = {}
    for wish in wishes:
        size = value.shape[wish.source.dim]
        if not isinstance(size, int):
            return "the size before is open, so that no pad can be derived"
        room = max(wish.bound - size, 0)
        # Shared by both sides, so that neither has to know the other.
        limits[wish.source.dim] = room // 2
        limits[wish.source.dim + rank] = room - room // 2
    known = pads.constant if pads is not None else None
    return "" if known is not None else _clamp_input(node, 1, limits, wishes, result)


def _range(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    start, limit, delta = node.input(0), node.input(1), node.input(2)
    if start is None or limit is None or delta is None or delta.constant is None:
        return "the step is computed, so that its sign is not known"
    if limit.dtype is None or not node.where.workspace.model.array(delta.constant).size:
        return "the type of its limits is not known"
    step = node.where.workspace.model.array(delta.constant).reshape(-1)[0]
    graph, bound = node.where, wishes[0].bound
    span = graph.add_array(np.array(step * bound, limit.dtype.numpy), f"{limit.name}_span")
    top = graph.add_node("Add", [start, span], [f"{limit.name}_bound"])
    top.output.type = limit.type
    op = "Min" if step > 0 else "Max"
    least = graph.add_node(op, [limit, top.output], [f"{limit.name}_bounded"])
    if graph.opsets.get("", 1) < 12 and limit.dtype.is_integer:
        return _range_before_12(node, limit, top, least, wishes, result)
    least.output.type = limit.type
    node.set_input(1, least.output)
    if step > 0:
        how = {"watched": limit.name, "limit": top.output.name}
    else:
        how = {"watched": top.output.name, "limit": limit.name}
    result.records.append(wishes[0].record(how["watched"], kind="tensor", limit=how["limit"]))
    return ""


def _range_before_12(
    node: Node, limit: Value, top: Node, least: Node, wishes: list[_Wish], result: Bounded
) -> str:
    """Min and Max take no integers before opset 12."""
    graph, positive = node.where, least.op == "Min"
    graph.remove(least)
    pair = [limit, top.output] if positive else [top.output, limit]
    less = graph.add_node("Less", pair, [f"{limit.name}_less"])
    chosen = graph.add_node("Where", [less.output, limit, top.output], [f"{limit.name}_bounded"])
    chosen.output.type = limit.type
    node.set_input(1, chosen.output)
    result.records.append(wishes[0].record(pair[0].name, kind="tensor", limit=pair[1].name))
    return ""


def _cut(node: Node, wishes: list[_Wish], result: Bounded) -> str:
    """Cut the outputs themselves, where no input decides their size."""
    graph = node.where
    for wish in wishes:
        value = node.outputs[wish.decided.output]
        assert value is not None
        readers = value.used_by()
        returned = [i for i, v in enumerate(graph.outputs) if v is value]
        dim, bound = wish.source.dim, wish.bound
        name = f"{value.name}_bounded"
        if graph.opsets.get("", 1) >= 10:
            parts = [graph.add_array(np.array([n], np.int64), f"{name}_{what}")
                     for what, n in (("start", 0), ("end", bound), ("axis", dim))]  # fmt: skip
            cut = graph.add_node("Slice", [value, *parts], [name])
        else:
            cut = graph.add_node("Slice", [value], [name], starts=[0], ends=[bound], axes=[dim])
        cut.output.type = value.type
        for reader in readers:
            for index, read in enumerate(reader.inputs):
                if read is value:
                    reader.set_input(index, cut.output)
        for index in returned:
            graph.set_output(index, cut.output)
        if returned:
            value.name, cut.output.name = cut.output.name, value.name
        result.records.append(wish.record(value.name, kind="dim"))
    return ""


_BY_INPUT: dict[str, Callable[[Node, list[_Wish], Bounded], str]] = {
    "BlackmanWindow": _elements(0),
    "ConstantOfShape": _elements(0),
    "Expand": _elements(1),
    "HammingWindow": _elements(0),
    "HannWindow": _elements(0),
    "Loop": _loop,
    "OneHot": _elements(1),
    "Pad": _pad,
    "Range": _range,
    "Reshape": _elements(1),
    "Resize": _resize,
    "Tile": _tile,
    "TopK": _elements(1),
    "Upsample": _resize,
}
