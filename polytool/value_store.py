"""polytool's own file of values: a safetensors file with an index and one blob an iteration.

    metadata   {"format": "polytool.values", "version": "1", "index_crc32"}
    "index"    JSON: {"kind", "runs": [{"name", "settings", "iterations": [
                   {"seconds", "crc32", "values": {name: node}}]}]}
    "0/0" ...  the bytes of the arrays of one iteration, each on a multiple of 64

Every tensor of the safetensors file is U8; what the bytes mean stands in the nodes:
`{"dtype", "shape", "at": [begin, end]}` for an array (elements of 4 and 2 bits packed, strings as
uint64 lengths followed by UTF-8), `{"sequence": [...]}`, `{"map": [[key, node], ...]}`, or null.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polytool import arrays
from polytool.errors import ModelError, PolytoolError, UsageError
from polytool.files import DataFile, StrPath, replacing, write_all
from polytool.results import Iteration, Run
from polytool.tensors import DType, as_numpy

FORMAT = "polytool.values"
VERSION = "1"
_ALIGN = 64
_MAX_HEADER = 100 << 20


def write_values(path: StrPath, kind: str, runs: Sequence[Run]) -> None:
    """Write `runs` to `path`, whole or not at all; iterations are looked at twice.

    Raises:
        UsageError: a value has no ONNX element type.
        ModelError: the file cannot be written.
    """
    sizes: dict[str, int] = {}
    index: dict[str, Any] = {"kind": kind, "runs": []}
    for number, run in enumerate(runs):
        stored: list[Any] = []
        for i, iteration in enumerate(run):
            blob = _Blob()
            nodes = {k: _encode(v, k, blob.add) for k, v in iteration.items()}
            sizes[f"{number}/{i}"] = blob.size
            stored.append({"seconds": iteration.seconds, "crc32": blob.crc32, "values": nodes})
        index["runs"].append({"name": run.name, "settings": run.settings, "iterations": stored})
    text = json.dumps(index, default=str, separators=(",", ":")).encode()
    with replacing(path) as fd:
        write_all(fd, _header({"index": len(text), **sizes}, zlib.crc32(text)))
        write_all(fd, text)
        for run in runs:
            for iteration in run:
                blob = _Blob(lambda data: write_all(fd, data))
                for name, value in iteration.items():
                    _encode(value, name, blob.add)


class _Blob:
    """Bytes that are counted and summed, and handed to `sink` if there is one."""

    def __init__(self, sink: Callable[[Any], None] | None = None) -> None:
        self.size, self.crc32, self._sink = 0, 0, sink

    def add(self, data: Any) -> list[int]:
        begin = self.size
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for part in (view, bytes(-view.nbytes % _ALIGN)):
            self.crc32 = zlib.crc32(part, self.crc32)
            self.size += len(part)
            if self._sink is not None:
                self._sink(part)
        return [begin, begin + view.nbytes]


def _header(sizes: Mapping[str, int], index_crc32: int) -> bytes:
    metadata = {"format": FORMAT, "version": VERSION, "index_crc32": str(index_crc32)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, size in sizes.items():
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def _encode(value: Any, name: str, add: Callable[[Any], list[int]]) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return {"sequence": [_encode(v, name, add) for v in value]}
    if isinstance(value, Mapping):
        return {"map": [[k, _encode(v, name, add)] for k, v in value.items()]}
    try:
        array = as_numpy(value)
    except UsageError as err:
        raise UsageError(f"{name!r} cannot be saved: {err}") from None
    dtype = DType.of(array) if array.dtype != object else DType.STRING
    return {"dtype": dtype.label, "shape": list(array.shape), "at": add(_payload(array, dtype))}


def _payload(array: Any, dtype: DType) -> Any:
    if dtype is DType.STRING:
        texts = [s.encode("utf-8", "surrogateescape") for s in array.reshape(-1)]
        return np.array([len(t) for t in texts], "<u8").tobytes() + b"".join(texts)
    if dtype.bits < 8:
        return arrays.encode(array, dtype)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def is_value_file(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one that `write_values` wrote."""
    return f'"format":"{FORMAT}"'.encode() in head[:200]


