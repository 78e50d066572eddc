"""Judging artifacts by a user's own command: good when it succeeds, bad when it fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polytool.errors import RunnerError, UsageError


@dataclass(frozen=True)
class CommandCheck:
    """A command whose exit code, or output, says whether something failed.

    Attributes:
        command: program and arguments.
        fail_codes: only these exit codes are failures; by default every one but 0.
        ignore_fail_codes: these are no failures.
        fail_regexes: only output that one of these matches is a failure.
        timeout: seconds after which the command is stopped, which is an error.
    """

    command: tuple[str, ...]
    fail_codes: tuple[int, ...] = ()
    ignore_fail_codes: tuple[int, ...] = ()
    fail_regexes: tuple[str, ...] = ()
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.command:
            raise UsageError("--check needs a command, as --check polytool run model.onnx --native")
        if self.fail_codes and self.ignore_fail_codes:
            raise UsageError("--fail-code and --ignore-fail-code exclude each other")
        for text in self.fail_regexes:
            try:
                re.compile(text)
            except re.error as err:
                raise UsageError(f"--fail-regex {text!r} is no regular expression: {err}") from err

    def fails(self) -> bool:
        """Run the command once.

        Raises:
            RunnerError: it cannot be started, or does not end in time.
        """
        try:
            done = subprocess.run(
                self.command, capture_output=True, text=True, check=False, timeout=self.timeout
            )
        except OSError as err:
            raise RunnerError(
                f"the command {self.command[0]!r} cannot be run: {err.strerror}; is it on the PATH?"
            ) from err
        except subprocess.TimeoutExpired as err:
            raise RunnerError(f"{self.command[0]!r} did not end in {self.timeout:g} s") from err
        if self.fail_regexes:
            text = done.stdout + done.stderr
            return any(re.search(pattern, text) for pattern in self.fail_regexes)
        if self.fail_codes:
            return done.returncode in self.fail_codes
        return done.returncode != 0 and done.returncode not in self.ignore_fail_codes


def sort_artifacts(
    artifacts: Sequence[str], folder: str | Path, *, good: bool, iteration: int
) -> list[Path]:
    """Move files into `folder/good` or `folder/bad`, the iteration's number in their names.

    Files that do not exist are left out.
    """
    target = Path(folder) / ("good" if good else "bad")
    moved = []
    for artifact in map(Path, artifacts):
        if artifact.exists():
            target.mkdir(parents=True, exist_ok=True)
            place = target / f"{artifact.stem}_{iteration:05}{artifact.suffix}"
            shutil.move(artifact, place)
            moved.append(place)
    return moved


_MOST_RUNS = 10_000


def repeat(
    check: CommandCheck,
    until: str,
    artifacts: Sequence[str],
    folder: str | Path,
    prepare: Callable[[], None] | None = None,
) -> list[bool]:
    """Run a command several times and sort what it leaves behind.

    Args:
        check: the command.
        until: a number of runs, or `good` or `bad`: until the first run of that kind.
        artifacts: files to move into `folder/good` and `folder/bad` after each run.
        folder: where they go.
        prepare: called before each run.

    Returns:
        Whether each run passed.

    Raises:
        UsageError: `until` is something else.
    """
    if until not in ("good", "bad") and not (until.isdigit() and int(until) > 0):
        raise UsageError(f"--until {until!r} is neither a number of runs nor good or bad")
    runs: list[bool] = []
    for iteration in range(int(until) if until.isdigit() else _MOST_RUNS):
        if prepare is not None:
            prepare()
        runs.append(not check.fails())
        sort_artifacts(artifacts, folder, good=runs[-1], iteration=iteration)
        if (until == "good" and runs[-1]) or (until == "bad" and not runs[-1]):
            break
    return runs
