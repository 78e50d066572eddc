"""Text for people: verdicts in their colours, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

COLORS = {
    "agree": "green",
    "passed": "green",
    "expected": "green",
    "differ": "red",
    "failed": "red",
    "broken": "red",
    "not_compared": "yellow",
    "suspicious": "yellow",
    "not_repeatable": "yellow",
}


def verdict(word: str) -> str:
    """A verdict in the colour that it has everywhere; plain where the output takes no colour."""
    return click.style(word.replace("_", " "), fg=COLORS.get(word), bold=True)


def emphasis(text: str) -> str:
    """What a reader should see first."""
    return click.style(text, bold=True)


def shorten(text: str, width: int) -> str:
    """At most `width` characters; the middle of a longer text goes."""
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return f"{text[: width - 3 - half]}...{text[-half:]}"


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str], *, align: str = "") -> str:
    """Rows under headers.

    Args:
        rows: cells; numbers are shown as `str` shows them, so format floats before.
        headers: one a column.
        align: `l` or `r` a column; by default all to the left.
    """
    from tabulate import tabulate

    names = {"l": "left", "r": "right"}
    columns = [names[x] for x in align or "l" * len(headers)]
    cells = [[str(cell) for cell in row] for row in rows]
    return tabulate(cells, headers, tablefmt="simple", colalign=columns, disable_numparse=True)
