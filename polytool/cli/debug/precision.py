"""Find layers that must stay in higher precision for a command of yours to pass."""

from __future__ import annotations

import click

from polytool.checks import CommandCheck
from polytool.cli import _checks, _runners, options
from polytool.cli.output import result


@options.command()
@options.model
@_runners.builder
@_checks.checked
@options.feeds
@options.option(
    "--target",
    "targets",
    several=True,
    metavar="TARGET",
    help="What outputs must reach against float64, in place of --check, as snr>=40.",
)
@options.option(
    "--mode",
    type=click.Choice(["bisect", "linear"]),
    default="bisect",
    help="Halve the number of layers and leave out what is not needed, or add one after the other.",
)
@options.option(
    "--dir",
    "--direction",
    "direction",
    type=click.Choice(["forward", "reverse"]),
    default="forward",
    help="Begin with the first layers or with the last.",
)
@options.option(
    "--precision",
    "-p",
    type=click.Choice(["fp32", "float32", "tf32", "bf16", "fp16", "float16"]),
    default="fp32",
    help="Precision of the layers that are kept higher.",
)
@options.option(
    "--iter-artifact",
    default="polytool_debug.engine",
    metavar="PATH",
    help="Where --check finds each engine.",
)
@options.option("--artifacts", several=True, metavar="PATH", help="Files to sort after each run.")
@options.option("--art-dir", default="polytool_artifacts", metavar="DIR", help="Where they go.")
@options.output(required=False, help="Write the layers for --layer-precisions, as fix.json.")
@options.json
def precision(check: CommandCheck | None, as_json: bool, **given: object) -> int:
    """Find layers that must stay in higher precision for a command of yours to pass.

    Engines are built in --fp16 unless another precision is asked for. What knows the numbers of
    your model, and tells why, is polytool debug locate --fix.

    \b
    Example: polytool debug precision m.onnx --fp16 --check 'polytool run polytool_debug.engine ...'
    """
    from polytool.cli._precision import run_precision, show

    found = run_precision(check, **given)  # type: ignore[arg-type]  # click has checked the types
    result(as_json, show(found, str(given["precision"])), found.to_json())
    return int(found.layers is None)
