"""Matrix products of large problems on tensor cores, with any epilogue, by descriptor transfers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from polytool.backends.native.kernels.gemm import (
    SHARED_LIMIT,
    Epilogue,
    Matrix,
    group_product,
    vector_width,
)
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Argument,
    Buffer,
    Call,
    Kernel,
    Plan,
    TensorMap,
    assemble,
    item_size,
)
from polytool.tensors import DType

_ROWS = 128
_STAGING = 8 * 16 * 40 * 4
COLUMNS = (256, 192, 128)
CLUSTERS = (2, 1)


class Shape(ctypes.Structure):
    """`struct wide_shape` of gemm_wide.cuh."""

    _fields_ = (
        *((n, ctypes.c_int) for n in ("m", "n", "slices", "groups_m", "tiles")),
        ("ldd", ctypes.c_longlong),
    )


@dataclass(frozen=True)
class WideGemm:
    """One tile width of the large product; Hopper's matrix units only.

    Attributes:
        columns: of a tile; its rows are 128.
        cluster: blocks that share B.
    """

    dtype: DType
    epilogue: Epilogue
    columns: int = 256
    cluster: int = 2

    @property
    def stages(self) -> int:
        """Slices of k in flight, as many as shared memory holds."""
        return min(8, (SHARED_LIMIT - _STAGING - 128) // ((_ROWS + self.columns) * 128))

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * ((_ROWS + self.columns) * 128 + 16) + _STAGING

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel, for every shape."""
        defines: dict[str, str | int] = {
            "T_IN": C_TYPES[self.dtype],
            "T_OUT": C_TYPES[self.epilogue.dtype],
            "ACC": "int" if self.dtype is DType.INT8 else "float",
            "MMA": "mma_group",
            "BN": self.columns,
            "STAGES": self.stages,
            "CLUSTER": self.cluster,
            "VEC": 8,
        }
        code = self.epilogue.code(8, 0, staged=False) + "\n"
        code += group_product(self.dtype, self.columns)
        return assemble("gemm_wide", "gemm_wide", defines=defines, code=code, threads=384)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (self.kernel,)

    def plan(self, problem: Matrix, multiprocessors: int = 132) -> Plan:
        """The launch. Buffers: A, B, the epilogue's operands, then the output."""
        item = item_size(self.dtype)
        per_slice = 128 // item
        groups = -(-problem.m // (_ROWS * self.cluster))
        tiles = groups * -(-problem.n // self.columns)
        ldd = problem.n if problem.ldd is None else problem.ldd
        shape = Shape(problem.m, problem.n, -(-problem.k // per_slice), groups, tiles, ldd)
        lda = problem.k if problem.lda is None else problem.lda
        ldb = problem.k if problem.ldb is None else problem.ldb
        extra = len(self.epilogue.operands)
        args: tuple[Argument, ...] = (
            TensorMap(0, self.dtype, problem.m, problem.k, lda, _ROWS, per_slice),
            TensorMap(
                1, self.dtype, problem.n, problem.k, ldb, self.columns // self.cluster, per_slice
            ),
            Buffer(2 + extra),
            shape,
            *(Buffer(2 + i) for i in range(extra)),
        )
        blocks = min(tiles, multiprocessors // self.cluster) * self.cluster
        grid, block = (1, 1, blocks), (384, 1, 1)
        call = Call(self.kernel, grid, block, args, self.shared, self.cluster)
        return Plan((call,), name=f"gemm_wide 128x{self.columns} cluster{self.cluster}")


def candidates(dtype: DType, epilogue: Epilogue, problem: Matrix) -> list[WideGemm]:
    """The tiles worth timing; none for what is small, batched or not aligned."""
    types = (epilogue.dtype, *epilogue.tree.inputs[1:])
    fits = problem.batch == 1 and problem.aligned(item_size(dtype))
    fits = fits and vector_width(problem.n, types) == 8 and problem.m >= 512 and problem.n >= 128
    if not fits or dtype not in (DType.FLOAT16, DType.BFLOAT16, DType.INT8):
        return []
    return [WideGemm(dtype, epilogue, n, c) for n in COLUMNS for c in CLUSTERS]