def read_values(path: StrPath) -> tuple[str, list[Run]]:
    """The kind of a file and its runs; arrays are read when they are looked at.

    Raises:
        ModelError: the file is missing, damaged, or of another version.
    """
    file = DataFile.open(path)
    try:
        parts = _parts(file.view, path)
        index = json.loads(bytes(parts["index"]))
        runs = []
        for number, run in enumerate(index["runs"]):
            blobs = [parts[f"{number}/{i}"] for i in range(len(run["iterations"]))]
            stored = _Stored(str(path), run["iterations"], blobs)
            runs.append(Run(run["name"], stored, run["settings"]))
        return index["kind"], runs
    except PolytoolError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise ModelError(f"{str(path)!r} is damaged or cut short; save it again") from err


def _parts(view: memoryview, path: StrPath) -> dict[str, memoryview]:
    size = int.from_bytes(view[:8], "little")
    if size > min(_MAX_HEADER, len(view) - 8):
        raise ValueError("header")
    header = json.loads(bytes(view[8 : 8 + size]))
    metadata = header.pop("__metadata__")
    if metadata["format"] != FORMAT or metadata["version"] != VERSION:
        raise ModelError(
            f"{str(path)!r} has format {metadata['format']} {metadata['version']}, but this "
            f"polytool reads {FORMAT} {VERSION}"
        )
    data = view[8 + size :]
    parts = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data) or entry["dtype"] != "U8":
            raise ValueError(name)
        parts[name] = data[begin:end]
    if zlib.crc32(parts["index"]) != int(metadata["index_crc32"]):
        raise ValueError("index")
    return parts


class _Stored(Sequence[Iteration]):
    """Iterations whose bytes are checked, and whose arrays are made, on access."""

    def __init__(self, path: str, entries: list[Any], blobs: list[memoryview]) -> None:
        self._path, self._entries, self._blobs = path, entries, blobs

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry, blob = self._entries[index], self._blobs[index]
        try:
            if zlib.crc32(blob) != entry["crc32"]:
                raise ValueError("checksum")
            values = {k: _decode(node, blob, k) for k, node in entry["values"].items()}
        except (ValueError, KeyError, TypeError, ModelError, UsageError) as err:
            raise ModelError(
                f"iteration {index} in {self._path!r} is damaged; save the file again"
            ) from err
        return Iteration(values, entry["seconds"])


def _decode(node: Any, blob: memoryview, name: str) -> Any:
    if node is None:
        return None
    if "sequence" in node:
        return [_decode(n, blob, name) for n in node["sequence"]]
    if "map" in node:
        return {k: _decode(n, blob, name) for k, n in node["map"]}
    dtype, shape = DType.of(node["dtype"]), tuple(map(int, node["shape"]))
    begin, end = node["at"]
    if not 0 <= begin <= end <= len(blob) or any(d < 0 for d in shape):
        raise ValueError(name)
    if dtype is DType.STRING:
        return _decode_strings(bytes(blob[begin:end]), shape)
    return arrays.decode_raw(blob[begin:end], dtype, shape, name)


def _decode_strings(data: bytes, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape, dtype=object))
    if 8 * count > len(data):
        raise ValueError("strings")
    ends = 8 * count + np.cumsum(np.frombuffer(data, "<u8", count)).astype(np.int64)
    if count and (ends[-1] != len(data) or (np.diff(ends) < 0).any()):
        raise ValueError("strings")
    texts = np.empty(count, np.object_)
    texts[:] = (
        [
            data[b:e].decode("utf-8", "surrogateescape")
            for b, e in zip([8 * count, *ends[:-1]], ends, strict=True)
        ]
        if count
        else []
    )
    return texts.reshape(shape)
