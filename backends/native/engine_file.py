"""Engine files: one safetensors file in which every part is a U8 tensor.

* `plan`: JSON: the network, the configuration, and for every other part its dtype, shape and
  crc32. The plan's own crc32 stands in the file's metadata.
* `weights/N`: a constant in ONNX layout at its stored precision, packed as ONNX packs it. Parts
  are padded to 64 bytes, so that mapped weights are aligned.
* `kernels/N`: the machine code for one GPU; the plan holds its stamp and the chosen tactics.

The plan and the kernels for this machine's GPU are verified when a file is opened, a weight when it
is first used.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import polytool
from polytool import arrays
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.device_section import read_section
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Constant
from polytool.backends.native.plan import PlanReader, PlanWriter, as_text, check_order
from polytool.errors import ModelError, RunnerError, UsageError
from polytool.files import DataFile, replacing, write_all
from polytool.tensors import DType

FORMAT = 1
_UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    RecursionError,
    OverflowError,
)
_ALIGN = 64
_MAX_HEADER = 1 << 28


def save(engine: Engine, path: Path) -> None:
    """Write `engine`; whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    writer = PlanWriter()
    plan = writer.write(engine.network)
    parts = [_describe(constant) for constant in writer.constants]
    plan |= {"name": engine.name, "config": engine.config.to_json(), "parts": parts}
    sections = engine.saved_sections()
    plan["devices"] = [section.describe() for section in sections]
    text = json.dumps(plan, separators=(",", ":")).encode()
    sizes = {"plan": len(text)}
    sizes |= {f"weights/{i}": p["bytes"] for i, p in enumerate(parts) if "text" not in p}
    sizes |= {f"kernels/{i}": row["bytes"] for i, row in enumerate(plan["devices"])}
    with replacing(path) as file:
        write_all(file, _header(sizes, zlib.crc32(text)))
        write_all(file, _padded(text))
        for part, constant in zip(parts, writer.constants, strict=True):
            if "text" not in part:
                write_all(file, _padded(_content(constant)))
        for section in sections:
            write_all(file, _padded(section.content()))


def _content(constant: Constant) -> bytes:
    return arrays.encode(constant.array(), constant.dtype)


def _describe(constant: Constant) -> dict[str, Any]:
    row: dict[str, Any] = {"dtype": int(constant.dtype), "shape": list(constant.shape)}
    if constant.dtype is DType.STRING:
        return row | {"text": [str(s) for s in constant.array().reshape(-1)]}
    content = _content(constant)
    return row | {"bytes": len(content), "crc32": zlib.crc32(content)}


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGN)


def _header(sizes: dict[str, int], crc: int) -> bytes:
    header: dict[str, Any] = {
        "__metadata__": {
            "format": f"polytool-engine-{FORMAT}",
            "polytool": polytool.__version__,
            "plan_bytes": str(sizes["plan"]),
            "plan_crc32": str(crc),
        }
    }
    offset = 0
    for name, size in sizes.items():
        padded = size + -size % _ALIGN
        header[name] = {
            "dtype": "U8",
            "shape": [padded],
            "data_offsets": [offset, offset + padded],
        }
        offset += padded
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return struct.pack("<Q", len(text)) + text


def load(path: Path, *, device: str = "auto", kernels: bool = True, retune: bool = True) -> Engine:
    """Read an engine file; see `Engine.load`.

    Raises:
        ModelError: the file is missing, truncated, altered, no engine, or of another version.
        RunnerError: it was built for another GPU and must not be tuned again.
    """
    from polytool.backends.native.builder import choose_device

    parts, plan = _plan(path)
    device = choose_device(device)
    try:
        reader = _Constants(path, plan["parts"], parts)
        network = PlanReader(reader.constant).read(plan)
        config = _config(plan["config"])
        check_order(network)
        engine = Engine(as_text(plan["name"]), network, config, device, path=path, retune=retune)
        engine.kernels = kernels
        engine.sections = tuple(
            read_section(row, parts[f"kernels/{i}"], lambda cause: _damaged(path, cause))
            for i, row in enumerate(plan.get("devices", []))
        )
    except _UNREADABLE as err:
        raise _damaged(path, f"its plan cannot be read ({err})") from err
    if device == "cuda":
        engine.notes += _for_this_device(engine)
    return engine


def _plan(path: Path) -> tuple[dict[str, memoryview], dict[str, Any]]:
    """The parts of a file, and its plan, verified."""
    file = DataFile.open(path)
    parts, metadata = _parts(file, path)
    plan_bytes = parts["plan"][: int(metadata["plan_bytes"])]
    if zlib.crc32(plan_bytes) != int(metadata["plan_crc32"]):
        raise _damaged(path, "its plan does not match its checksum")
    try:
        plan = json.loads(bytes(plan_bytes))
        if not isinstance(plan, dict):
            raise TypeError("it is no object")
    except _UNREADABLE as err:
        raise _damaged(path, f"its plan cannot be read ({err})") from err
    return parts, plan


