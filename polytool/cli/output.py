"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from polytool.errors import PolytoolError
from polytool.text import table as table  # what commands print with, in one place
from polytool.text import verdict as verdict

T = TypeVar("T")


def result(as_json: bool, text: str, value: Mapping[str, Any]) -> None:
    """Print a command's result: as one JSON object when `--json` asks for it, else as text."""
    if as_json:
        print_json(value)
    else:
        click.echo(text)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    import json

    click.echo(json.dumps(to_json(value), indent=2, allow_nan=False, ensure_ascii=False))


def to_json(value: Any) -> Any:
    """`value` in terms of JSON: arrays as lists, numbers that are not finite as null."""
    import dataclasses
    import enum
    import math

    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_json(item) for item in value)
    if isinstance(value, Iterable):
        return [to_json(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        return to_json(value.item())
    return str(value)


def note(text: str) -> None:
    """Say something beside the result: on stderr, and not with -q."""
    logging.getLogger("polytool").warning("%s", text)


@contextmanager
def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[Iterable[T]]:
    """`with progress(items, "comparing") as items: for item in items: ...`

    A bar on stderr when that is a terminal, nothing otherwise.
    """
    if not sys.stderr.isatty() or shown_level() > logging.WARNING:
        yield items
        return
    with click.progressbar(items, label=label, length=length, file=sys.stderr) as bar:
        yield bar


def shown_level() -> int:
    """From which level on log messages appear on stderr: ERROR with -q, INFO with -v."""
    handlers = logging.getLogger("polytool").handlers
    return handlers[0].level if handlers else logging.WARNING


def report_failure(err: Exception) -> int:
    """Say on stderr why there is no answer, and return the exit code."""
    known = _known(err)
    if known is None or shown_level() < logging.WARNING:
        click.echo("".join(traceback.format_exception(err)), err=True, nl=False)
    label = click.style("polytool:", fg="red", bold=True)
    if known is not None:
        text, code = known
        click.echo(f"{label} {text}", err=True)
        return code
    import platform

    from polytool.environment import versions

    stamp = ", ".join(f"{name} {version}" for name, version in versions().items())
    click.echo(
        f"{label} this is a defect of polytool ({type(err).__name__}), not of your model; please "
        "report it with the traceback above, the command, the model if you can share it, and:\n"
        f"  {platform.platform()}, Python {platform.python_version()}, {stamp}",
        err=True,
    )
    return 3


def _known(err: Exception) -> tuple[str, int] | None:
    """The sentence and exit code of a failure that is not polytool's fault."""
    if isinstance(err, PolytoolError):
        return str(err), err.exit_code
    if isinstance(err, MemoryError):
        return f"there is not enough memory: {err or 'an allocation failed'}; use smaller inputs", 2
    if isinstance(err, OSError) and err.filename is not None:
        return f"{err.filename}: {err.strerror}", 2
    return None
