"""Types of values: what a TypeProto says, in a form that passes can use."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TypeProto

from polytool.tensors import DType, Shape


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a value.

    Attributes:
        kind: `tensor`, `sequence`, `optional`, `map` or `sparse`.
        dtype: the element type of a tensor (of the elements' tensors for containers), if known.
        shape: likewise; None when the rank is unknown, an entry is None when nothing is known.
        proto: where it was read from.
    """

    kind: str
    dtype: DType | None
    shape: Shape | None
    proto: TypeProto


def read_type(proto: TypeProto) -> Type | None:
    """What `proto` says; None when it says nothing."""
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    if kind in ("sequence_type", "optional_type"):
        inner = read_type(getattr(proto, kind).elem_type)
        dtype, shape = (inner.dtype, inner.shape) if inner is not None else (None, None)
        return Type(kind.removesuffix("_type"), dtype, shape, proto)
    if kind == "sparse_tensor_type":
        tensor, label = proto.sparse_tensor_type, "sparse"
    elif kind == "tensor_type":
        tensor, label = proto.tensor_type, "tensor"
    else:
        return Type("map", None, None, proto)
    dtype = DType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Type(label, dtype, None, proto)
    return Type(label, dtype, tuple(_dim(d) for d in tensor.shape.dim), proto)


def _dim(dim: object) -> int | str | None:
    """A size, a symbol, or None; exporters write -1 for unknown."""
    if dim.HasField("dim_value"):  # type: ignore[attr-defined]  # protobuf's nested class
        return dim.dim_value if dim.dim_value >= 0 else None  # type: ignore[attr-defined]
    return dim.dim_param or None  # type: ignore[attr-defined]


def type_proto(dtype: DType, shape: Shape | None) -> TypeProto:
    """A tensor type."""
    proto = TypeProto()
    proto.tensor_type.elem_type = int(dtype)
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for size in shape:
            dim = proto.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    return proto
