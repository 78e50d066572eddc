"""What an engine file holds for one GPU: the chosen tactics, and the kernels that they launch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.backends.native.tactic_replay import TacticChoice, TacticReplay, read_choice
from polytool.errors import ModelError

Stamp = Mapping[str, str | int]


@dataclass(frozen=True, eq=False)
class DeviceSection:
    """Everything that a device needs besides the plan.

    Attributes:
        stamp: name, compute capability and driver version of the GPU.
        versions: of the libraries whose candidates were taken.
        choices: the decisions.
        kernels: gives machine code by the digest of source and compiler options; reads and
            verifies it where it lies in a file, and raises ModelError when that is damaged.
    """

    stamp: Stamp
    versions: Mapping[str, str]
    choices: tuple[TacticChoice, ...]
    kernels: Callable[[], Mapping[str, bytes]] = field(repr=False)

    @property
    def replay(self) -> TacticReplay:
        """The decisions as saved tactics."""
        return TacticReplay(self.choices, str(self.stamp["device"]))

    def describe(self) -> dict[str, Any]:
        """What the plan says of the section; its kernels lie in a part of their own."""
        content = self.content()
        return {
            "stamp": dict(self.stamp),
            "versions": dict(self.versions),
            "tactics": [c.to_json() for c in self.choices],
            "kernels": [[digest, len(code)] for digest, code in self.kernels().items()],
            "bytes": len(content),
            "crc32": zlib.crc32(content),
        }

    def content(self) -> bytes:
        """All kernels, one after the other."""
        return b"".join(self.kernels().values())


def read_section(
    row: Mapping[str, Any], content: memoryview, damaged: Callable[[str], ModelError]
) -> DeviceSection:
    """The inverse of `DeviceSection.describe` and `content`.

    Args:
        row: what the plan says.
        content: the part with the kernels, which is read when they are asked for.
        damaged: makes the error for kernels that do not match their checksum.

    Raises:
        KeyError, TypeError, ValueError: the row is damaged.
    """
    sizes = [(_text(digest), _size(size)) for digest, size in row["kernels"]]
    total, checksum = _size(row["bytes"]), _size(row["crc32"])
    if total > len(content) or sum(size for _, size in sizes) != total:
        raise ValueError("the kernels of a device have other sizes than their part")

    def kernels() -> Mapping[str, bytes]:
        held = bytes(content[:total])
        if zlib.crc32(held) != checksum:
            raise damaged("the kernels for a GPU do not match their checksum")
        found, start = {}, 0
        for digest, size in sizes:
            found[digest] = held[start : start + size]
            start += size
        return found

    stamp = {_text(k): v for k, v in dict(row["stamp"]).items()}
    _text(stamp["device"])
    versions = {_text(k): _text(v) for k, v in dict(row["versions"]).items()}
    choices = tuple(read_choice(r) for r in _rows(row["tactics"]))
    return DeviceSection(stamp, versions, choices, kernels)


def _size(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _rows(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError("the tactics are no list")
    return value
