"""Element types and tensor descriptions shared by every part of polytool."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from polytool.errors import UsageError

Dim = int | str | None
Shape = tuple[Dim, ...]


class DType(enum.IntEnum):
    """Every ONNX element type; the values are those of `onnx.TensorProto.DataType`.

    Arrays of types that NumPy lacks are `ml_dtypes` arrays; strings are object arrays of `str`.
    """

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    FLOAT16 = 10
    DOUBLE = 11
    UINT32 = 12
    UINT64 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    BFLOAT16 = 16
    FLOAT8E4M3FN = 17
    FLOAT8E4M3FNUZ = 18
    FLOAT8E5M2 = 19
    FLOAT8E5M2FNUZ = 20
    UINT4 = 21
    INT4 = 22
    FLOAT4E2M1 = 23
    FLOAT8E8M0 = 24
    UINT2 = 25
    INT2 = 26
    FLOAT6E2M3 = 27
    FLOAT6E3M2 = 28

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of arrays of this type."""
        return _NUMPY[self]

    @property
    def label(self) -> str:
        """The name people use: `float32`, `bfloat16`, `int4`, `string`."""
        return _LABELS[self]

    @property
    def bits(self) -> int:
        """Bits of one element as ONNX packs it; 0 for strings."""
        return _BITS.get(self, self.numpy.itemsize * 8)

    @property
    def is_float(self) -> bool:
        """True for every real floating-point type, reduced ones included."""
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers; False for bool."""
        return self.label.lstrip("u").startswith("int")

    @classmethod
    def of(cls, value: Any) -> DType:
        """The type of an array, a NumPy dtype, a label such as `float16`, or an ONNX enum value.

        Raises:
            UsageError: if `value` names no ONNX element type.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                return cls(value)
            except ValueError:
                raise UsageError(f"{value} is not an ONNX element type") from None
        if isinstance(value, str) and value.lower() in _BY_LABEL:
            return _BY_LABEL[value.lower()]
        try:
            dtype = np.dtype(getattr(value, "dtype", value))
        except TypeError:
            raise UsageError(f"{value!r} is not an ONNX element type") from None
        if dtype.kind in "US":
            return cls.STRING
        if dtype not in _BY_NUMPY:
            raise UsageError(f"{dtype} is not an ONNX element type")
        return _BY_NUMPY[dtype]


_NUMPY: dict[DType, np.dtype[Any]] = {
    dtype: np.dtype(kind)
    for dtype, kind in {
        DType.FLOAT: np.float32,
        DType.UINT8: np.uint8,
        DType.INT8: np.int8,
        DType.UINT16: np.uint16,
        DType.INT16: np.int16,
        DType.INT32: np.int32,
        DType.INT64: np.int64,
        DType.STRING: np.object_,
        DType.BOOL: np.bool_,
        DType.FLOAT16: np.float16,
        DType.DOUBLE: np.float64,
        DType.UINT32: np.uint32,
        DType.UINT64: np.uint64,
        DType.COMPLEX64: np.complex64,
        DType.COMPLEX128: np.complex128,
        DType.BFLOAT16: ml_dtypes.bfloat16,
        DType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
        DType.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
        DType.FLOAT8E5M2: ml_dtypes.float8_e5m2,
        DType.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
        DType.UINT4: ml_dtypes.uint4,
        DType.INT4: ml_dtypes.int4,
        DType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
        DType.FLOAT8E8M0: ml_dtypes.float8_e8m0fnu,
        DType.UINT2: ml_dtypes.uint2,
        DType.INT2: ml_dtypes.int2,
        DType.FLOAT6E2M3: ml_dtypes.float6_e2m3fn,
        DType.FLOAT6E3M2: ml_dtypes.float6_e3m2fn,
    }.items()
}
_LABELS = {d: d.name.lower() for d in DType} | {DType.FLOAT: "float32", DType.DOUBLE: "float64"}
_BITS = {
    DType.STRING: 0,
    DType.UINT4: 4,
    DType.INT4: 4,
    DType.FLOAT4E2M1: 4,
    DType.UINT2: 2,
    DType.INT2: 2,
    DType.FLOAT6E2M3: 6,
    DType.FLOAT6E3M2: 6,
}
_FLOATS = frozenset(d for d in DType if d.name.startswith(("FLOAT", "BFLOAT", "DOUBLE")))
_BY_NUMPY = {kind: dtype for dtype, kind in _NUMPY.items()}
_BY_LABEL = {label: dtype for dtype, label in _LABELS.items()} | {
    "float": DType.FLOAT,
    "double": DType.DOUBLE,
    "fp32": DType.FLOAT,
    "fp16": DType.FLOAT16,
    "bf16": DType.BFLOAT16,
    "fp64": DType.DOUBLE,
    "str": DType.STRING,
}


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it exists.

    Attributes:
        name: the ONNX name.
        dtype: the element type; None when the model does not say.
        shape: one entry a dimension: an int, the name of a symbolic dimension, or None where
            nothing is known; the whole shape is None when not even the rank is known.
        container: `tensor`, `sequence`, `optional` or `map`; sequences are Python lists and an
            empty optional is None. For a sequence, dtype and shape are those of its elements.
    """

    name: str
    dtype: DType | None
    shape: Shape | None
    container: str = "tensor"

    def __str__(self) -> str:
        dtype = self.dtype.label if self.dtype is not None else "?"
        text = f"{self.name}: {dtype}{format_shape(self.shape)}"
        return text if self.container == "tensor" else f"{text} ({self.container})"

    @property
    def is_static(self) -> bool:
        """True when every dimension is a number."""
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)


def format_shape(shape: Shape | None) -> str:
    """`[1, 3, height, ?]`; `[?...]` when the rank is unknown."""
    if shape is None:
        return "[?...]"
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    """`value` on the host: a NumPy array, a scalar, or anything that speaks DLPack.

    The array is in native byte order; text of any kind becomes an object array of `str`. Memory is
    shared where that is possible.

    Raises:
        UsageError: `value` is no array, or has an element type that ONNX lacks.
    """
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            array = _torch_to_numpy(value.detach().cpu())
        elif hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):
            array = value.get()
        elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
    except (TypeError, ValueError, BufferError, RuntimeError) as err:
        raise UsageError(
            f"an object of type {type(value).__name__} cannot be read as an array: {err}"
        ) from err
    if array.dtype.kind in "USO":
        return _strings(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    DType.of(array)
    return array


def _torch_to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """NumPy has no view of the types that ml_dtypes adds: their bits travel as integers."""
    label = str(tensor.dtype).removeprefix("torch.").replace("float8_", "float8").replace("_", "")
    if label in _BY_LABEL and DType.of(label).numpy.kind == "V":
        bits = tensor.view(getattr(sys.modules["torch"], f"int{8 * tensor.element_size()}"))
        return np.asarray(bits.numpy()).view(DType.of(label).numpy)
    return np.asarray(tensor.resolve_conj().resolve_neg().numpy())


def _strings(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    texts = np.empty(array.shape, np.object_)
    for index, item in np.ndenumerate(array):
        if isinstance(item, bytes):
            item = item.decode("utf-8", "surrogateescape")
        if not isinstance(item, str):
            raise UsageError(f"an object of type {type(item).__name__} is not a tensor element")
        texts[index] = str(item)
    return texts
