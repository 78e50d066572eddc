"""Show saved inputs and outputs with their statistics."""

from __future__ import annotations

import click

from polytool.cli import _saved, options
from polytool.cli.output import result


@options.command()
@click.argument("path", metavar="PATH")
@options.option(
    "-a",
    "--all",
    "--all-iterations",
    "every",
    is_flag=True,
    help="Show every iteration, not only the first.",
)
@options.option("-s", "--show-values", is_flag=True, help="Print the values too.")
@options.option("--histogram", is_flag=True, help="Print how the values are distributed.")
@options.option(
    "-n",
    "--num-items",
    type=int,
    default=3,
    metavar="N",
    help="Values at each end of a dimension; -1 for all.",
)
@options.option(
    "--line-width",
    type=int,
    default=75,
    metavar="N",
    help="Characters a line of values; -1 breaks lines at dimensions only.",
)
@options.json
def data(
    path: str,
    every: bool,
    show_values: bool,
    histogram: bool,
    num_items: int,
    line_width: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Show saved inputs and outputs with their statistics.

    PATH is a file that --save-inputs, --save-outputs or Polygraphy wrote, an .npz or .npy, or a
    directory of such files.

    \b
    Example: polytool inspect data results.safetensors -s
    """
    from polytool.saved_data import load_saved, selected

    saved = load_saved(path)
    layout = _saved.Layout(show_values, histogram, num_items, line_width)
    runs = selected(saved.runs, every)
    result(as_json, layout.text(path, saved, runs), layout.facts(path, saved, runs))
