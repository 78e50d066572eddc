"""Times of candidates, kept from build to build so that nothing is timed twice.

A file holds times of several devices; each has a stamp of everything that may change them. The key
of a time is the signature of an operation (what it computes, types, layouts, epilogue) and the
candidate's name.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytool.errors import ModelError
from polytool.files import DataFile, StrPath, replacing, write_all

FORMAT = "polytool-timing-cache-1"


@dataclass
class Times:
    """What is known of one operation.

    Attributes:
        milliseconds: by candidate; infinite for one that fails.
        sources: whose candidates are among them.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)

    def covers(self, names: Iterable[str], sources: Iterable[str]) -> bool:
        """Whether nothing is left to time."""
        return self.sources.issuperset(sources) and self.milliseconds.keys() >= set(names)

    def update(self, other: Times) -> None:
        """Take in what another process has measured."""
        self.milliseconds.update(other.milliseconds)
        self.sources |= other.sources


class TimingCache:
    """Times by device and operation.

    Attributes:
        timed: how many candidates were timed since the cache was made or loaded.
    """

    def __init__(self) -> None:
        self._devices: dict[str, dict[str, Times]] = {}
        self._lock = threading.Lock()
        self.timed = 0

    def find(self, stamp: str, signature: str) -> Times | None:
        """The times of an operation."""
        return self._devices.get(stamp, {}).get(signature)

    def has(self, stamp: str) -> bool:
        """Whether anything was timed on such a device."""
        return bool(self._devices.get(stamp))

    def keep(
        self, stamp: str, signature: str, milliseconds: Mapping[str, float], sources: Iterable[str]
    ) -> None:
        """Add what was just measured."""
        with self._lock:
            self.timed += len(milliseconds)
            known = self._devices.setdefault(stamp, {}).setdefault(signature, Times())
            known.update(Times(dict(milliseconds), set(sources)))

    def merge(self, other: TimingCache) -> None:
        """Take in the times of another cache; where both have one, the other's counts."""
        for stamp, rows in other._devices.items():
            mine = self._devices.setdefault(stamp, {})
            for signature, times in rows.items():
                mine.setdefault(signature, Times()).update(times)

    @classmethod
    def load(cls, path: StrPath) -> TimingCache:
        """Read a file.

        Raises:
            ModelError: it is missing or no timing cache.
        """
        where = os.fspath(path)
        try:
            data = json.loads(bytes(DataFile.open(path).view))
            if data["format"] != FORMAT:
                raise ModelError(
                    f"{where!r} is {data['format']!r}, this polytool reads {FORMAT!r}; "
                    "remove it and build again"
                )
            cache = cls()
            for row in data["devices"]:
                cache._devices[_text(row["stamp"])] = {
                    str(signature): _times(times) for signature, times in row["times"].items()
                }
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise ModelError(
                f"{where!r} is no timing cache ({type(err).__name__}: {err}); give a file that "
                "--save-timing-cache wrote, or remove it"
            ) from err
        return cache

    def save(self, path: StrPath) -> None:
        """Write a file, with what others have written there meanwhile.

        Raises:
            ModelError: it cannot be written, or what is there is no timing cache.
        """
        with _exclusive(path):
            everything = TimingCache()
            if Path(path).exists():
                everything.merge(TimingCache.load(path))
            everything.merge(self)
            with replacing(path) as file:
                write_all(file, json.dumps(everything.to_json(), indent=1).encode())

    def to_json(self) -> dict[str, Any]:
        """What a file holds."""
        devices = [
            {
                "stamp": json.loads(stamp),
                "times": {
                    signature: {
                        "sources": sorted(times.sources),
                        "milliseconds": {
                            n: None if math.isinf(t) else t for n, t in times.milliseconds.items()
                        },
                    }
                    for signature, times in sorted(rows.items())
                },
            }
            for stamp, rows in sorted(self._devices.items())
        ]
        return {"format": FORMAT, "devices": devices}


def _text(stamp: Mapping[str, Any]) -> str:
    return json.dumps(dict(stamp), sort_keys=True)


def _times(row: Mapping[str, Any]) -> Times:
    found = {str(n): math.inf if t is None else float(t) for n, t in row["milliseconds"].items()}
    if any(math.isnan(t) or t < 0 for t in found.values()):
        raise ValueError("a time is no number of milliseconds")
    return Times(found, {str(s) for s in row["sources"]})


@contextmanager
def _exclusive(path: StrPath) -> Iterator[None]:
    """One writer a directory at a time; leaves no lock file behind."""
    directory = os.path.dirname(os.path.realpath(path))
    try:
        fd = os.open(directory, os.O_RDONLY)
    except OSError as err:
        raise ModelError(f"{os.fspath(path)!r} cannot be written: {err.strerror}") from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
