"""Tell which tactics only bad engines have."""

from __future__ import annotations

import click

from polytool.cli import options
from polytool.cli.output import result


@options.command()
@click.argument("good", type=click.Path())
@click.argument("bad", type=click.Path())
@options.json
def diff_tactics(good: str, bad: str, as_json: bool) -> int:
    """Tell which tactics every BAD engine has and no GOOD one.

    Both are engines, files of --save-tactics, or directories of them, such as `debug build` makes.
    Exit code 1 says that there are some.

    \b
    Example: polytool inspect diff-tactics good.json bad.json
    """
    from polytool.tactic_files import compare_decisions

    found = compare_decisions(good, bad)
    lines = [f"only in bad engines: {layer}: {tactic}" for layer, tactic in found.suspects]
    count = f"{len(found.good)} good and {len(found.bad)} bad, for {found.device}"
    text = "\n".join(lines) or "no tactic tells the bad engines from the good ones"
    result(as_json, f"{text}\n{count}", found.to_json())
    return int(bool(found.suspects))
