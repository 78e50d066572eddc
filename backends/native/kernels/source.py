"""What a kernel is before there is a device: its source, and one launch of it but for addresses."""

from __future__ import annotations

import abc
import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, ClassVar

from polytool.tensors import DType

C_TYPES = {
    DType.FLOAT: "float",
    DType.FLOAT16: "half_t",
    DType.BFLOAT16: "bfloat_t",
    DType.DOUBLE: "double",
    DType.INT8: "signed char",
    DType.UINT8: "unsigned char",
    DType.INT16: "short",
    DType.UINT16: "unsigned short",
    DType.INT32: "int",
    DType.UINT32: "unsigned int",
    DType.INT64: "long long",
    DType.UINT64: "unsigned long long",
    DType.BOOL: "bool",
    DType.FLOAT8E4M3FN: "float8e4m3fn_t",
    DType.FLOAT8E4M3FNUZ: "float8e4m3fnuz_t",
    DType.FLOAT8E5M2: "float8e5m2_t",
    DType.FLOAT8E5M2FNUZ: "float8e5m2fnuz_t",
    DType.FLOAT8E8M0: "float8e8m0_t",
    DType.FLOAT4E2M1: "float4e2m1_t",
    DType.FLOAT6E2M3: "float6e2m3_t",
    DType.FLOAT6E3M2: "float6e3m2_t",
    DType.INT4: "int4_t",
    DType.UINT4: "uint4_t",
    DType.INT2: "int2_t",
    DType.UINT2: "uint2_t",
}
"""The element types that kernels compute with; those of less than a byte take one."""
SMALL_INTEGERS = frozenset({DType.INT4, DType.UINT4, DType.INT2, DType.UINT2})
SMALL_FLOATS = frozenset(
    d for d in C_TYPES if d.is_float and d.label.startswith(("float8", "float6", "float4"))
)
SHARED_LIMIT = 227 * 1024
"""Bytes of dynamic shared memory that a block may have."""
UNSIGNED = {1: DType.UINT8, 2: DType.UINT16, 4: DType.UINT32, 8: DType.UINT64}
"""The type that moves elements of so many bytes."""


def compute_type(dtype: DType) -> str:
    """The C type in which values of `dtype` are held in registers."""
    if dtype.is_float and dtype is not DType.DOUBLE:
        return "float"
    return "int" if dtype in SMALL_INTEGERS else C_TYPES[dtype]


def item_size(dtype: DType) -> int:
    """Bytes of one element."""
    return int(dtype.numpy.itemsize)


@cache
def template(name: str) -> str:
    """The text of `kernels/cuda/<name>.cuh`."""
    folder = resources.files("polytool.backends.native.kernels") / "cuda"
    return (folder / f"{name}.cuh").read_text()


@dataclass(frozen=True)
class Kernel:
    """One `extern "C"` CUDA function and everything that its machine code depends on.

    Attributes:
        name: the function's name.
        source: the whole translation unit.
        threads: the largest block it is launched with.
        contract: whether a*b+c may become one fused operation.
    """

    name: str
    source: str = field(repr=False)
    threads: int = 256
    contract: bool = True


def assemble(
    name: str,
    *templates: str,
    defines: Mapping[str, str | int] | None = None,
    code: str = "",
    threads: int = 256,
    contract: bool = True,
) -> Kernel:
    """A kernel: the prelude and the math, macros, generated `code`, then templates in order."""
    macros = {"KERNEL": name, "MAX_THREADS": threads, **(defines or {})}
    lines = [f"#define {key} {value}" for key, value in macros.items()]
    common = [template("prelude"), template("math")]
    parts = ["\n".join(lines), code, *(template(t) for t in templates)]
    if any(C_TYPES[d] in part for d in SMALL_FLOATS | SMALL_INTEGERS for part in parts):
        common.append(template("small"))
    return Kernel(name, "\n".join((*common, *parts)) + "\n", threads, contract)


@dataclass(frozen=True)
class Buffer:
    """A launch argument that is the address of the operation's buffer `index`, plus `offset`.

    Buffers are numbered: inputs, outputs, then the workspace.
    """

    index: int
    offset: int = 0


