"""Input data in files: reading every kind, fitting them to a model's inputs, writing."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool import arrays, polygraphy_json, value_store
from polytool.backends.base import Feeds as Feed
from polytool.errors import ModelError, UsageError
from polytool.files import DataFile, StrPath, replacing, write_all
from polytool.npy import npy_bytes, read_npy
from polytool.result_files import EXTENSION, is_directory_path, read_file
from polytool.results import Iteration, Run
from polytool.tensors import DType, TensorSpec, as_numpy

if TYPE_CHECKING:
    import onnx

# What zipfile raises for archives that are damaged, encrypted or of an unknown compression.
_NOT_A_ZIP = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
_NUMBER = re.compile(r"(\d+)")


def iterate_files(
    paths: Sequence[StrPath], inputs: Sequence[TensorSpec]
) -> Iterator[Mapping[str, Any]]:
    """The iterations in `paths`, one path after the other.

    Single-tensor files (`.npy`, `.pb`) that follow each other and name different inputs are one
    iteration together.
    """
    names = {s.name for s in inputs}
    together: dict[str, Any] = {}
    for path in [os.fspath(p) for p in paths]:
        stem, kind = os.path.splitext(os.path.basename(path))
        if kind == ".npy" and not os.path.isdir(path):
            name = _array_name(path, stem, inputs)
            if name in together:
                yield together
                together = {}
            together[name] = read_array(path)
            if set(together) == names:
                yield together
                together = {}
            continue
        if together:
            yield together
            together = {}
        yield from _directory(path, inputs) if os.path.isdir(path) else _file(path)
    if together:
        yield together


def _array_name(path: str, stem: str, inputs: Sequence[TensorSpec]) -> str:
    names = [s.name for s in inputs]
    for name in names:
        if stem == name or stem == re.sub(r"[^\w.-]", "_", name):
            return name
    if len(names) == 1:
        return names[0]
    raise UsageError(
        f"{path!r} is named like none of the inputs {', '.join(names)}: name the file after its "
        "input, or use an .npz"
    )


def read_array(path: str) -> Any:
    """The array in an `.npy` file, mapped."""
    return read_npy(DataFile.open(path).view, repr(path))


def _file(path: str) -> Iterator[Mapping[str, Any]]:
    if path.endswith(".npz"):
        yield read_npz(path)
        return
    kind, runs = read_file(path)
    if kind != "inputs":
        raise ModelError(
            f"{path!r} holds results, not inputs: make inputs of them with "
            "'polytool data to-input', or pass it to --load-outputs"
        )
    yield from runs[0]


def read_npz(path: str) -> dict[str, Any]:
    """The arrays in an `.npz` archive by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): read_npy(
                    memoryview(archive.read(name)), f"{name!r} in {path!r}"
                )
                for name in archive.namelist()
            }
    except FileNotFoundError:
        raise ModelError(f"{path!r} does not exist") from None
    except _NOT_A_ZIP as err:
        raise ModelError(f"{path!r} is no NumPy archive, or is damaged: {err}") from err


def _directory(path: str, inputs: Sequence[TensorSpec]) -> Iterator[Mapping[str, Any]]:
    entries = sorted(os.listdir(path), key=_natural)
    full = [os.path.join(path, e) for e in entries]
    protos = [f for f in full if re.fullmatch(r"input_\d+\.pb", os.path.basename(f))]
    if protos:
        yield _test_data_set(protos, inputs)
        return
    folders = [f for f in full if os.path.isdir(f)]
    files = [f for f in full if f.endswith((".npz", ".npy", ".json", EXTENSION))]
    sets = [f for f in folders if os.path.basename(f).startswith("test_data_set_")]
    if sets or (folders and not files):
        for folder in sets or folders:
            yield from _directory(folder, inputs)
        return
    if not files:
        raise ModelError(
            f"the directory {path!r} holds no inputs: neither test_data_set_*/ nor *.npz, *.npy, "
            f"*.json, *{EXTENSION}"
        )
    yield from iterate_files(files, inputs)


def _natural(name: str) -> list[Any]:
    """Sorts test_data_set_10 behind test_data_set_9."""
    return [int(p) if p.isdigit() else p for p in _NUMBER.split(name)]


