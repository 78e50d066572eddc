"""What `debug reduce` does between its options and its output."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polytool.checks import CommandCheck
from polytool.cli import _checks, _runners, options
from polytool.cli.output import note
from polytool.errors import UsageError

if TYPE_CHECKING:
    from polytool.reduction import Outcome, Reduced


def run_reduce(
    check: CommandCheck | None,
    model: str,
    output: str,
    runners: Sequence[str],
    builder: _runners.Builder,
    feeds: options.FeedOptions,
    rtol: float | None,
    atol: float | None,
    mode: str,
    min_good: str | None,
    iter_artifact: str,
    save_debug_replay: str | None,
    load_debug_replay: str | None,
) -> Reduced:
    """Reduce, and write the model, its inputs and the replay."""
    from polytool.conversion import check_writable
    from polytool.reduction import differ, reduce

    for path in (output, min_good, save_debug_replay):
        if path is not None:
            check_writable(path)
    if check is not None:
        if runners:
            raise UsageError("--check and runners both say what fails: give one of them")
        outcome = _by_command(check, Path(iter_artifact))
    elif len(runners) == 2:
        first, second = runners
        options = {"native": builder.to_options()}
        outcome = differ(first, second, options, rtol=rtol, atol=atol)
    else:
        raise UsageError("reduce needs --check COMMAND, or two runners such as --native --onnxrt")
    data = feeds.make(model)
    for text in data.notes:
        note(text)
    known = _checks.read_replay(load_debug_replay)
    try:
        found = reduce(model, data, outcome, mode=mode, known=known, progress=_progress())
    finally:
        _checks.write_replay(save_debug_replay, known)
    _write(output, found.model, found.feeds)
    if min_good is not None and found.largest_good is not None:
        _write(min_good, *found.largest_good)
    return found


def _by_command(check: CommandCheck, artifact: Path) -> Outcome:
    def outcome(model: Any, feeds: Any) -> str:
        _write(str(artifact), model, feeds)
        return "the command fails" if check.fails() else ""

    return outcome


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None
    return lambda text: click.echo(f"\r\033[K{text}", err=True, nl=False)


def _write(path: str, model: Any, feeds: Sequence[dict[str, Any]]) -> None:
    from polytool.feeds import save_feeds
    from polytool.model import load

    load(model).save(path)
    save_feeds(feeds, inputs_path(path))


def inputs_path(path: str) -> str:
    """Where the inputs of a reduced model lie."""
    return str(Path(path).with_suffix(".inputs.npz"))


# Flags of the data, which the reduced model has beside it, and of what is written.
_NOT_REPEATED = ("--input-shapes", "--val-range", "--seed", "--iterations", "--load-inputs",
                 "--data-loader-script", "--save-inputs", "--json", "-v", "-q", "--verbose",
                 "--quiet", "--log-file")  # fmt: skip


def show(found: Reduced, output: str) -> str:
    """What remains, and how to run it as it was compared."""
    from polytool.cli.run import run

    count = len(found.nodes)
    lines = [
        f"{click.style(str(count), bold=True)} node{'s' * (count != 1)} still fail"
        f"{'s' * (count == 1)} in the same way ({found.failure}), after {found.tests} tests:",
        *(f"  {name}" for name in found.nodes[:20]),
    ]
    if count > 20:
        lines.append(f"  ... and {count - 20} more")
    flags = options.words_for(run, without=_NOT_REPEATED)
    if not {"--native", "--onnxrt", "--runner"}.intersection(flags):  # --check did the comparing
        flags += ["--native", "--onnxrt"]
    command = ["polytool", "run", output, "--load-inputs", inputs_path(output), *flags]
    lines.append(f"written to {output}; run it on its real inputs with: {shlex.join(command)}")
    return "\n".join(lines)
