"""What is asked of a comparison: tolerances, thresholds of metrics, and the floors of the dtypes.

The default rule compares with three numbers at once, all relative to the reference `r`:

* the norm of the error over the norm of r: what a fault in a whole layer changes;
* the largest error over the largest |r|: what a fault in one place changes;
* along each axis, the norm of the error in each slice over that of r there: what a fault in one
  small channel beside large ones changes (boxes beside scores).

Each must stay below the floor of the element type, or below ten times the model's own response.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.errors import UsageError
from polytool.patterns import check_used, lookup
from polytool.tensors import DType

Named = Mapping[str, Any]

RESPONSE_FACTOR = 10.0
UNSTABLE = 0.01  # of scale: above that the response no longer grows with the noise ...
UNSTABLE_FACTOR = 2.0  # ... so that two sound runs are hardly further apart than it is;
UNSTABLE_SPREAD = 3.0  # single values and counts scatter more than norms do
SMALL_SLICE = 0.01  # of the root mean square of the whole: below, rounding of the rest shows


class OfScale(float):
    """A grain, as `compare` takes it, in units of the largest value in place of an absolute one."""


@dataclass(frozen=True)
class Floor:
    """What rounding alone may do, relative to scale.

    Attributes:
        name: the element type or precision that it belongs to.
        l2: of the norm of the error.
        largest: of the largest error, and of the norm in a slice.
        unmeasured: how many times as high the floor is where nobody can measure the model's
            response: it must then hold for badly conditioned models too.
    """

    name: str
    l2: float
    largest: float
    unmeasured: float = 1.0

    def alone(self) -> Floor:
        """The floor without a response beside it."""
        return Floor(self.name, self.unmeasured * self.l2, self.unmeasured * self.largest)


# float32: over the real models that we test on, sound runners are at most 3.4e-6 and 2e-5 apart,
# and planted faults begin at 1e-5. Reduced types: a few roundings of every element.
_FLOORS = {
    "float64": Floor("float64", 1e-10, 1e-9, 20.0),
    "float32": Floor("float32", 5e-6, 5e-5, 20.0),
    "tf32": Floor("tf32", 5e-3, 2.5e-2),
    "float16": Floor("float16", 1e-2, 5e-2),
    "bfloat16": Floor("bfloat16", 5e-2, 0.25),
    "float8": Floor("float8", 0.25, 0.5),
    "float4": Floor("float4", 0.3, 0.6),
}
_PRECISIONS = {
    "fp64": "float64",
    "fp32": "float32",
    "tf32": "tf32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "int8": "float8",
}


def floor_of(dtypes: Sequence[DType], precisions: Sequence[str]) -> Floor:
    """The highest of the floors of these element types and precisions (`fp32`, `bf16` ...)."""
    names = [_floor_name(d) for d in dtypes]
    names += [_PRECISIONS[p] for p in precisions if p in _PRECISIONS]
    return max((_FLOORS[n] for n in names), key=lambda f: f.l2)


def _floor_name(dtype: DType) -> str:
    label = dtype.label
    if label in _FLOORS:
        return label
    if label.startswith(("float8", "float4")):
        return label[:6]
    return "float64" if dtype in (DType.COMPLEX128,) else "float32"


def precisions_of(settings: Mapping[str, Any]) -> list[str]:
    """Every precision that a runner's settings name."""
    layers = settings.get("layer_precisions")
    found = [settings.get("precision"), *(layers.values() if isinstance(layers, Mapping) else ())]
    found += ["tf32"] if settings.get("tf32") is True else []
    return [p for p in found if isinstance(p, str)]


@dataclass(frozen=True)
class Metric:
    """A number that can be asked for by name.

    Attributes:
        field: where `Errors` has it.
        threshold: what is asked of it where the user says nothing.
        higher_is_better: whether it must be at least the threshold.
    """

    field: str
    threshold: float
    higher_is_better: bool = False
    unit: str = ""

    def passes(self, value: float | None, threshold: float) -> bool:
        """Whether `value` is good enough; nothing and NaN are not."""
        if value is None or math.isnan(value):
            return False
        return value >= threshold if self.higher_is_better else value <= threshold


# Names and thresholds of Polygraphy where it has them.
METRICS = {
    "l2": Metric("l2", 1e-5),
    "relative_l2": Metric("rel_l2", 1e-4),
    "cosine_similarity": Metric("cosine_similarity", 0.997, higher_is_better=True),
    "psnr": Metric("psnr", 30.0, higher_is_better=True, unit=" dB"),
    "snr": Metric("snr", 20.0, higher_is_better=True, unit=" dB"),
    "ulp": Metric("max_ulp", 16.0),
    "indices": Metric("index_distance", 0.0),
}
_ALIASES = {"cosine": "cosine_similarity", "rel_l2": "relative_l2"}
_GROUPS = {"distance_metrics": ("l2", "cosine_similarity"), "quality_metrics": ("psnr", "snr")}
STATISTICS = ("elemwise", "max", "mean", "median", "quantile")


