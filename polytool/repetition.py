"""Whether the same inputs give the same outputs again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def changes(
    first: Mapping[str, Any], again: Mapping[str, Any]
) -> Iterator[tuple[str, float | None]]:
    """The outputs that are not bit for bit the same, with their largest difference.

    The difference is None where values are no numbers, or their number has changed.
    """
    for name, value in first.items():
        pairs = list(_leaves(value, again.get(name)))
        changed = [(a, b) for a, b in pairs if not _identical(a, b)]
        if changed:
            differences = [_difference(a, b) for a, b in changed]
            known = [d for d in differences if d is not None]
            yield name, max(known) if len(known) == len(differences) else None


def _leaves(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _leaves(x, y)
    elif isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        for key in a:
            yield from _leaves(a[key], b[key])
    else:
        yield a, b


def _identical(a: Any, b: Any) -> bool:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def _difference(a: Any, b: Any) -> float | None:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape != b.shape:
        return None
    if object in (a.dtype, b.dtype) or not a.size:
        return None
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(a.astype(wide) - b.astype(wide)), initial=0.0))
