"""Judge a saved comparison by other tolerances, without running anything."""

from __future__ import annotations

import click

from polytool.cli import _comparing, options
from polytool.cli.output import note, result


@options.command()
@click.argument("path", metavar="PATH")
@_comparing.comparing
@options.json
def accuracy(path: str, comparing: _comparing.Comparing, as_json: bool) -> int:
    """Judge a saved comparison by other tolerances, without running anything.

    PATH was written by `polytool run --save-accuracy-results`. Without tolerances and metrics the
    verdict is the one that was saved.

    \b
    Example: polytool check accuracy accuracy.json --rtol 1e-3 --atol 1e-4
    """
    from polytool.comparators.comparison import Comparison
    from polytool.comparators.comparison_text import describe
    from polytool.errors import UsageError

    without_arrays = {
        "--postprocess": comparing.postprocess,
        "--postprocess-func-script": comparing.postprocess_script,
        "--compare-func-script": comparing.compare_script,
        "--no-shape-check": not comparing.criteria.check_shapes,
    }
    if wrong := [flag for flag, value in without_arrays.items() if value]:
        raise UsageError(f"{wrong[0]} needs the outputs, but {path!r} holds only their errors")
    comparison = Comparison.load(path).recheck(comparing.criteria)
    if comparing.save is not None:
        comparison.save(comparing.save)
    for text in comparing.notes:
        note(text)
    result(as_json, describe(comparison), comparison.to_json())
    return comparison.exit_code
