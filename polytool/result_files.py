"""Saved results: one file, or a directory with one file an iteration; ours and Polygraphy's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from polytool import polygraphy_json, value_store
from polytool.errors import ModelError, UsageError
from polytool.files import StrPath
from polytool.results import Iteration, Run, RunResults

EXTENSION = ".safetensors"


def is_directory_path(path: StrPath) -> bool:
    """Whether results go to a directory of per-iteration files: the path has no extension."""
    return not os.path.splitext(os.fspath(path))[1]


def save_results(results: RunResults, path: StrPath) -> None:
    """See `RunResults.save`."""
    if is_directory_path(path):
        directory = ResultsDirectory(path)
        for index, run in enumerate(results.values()):
            for number, iteration in enumerate(run):
                directory.add(index, run.name, number, iteration, run.settings)
    elif os.fspath(path).endswith(".json"):
        polygraphy_json.write_results(path, list(results.values()))
    else:
        value_store.write_values(path, "results", list(results.values()))


def load_results(path: StrPath) -> RunResults:
    """See `RunResults.load`."""
    if not os.path.isdir(path):
        return RunResults(_runs(path))
    reader = _Reader()
    files = (
        [Run(r.name, _Deferred(reader, file, r.name, len(r)), r.settings) for r in _runs(file)]
        for file in iteration_files(path)
    )
    return RunResults.concat(map(RunResults, files))


def iteration_files(directory: StrPath) -> list[str]:
    """The files of a directory of saved iterations, in order.

    Raises:
        ModelError: there is none.
    """
    names = sorted(n for n in os.listdir(directory) if n.endswith((".json", EXTENSION)))
    if not names:
        raise ModelError(
            f"the directory {os.fspath(directory)!r} holds no saved data (*.json, *{EXTENSION})"
        )
    return [os.path.join(directory, n) for n in names]


def read_file(path: StrPath) -> tuple[str, list[Run]]:
    """What a file holds, by its content: "results" or "inputs", and the runs.

    Raises:
        ModelError: the file is missing, damaged, or neither ours nor Polygraphy's.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError as err:
        raise ModelError(f"{os.fspath(path)!r} cannot be read: {err.strerror}") from err
    if value_store.is_value_file(head):
        return value_store.read_values(path)
    if head.lstrip()[:1] in (b"{", b"["):
        return polygraphy_json.read_json(path)
    what = "is empty" if not head else "is neither a file of polytool nor JSON of Polygraphy"
    raise ModelError(f"{os.fspath(path)!r} {what}: it cannot be read as results or inputs")


def _runs(path: StrPath) -> list[Run]:
    kind, runs = read_file(path)
    if kind != "results":
        raise ModelError(
            f"{os.fspath(path)!r} holds inputs, not results: pass it to --load-inputs instead"
        )
    return runs


class ResultsDirectory:
    """Results that are written while they come, one file an iteration of a runner."""

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        try:
            os.makedirs(self.path, exist_ok=True)
            occupied = bool(os.listdir(self.path))
        except OSError as err:
            raise ModelError(f"{self.path!r} cannot be written: {err.strerror}") from err
        if occupied:
            raise UsageError(
                f"the directory {self.path!r} is not empty: name another one, or a file with an "
                "extension"
            )

    def add(
        self,
        index: int,
        name: str,
        number: int,
        outputs: Iteration,
        settings: Mapping[str, Any],
    ) -> None:
        """Write iteration `number` of runner `name`, which is the `index`-th."""
        file = os.path.join(self.path, f"{index:02d}-{number:010d}{EXTENSION}")
        value_store.write_values(file, "results", [Run(name, [outputs], settings)])


class _Reader:
    """Keeps the file that was read last, so that one iteration of all runners is parsed once."""

    def __init__(self) -> None:
        self._path, self._runs = "", RunResults()

    def read(self, path: str) -> RunResults:
        if path != self._path:
            self._path, self._runs = path, RunResults(_runs(path))
        return self._runs


class _Deferred(Sequence[Iteration]):
    """The iterations of one file of a directory; the file is opened when they are looked at."""

    def __init__(self, reader: _Reader, path: str, runner: str, length: int) -> None:
        self._reader, self._path, self._runner, self._length = reader, path, runner, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        return self._reader.read(self._path)[self._runner][index]
