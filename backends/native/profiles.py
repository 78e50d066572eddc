"""Optimization profiles: the range of input shapes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.errors import UsageError

Dims = tuple[int, ...]


@dataclass(frozen=True)
class OptimizationProfile:
    """For each dynamic input the smallest, the usual and the largest shape.

    Attributes:
        shapes: input name to `(min, opt, max)`.
    """

    shapes: Mapping[str, tuple[Dims, Dims, Dims]] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[Sequence[int]]]) -> OptimizationProfile:
        """A profile from `{"x": (min, opt, max)}`.

        Raises:
            UsageError: not three shapes of one rank, or not min <= opt <= max in every dimension.
        """
        checked = {}
        for name, triple in shapes.items():
            dims = [tuple(int(d) for d in shape) for shape in triple]
            if len(dims) != 3 or len({len(d) for d in dims}) != 1:
                raise UsageError(
                    f"the profile of input {name!r} must be (min, opt, max), three shapes of one "
                    f"rank, not {list(triple)}"
                )
            low, opt, high = dims
            if any(not a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
                raise UsageError(
                    f"the profile of input {name!r} needs min <= opt <= max in every dimension, "
                    f"not {list(low)}, {list(opt)}, {list(high)}"
                )
            checked[name] = (low, opt, high)
        return cls(checked)

    def misfit(self, name: str, shape: Sequence[int]) -> str | None:
        """Why `shape` is outside the profile, or None when it is inside."""
        if name not in self.shapes:
            return None
        low, _, high = self.shapes[name]
        if len(shape) == len(low) and all(
            a <= s <= b for a, s, b in zip(low, shape, high, strict=True)
        ):
            return None
        return f"{name} has shape {list(shape)}, outside {list(low)} to {list(high)}"

    def to_samples(self) -> list[dict[str, Dims]]:
        """The input shapes at min, opt and max."""
        return [{name: t[i] for name, t in self.shapes.items()} for i in range(3)]

    def to_json(self) -> dict[str, Any]:
        """`{"x": [min, opt, max]}`."""
        return {name: [list(d) for d in triple] for name, triple in self.shapes.items()}


def select_profiles(
    profiles: Sequence[OptimizationProfile], index: int | None, who: str
) -> Sequence[OptimizationProfile]:
    """All profiles, or the one of that number.

    Raises:
        UsageError: there is none of that number.
    """
    if index is None:
        return profiles
    if not 0 <= index < len(profiles):
        count = f"{len(profiles)} optimization profile{'' if len(profiles) == 1 else 's'}"
        known = f" (0 to {len(profiles) - 1})" if len(profiles) > 1 else " (0)" if profiles else ""
        raise UsageError(
            f"there is no optimization profile {index}: {who} has {count}{known}; build it with "
            "more of --native-min-shapes and --native-max-shapes"
        )
    return [profiles[index]]


def check_profiles(
    profiles: Sequence[OptimizationProfile], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Check that some profile holds all `shapes`.

    Raises:
        UsageError: no profile does; the message gives each profile's reason.
    """
    if not profiles:
        return
    reasons = []
    for profile in profiles:
        misfits = [m for n, s in shapes.items() if (m := profile.misfit(n, s)) is not None]
        if not misfits:
            return
        reasons.append("; ".join(misfits))
    raise UsageError(
        "the input shapes fit no optimization profile of the engine: "
        + " | ".join(reasons)
        + "; build the engine with a wider profile"
    )
