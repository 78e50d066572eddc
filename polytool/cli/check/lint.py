"""Find every faulty node of a model, not only the first."""

from __future__ import annotations

import json

from polytool.cli import _surgeon, options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(help="Write the report to this file as JSON.")
@options.option(
    "--providers",
    several=True,
    default=("CPUExecutionProvider",),
    help="onnxruntime's execution providers.",
)
@options.feeds
@options.external_data
@options.json
def lint(
    model: str,
    output: str | None,
    providers: tuple[str, ...],
    feeds: options.FeedOptions,
    external_data_dir: str | None,
    ignore_external_data: bool,
    as_json: bool,
) -> int:
    """Find every faulty node of MODEL with its cause, and what could become a fault.

    Exit code 1 when something is broken; warnings and notes do not count.

    \b
    Example: polytool check lint model.onnx -o report.json
    """
    from polytool.files import replacing
    from polytool.model import load
    from polytool.surgeon import lint as look

    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    found = look(source, feeds=_surgeon.given_feed(feeds, source), providers=providers)
    if output is not None:
        with replacing(output) as file, open(file, "w", encoding="utf-8", closefd=False) as text:
            json.dump(found.to_json(), text, indent=2)
    result(as_json, found.summary(), found.to_json())
    return 0 if found.is_valid else 1