def _test_data_set(paths: Sequence[str], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """ONNX names the files by the position of the input; the tensors may carry names too."""
    import onnx
    from google.protobuf.message import DecodeError

    known = {s.name: s for s in inputs}
    feed = {}
    for path in paths:
        position = int(os.path.basename(path)[len("input_") : -len(".pb")])
        data = bytes(DataFile.open(path).view)
        try:
            name = onnx.TensorProto.FromString(data).name
        except DecodeError:
            name = ""
        if name not in known:
            if position >= len(inputs):
                raise UsageError(
                    f"{path!r} is for input {position}, but the model has {len(inputs)} inputs"
                )
            name = inputs[position].name
        try:
            feed[name] = _proto_value(data, known[name])
        except DecodeError as err:
            raise ModelError(f"{path!r} is no serialized tensor, or is cut short") from err
    return feed


def _proto_value(data: bytes, spec: TensorSpec) -> Any:
    import onnx

    if spec.container == "sequence":
        return _sequence(onnx.SequenceProto.FromString(data))
    if spec.container == "optional":
        return _optional(onnx.OptionalProto.FromString(data))
    return arrays.decode(onnx.TensorProto.FromString(data))


def _sequence(proto: onnx.SequenceProto) -> list[Any]:
    if proto.elem_type == proto.SEQUENCE:
        return [_sequence(s) for s in proto.sequence_values]
    if proto.elem_type == proto.OPTIONAL:
        return [_optional(o) for o in proto.optional_values]
    return [arrays.decode(t) for t in proto.tensor_values]


def _optional(proto: onnx.OptionalProto) -> Any:
    if proto.HasField("tensor_value"):
        return arrays.decode(proto.tensor_value)
    return _sequence(proto.sequence_value) if proto.HasField("sequence_value") else None


def fit(
    feed: Mapping[str, Any], inputs: Sequence[TensorSpec], notes: list[str] | None = None
) -> dict[str, Any]:
    """`feed` with exactly the model's inputs, in its order and element types.

    Types are changed only where no value is lost, except that float64, which scripts produce
    without meaning it, may become a shorter float. What was changed is added to `notes`.

    Raises:
        UsageError: an input is missing, or has a type that does not fit.
    """
    missing = [s for s in inputs if s.name not in feed and s.container != "optional"]
    if missing:
        raise UsageError(
            f"the loaded inputs lack {', '.join(repr(s.name) for s in missing)}: they hold "
            f"{', '.join(map(repr, feed)) or 'nothing'}"
        )
    notes = [] if notes is None else notes
    fitted = {s.name: _fit_value(feed.get(s.name), s, notes) for s in inputs}
    extra = [repr(n) for n in feed if n not in fitted]
    if extra:
        notes.append(f"not an input of the model, ignored: {', '.join(extra)}")
    return fitted


def _fit_value(value: Any, spec: TensorSpec, notes: list[str]) -> Any:
    if value is None or isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and spec.container in ("sequence", "optional"):
        return [_fit_value(v, spec, notes) for v in value]
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic):
        return value  # stays on its device; the runner checks it
    array = np.asarray(value)
    if spec.dtype is None or array.dtype == spec.dtype.numpy:
        return as_numpy(array) if array.dtype.kind in "USO" else array
    if _is_nameless(array.dtype) and array.dtype.itemsize == spec.dtype.numpy.itemsize:
        return array.view(spec.dtype.numpy)
    array = as_numpy(array)
    if array.dtype == spec.dtype.numpy:
        return array
    cast = _cast(array, spec.dtype)
    if cast is None:
        raise UsageError(
            f"the loaded input {spec.name!r} is {array.dtype}, but the model expects "
            f"{spec.dtype.label}, which cannot hold its values"
        )
    notes.append(f"{spec.name}: {array.dtype} in the file, cast to {spec.dtype.label}")
    return cast


def _is_nameless(dtype: Any) -> bool:
    """Whether this is what .npy makes of a type that ml_dtypes adds: bytes without a meaning."""
    return dtype.kind == "V" and dtype.names is None and dtype.type is np.void


def _cast(array: Any, dtype: DType) -> Any:
    if array.dtype == object or dtype is DType.STRING:
        return None
    with np.errstate(all="ignore"):
        cast = array.astype(dtype.numpy)
        if dtype.is_float and array.dtype == np.float64:
            overflown = np.isinf(cast.astype(np.float64)) & np.isfinite(array)
            return None if overflown.any() else cast
        back = cast.astype(array.dtype)
        kept = np.array_equal(back, array, equal_nan=array.dtype.kind in "fc")
        if dtype.is_integer and array.dtype.kind in "iu":
            kept = kept and bool(((cast < 0) == (array < 0)).all())
    return cast if kept else None


def save(feeds: Iterable[Feed], path: StrPath) -> None:
    """See `polytool.feeds.save_feeds`."""
    where = os.fspath(path)
    if is_directory_path(where):
        _save_directory(feeds, where)
    elif where.endswith(".json"):
        polygraphy_json.write_inputs(where, feeds)
    elif where.endswith(".npz"):
        _save_npz(list(feeds), where)
    else:
        iterations = [Iteration(f) for f in feeds]
        value_store.write_values(where, "inputs", [Run("", iterations)])


def _save_directory(feeds: Iterable[Feed], path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
        occupied = bool(os.listdir(path))
    except OSError as err:
        raise ModelError(f"{path!r} cannot be written: {err.strerror}") from err
    if occupied:
        raise UsageError(
            f"the directory {path!r} is not empty: name another one, or a file with an extension"
        )
    for index, feed in enumerate(feeds):
        file = os.path.join(path, f"{index:010d}{EXTENSION}")
        value_store.write_values(file, "inputs", [Run("", [Iteration(feed)])])


def _save_npz(feeds: Sequence[Feed], path: str) -> None:
    if len(feeds) != 1:
        raise UsageError(
            f"{path!r}: an .npz holds one iteration, and there are {len(feeds)}: name a directory, "
            "or a file with another extension"
        )
    values = {name: as_numpy(value) for name, value in feeds[0].items()}
    texts = [n for n, a in values.items() if a.dtype == object or a.dtype.kind == "V"]
    if texts:
        raise UsageError(
            f"an .npz cannot hold {', '.join(texts)}: use a file with another extension"
        )
    with replacing(path) as fd:
        import io

        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, array in values.items():
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(array))
        write_all(fd, stream.getvalue())
