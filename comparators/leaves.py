"""Values of any kind as pairs of arrays: sequences, maps and optionals are taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.errors import UsageError
from polytool.tensors import DType, as_numpy

Array = Any


@dataclass(frozen=True)
class Leaf:
    """One array on each side, or the reason why there is none to compare.

    Attributes:
        path: where in the output it stands: "" for the whole, `[2]` in a sequence.
        a: the array, and `r` its reference; both None where both sides are absent.
        problem: what is different before any value is looked at.
    """

    path: str
    a: Array = None
    r: Array = None
    problem: str = ""


def leaves(a: Any, r: Any, path: str = "") -> Iterator[Leaf]:
    """Every pair of arrays in two values of an output."""
    kinds = _kind(a), _kind(r)
    if kinds[0] != kinds[1]:
        yield Leaf(path, problem=f"{_say(a)} against {_say(r)}")
    elif isinstance(a, Mapping):
        if set(a) != set(r):
            yield Leaf(path, problem="maps of other keys")
        else:
            for key in a:
                yield from leaves(a[key], r[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        if len(a) != len(r):
            yield Leaf(path, problem=f"a sequence of {len(a)} against one of {len(r)}")
        else:
            for index, (x, y) in enumerate(zip(a, r, strict=True)):
                yield from leaves(x, y, f"{path}[{index}]")
    elif a is None:
        yield Leaf(path)
    else:
        yield _arrays(a, r, path)


def _arrays(a: Any, r: Any, path: str) -> Leaf:
    try:
        return Leaf(path, as_numpy(a), as_numpy(r))
    except UsageError as err:
        raise UsageError(f"an output cannot be compared: {err}") from None


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "map"
    return "sequence" if isinstance(value, list | tuple) else "array"


def _say(value: Any) -> str:
    names = {"none": "nothing", "map": "a map", "sequence": "a sequence", "array": "an array"}
    return names[_kind(value)]


def dtype_of(array: Array) -> DType:
    """The element type; strings are object arrays."""
    return DType.STRING if array.dtype == object else DType.of(array)


def fit(leaf: Leaf, *, check_shapes: bool, check_dtypes: bool) -> Leaf:
    """`leaf`, with a problem where shapes or types differ and that matters.

    Without `check_shapes`, arrays of one size are compared in the order of their elements.
    """
    if leaf.problem or leaf.a is None:
        return leaf
    a, r = leaf.a, leaf.r
    types = dtype_of(a), dtype_of(r)
    strings = [t is DType.STRING for t in types]
    if types[0] is not types[1] and (check_dtypes or any(strings)):
        return Leaf(leaf.path, problem=f"{types[0].label} against {types[1].label}")
    if a.shape != r.shape:
        if check_shapes or a.size != r.size:
            return Leaf(leaf.path, problem=f"shape {list(a.shape)} against {list(r.shape)}")
        a, r = np.reshape(a, -1), np.reshape(r, -1)
    return Leaf(leaf.path, a, r)
