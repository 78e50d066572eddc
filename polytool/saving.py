"""Writing a model: data that nobody touched goes from file to file without passing through here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polytool.errors import ModelError, UsageError
from polytool.files import StrPath, replacing, write_chunks
from polytool.tensors import DType
from polytool.wire import Chunk, FileRange, length_delimited, reference, rewrite

if TYPE_CHECKING:
    import onnx

    from polytool.model import Model

LIMIT = (1 << 31) - 1  # protobuf's: no message may be larger
_SMALLEST_REFERENCE = 16  # no tensor with the key `location` has so few bytes
_PAGE = 4096
_ALIGN_PAGES_FROM = 1 << 20


def save(
    model: Model,
    path: StrPath,
    *,
    external_data: bool | StrPath | None = None,
    size_threshold: int = 1024,
) -> None:
    """Write `model` to `path`, whole or not at all; `path` may be the file it was loaded from.

    Args:
        model: what to write.
        path: the model file.
        external_data: the file for the weights, relative to the model's directory; True for
            `<model>.data`; False for none; by default as the model was loaded, and external when
            it would pass protobuf's limit of 2 GB.
        size_threshold: bytes from which an initializer goes to that file.

    Raises:
        ModelError: a file cannot be written, or the model is too large without external data.
        UsageError: the data file would lie outside of the model's directory, or would overwrite
            data that another model uses.
    """
    path = os.fspath(path)
    stale = _stale_data(model, path)
    whole = embedded(model, check=False)
    if external_data is None:
        external_data = bool(model.external_files) or _size(whole) > LIMIT
    if external_data is False:
        _check_size(whole)
        with replacing(path) as fd:
            write_chunks(fd, whole, model.file)
        if stale:
            os.unlink(stale)
        return
    location = _data_location(model, path, external_data)
    stub, data = separated(model, location, size_threshold)
    _check_size(stub)
    with contextlib.ExitStack() as stack:
        fd = stack.enter_context(replacing(path))
        if data:  # renamed before the model is
            target = os.path.join(os.path.dirname(path), location)
            write_chunks(stack.enter_context(replacing(target)), data, model.file)
        write_chunks(fd, stub, model.file)
    if stale and not (data and os.path.realpath(target) == os.path.realpath(stale)):
        os.unlink(stale)


def embedded(model: Model, *, check: bool = True) -> list[Chunk]:
    """The model file with all weights inside.

    Raises:
        ModelError: it would pass protobuf's limit.
    """
    import onnx

    def leaf(message: memoryview, start: int, end: int, _: str) -> list[Chunk] | None:
        body = bytes(message[start:end])
        if b"location" not in body:
            return None
        tensor = onnx.TensorProto.FromString(body)
        return _with_content(model, tensor) if _resolvable(model, tensor) else None

    chunks = _rewritten(model, leaf)
    if check:
        _check_size(chunks)
    return chunks


def separated(model: Model, location: str, threshold: int) -> tuple[list[Chunk], list[Chunk]]:
    """The model file with references to `location`, and the content of that file."""
    import onnx

    data: list[Chunk] = []
    end_of_data = 0
    placed: dict[FileRange, int] = {}

    def place(content: Chunk) -> int:
        nonlocal end_of_data
        if isinstance(content, FileRange) and content in placed:
            return placed[content]
        padding = -end_of_data % (_PAGE if len(content) >= _ALIGN_PAGES_FROM else 64)
        offset = end_of_data + padding
        data.extend([bytes(padding), content])
        end_of_data = offset + len(content)
        if isinstance(content, FileRange):
            placed[content] = offset
        return offset

    def leaf(message: memoryview, start: int, end: int, kind: str) -> list[Chunk] | None:
        body = bytes(message[start:end])
        if end - start < threshold and b"location" not in body:
            return None
        tensor = onnx.TensorProto.FromString(body)
        if tensor.data_type == DType.STRING:
            return None
        elsewhere = _resolvable(model, tensor)
        if tensor.data_location == tensor.EXTERNAL and not elsewhere:
            return None
        # Only initializers may be external everywhere: onnxruntime wants attributes inside.
        if kind != "initializer" or model.nbytes(tensor) < threshold:
            return _with_content(model, tensor) if elsewhere else None
        content: Chunk = model.locate(tensor) or bytes(model.raw(tensor))
        entries = {"location": location, "offset": str(place(content)), "length": len(content)}
        low, high = _without_content(tensor)
        return [low, *reference({k: str(v) for k, v in entries.items()}), high]

    return _rewritten(model, leaf), data


def _rewritten(model: Model, leaf: object) -> list[Chunk]:
    try:
        data = memoryview(model.proto.SerializeToString(deterministic=True))
    except Exception as err:  # upb raises different types for a message over 2 GB
        raise ModelError(
            "the model's protobuf passes 2 GB in memory: load it from a file, so that its weights "
            "can stay on disk"
        ) from err
    return rewrite(data, leaf, _SMALLEST_REFERENCE) or [data]  # type: ignore[arg-type]  # see the two leaves above


def _resolvable(model: Model, tensor: onnx.TensorProto) -> bool:
    """Whether the content lies elsewhere and has to be written with the model."""
    if tensor.data_location != tensor.EXTERNAL:
        return False
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    return not model.ignore_external_data or model.has_file(location)


def _with_content(model: Model, tensor: onnx.TensorProto) -> list[Chunk]:
    content = model.locate(tensor)
    assert content is not None
    low, high = _without_content(tensor)
    return [low, *length_delimited(9, [content]), high]


def _without_content(tensor: onnx.TensorProto) -> tuple[bytes, bytes]:
    """The fields before and after the content, in the order protobuf writes them."""
    import onnx

    low = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type)
    if tensor.HasField("name"):
        low.name = tensor.name
    high = onnx.TensorProto(metadata_props=tensor.metadata_props)
    if tensor.HasField("doc_string"):
        high.doc_string = tensor.doc_string
    return low.SerializeToString(), high.SerializeToString()


def _size(chunks: Sequence[Chunk]) -> int:
    return sum(len(c) for c in chunks)


def _check_size(chunks: Sequence[Chunk]) -> None:
    if _size(chunks) > LIMIT:
        raise ModelError(
            f"the model file would have {_size(chunks)} bytes, but protobuf allows {LIMIT}: "
            "save its weights as external data"
        )


def _data_location(model: Model, path: str, wanted: bool | StrPath) -> str:
    directory = os.path.dirname(os.path.realpath(path))
    in_place = model.path is not None and os.path.realpath(model.path) == os.path.realpath(path)
    sources = [loc for loc in model.external_files if loc]
    if not isinstance(wanted, bool):
        location = os.fspath(wanted)
        if os.path.isabs(location):
            location = os.path.relpath(os.path.realpath(location), directory)
    elif in_place and len(sources) == 1:
        location = sources[0]
    else:
        location = os.path.basename(path) + ".data"
    target = os.path.realpath(os.path.join(directory, location))
    if os.path.isabs(location) or os.path.commonpath([directory, target]) != directory:
        raise UsageError(
            f"the data file {location!r} has to lie in the directory of the model {path!r}"
        )
    if target == os.path.realpath(path):
        raise UsageError(f"the data file and the model cannot both be {path!r}")
    if not in_place and any(model.is_data_file(target, loc) for loc in sources):
        raise UsageError(
            f"saving {path!r} would overwrite {location!r}, which the source model uses: "
            "name another data file with --save-external-data"
        )
    return location


def _stale_data(model: Model, path: str) -> str | None:
    """The data file that an earlier save made for the model which `path` will replace."""
    from polytool.model import load, tensors

    location = os.path.basename(path) + ".data"
    data = os.path.join(os.path.dirname(path), location)
    if not (os.path.isfile(path) and os.path.isfile(data)):
        return None
    in_place = model.path is not None and os.path.realpath(model.path) == os.path.realpath(path)
    if not in_place and any(model.is_data_file(data, loc) for loc in model.external_files):
        return None
    try:
        old = load(path, ignore_external_data=True)
    except ModelError:  # what is replaced need not be a model
        return None
    entries = (e for t in tensors(old.proto) for e in t.external_data)
    return data if any(e.key == "location" and e.value == location for e in entries) else None
