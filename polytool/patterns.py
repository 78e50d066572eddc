"""Values that belong to tensors by name: `[name:]value`, where a name may be a pattern."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from polytool.errors import UsageError

T = TypeVar("T")


def parse_named(
    texts: Iterable[str], convert: Callable[[str], T], what: str, *, need_name: bool = False
) -> dict[str, T]:
    """`["1e-3", "scores*:1e-2"]` as `{"": 0.001, "scores*": 0.01}`; split at the last colon.

    Args:
        texts: the arguments.
        convert: reads one value; raises ValueError where it cannot.
        what: what a value is, for messages: `a tolerance such as 1e-3`.
        need_name: whether a value without a name has no meaning.

    Raises:
        UsageError: a value cannot be read, or a name is missing or given twice.
    """
    found: dict[str, T] = {}
    for text in texts:
        name, colon, value = text.rpartition(":")
        if need_name and not (colon and name):
            raise UsageError(f"{text!r} names no tensor: write name:{value or text}")
        try:
            converted = convert(value)
        except ValueError:
            raise UsageError(f"{value!r} in {text!r} is not {what}") from None
        if name in found:
            raise UsageError(f"{text!r} gives a second value for {name or 'all tensors'!r}")
        found[name] = converted
    return found


def lookup(values: Mapping[str, T], name: str) -> T | None:
    """The value for the tensor `name`: its own, else the last pattern's that fits, else ""'s."""
    if not values:
        return None
    if name in values:
        return values[name]
    fitting = [v for pattern, v in values.items() if pattern and fnmatchcase(name, pattern)]
    return fitting[-1] if fitting else values.get("")


def check_used(values: Mapping[str, object], names: Iterable[str], what: str) -> None:
    """Refuse names and patterns that fit none of `names`.

    Raises:
        UsageError: the message names each of them, and the nearest name there is.
    """
    known = list(names)
    for pattern in values:
        if pattern and not any(n == pattern or fnmatchcase(n, pattern) for n in known):
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {_listed(known)}"
            raise UsageError(f"{what} is given for {pattern!r}, which does not exist; {hint}")


def _listed(names: list[str], at_most: int = 8) -> str:
    shown = ", ".join(names[:at_most]) or "none"
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown
