"""What `debug locate` does between its options and its output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from polytool.cli import options
from polytool.cli.output import note

if TYPE_CHECKING:
    from polytool.comparators.findings import Location

_SHOWN = 12  # reasons why something was not checked
_DEFAULT_TARGET = "snr>=40"


def run_locate(
    model: str,
    building: Mapping[str, Any],
    feeds: options.FeedOptions,
    against: str,
    engine: str | None,
    targets: tuple[str, ...],
    fix: str | None,
    reproducer: str | None,
    external_data_dir: str | None,
    report: str | None,
) -> Location:
    """Make the inputs, locate, and write the fix."""
    import sys

    from polytool.agreement import ENGINE_OPTIONS, check_engine
    from polytool.conversion import check_writable
    from polytool.debugging import locate
    from polytool.feeds import save_feeds
    from polytool.model import load

    if fix is not None:
        check_writable(fix)
        targets = targets or (_DEFAULT_TARGET,)
    if engine is not None:
        check_engine(engine)
    source = load(model, external_data_dir=external_data_dir)
    data = feeds.make(source)
    for text in data.notes:
        note(text)
    if feeds.save_inputs:
        save_feeds(data, feeds.save_inputs)

    def progress(text: str) -> None:
        click.echo(f"\r\033[K{text}", err=True, nl=False)

    found = locate(
        source,
        data,
        against=against,
        engine=engine,
        targets=targets,
        reproducer=reproducer,
        draw=report is not None,
        progress=progress if sys.stderr.isatty() else None,
        **{k: v for k, v in building.items() if engine is None or k in ENGINE_OPTIONS},
    )
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)
    for text in found.not_checked[:_SHOWN]:
        note(f"not checked: {text}")
    if len(found.not_checked) > _SHOWN:
        note(f"not checked: {len(found.not_checked) - _SHOWN} more (--json lists them)")
    if fix is not None and found.fix is not None and found.fix["layer_precisions"] is not None:
        _write(fix, {"layer_precisions": found.fix["layer_precisions"]})
    return found


def _write(path: str, value: dict[str, Any]) -> None:
    from polytool.files import replacing, write_all

    with replacing(path) as file:
        write_all(file, (json.dumps(value, indent=2) + "\n").encode())