@dataclass(frozen=True)
class TensorMap:
    """A launch argument that describes boxes of row-major matrices, in the 128-byte swizzle.

    Attributes:
        index: of the buffer that holds the matrices.
        pitch: elements from row to row.
        box_rows: rows of a box, at most 256.
        box_columns: elements of its rows, 128 bytes.
        outer: how many matrices there are along further dimensions, at most three, the innermost
            first, and the elements between them; a box lies in one matrix.
    """

    index: int
    dtype: DType
    rows: int
    columns: int
    pitch: int
    box_rows: int
    box_columns: int
    outer: tuple[tuple[int, int], ...] = ()


Argument = Any
"""A `Buffer`, a `TensorMap`, or a ctypes scalar, structure or array."""


@dataclass(frozen=True)
class Call:
    """One launch with everything decided but addresses.

    Attributes:
        args: in the kernel's order: `Buffer`s and ctypes scalars or structures.
        shared: bytes of dynamic shared memory.
        cluster: blocks a cluster along z; 1 for none.
        overlap: launch as a programmatic dependent: the kernel itself waits for its predecessor.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[Argument, ...]
    shared: int = 0
    cluster: int = 1
    overlap: bool = True


@dataclass(frozen=True)
class Plan:
    """The launches of one operation for one set of shapes.

    Attributes:
        workspace: bytes that it needs besides inputs and outputs; contents do not matter.
        name: tells it from the other plans of the operation, the same in every process: what
            timing caches and saved tactics call it.
    """

    calls: tuple[Call, ...]
    workspace: int = 0
    name: str = "generated"

    source: ClassVar[str] = "nvrtc"
    deterministic: ClassVar[bool] = True

    def kernels(self) -> tuple[Kernel, ...]:
        """What has to be compiled for it."""
        return tuple(dict.fromkeys(call.kernel for call in self.calls))


class LibraryPlan(abc.ABC):
    """An operation that a library does, as one more candidate beside the generated ones.

    Attributes:
        name, workspace: as of `Plan`.
        source: the library, as `--tactic-sources` calls it: `cublas_lt`, `cudnn`.
        deterministic: whether two runs give the same bits.
    """

    name: str
    workspace: int = 0
    source: ClassVar[str]
    deterministic: bool = True

    def kernels(self) -> tuple[Kernel, ...]:
        """Nothing has to be compiled."""
        return ()

    @abc.abstractmethod
    def prepare(self, addresses: Sequence[int]) -> Sequence[Callable[[int], None]]:
        """Launches that take a stream and may be captured; addresses as in `prepare_plan`."""


class LibraryRequest(abc.ABC):
    """A description of an operation for a library; answered when there is a device.

    Attributes:
        source: the library, as of `LibraryPlan`.
    """

    source: ClassVar[str]

    @abc.abstractmethod
    def candidates(self) -> Sequence[LibraryPlan]:
        """The library's ways to do it, the likely best first; empty when it has none."""


Candidate = Plan | LibraryPlan
"""One way to do an operation."""


class Dims(ctypes.Structure):
    """`struct dims` of the prelude: sizes with the constants of a division by each."""

    _fields_ = (
        ("rank", ctypes.c_int),
        ("size", ctypes.c_uint * 8),
        ("magic", ctypes.c_uint * 8),
        ("shift", ctypes.c_uint * 8),
    )


class Strides(ctypes.Structure):
    """`struct strides` of the prelude: elements between neighbours in each dimension."""

    _fields_ = (("step", ctypes.c_longlong * 8),)


def magic(divisor: int) -> tuple[int, int]:
    """Constants with n // divisor == (mulhi(n, magic) + n) >> shift for n below 2**31.

    Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.
    """
    shift = max(divisor - 1, 0).bit_length()
    return ((1 << 32) * ((1 << shift) - divisor)) // divisor + 1 & 0xFFFFFFFF, shift


def dims(sizes: tuple[int, ...]) -> Dims:
    """Sizes of at most eight dimensions, with their division constants."""
    result = Dims(rank=len(sizes))
    for i, size in enumerate(sizes):
        result.size[i] = size
        result.magic[i], result.shift[i] = magic(max(size, 1))
    return result


def strides(steps: tuple[int, ...]) -> Strides:
    """Strides in elements, in the order of `dims`."""
    result = Strides()
    for i, step in enumerate(steps):
        result.step[i] = step
    return result
