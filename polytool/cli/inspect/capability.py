"""Show what the native engine cannot run in a model, by node."""

from __future__ import annotations

import click

from polytool.cli import options
from polytool.cli.output import note, result


@options.command()
@options.model
@click.option(
    "--with-partitioning",
    is_flag=True,
    help="Save the supported and the unsupported parts as models of their own.",
)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    default="polytool_capability_dumps",
    show_default=True,
    help="Where to save them.",
)
@options.external_data_dir
@options.json
def capability(
    model: str, with_partitioning: bool, output: str, external_data_dir: str | None, as_json: bool
) -> int:
    """Show every node of MODEL that the native engine cannot run, with the reason.

    Exits with 1 if there is one.

    \b
    Example: polytool inspect capability model.onnx --with-partitioning -o parts
    """
    from polytool.capability import capability as find
    from polytool.capability import text
    from polytool.model import load

    source = load(model, external_data_dir=external_data_dir)
    found = find(source, partitions=output if with_partitioning else None)
    if with_partitioning and found.supported:
        note("--with-partitioning saved nothing: there is nothing to cut out")
    result(as_json, text(found), found.to_json())
    return int(not found.supported)
