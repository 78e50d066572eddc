"""Sums and sums of squares of the rows of a matrix, of which their normalisation is made.

A product whose weights take in the scale of a LayerNormalization, and the mean of its rows, needs
of the normalisation only the reciprocal deviation of each row, behind the sums.
"""

from __future__ import annotations

import ctypes
from functools import cache

from polytool.backends.native.kernels.source import (
    C_TYPES,
    Buffer,
    Call,
    Kernel,
    assemble,
)
from polytool.tensors import DType

PART = 64
"""Columns whose moments are stored together: float32 [columns / 64, rows, 2]."""
_THREADS = 128


class RowNorm(ctypes.Structure):
    """`struct row_norm` of row_moments.cuh."""

    _fields_ = (
        ("parts", ctypes.c_int),
        ("share", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("centred", ctypes.c_int),
    )

    @classmethod
    def of(cls, columns: int, epsilon: float, centred: bool) -> RowNorm:
        """The normalisation of rows of `columns`, a multiple of 64; RMS where not `centred`."""
        return cls(columns // PART, 1 / columns, epsilon, centred)


def measuring(dtype: DType, rows: int, columns: int, matrix: int, moments: int) -> Call:
    """The moments of the buffer `matrix` [rows, columns] into the buffer `moments`."""
    args = (Buffer(matrix), Buffer(moments), ctypes.c_int(rows), ctypes.c_int(columns))
    return _call(_measuring(dtype), -(-rows * 32 // _THREADS), args)


def scaling(rows: int, norm: RowNorm, moments: int, factor: int, scales: int) -> Call:
    """`factor` [1] over the deviation of each row, float32 [rows], into the buffer `scales`."""
    args = (Buffer(moments), Buffer(factor), Buffer(scales), ctypes.c_int(rows), norm)
    kernel = assemble("scale_rows", "row_moments", "scale_rows", threads=_THREADS)
    return _call(kernel, -(-rows // _THREADS), args)


@cache
def _measuring(dtype: DType) -> Kernel:
    defines = {"T_IN": C_TYPES[dtype]}
    return assemble(
        "measure_rows", "row_moments", "measure_rows", defines=defines, threads=_THREADS
    )


def _call(kernel: Kernel, blocks: int, args: tuple[object, ...]) -> Call:
    return Call(kernel, (blocks, 1, 1), (_THREADS, 1, 1), args)
