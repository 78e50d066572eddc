"""MaxPool, AveragePool and LpPool over one to three spatial dimensions, NCHW or NHWC."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.reduce import _LIMITS
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Buffer,
    Call,
    Dims,
    Kernel,
    Plan,
    assemble,
    dims,
    item_size,
)
from polytool.tensors import DType

_THREADS = 128
_SIDES = (2, 3)
_Three = ctypes.c_int * 3


class Shape(ctypes.Structure):
    """`struct pool_shape` of pool.cuh."""

    _fields_ = (
        ("out", Dims),
        ("channels", ctypes.c_int),
        *((n, _Three) for n in ("size", "kernel", "stride", "pad", "end_pad", "dilation")),
        ("column_major", ctypes.c_int),
        ("p", ctypes.c_float),
    )


@dataclass(frozen=True)
class Window:
    """Where a pooling looks; one entry a spatial dimension, pads as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """One kind of pooling. Buffers: the input, the output, the indices if there are any.

    Attributes:
        op: `MaxPool`, `AveragePool` or `LpPool`.
        channels_last: NHWC instead of NCHW.
        indices: MaxPool's second output, NCHW only.
    """

    op: str
    dtype: DType
    channels_last: bool = False
    count_pads: bool = False
    indices: bool = False

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        widths = (16 // item_size(self.dtype), 1) if self.channels_last else (1,)
        return tuple(_kernel(self, v, s) for v in widths for s in (0, *_SIDES))

    def plan(
        self,
        batch: int,
        channels: int,
        sizes: tuple[int, ...],
        outputs: tuple[int, ...],
        window: Window,
        *,
        p: float = 2.0,
        column_major: bool = False,
    ) -> Plan:
        """The launch; `sizes` and `outputs` are the spatial sizes of input and output."""
        vector = 16 // item_size(self.dtype) if self.channels_last else 1
        if channels % vector:
            vector = 1
        n, missing = len(sizes), 3 - len(sizes)

        def three(values: tuple[int, ...], rest: int) -> ctypes.Array[ctypes.c_int]:
            return _Three(*((rest,) * missing + values))

        spatial = (1,) * missing + outputs
        order = (
            (batch, *spatial, channels // vector)
            if self.channels_last
            else (batch, channels, *spatial)
        )
        shape = Shape(
            dims(order),
            channels,
            three(sizes, 1),
            three(window.kernel, 1),
            three(window.strides, 1),
            three(window.pads[:n], 0),
            three(window.pads[n:], 0),
            three(window.dilations, 1),
            int(column_major),
            p,
        )
        units = math.prod(order)
        args = (
            ctypes.c_uint(units),
            shape,
            Buffer(0),
            Buffer(1),
            Buffer(2) if self.indices else ctypes.c_void_p(None),
        )
        grid = (min(max(1, -(-units // _THREADS)), 132 * 32), 1, 1)
        flat = len(set(window.kernel)) == 1 and n == 2 and window.kernel[0] in _SIDES
        kernel = _kernel(self, vector, window.kernel[0] if flat else 0)
        call = Call(kernel, grid, (_THREADS, 1, 1), args)
        return Plan((call,) if units else ())


@cache
def _kernel(op: Pool, vector: int, side: int) -> Kernel:
    kinds = {"MaxPool": 0, "AveragePool": 2 if op.count_pads else 1, "LpPool": 3}
    source = C_TYPES[op.dtype]
    defines: dict[str, str | int] = {
        "T": source,
        "KIND": kinds[op.op],
        "CHANNELS_LAST": int(op.channels_last),
        "VEC": vector,
        "INDICES": int(op.indices),
        "SIDE": side,
        "LOWEST": "-INFINITY" if op.dtype.is_float else _LIMITS[source][0],
    }
    return assemble("pool", "pool", defines=defines, threads=_THREADS)
