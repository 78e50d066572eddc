"""Conv with its epilogue on float32: the plan is chosen by shape, once per input shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.ops.windows import Windows, windows
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.conv_plans import (
    DepthwisePlan,
    GatherPlan,
    Packing,
    PatchPlan,
    PointwisePlan,
    RowPlan,
)
from polytool.backends.native.tactics.epilogue import Epilogue
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.memo import Memo
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant

Array = np.ndarray[Any, Any]
Plan = PointwisePlan | RowPlan | PatchPlan | DepthwisePlan | GatherPlan
# Elements up to which gathering all columns at once is the cheapest.
_GATHERED = 1 << 13


class Conv(Tactic):
    """Convolution with constant filters."""

    name = "numpy.conv"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = layer.nodes[0]
        if node.op != "Conv" or node.domain or mode.wide or node.precision == "tf32":
            return False
        x, w, *bias = node.inputs
        if x is None or w is None or w.constant is None or stored_as(x) != FLOAT:
            return False
        if any(t is not None and t.constant is None for t in bias) or x.constant is not None:
            return False
        return len(layer.outputs) == 1 and min(node.attrs.get("pads") or [0]) >= 0

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        x, w, *rest = node.inputs
        assert x is not None and w is not None
        bias = stored_constant(rest[0], mode) if rest and rest[0] is not None else None
        filters = np.ascontiguousarray(stored_constant(w, mode))
        convolution = Convolution.of(node, filters)
        epilogue = Epilogue(layer, mode, bias)
        source = layer.inputs.index(x)
        fallback = Generic().compile(layer, mode)
        plans: Memo[tuple[int, ...], tuple[Plan, tuple[int, ...], Any]] = Memo()

        def launch(*args: Any) -> Sequence[Any]:
            value = args[source]
            known = plans.get(value.shape)
            if known is None:
                made = convolution.plan(value.shape)
                if made is None:  # empty tensors, ranks that have no plan
                    return fallback(*args)
                known = plans.keep(value.shape, made)
            plan, shape, view = known
            out = np.empty(shape, np.float32)
            plan.run(view(value), view(out), epilogue.bind(shape, args))
            return epilogue.complete(out, args)

        return launch


@dataclass(frozen=True)
class Convolution:
    """Filters and attributes, in ONNX's layout."""

    filters: Array
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    group: int
    packings: dict[int, Packing] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, node: Node, filters: Array) -> Convolution:
        """The convolution of `node` with `filters`."""
        attrs = node.attrs
        return cls(
            filters,
            tuple(attrs.get("strides") or ()),
            tuple(attrs.get("dilations") or ()),
            tuple(attrs.get("pads") or ()),
            attrs.get("auto_pad", "NOTSET"),
            int(attrs.get("group", 1)),
        )

    def plan(
        self, shape: tuple[int, ...]
    ) -> tuple[Plan, tuple[int, ...], Callable[[Array], Array]] | None:
        """The plan for inputs of `shape`, the result's shape, and how the plan sees both."""
        kernel = self.filters.shape[2:]
        where = windows(shape[2:], kernel, self.strides, self.dilations, self.pads, self.auto_pad)
        out = (shape[0], self.filters.shape[0], *where.out)
        if math.prod(out) == 0 or math.prod(shape) == 0 or min(where.before, default=0) < 0:
            return None
        if shape[1] != self.filters.shape[1] * self.group:
            return None
        view: Callable[[Array], Array] = np.ascontiguousarray
        extra = 0
        if len(shape) == 3:
            first = self.group == 1 and shape[1] * shape[2] > 1 << 15  # then rows need no copy
            where, extra = _widened(where, first), 3 if first else 2
            view = _with_last_axis if first else _with_third_axis
        return self._choose(shape, where, self._packing(extra)), out, view

    def _packing(self, extra: int) -> Packing:
        """The filters, with an axis put in at `extra` where that is not 0."""
        if extra not in self.packings:
            filters = np.expand_dims(self.filters, extra) if extra else self.filters
            self.packings.setdefault(extra, Packing(filters))
        return self.packings[extra]

    def _choose(self, shape: tuple[int, ...], where: Windows, packing: Packing) -> Plan:
        filters = packing.filters
        images, channels = shape[:2]
        m = filters.shape[0]
        if where.is_pointwise and self.group == 1:
            return PointwisePlan(filters.reshape(m, channels), images, math.prod(where.out))
        if GatherPlan.columns(filters, where, images, self.group) <= _GATHERED:
            return GatherPlan(filters, where, self.group)
        if len(where.out) != 2:
            return PatchPlan(filters, where, images, self.group)
        if self.group > 1 and self.group == channels:
            return DepthwisePlan(packing, where, images, channels)
        kw = where.kernel[1]
        unrolled = channels * math.prod(where.kernel) * math.prod(where.out)
        if self.group > 1 or kw > 16 or kw * channels < 32 or unrolled < 1 << 13:
            return PatchPlan(filters, where, images, self.group)
        return RowPlan(packing, where, images)


def _with_last_axis(a: Array) -> Array:
    return np.ascontiguousarray(a)[:, :, :, None]


def _with_third_axis(a: Array) -> Array:
    return np.ascontiguousarray(a)[:, :, None]


def _widened(where: Windows, first: bool) -> Windows:
    """One spatial axis as two: (L, 1) if `first`, else (1, L)."""

    def pair(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return (values[0], other) if first else (other, values[0])

    return Windows(
        pair(where.size, 1),
        pair(where.kernel, 1),
        pair(where.strides, 1),
        pair(where.dilations, 1),
        pair(where.before, 0),
        pair(where.after, 0),
        pair(where.out, 1),
    )
