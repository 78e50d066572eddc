"""Find the smallest part of a model that still fails."""

from __future__ import annotations

import click

from polytool.checks import CommandCheck
from polytool.cli import _checks, _runners, options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the reduced model goes, as reduced.onnx.")
@_runners.chosen
@_runners.builder
@options.feeds
@_checks.checked
@options.option("--rtol", type=float, help="Relative tolerance of the comparison.")
@options.option("--atol", type=float, help="Absolute tolerance of the comparison.")
@options.option(
    "--mode",
    type=click.Choice(["bisect", "linear"]),
    default="bisect",
    help="Delta debugging, or one node after the other.",
)
@options.option("--min-good", metavar="PATH", help="Write the largest part that does not fail.")
@options.option(
    "--iter-artifact",
    default="polytool_debug.onnx",
    metavar="PATH",
    help="Where --check finds each part; its inputs lie beside it as .inputs.npz.",
)
@options.option("--save-debug-replay", metavar="PATH", help="Keep what was found out.")
@options.option("--load-debug-replay", metavar="PATH", help="Go on from there.")
@options.json
def reduce(check: CommandCheck | None, as_json: bool, **given: object) -> None:
    """Find the smallest part of a model that still fails.

    A part fails when --check does, or when the two runners disagree on it. Its inputs are the real
    values that the whole model has there; they are written beside the reduced model.

    \b
    Example: polytool debug reduce model.onnx -o small.onnx --native --fp16 --onnxrt --rtol 0.01
    """
    from polytool.cli._reducing import run_reduce, show

    found = run_reduce(check, **given)  # type: ignore[arg-type]  # click has checked the types
    result(as_json, show(found, str(given["output"])), found.to_json())
