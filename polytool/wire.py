"""ONNX files at the level of protobuf's wire format.

A model file is rewritten without parsing the weights: the scanner walks messages and skips over
payloads, so that a file of gigabytes costs as many page reads as it has tensors. The same walk
takes weights out (`strip`) and puts them back (`rewrite` with the leaf that saving uses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

Buffer: TypeAlias = memoryview


class WireError(ValueError):
    """The bytes are not a protobuf message, or end too early."""


@dataclass(frozen=True)
class FileRange:
    """A stretch of bytes of the file that `location` names."""

    location: str
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


Chunk: TypeAlias = bytes | memoryview | FileRange
Leaf: TypeAlias = Callable[[Buffer, int, int, str], "list[Chunk] | None"]

# Message kind -> field number -> kind of the sub-message. Tensors are the leaves; their kind says
# where they stand, because only initializers may lie in external files.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "initializer", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MAX_DEPTH = 100  # protobuf's own limit
_CONTENT_FIELDS = {4, 5, 6, 7, 9, 10, 11}
# Packed float_data and double_data are the bytes that raw_data would hold, if the type fits.
_RAW_LIKE = {4: {1, 14}, 10: {11, 15}}


def varint(value: int) -> bytes:
    """`value` in base-128 encoding."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(field: int, chunks: Iterable[Chunk]) -> list[Chunk]:
    """A field of wire type 2 that holds `chunks`."""
    body = list(chunks)
    return [varint(field << 3 | 2) + varint(sum(len(c) for c in body)), *body]


def rewrite(data: Buffer, leaf: Leaf, floor: int) -> list[Chunk] | None:
    """Replace tensors in a serialized ModelProto.

    Args:
        data: the model.
        leaf: called with `data`, start and end of each tensor message, and its kind
            (`initializer` or `tensor`); returns its new content, or None to leave it.
        floor: messages of at most so many bytes are not looked into.

    Returns:
        The new model, or None where nothing was replaced.

    Raises:
        WireError: the bytes are no such message.
    """
    return _rewrite(data, 0, len(data), "model", leaf, floor, 0)


def _rewrite(
    data: Buffer, start: int, end: int, kind: str, leaf: Leaf, floor: int, depth: int
) -> list[Chunk] | None:
    children = _CHILDREN.get(kind)
    if children is None:
        return leaf(data, start, end, kind)
    if depth > _MAX_DEPTH:
        raise WireError("messages are nested too deeply")
    out: list[Chunk] = []
    done = pos = start
    while pos < end:
        begin = pos
        field, wire, pos, size = _field(data, pos, end)
        if wire == 2 and size > floor and field in children:
            inner = _rewrite(data, pos, pos + size, children[field], leaf, floor, depth + 1)
            if inner is not None:
                out.append(data[done:begin])
                out.extend(length_delimited(field, inner))
                done = pos + size
        pos += size
    return [*out, data[done:end]] if out else None


def _field(data: Buffer, pos: int, end: int) -> tuple[int, int, int, int]:
    """Field number, wire type, and position and size of the payload of the field at `pos`."""
    tag = data[pos]
    pos += 1
    if tag > 0x7F:
        tag, pos = _long_varint(data, pos - 1, end)
    wire = tag & 7
    if wire == 2:
        if pos >= end:
            raise WireError("a field ends too early")
        size = data[pos]
        pos += 1
        if size > 0x7F:
            size, pos = _long_varint(data, pos - 1, end)
    elif wire == 0:
        size = _long_varint(data, pos, end)[1] - pos
    elif wire == 5:
        size = 4
    elif wire == 1:
        size = 8
    else:
        raise WireError(f"wire type {wire} is not used by ONNX")
    if size > end - pos:
        raise WireError(f"a field claims {size} bytes where {end - pos} are left")
    return tag >> 3, wire, pos, size


def _long_varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while pos < end and shift < 70:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise WireError("a number ends too early")


def strip(data: Buffer, location: str, threshold: int) -> bytes:
    """The model `data` with the content of large tensors replaced by references into `data`.

    Args:
        data: a whole serialized ModelProto.
        location: what the references' `location` entry says.
        threshold: tensors with at least so many bytes of content are replaced.

    Raises:
        WireError: the bytes are no message, or end too early.
    """

    def leaf(data: Buffer, start: int, end: int, _: str) -> list[Chunk] | None:
        payload = _payload(data, start, end)
        if payload is None or payload[1] - payload[0] < threshold:
            return None
        begin, stop, offset = payload
        entries = {"location": location, "offset": str(offset), "length": str(stop - offset)}
        return [data[start:begin], data[stop:end], *reference(entries)]

    chunks = rewrite(data, leaf, threshold)
    if chunks is None:
        return bytes(data)
    return b"".join(c for c in chunks if not isinstance(c, FileRange))  # strip makes no ranges


def reference(entries: dict[str, str]) -> list[Chunk]:
    """The fields `external_data` and `data_location` of a tensor whose content lies elsewhere."""
    out: list[Chunk] = []
    for key, value in entries.items():
        pair = length_delimited(1, [key.encode()]) + length_delimited(2, [value.encode()])
        out += length_delimited(13, pair)
    return [*out, varint(14 << 3) + b"\x01"]


def _payload(data: Buffer, pos: int, end: int) -> tuple[int, int, int] | None:
    """Begin and stop of the field that alone holds the content as raw bytes, and their offset."""
    found: tuple[int, int, int, int] | None = None
    dtype = 0
    while pos < end:
        begin = pos
        field, wire, pos, size = _field(data, pos, end)
        if field in (13, 14):  # lies elsewhere already
            return None
        if field == 2 and wire == 0:
            dtype = _long_varint(data, pos, end)[0]
        if field in _CONTENT_FIELDS and size:
            if found or wire != 2:
                return None
            found = (field, begin, pos + size, pos)
        pos += size
    if found is None or not (found[0] == 9 or dtype in _RAW_LIKE.get(found[0], ())):
        return None
    return found[1:]
