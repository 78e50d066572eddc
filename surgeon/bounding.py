"""Upper bounds for dimensions that data decides.

Only elements that data decides are touched, in the type that the tensor has, and only for the
node that they decide a shape of. What was bounded stands in the model's metadata. Functions that
hold such operators are expanded, as each call has sizes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from polytool.errors import ModelError, UsageError
from polytool.model import Model, Source
from polytool.patterns import check_used, lookup
from polytool.surgeon import dds
from polytool.surgeon.clamping import BY_INPUT, Record, Wish, clamp
from polytool.surgeon.constants import lift_constants
from polytool.surgeon.functions import expand_functions
from polytool.surgeon.graph import Node, Workspace
from polytool.surgeon.gs_graph import open_sound
from polytool.surgeon.report import Report

METADATA_KEY = "polytool.bounds"


@dataclass
class Bounded:
    """A model whose sizes are bounded.

    Attributes:
        model: the result.
        records: the bounds that were set.
        implied: dimensions whose bound the graph implies already, and that were left alone.
        refused: tensor and dimension to why a bound that was given has no effect.
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
    workspace = _opened(source)
    return dds.analyse(workspace).sources


def _opened(source: Source) -> Workspace:
    workspace = Workspace(expand_functions(open_sound(source), dds.DECIDING))
    lift_constants(workspace, Report())
    workspace.sort()
    return workspace


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
    workspace = _opened(source)
    found = dds.analyse(workspace)
    check_used({k: v for k, v in bounds.items() if k}, [s.tensor for s in found.sources], "a bound")
    result = Bounded(workspace.model)
    wanted: dict[Node, list[Wish]] = {}
    for place, one in zip(found.places, found.sources, strict=True):
        bound = _wanted(one, bounds, auto)
        if bound is not None:
            wanted.setdefault(place[0], []).append(Wish(one, place[1], bound, found.ranges))
        elif one.bound is not None:
            result.implied.append(one)
            if (named := _named(one, bounds)) is not None:
                why = (
                    f"the graph implies at most {one.bound} already, which is no more than {named}"
                )
                result.refused[f"{one.tensor}, dim {one.dim}"] = why
        else:
            result.open.append(one)
    for node, wishes in wanted.items():
        result.records += clamp(node, wishes)
    workspace.sort()
    result.model = workspace.to_model()
    _write_metadata(result)
    return result


def _wanted(one: dds.Source, bounds: Mapping[str, int], auto: bool) -> int | None:
    named = _named(one, bounds)
    if one.bound is not None:
        if named is not None and named < one.bound:
            return named
        return one.bound if auto and one.op in BY_INPUT else None
    return named if named is not None else bounds.get("")


def _named(one: dds.Source, bounds: Mapping[str, int]) -> int | None:
    return lookup({k: v for k, v in bounds.items() if k}, one.tensor)


def _write_metadata(result: Bounded) -> None:
    if not result.records:
        return
    proto = result.model.proto
    kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
    rows = [asdict(r) for r in (*recorded(result.model), *result.records)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(rows))


def recorded(model: Model) -> list[Record]:
    """The bounds that `bound_shapes` has set in `model`.

    Raises:
        ModelError: its metadata holds something else under their name.
    """
    found = [p.value for p in model.proto.metadata_props if p.key == METADATA_KEY]
    try:
        return [_record(row) for row in json.loads(found[0])] if found else []
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise ModelError(
            f"the model's metadata {METADATA_KEY!r} does not say which bounds were set ({err}): "
            f"remove it, or bound the model again"
        ) from err


def _record(row: Any) -> Record:
    record = Record(**{**row, "limits": tuple(row["limits"])})
    for entry in fields(Record):
        kind = {"str": str, "int": int}.get(str(entry.type), object)
        if not isinstance(getattr(record, entry.name), kind):
            raise TypeError(f"{entry.name} is no {entry.type}")
    return record