@dataclass(frozen=True)
class Criteria:
    """What two outputs must fulfil to agree.

    Attributes:
        rtol: relative tolerance by output name or pattern, "" for all; empty for the default rule.
        atol: absolute tolerance in the same way.
        statistic: `elemwise` (|e| <= atol + rtol |r| everywhere), or `max`, `mean`, `median`,
            `quantile`: that statistic of |e| is within atol, or that of |e|/|r| within rtol.
        quantile: which quantile.
        metrics: thresholds by metric name, then by output name or pattern.
        simple: whether tolerances or the default rule are checked beside the metrics.
        check_shapes: whether the shapes must be equal.
        check_dtypes: whether the element types must be equal.
        require_finite: whether NaN and Inf are a failure even where both sides have them.
        average: check the mean of each metric over the iterations.
        fail_fast: stop at the first output that differs.
        full: gather every statistic, so that others can be asked for later.
    """

    rtol: Named = field(default_factory=dict)
    atol: Named = field(default_factory=dict)
    statistic: Named = field(default_factory=dict)
    quantile: Named = field(default_factory=dict)
    metrics: Mapping[str, Named] = field(default_factory=dict)
    simple: bool = True
    check_shapes: bool = True
    check_dtypes: bool = True
    require_finite: bool = False
    average: bool = False
    fail_fast: bool = False
    full: bool = False

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UsageError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
        for name in self.statistic.values():
            if name not in STATISTICS:
                raise UsageError(
                    f"{name!r} is no error statistic; there are {', '.join(STATISTICS)}"
                )
        for what, values in (("rtol", self.rtol), ("atol", self.atol)):
            for value in values.values():
                if not value >= 0:
                    raise UsageError(f"{value} is no {what}: it must be a number from 0 on")
        if any(not 0 <= q <= 1 for q in self.quantile.values()):
            raise UsageError("a quantile lies between 0 and 1")
        if self.statistic and not (self.rtol or self.atol):
            raise UsageError(
                "an error statistic is checked against tolerances: give --rtol or --atol too"
            )
        if self.quantile and "quantile" not in self.statistic.values():
            raise UsageError("a quantile is used only with --check-error-stat quantile")
        if self.average and self.fail_fast:
            raise UsageError(
                "an average needs every iteration: drop --fail-fast or --check-average"
            )

    def tolerances(self, output: str) -> tuple[float, float] | None:
        """(rtol, atol) for an output; None where the default rule holds."""
        rtol, atol = lookup(self.rtol, output), lookup(self.atol, output)
        if rtol is None and atol is None:
            return None
        return rtol or 0.0, atol or 0.0

    def thresholds(self, output: str) -> dict[str, float]:
        """Metric name to threshold, for an output."""
        found = {}
        for name, values in self.metrics.items():
            own = lookup(values, output)
            found[name] = METRICS[name].threshold if own is None else float(own)
        return found

    def check_names(self, outputs: Sequence[str]) -> None:
        """Refuse values for outputs that do not exist.

        Raises:
            UsageError: the message names the first of them.
        """
        several = {"a relative tolerance": self.rtol, "an absolute tolerance": self.atol,
                   "an error statistic": self.statistic, "a quantile": self.quantile}  # fmt: skip
        several |= {f"a threshold for {name}": values for name, values in self.metrics.items()}
        for what, values in several.items():
            check_used(values, outputs, what)


def criteria_of(
    rtol: float | Named | None = None,
    atol: float | Named | None = None,
    metrics: Sequence[str] | Mapping[str, Any] | None = None,
    **more: Any,
) -> Criteria:
    """Criteria from what people write: numbers or mappings, names of metrics or thresholds.

    Args:
        rtol: a number for all outputs, or a mapping by name or pattern.
        atol: in the same way.
        metrics: names of metrics, or name -> threshold (a number, a mapping by output, or None for
            the usual one). `simple` among them keeps the check of tolerances.
        more: other fields of `Criteria`.

    Raises:
        UsageError: a name or value has no meaning.
    """
    named: dict[str, Any] = {}
    items = metrics.items() if isinstance(metrics, Mapping) else ((m, None) for m in metrics or ())
    for name, value in items:
        for one in _GROUPS.get(name, (_ALIASES.get(name, name),)):
            named[one] = value
    simple = "simple" in named or not named or rtol is not None or atol is not None
    named.pop("simple", None)
    return Criteria(
        rtol=_named(rtol),
        atol=_named(atol),
        metrics={k: _named(v) for k, v in named.items()},
        simple=simple,
        **more,
    )


def _named(value: Any) -> Named:
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"": float(value)}
