"""Kernels in which a thread computes one element of the result from a few lines of C.

What is neither a pointwise tree, a reduction nor a product runs this way: correct for every shape
and type, and fast enough where the operator is rare or bound by memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.source import (
    C_TYPES,
    Argument,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    compute_type,
    dims,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_THREADS = 256
_MOST_BLOCKS = 132 * 16
Scalar = int | float | tuple[int, ...]
_KINDS = {int: "i64", float: "double", tuple: "strides"}


@dataclass(frozen=True)
class Indexed:
    """A kernel of one thread an element.

    The body sees `unit` and `at[d]` (the element's flat number, its index along dimension d), each
    buffer by its name with `T_name`, its element type, and `R_name`, what registers hold; scalars
    by name, tuples as `name.step[i]`. `widen(x[i])` reads, `narrow<T_y>(v)` converts; `continue`
    ends the element.

    Attributes:
        name: of the kernel.
        buffers: names and types, in the order of the plan's buffers.
        writes: how many of them, at the end, are written.
        scalars: names and C types.
        body: C statements.
        functions: C functions that the body calls.
        defines: macros of body and functions.
    """

    name: str
    buffers: tuple[tuple[str, DType], ...]
    writes: int
    rank: int
    scalars: tuple[tuple[str, str], ...]
    body: str
    functions: str = ""
    defines: tuple[tuple[str, str | int], ...] = ()

    @property
    def kernel(self) -> Kernel:
        """The kernel."""
        return _kernel(self)

    def plan(self, shape: tuple[int, ...], scalars: Mapping[str, Scalar]) -> Plan:
        """The launch: a thread for each element of `shape`.

        Raises:
            UnsupportedError: 2^31 elements or more, or more than eight dimensions.
        """
        count = math.prod(shape)
        if count >= 1 << 31 or len(shape) > 8:
            raise UnsupportedError(
                f"{self.name} takes fewer than 2^31 elements in at most 8 dimensions, not"
                f" {list(shape)}"
            )
        args: list[Argument] = [ctypes.c_uint(count), dims(shape)]
        args += [Buffer(i) for i in range(len(self.buffers))]
        args += [_scalar(scalars[name]) for name, _ in self.scalars]
        blocks = min(max(1, -(-count // _THREADS)), _MOST_BLOCKS)
        call = Call(self.kernel, (blocks, 1, 1), (_THREADS, 1, 1), tuple(args))
        return Plan((call,) if count else ())


def kind(value: Scalar) -> str:
    """The C type of a scalar argument."""
    return _KINDS[type(value)]


def _scalar(value: Scalar) -> Argument:
    if isinstance(value, tuple):
        return strides(value)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_longlong(value)


@cache
def _kernel(op: Indexed) -> Kernel:
    params, types = [], []
    for i, (name, dtype) in enumerate(op.buffers):
        const = "const " if i < len(op.buffers) - op.writes else ""
        params.append(f", {const}{C_TYPES[dtype]}* {name}")
        types += [f"typedef {C_TYPES[dtype]} T_{name};", f"typedef {compute_type(dtype)} R_{name};"]
    params += [f", {ctype} {name}" for name, ctype in op.scalars]
    names = [name for name, _ in (*op.buffers, *op.scalars)]
    declared = "".join(params)
    code = "\n".join(
        (
            *types,
            op.functions,
            f"#define INDEXED_PARAMS {declared}",
            f"DEVICE void element(u32 unit, const u32* at{declared}) {{",
            "    do {",
            op.body,
            "    } while (0);",
            "}",
            f"#define INDEXED_BODY(at) element(unit, at{''.join(', ' + n for n in names)});",
        )
    )
    defines = {"RANK": op.rank, **dict(op.defines)}
    return assemble(op.name, "indexed", defines=defines, code=code, threads=_THREADS)
