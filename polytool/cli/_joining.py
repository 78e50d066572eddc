"""What the commands of `data` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from polytool.cli import options
from polytool.cli.output import note, result

F = TypeVar("F", bound=Callable[..., Any])


def paths(function: F) -> F:
    """PATHS: files or directories of saved data."""
    return click.argument("paths", metavar="PATHS...", nargs=-1, required=True)(function)


output = options.output(
    required=True,
    help="The file to write: .json for Polygraphy, .npz, or any other name for polytool's own "
    "format; a name without an extension becomes a directory.",
)


def merge_into(paths: Sequence[str], output: str, as_json: bool) -> None:
    """Write the merged inputs, and say what is in them."""
    from polytool.feeds import save_feeds
    from polytool.saved_data import merge

    feeds, notes = merge(paths)
    save_feeds(feeds, output)
    for text in notes:
        note(text)
    tensors = list(dict.fromkeys(name for feed in feeds for name in feed))
    facts = {"output": output, "kind": "inputs", "iterations": len(feeds), "tensors": tensors}
    text = f"{output}: {len(feeds)} iterations of {', '.join(tensors)}"
    result(as_json, text, facts)
