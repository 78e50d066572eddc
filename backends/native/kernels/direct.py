"""Products and convolutions on ordinary arithmetic: exact types, any layout, any shape."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.gather import blocks, check_size
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Argument,
    Buffer,
    Call,
    Dims,
    Kernel,
    Plan,
    Strides,
    assemble,
    compute_type,
    dims,
    item_size,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_Three = ctypes.c_int * 3
_Five = ctypes.c_longlong * 5
_SIDES = (3, 5, 7)


class _SimtShape(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int) for n in ("m", "n", "k")),
        ("batch", Dims),
        *((n, Strides) for n in ("batch_a", "batch_b", "batch_d")),
        *((n, ctypes.c_longlong) for n in ("a_row", "a_col", "b_row", "b_col", "d_row")),
    )


@dataclass(frozen=True)
class Product:
    """Matrix products of any types and strides, accumulated in the epilogue's input 0.

    Buffers: A, B, the epilogue's operands, the output.
    """

    a: DType
    b: DType
    epilogue: Epilogue

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_product(self),)

    def plan(
        self,
        m: int,
        n: int,
        k: int,
        *,
        a: tuple[int, int],
        b: tuple[int, int],
        batch: Sequence[int] = (),
        batch_a: Sequence[int] = (),
        batch_b: Sequence[int] = (),
    ) -> Plan:
        """The launch.

        Args:
            m: rows of A and D.
            n: columns of B and D.
            k: columns of A, rows of B.
            a: strides of A's rows and columns.
            b: strides of B's rows and columns.
            batch: sizes of the leading dimensions of D.
            batch_a: A's strides along them.
            batch_b: B's strides along them.
        """
        count = math.prod(batch)
        if count > 65535 or -(-m // 64) > 65535:
            raise UnsupportedError(f"a generic product of {count} x {m} x {n} exceeds the grid")
        steps = tuple(math.prod(batch[i + 1 :]) * m * n for i in range(len(batch)))
        shape = _SimtShape(
            m, n, k, dims(tuple(batch)), strides(tuple(batch_a)), strides(tuple(batch_b)),
            strides(steps), *a, *b, n,
        )  # fmt: skip
        extra = len(self.epilogue.operands)
        args: tuple[Argument, ...] = (
            Buffer(0),
            Buffer(1),
            Buffer(2 + extra),
            shape,
            *(Buffer(2 + i) for i in range(extra)),
        )
        grid = (-(-n // 64), -(-m // 64), count)
        return Plan((Call(_product(self), grid, (256, 1, 1), args),) if m * n * count else ())


@cache
def _product(op: Product) -> Kernel:
    defines: dict[str, str | int] = {
        "T_A": C_TYPES[op.a],
        "T_B": C_TYPES[op.b],
        "T_OUT": C_TYPES[op.epilogue.dtype],
        "ACC": compute_type(op.epilogue.tree.inputs[0]),
        "VEC": 1,
    }
    code = op.epilogue.code(1, 0)
    return assemble("simt_product", "simt", defines=defines, code=code)


class _DirectShape(ctypes.Structure):
    _fields_ = (
        ("out", Dims),
        ("in_group", ctypes.c_int),
        ("out_group", ctypes.c_int),
        *((n, _Three) for n in ("size", "kernel", "stride", "pad", "dilation")),
        ("x", _Five),
        ("y", _Five),
    )


@dataclass(frozen=True)
class Geometry:
    """A convolution over one to three spatial dimensions; pads are those at the beginning."""

    batch: int
    channels: int
    out: int
    sizes: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether every output channel reads the input channel of its own number."""
        return self.groups == self.channels == self.out


@dataclass(frozen=True)
class Direct:
    """Convolution without matrix units. Buffers: input, weights, epilogue's operands, output.

    Attributes:
        channels_last: NHWC tensors; weights stay as ONNX has them, but for `vector` > 1.
        vector: channels a thread; more than one for depthwise NHWC with weights [taps, out].
        side: the size of a square two-dimensional kernel that is unrolled, or 0.
    """

    dtype: DType
    epilogue: Epilogue
    channels_last: bool = False
    transposed: bool = False
    vector: int = 1
    side: int = 0

    @staticmethod
    def depthwise(dtype: DType, epilogue: Epilogue, geometry: Geometry) -> Direct:
        """The vectorised form for a depthwise convolution."""
        wide = 16 // item_size(dtype)
        vector = next(v for v in (wide, wide // 2, 1) if v and geometry.out % v == 0)
        square = len(geometry.kernel) == 2 and len(set(geometry.kernel)) == 1
        side = geometry.kernel[0] if square and geometry.kernel[0] in _SIDES else 0
        return Direct(dtype, epilogue, True, False, vector, side)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_direct(self),)

    def plan(self, g: Geometry) -> Plan:
        """The launch."""
        missing = 3 - len(g.sizes)

        def three(values: tuple[int, ...], rest: int) -> ctypes.Array[ctypes.c_int]:
            return _Three(*((rest,) * missing + values))

        sizes, outputs = (1,) * missing + g.sizes, (1,) * missing + g.outputs
        order = (g.batch, *outputs, g.out // self.vector)
        units = math.prod(order)
        check_size("a convolution", units * self.vector)
        shape = _DirectShape(
            dims(order),
            g.channels // g.groups,
            g.out // g.groups,
            three(g.sizes, 1),
            three(g.kernel, 1),
            three(g.strides, 1),
            three(g.pads[: len(g.sizes)], 0),
            three(g.dilations, 1),
            _Five(*self._steps(g.channels, sizes)),
            _Five(*self._steps(g.out, outputs)),
        )
        extra = len(self.epilogue.operands)
        args: tuple[Argument, ...] = (
            ctypes.c_uint(units),
            shape,
            Buffer(0),
            Buffer(1),
            Buffer(2 + extra),
            *(Buffer(2 + i) for i in range(extra)),
        )
        call = Call(_direct(self), blocks(units), (256, 1, 1), args)
        return Plan((call,) if units else ())

    def _steps(self, channels: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Strides of batch, channel, depth, row, column."""
        d, h, w = sizes
        if self.channels_last:
            return (d * h * w * channels, 1, h * w * channels, w * channels, channels)
        return (channels * d * h * w, d * h * w, h * w, w, 1)


@cache
def _direct(op: Direct) -> Kernel:
    defines: dict[str, str | int] = {
        "T_IN": C_TYPES[op.dtype],
        "T_OUT": C_TYPES[op.epilogue.dtype],
        "ACC": compute_type(op.epilogue.tree.inputs[0]),
        "VEC": op.vector,
        "TRANSPOSED": int(op.transposed),
        "SIDE": op.side,
    }
    code = op.epilogue.code(op.vector, 0, staged=False)
    return assemble("direct", "direct", defines=defines, code=code)
