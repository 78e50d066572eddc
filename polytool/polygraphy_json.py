"""Polygraphy's JSON files (version 0.53): results and inputs, both ways.

Arrays are base64 of `.npy`. NumPy's format lacks the types that ml_dtypes adds: such an array is
written as float32 or int8, which holds every value, beside its true type in a key of our own that
Polygraphy does not look at.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polytool.errors import MissingDependencyError, ModelError, PolytoolError, UsageError
from polytool.files import StrPath, replacing, write_all
from polytool.npy import npy_bytes, read_npy
from polytool.results import Iteration, Run
from polytool.tensors import DType, as_numpy

_TYPE = "polygraphy_class"
_LEGACY_VALUE = "polygraphy_serialized_json_type"
_LEGACY_PREFIX = "__polygraphy_encoded_"
_TRUE_TYPE = "polytool_dtype"
_SETTINGS = "polytool_settings"


def write_inputs(path: StrPath, feeds: Iterable[Mapping[str, Any]]) -> None:
    """Write one dict of inputs an iteration, as `--load-inputs` of Polygraphy reads them."""
    _write(path, _joined("[", (json.dumps(_values(f)) for f in feeds), "]"))


def write_results(path: StrPath, runs: Sequence[Run]) -> None:
    """Write results as `polygraphy run --load-outputs` reads them."""
    settings = json.dumps({r.name: r.settings for r in runs}, default=str)
    end = f'], "{_SETTINGS}": {settings}, "{_TYPE}": "RunResults"}}'
    _write(path, _joined('{"lst": [', ("".join(_run(r)) for r in runs), end))


def _run(run: Run) -> Iterator[str]:
    iterations = (json.dumps(_iteration(run.name, i)) for i in run)
    return _joined(f"[{json.dumps(run.name)}, [", iterations, "]]")


def _iteration(runner: str, iteration: Iteration) -> dict[str, Any]:
    outputs = {k: {"values": v, _TYPE: "LazyArray"} for k, v in _values(iteration).items()}
    return {
        "outputs": outputs,
        "runtime": iteration.seconds,
        "runner_name": runner,
        _TYPE: "IterationResult",
    }


def _joined(begin: str, parts: Iterable[str], end: str) -> Iterator[str]:
    yield begin
    for index, part in enumerate(parts):
        yield (", " if index else "") + part
    yield end


def _write(path: StrPath, texts: Iterable[str]) -> None:
    with replacing(path) as fd:
        for text in texts:
            write_all(fd, text.encode())


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _encode(value, name) for name, value in values.items()}


def _encode(value: Any, name: str) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_encode(v, name) for v in value]
    if isinstance(value, Mapping):
        raise UsageError(
            f"{name!r} is an ONNX map, which Polygraphy's JSON cannot hold: save to a file with "
            "another extension, such as .safetensors"
        )
    try:
        array = as_numpy(value)
    except UsageError as err:
        raise UsageError(f"{name!r} cannot be saved: {err}") from None
    encoded: dict[str, Any] = {_TYPE: "ndarray"}
    if array.dtype.kind == "V":
        dtype = DType.of(array)
        encoded[_TRUE_TYPE] = dtype.label
        array = array.astype(np.float32 if dtype.is_float else np.int8)
    if array.dtype == object:
        array = _fixed_width(array, name)
    return {"array": base64.b64encode(npy_bytes(array)).decode(), **encoded}


def _fixed_width(array: Any, name: str) -> Any:
    text = array.astype(np.str_) if array.size else np.empty(array.shape, "<U1")
    if any(a != b for a, b in zip(text.reshape(-1), array.reshape(-1), strict=True)):
        raise UsageError(
            f"{name!r} has strings that end in NUL, which Polygraphy's JSON cannot hold: save to a "
            "file with another extension, such as .safetensors"
        )
    return text


def read_json(path: StrPath) -> tuple[str, list[Run]]:
    """What a JSON file of Polygraphy holds: ("results", runs) or ("inputs", [one run]).

    Raises:
        ModelError: the file is missing, damaged, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_pairs_hook=_decode)
    except OSError as err:
        raise ModelError(f"{str(path)!r} cannot be read: {err.strerror}") from err
    except PolytoolError as err:
        raise type(err)(f"{str(path)!r}: {err}") if type(err) is ModelError else err from err
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise ModelError(
            f"{str(path)!r} is not a JSON file of inputs or results, or is cut short: {err}"
        ) from err
    if isinstance(content, _Results):
        return "results", content.runs
    feeds = content if isinstance(content, list) else [content]
    if not all(isinstance(f, dict) and _is_feed(f) for f in feeds):
        raise ModelError(
            f"{str(path)!r} holds neither results nor inputs of Polygraphy, but other JSON"
        )
    return "inputs", [Run("", [Iteration(f) for f in feeds])]


def _is_feed(feed: dict[str, Any]) -> bool:
    return all(v is None or isinstance(v, np.ndarray | list) for v in feed.values())


class _Results:
    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs


def _decode(pairs: list[tuple[str, Any]]) -> Any:
    entry = dict(pairs)
    kind = entry.get(_TYPE)
    if kind is None:  # files of Polygraphy before 0.31
        marked = [k for k, v in entry.items() if isinstance(v, str) and v == _LEGACY_VALUE]
        if not marked:
            return entry
        kind = marked[0].removeprefix(_LEGACY_PREFIX)
    if kind == "ndarray":
        return _array(entry)
    if kind == "Tensor":
        return _torch(entry)
    if kind in ("LazyArray", "LazyNumpyArray"):
        return entry["values"]
    if kind == "IterationResult":
        return Iteration(entry["outputs"] or {}, entry["runtime"])
    if kind == "RunResults":
        return _results(entry)
    raise ModelError(f"objects of type {kind} are not inputs or results")


def _results(entry: dict[str, Any]) -> _Results:
    runs: dict[str, Run] = {}
    settings = entry.get(_SETTINGS) or {}
    for name, iterations in entry["lst"]:
        unique, count = name, 2
        while unique in runs:  # Polygraphy's results may hold a name twice
            unique, count = f"{name}#{count}", count + 1
        if not all(isinstance(i, Iteration) for i in iterations):
            raise ModelError("the entries of its results are not iterations")
        runs[unique] = Run(unique, iterations, settings.get(name) or {})
    return _Results(list(runs.values()))


def _array(entry: dict[str, Any]) -> Any:
    try:
        data = base64.b64decode(entry["array"], validate=True)
    except ValueError:  # before 0.22 the bytes stood there as latin-1
        data = entry["array"].encode("latin-1")
    if data[:4] == b"PK\x03\x04":  # an archive with one array, as old versions wrote
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            array = next(iter(archive.values()))
    else:
        array = read_npy(memoryview(data), "an array")
    if _TRUE_TYPE in entry:
        with np.errstate(all="ignore"):
            array = array.astype(DType.of(entry[_TRUE_TYPE]).numpy)
    return as_numpy(array)


def _torch(entry: dict[str, Any]) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            "torch", "torch", "reading the torch tensors in this file of Polygraphy"
        ) from None
    data = io.BytesIO(base64.b64decode(entry["tensor"], validate=True))
    return as_numpy(torch.load(data, weights_only=True))
