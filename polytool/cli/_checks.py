"""Options of the commands that run a user's own command again and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from polytool.checks import CommandCheck
from polytool.cli import options
from polytool.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """--check and how its outcome reads, passed as `check: CommandCheck | None`."""
    return options.bundle(
        function,
        "check",
        _read,
        (
            options.option(
                "--check",
                "command",
                metavar="COMMAND...",
                is_flag=False,
                help="Command that fails on a bad model or iteration; quote it, or put it last.",
            ),
            options.option(
                "--fail-code",
                "--fail-returncode",
                "fail_codes",
                several=True,
                type=int,
                metavar="CODE",
                help="Only these exit codes are failures.  [all but 0]",
            ),
            options.option(
                "--ignore-fail-code",
                "--ignore-fail-returncode",
                "ignore_fail_codes",
                several=True,
                type=int,
                metavar="CODE",
                help="These exit codes are no failures.",
            ),
            options.option(
                "--fail-regex",
                "fail_regexes",
                several=True,
                metavar="REGEX",
                help="Only output that matches is a failure.",
            ),
        ),
    )


def _read(
    command: str | None,
    fail_codes: tuple[int, ...],
    ignore_fail_codes: tuple[int, ...],
    fail_regexes: tuple[str, ...],
) -> CommandCheck | None:
    import shlex

    if command is None:
        if fail_codes or ignore_fail_codes or fail_regexes:
            raise UsageError("--fail-code, --ignore-fail-code and --fail-regex need --check")
        return None
    return CommandCheck(
        tuple(shlex.split(command)), fail_codes, ignore_fail_codes, tuple(fail_regexes)
    )


def read_replay(path: str | None) -> dict[str, str]:
    """Outcomes of an earlier search.

    Raises:
        UsageError: the file is missing or no replay.
    """
    if path is None:
        return {}
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UsageError(f"{path!r} cannot be read as a replay: {err}") from err
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise UsageError(f"{path!r} is no replay: write one with --save-debug-replay")
    return data


def write_replay(path: str | None, known: dict[str, str]) -> None:
    """Keep the outcomes, so that --load-debug-replay goes on from there."""
    if path is not None:
        from polytool.files import replacing, write_all

        with replacing(path) as file:
            write_all(file, json.dumps(known, indent=0).encode())
