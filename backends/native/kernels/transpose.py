"""Transposes of any rank, and the packing of a first layer's image."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.pointwise import Operand, copy, dense, merge
from polytool.backends.native.kernels.source import (
    C_TYPES,
    UNSIGNED,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    dims,
    item_size,
    strides,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@dataclass(frozen=True)
class Transpose:
    """Transposes of one element size. Buffers: the input, the output."""

    dtype: DType

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that serve every shape."""
        return (_tile(item_size(self.dtype)), *copy(self.dtype).kernels())

    def plan(self, shape: tuple[int, ...], permutation: tuple[int, ...]) -> Plan:
        """The launch: by tiles where the fastest dimension changes, else a strided copy."""
        steps = tuple(dense(shape)[p] for p in permutation)
        result = tuple(shape[p] for p in permutation)
        sizes, (source, target) = merge(result, [steps, dense(result)])
        if source[-1] == 1 or 1 not in source:
            return copy(self.dtype).plan(result, [Operand(result, steps)])
        fast = source.index(1)
        others = [d for d in range(len(sizes) - 1) if d != fast]
        outer = math.prod(sizes[d] for d in others)
        if outer >= 1 << 16 or sizes[fast] < 4 or sizes[-1] < 4:
            return copy(self.dtype).plan(result, [Operand(result, steps)])
        args = (
            ctypes.c_uint(sizes[-1]),
            ctypes.c_uint(sizes[fast]),
            ctypes.c_longlong(source[-1]),
            ctypes.c_longlong(target[fast]),
            dims(tuple(sizes[d] for d in others)),
            strides(tuple(source[d] for d in others)),
            strides(tuple(target[d] for d in others)),
            Buffer(0),
            Buffer(1),
        )
        grid = (-(-sizes[fast] // 32), min(-(-sizes[-1] // 32), 65535), outer)
        kernel = _tile(item_size(self.dtype))
        return Plan((Call(kernel, grid, (256, 1, 1), args),) if math.prod(shape) else ())


@cache
def _tile(item: int) -> Kernel:
    return assemble("transpose", "transpose", defines={"T": C_TYPES[UNSIGNED[item]]})


class _ImageShape(ctypes.Structure):
    _fields_ = tuple(
        (n, ctypes.c_int)
        for n in ("channels", "height", "width", "top", "left", "out_height", "out_width")
    )


@dataclass(frozen=True)
class PackImage:
    """NCHW with few channels to NHWC with `channels` of them, in a border of zeros.

    Buffers: the image, the packed image [batch, height, width, channels].
    """

    dtype: DType
    channels: int = 8

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (_image(self),)

    def plan(
        self,
        shape: tuple[int, int, int, int],
        top: int = 0,
        left: int = 0,
        size: tuple[int, int] | None = None,
    ) -> Plan:
        """The launch.

        Args:
            shape: of the image, NCHW.
            top: rows of zeros above it.
            left: columns of zeros before it.
            size: height and width of the result.
        """
        batch, channels, height, width = shape
        if channels > self.channels:
            raise UnsupportedError(
                f"an image of {channels} channels cannot be packed into {self.channels}"
            )
        out = (height, width) if size is None else size
        pixels = batch * out[0] * out[1]
        geometry = _ImageShape(channels, height, width, top, left, *out)
        args = (ctypes.c_uint(pixels), geometry, dims((batch, *out)), Buffer(0), Buffer(1))
        call = Call(_image(self), (-(-pixels // 256), 1, 1), (256, 1, 1), args)
        return Plan((call,) if pixels else ())


@cache
def _image(op: PackImage) -> Kernel:
    kind = C_TYPES[UNSIGNED[item_size(op.dtype)]]
    return assemble("pack_image", "image", defines={"T": kind, "C_PAD": op.channels})