def _for_this_device(engine: Engine) -> tuple[str, ...]:
    """What the user should hear about tactics on this GPU.

    Raises:
        RunnerError: there are none, and they must not be chosen again.
    """
    if engine.tuning.has_section:
        return ()
    held = ", ".join(str(s.stamp["device"]) for s in engine.sections) or "no GPU"
    why = (
        f"{str(engine.path)!r} was built for {held}, not for this {engine.tuning.device.name} "
        "with this driver and these libraries"
    )
    if not engine.retune:
        raise RunnerError(f"{why}: build it here, or allow tactics to be chosen again")
    return (f"{why}: tactics are chosen again when shapes are first seen",)


def _config(data: dict[str, Any]) -> BuilderConfig:
    # what names a path would be read: an engine file must not choose which files are
    if not isinstance(data["layer_precisions"], dict) or {"timing_cache", "tactics"} & set(data):
        raise TypeError("the configuration refers to other files")
    try:
        config = BuilderConfig.from_json(data)
    except UsageError as err:
        raise ValueError(str(err)) from err
    limit = config.workspace_limit
    if limit is not None and not isinstance(limit, int):
        raise TypeError("the workspace limit is no number")
    return config


class _Constants:
    """The constants of a file, each read and verified when it is first used."""

    def __init__(self, path: Path, rows: list[Any], parts: dict[str, memoryview]) -> None:
        self.path, self.parts = path, parts
        self._constants = [self._make(i, row) for i, row in enumerate(rows)]

    def constant(self, index: int) -> Constant:
        if not 0 <= index < len(self._constants):
            raise IndexError(f"constant {index} of {len(self._constants)}")
        return self._constants[index]

    def _make(self, index: int, row: dict[str, Any]) -> Constant:
        dtype, shape = DType(row["dtype"]), tuple(int(d) for d in row["shape"])
        if dtype is DType.STRING:
            text = np.array([as_text(t) for t in row["text"]], dtype=object).reshape(shape)
            return Constant(dtype, shape, lambda: text)
        size = arrays.packed_size(dtype, shape)
        raw = self.parts[f"weights/{index}"]
        if size != row["bytes"] or size > len(raw) or min(shape, default=0) < 0:
            raise ValueError(f"weight {index} has {len(raw)} bytes, its shape takes {size}")
        checksum = int(row["crc32"])
        checked: list[np.ndarray] = []

        def read() -> np.ndarray:
            if not checked:
                if zlib.crc32(raw[:size]) != checksum:
                    raise _damaged(self.path, f"weight {index} does not match its checksum")
                checked.append(arrays.decode_raw(raw[:size], dtype, shape, f"weight {index}"))
            return checked[0]

        return Constant(dtype, shape, read)


def verify(path: Path) -> Iterator[str]:
    """Read every weight of an engine file and check it; yields the names of what is sound.

    Raises:
        ModelError: a part does not match its checksum.
    """
    engine = load(path, device="cpu")
    for index, section in enumerate(engine.sections):
        section.kernels()
        yield f"kernels/{index}"
    writer = PlanWriter()
    writer.write(engine.network)
    for index, constant in enumerate(writer.constants):
        constant.array()
        yield f"weights/{index}"


def _parts(file: DataFile, path: Path) -> tuple[dict[str, memoryview], dict[str, str]]:
    """The parts of a safetensors file, by name, and its metadata."""
    view = file.view
    if file.size < 8:
        raise _damaged(path, f"it has only {file.size} bytes")
    (length,) = struct.unpack("<Q", view[:8])
    if length > min(file.size - 8, _MAX_HEADER):
        raise ModelError(f"{str(path)!r} is not a polytool engine, or is cut short; build it again")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = header.pop("__metadata__")
        version = metadata["format"]
        if version != f"polytool-engine-{FORMAT}":
            raise ModelError(
                f"{str(path)!r} is {version!r}, this polytool reads 'polytool-engine-{FORMAT}'; "
                f"build the engine again with polytool convert"
            )
        data = view[8 + length :]
        parts, total = {}, 0
        for name, row in header.items():
            start, end = row["data_offsets"]
            if row["dtype"] != "U8" or row["shape"] != [end - start] or not 0 <= start <= end:
                raise ValueError(f"part {name!r} is not plain bytes")
            total = max(total, end)
            parts[name] = data[start:end]
        if total > len(data):
            missing = math.ceil((total - len(data)) / 1024)
            raise _damaged(path, f"{missing} KiB are missing at its end")
        if not {"plan"} <= set(parts) or not metadata["plan_crc32"].isdigit():
            raise ValueError("no plan")
        int(metadata["plan_bytes"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        why = f"it has no {err}" if isinstance(err, KeyError) else err
        raise ModelError(
            f"{str(path)!r} is not a polytool engine ({why}); build one with polytool convert"
        ) from err
    return parts, metadata


def _damaged(path: Path, cause: str) -> ModelError:
    return ModelError(f"engine {str(path)!r} is damaged: {cause}; build it again")
