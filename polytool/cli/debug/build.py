"""Build an engine again and again, and tell which tactics only bad ones have."""

from __future__ import annotations

from polytool.checks import CommandCheck
from polytool.cli import _checks, _runners, options
from polytool.cli.output import result


@options.command()
@options.model
@_runners.builder
@_checks.checked
@options.option(
    "--until",
    default="1",
    metavar="N|good|bad",
    help="How often: a number, or until the first good or bad engine.",
)
@options.option(
    "--iter-artifact",
    default="polytool_debug.engine",
    metavar="PATH",
    help="Where --check finds each engine.",
)
@options.option("--artifacts", several=True, metavar="PATH", help="Files to sort after each run.")
@options.option("--art-dir", default="polytool_artifacts", metavar="DIR", help="Where they go.")
@options.json
def build(
    check: CommandCheck | None,
    model: str,
    builder: _runners.Builder,
    until: str,
    iter_artifact: str,
    artifacts: tuple[str, ...],
    art_dir: str,
    as_json: bool,
) -> int:
    """Build an engine again and again, and tell which tactics only bad ones have.

    \b
    Example: polytool debug build m.onnx --fp16 --until bad --check 'polytool run m.onnx ...'
    """
    from polytool.builds import repeat_build
    from polytool.errors import UsageError

    if check is None:
        raise UsageError("build needs --check COMMAND")
    made = builder.to_options()
    found = repeat_build(model, check, until, iter_artifact, artifacts, art_dir, **made)
    good = sum(found.runs)
    lines = [f"{good} of {len(found.runs)} engines passed, {len(found.runs) - good} failed"]
    lines += [f"only in bad engines: {layer}: {tactic}" for layer, tactic in found.suspects]
    result(as_json, "\n".join(lines), found.to_json())
    return int(good < len(found.runs))
