"""Values between Python and onnxruntime, also where its NumPy interface lacks the type.

A value is an array, a list of arrays for a sequence, or None for an empty optional; on
onnxruntime's side it is an OrtValue.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import onnx

from polytool.arrays import decode_raw, packed_size, to_tensor
from polytool.backends.onnxrt.session import SessionConfig, onnxruntime, open_session
from polytool.backends.onnxrt.source import Source
from polytool.errors import RunnerError, UsageError
from polytool.tensors import DType

# The types that onnxruntime's NumPy interface takes and gives as they are.
NUMPY_TYPES = frozenset(d for d in DType if d.numpy.type.__module__ == "numpy")
_CPU = SessionConfig((("CPUExecutionProvider", {}),), level="disable", threads=1)
_CONTAINERS = {"optional(": "optional", "seq(": "sequence", "map(": "map"}


def parse_type(text: str) -> tuple[DType | None, str]:
    """Element type and container of what onnxruntime writes as `seq(tensor(float))`."""
    container = next((c for p, c in _CONTAINERS.items() if text.startswith(p)), "tensor")
    try:
        return DType.of(text[text.rfind("(") + 1 :].split(")")[0]), container
    except UsageError:
        return None, container


def to_ort(value: Any, dtype: DType | None = None) -> Any:
    """An OrtValue of `value`; it shares memory with an array where it can.

    Args:
        value: an array or a list of arrays.
        dtype: the element type of an empty list.
    """
    if isinstance(value, list):
        return _sequence([to_ort(v) for v in value], dtype)
    kind = onnxruntime().OrtValue
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    dtype = DType.of(array)
    if dtype is DType.STRING or dtype.bits < 8:
        return _constant(array)
    if dtype in NUMPY_TYPES:
        return kind.ortvalue_from_numpy(array)
    bits = array.view(f"u{array.itemsize}")
    return kind.ortvalue_from_numpy_with_onnx_type(bits, int(dtype))


def from_ort(value: Any) -> Any:
    """What an OrtValue on the CPU holds; the memory belongs to the caller."""
    if value.is_tensor_sequence():
        return [from_ort(v) for v in _elements(value)]
    if not value.has_value():
        return None
    if not value.is_tensor():
        raise RunnerError(f"a value of type {value.data_type()} cannot be read")
    dtype = DType(value.element_type())
    if dtype in NUMPY_TYPES:
        return value.numpy()
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), packed_size(dtype, shape)) if all(shape) else b""
    return decode_raw(raw, dtype, shape, "a value of onnxruntime").copy()


def view_ort(value: Any) -> Any:
    """Like `from_ort`, but sharing the value's memory where that is safe; not to be written."""
    if value.is_tensor() and DType(value.element_type()) in NUMPY_TYPES - {DType.STRING}:
        try:
            return np.from_dlpack(value)
        except (AttributeError, TypeError, BufferError, RuntimeError):
            return value.numpy()  # an older onnxruntime
    return from_ort(value)


def nbytes_of(value: Any) -> int:
    """Bytes of a tensor; 0 for strings and everything that is no tensor."""
    if not value.is_tensor():
        return 0
    return packed_size(DType(value.element_type()), tuple(value.shape()))


def _constant(array: np.ndarray[Any, Any]) -> Any:
    graph = onnx.GraphProto(name="constant")
    tensor = to_tensor(array, "value")
    graph.initializer.append(tensor)
    graph.output.add(name="value").type.tensor_type.elem_type = tensor.data_type
    return _session(_model(graph)).run_with_ort_values(None, {})[0]


def _sequence(elements: list[Any], dtype: DType | None) -> Any:
    kind = int(dtype or DType.FLOAT)
    if not elements:
        return _run(("SequenceEmpty", 0, kind), {})[0]
    kind = elements[0].element_type()
    feeds = {f"in{i}": value for i, value in enumerate(elements)}
    return _run(("SequenceConstruct", len(elements), kind), feeds)[0]


def _elements(value: Any) -> list[Any]:
    dtype, _ = parse_type(value.data_type())
    if dtype is None:
        raise RunnerError(f"a value of type {value.data_type()} cannot be read")
    count = int(_run(("SequenceLength", 1, int(dtype)), {"in0": value})[0].numpy())
    positions = (onnxruntime().OrtValue.ortvalue_from_numpy(np.array(i)) for i in range(count))
    return [_run(("SequenceAt", 1, int(dtype)), {"in0": value, "at": p})[0] for p in positions]


def _run(operator: tuple[str, int, int], feeds: dict[str, Any]) -> list[Any]:
    outputs: list[Any] = _operator(*operator).run_with_ort_values(None, feeds)
    return outputs


@lru_cache(maxsize=64)
def _operator(op: str, count: int, dtype: int) -> Any:
    """A session of one sequence operator on elements of `dtype`."""
    helper = onnx.helper
    tensor = helper.make_tensor_type_proto(dtype, None)
    sequence = helper.make_sequence_type_proto(tensor)
    position = helper.make_tensor_type_proto(int(DType.INT64), [])
    reads = op in ("SequenceAt", "SequenceLength")
    names = [f"in{i}" for i in range(count)]
    inputs = [helper.make_value_info(n, sequence if reads else tensor) for n in names]
    if op == "SequenceAt":
        names.append("at")
        inputs.append(helper.make_value_info("at", position))
    result = {"SequenceAt": tensor, "SequenceLength": position}.get(op, sequence)
    attributes: dict[str, Any] = {"dtype": dtype} if op == "SequenceEmpty" else {}
    node = helper.make_node(op, names, ["out"], **attributes)
    output = helper.make_value_info("out", result)
    return _session(_model(helper.make_graph([node], op, inputs, [output])))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)


def _session(proto: onnx.ModelProto) -> Any:
    return open_session(Source(proto, None), _CPU, who="a helper model")
