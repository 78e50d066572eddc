"""What two runs computed with, and where that is not the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Settings = Mapping[str, Any]
_WIDE = {"fp16": "float16", "bf16": "bfloat16", "tf32": "TF32", "fp64": "float64"}


def differing_settings(
    a: Settings, b: Settings, in_a: str = "here", in_b: str = "there"
) -> list[str]:
    """What changes numbers and is not the same in both, in words.

    Two runs of one backend are compared setting by setting, a missing one being its default; runs
    of different backends in what both state, and in how float32 and float16 are computed.

    Args:
        a, b: `Runner.settings`; where one is empty, nothing is known and nothing said.
        in_a, in_b: how the text calls them, as `in native`.
    """
    if not a or not b:
        return []
    backend = a.get("backend", a.get("runner"))
    alike = backend is not None and backend == b.get("backend", b.get("runner"))
    names = dict.fromkeys((*a, *b)) if alike else [name for name in a if name in b]
    found = [
        f"{name}: {a.get(name)} {in_a}, {b.get(name)} {in_b}"
        for name in names
        if name != "runner" and not _same(a.get(name), b.get(name))
    ]
    return found if alike else [*found, *_computed(a, b, in_a, in_b)]


def _computed(a: Settings, b: Settings, in_a: str, in_b: str) -> Iterator[str]:
    """How different backends compute what the model calls float32 and float16."""
    for kind, what in (("float32", _float32), ("float16", _float16)):
        one, other = what(a), what(b)
        said = kind == "float32" and "precision" in a and "precision" in b
        if one != other and "float64" not in (one, other) and not said:
            yield f"{kind} is computed as {one} {in_a}, as {other} {in_b}"


def _float32(settings: Settings) -> str:
    if settings.get("tf32") is True:
        return "TF32"
    return _WIDE.get(str(settings.get("precision")), "float32")


def _float16(settings: Settings) -> str:
    return "float64" if settings.get("precision") == "fp64" else settings.get(_FLOAT16, "float16")


_FLOAT16 = "float16_in"
"""The setting of a runner that computes the model's float16 in another type."""


def _same(x: Any, y: Any) -> bool:
    return bool(np.array_equal(x, y)) if isinstance(x, np.ndarray) else bool(x == y)
