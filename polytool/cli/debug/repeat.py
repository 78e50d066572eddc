"""Run a command again and again, and sort what it leaves into good and bad."""

from __future__ import annotations

from polytool.checks import CommandCheck
from polytool.cli import _checks, options
from polytool.cli.output import result


@options.command()
@_checks.checked
@options.option(
    "--until",
    default="1",
    metavar="N|good|bad",
    help="How often: a number, or until the first good or bad one.",
)
@options.option("--artifacts", several=True, metavar="PATH", help="Files to sort after each run.")
@options.option("--art-dir", default="polytool_artifacts", metavar="DIR", help="Where they go.")
@options.json
def repeat(
    check: CommandCheck | None,
    until: str,
    artifacts: tuple[str, ...],
    art_dir: str,
    as_json: bool,
) -> int:
    """Run a command again and again, and sort what it leaves into good and bad.

    \b
    Example: polytool debug repeat --until 10 --artifacts out.json --check 'polytool run m.onnx ...'
    """
    from polytool.checks import repeat as run_repeat
    from polytool.errors import UsageError

    if check is None:
        raise UsageError("repeat needs --check COMMAND")
    runs = run_repeat(check, until, artifacts, art_dir)
    good = sum(runs)
    text = f"{good} of {len(runs)} runs passed, {len(runs) - good} failed"
    facts = {"runs": ["good" if ok else "bad" for ok in runs], "good": good}
    result(as_json, text, facts | {"bad": len(runs) - good})
    return int(good < len(runs))
