"""Arrays of other libraries: passed to onnxruntime where they are, outputs on the same device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from polytool.backends.checks import on_device
from polytool.backends.onnxrt.values import from_ort, parse_type, to_ort
from polytool.errors import MissingDependencyError
from polytool.tensors import as_numpy

_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 10: "cuda", 13: "cuda"}


def run(session: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    """Run with inputs and outputs bound in place.

    Args:
        session: an InferenceSession.
        feeds: input name to array, at least one of them of another library than NumPy.

    Returns:
        Output name to array of the library and on the device of the first such input; sequences
        and strings are as without a device.
    """
    model_array = next(v for v in feeds.values() if on_device(v))
    binding = session.io_binding()
    bound = {name: _value(v) for name, v in feeds.items() if v is not None}
    for name, value in bound.items():
        binding.bind_ortvalue_input(name, value)
    kind, number = _device(model_array)
    for output in session.get_outputs():
        plain = parse_type(output.type)[1] == "tensor" and output.type != "tensor(string)"
        binding.bind_output(output.name, kind if plain else "cpu", number if plain else 0)
    _synchronize(feeds.values())
    session.run_with_iobinding(binding)
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, binding.get_outputs(), strict=True))
    return {name: _like(value, model_array) for name, value in outputs.items()}


def resident(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as arrays of torch or CuPy on the GPU.

    Raises:
        MissingDependencyError: neither is installed.
    """
    plain = {n: v for n, v in feeds.items() if isinstance(v, np.ndarray) and v.dtype != object}
    try:
        import torch

        moved = {n: torch.from_numpy(v).cuda() for n, v in plain.items()}
    except ImportError:
        try:
            import cupy

            moved = {n: cupy.asarray(v) for n, v in plain.items()}
        except ImportError as err:
            raise MissingDependencyError("CuPy", "cuda", "keeping inputs on the GPU") from err
    return {**feeds, **moved}


def host_value(value: Any) -> Any:
    """An OrtValue in CPU memory."""
    return to_ort(as_numpy(value) if on_device(value) else value)


def _value(value: Any) -> Any:
    from onnxruntime import OrtValue

    if not on_device(value):
        return to_ort(value)
    if not hasattr(OrtValue, "from_dlpack"):
        raise MissingDependencyError("onnxruntime 1.24 or newer", "cpu", "sharing device memory")
    return OrtValue.from_dlpack(_contiguous(value))


def _contiguous(value: Any) -> Any:
    """The array itself, or a dense copy: onnxruntime takes no strides."""
    if hasattr(value, "detach"):  # torch
        return value.detach().contiguous()
    namespace = _namespace(value)
    return namespace.ascontiguousarray(value) if hasattr(namespace, "ascontiguousarray") else value


def _namespace(value: Any) -> Any:
    """The library of an array: by the array API, else the package of its class."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    return sys.modules[type(value).__module__.partition(".")[0]]


def _device(value: Any) -> tuple[str, int]:
    kind, number = value.__dlpack_device__()
    return _DLPACK_DEVICES.get(int(kind), "cpu"), int(number)


def _synchronize(values: Any) -> None:
    """Wait for what computes the inputs: onnxruntime's stream does not know of it."""
    for value in values:
        if not on_device(value) or _device(value)[0] == "cpu":
            continue
        if hasattr(value, "detach"):
            sys.modules["torch"].cuda.current_stream(value.device).synchronize()
        elif hasattr(value, "__cuda_array_interface__") and "cupy" in sys.modules:
            sys.modules["cupy"].cuda.get_current_stream().synchronize()
        elif hasattr(value, "block_until_ready"):  # jax
            value.block_until_ready()


def _like(value: Any, model_array: Any) -> Any:
    """An OrtValue as an array of the library of `model_array`, without a copy."""
    if not value.is_tensor() or value.data_type() == "tensor(string)":
        return from_ort(value)
    return _namespace(model_array).from_dlpack(value)
