"""Matrix products of large problems on tensor cores, with any epilogue, by descriptor transfers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.gemm import Matrix, vector_width
from polytool.backends.native.kernels.matrix_units import group_product
from polytool.backends.native.kernels.row_moments import RowNorm
from polytool.backends.native.kernels.source import (
    C_TYPES,
    SHARED_LIMIT,
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

_RESERVED = 1024  # bytes of shared memory that each block costs besides its own
TILES = ((2, 256), (3, 192), (2, 192), (3, 128), (2, 128))
"""Candidates: warpgroups of 64 rows, columns."""
CLUSTERS = (2, 1)
_HALVES = (DType.FLOAT16, DType.BFLOAT16)


class Shape(ctypes.Structure):
    """`struct wide_shape` of gemm_wide.cuh."""

    _fields_ = (
        *((n, ctypes.c_int) for n in ("m", "n", "slices", "groups_m", "tiles")),
        ("ldd", ctypes.c_longlong),
    )


@dataclass(frozen=True)
class WideGemm:
    """One tile of the large product; Hopper's matrix units only.

    Attributes:
        groups: warpgroups that multiply, 64 rows of the tile each.
        columns: of the tile.
        cluster: blocks that share B.
        blocks: on a multiprocessor; two for tiles of 128 x 128 whose epilogue has no operand that
            lies like the output.
        constant: B is constant, so it may be read before the launches in front have finished.
        measured: the moments of the result's rows are stored as well (see row_moments.py); with
            `boxes` only.
        normalized: sums are multiplied by a factor over the deviation of A's rows, which their
            moments tell; where no operand lies like the output, with one block on a
            multiprocessor.
    """

    dtype: DType
    epilogue: Epilogue
    groups: int = 2
    columns: int = 256
    cluster: int = 2
    blocks: int = 1
    constant: bool = False
    measured: bool = False
    normalized: bool = False

    @property
    def threads(self) -> int:
        """Of a block: those that multiply, and a warpgroup, or a warp, that fetches."""
        return 128 * self.groups + (128 if self.blocks == 1 else 32)

    @property
    def rows(self) -> int:
        """Of the tile."""
        return 64 * self.groups

    @property
    def boxes(self) -> bool:
        """Whether results are stored by descriptor, in the place of what lies like them."""
        return self.blocks == 1 and self.dtype is not DType.INT8 and in_boxes(self.epilogue)

    @property
    def _staging(self) -> int:
        """Bytes through which results are stored."""
        if self.boxes:
            return 0
        return self.groups * 4 * 16 * (40 if self.blocks == 1 else 20) * 4

    @property
    def _scales(self) -> int:
        """Bytes for what the rows of two tiles are multiplied with, and for further barriers."""
        return 2 * self.rows * 4 + 32 if self.normalized else 48 if self.boxes else 0

    @property
    def stages(self) -> int:
        """Slices of k in flight, as many as shared memory holds."""
        fixed = self._staging + self._scales + 128
        room = (SHARED_LIMIT + _RESERVED) // self.blocks - _RESERVED - fixed
        return min(8, room // ((self.rows + self.columns) * 128))

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * ((self.rows + self.columns) * 128 + 16) + self._staging + self._scales

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel, for every shape."""
        defines: dict[str, str | int] = {
            "T_IN": C_TYPES[self.dtype],
            "T_OUT": C_TYPES[self.epilogue.dtype],
            "ACC": "int" if self.dtype is DType.INT8 else "float",
            "MMA": "mma_group",
            "GROUPS": self.groups,
            "BN": self.columns,
            "STAGES": self.stages,
            "CLUSTER": self.cluster,
            "BLOCKS": self.blocks,
            "VEC": 8,
            "CONSTANT_B": int(self.constant),
            "BOXES": int(self.boxes),
            "MOMENTS": 1 if self.measured else 2 if self.normalized else 0,
        }
        if self.boxes or in_registers(self.epilogue):
            code = self.epilogue.register_code(kept=self.measured)
        else:
            code = self.epilogue.code(8, 0, staged=False)
        code += "\n" + group_product(self.dtype, self.columns)
        templates = ("row_moments", "gemm_wide") if defines["MOMENTS"] else ("gemm_wide",)
        return assemble("gemm_wide", *templates, defines=defines, code=code, threads=self.threads)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (self.kernel,)

    def plan(
        self, problem: Matrix, multiprocessors: int = 132, norm: RowNorm | None = None
    ) -> Plan:
        """The launch.

        Buffers: A, B, the epilogue's operands, where A is `normalized` its moments and the factor,
        then the output, and its moments where they are stored.
        """
        item = item_size(self.dtype)
        per_slice = 128 // item
        groups = -(-problem.m // (self.rows * self.cluster))
        tiles = groups * -(-problem.n // self.columns)
        ldd = problem.n if problem.ldd is None else problem.ldd
        shape = Shape(problem.m, problem.n, -(-problem.k // per_slice), groups, tiles, ldd)
        lda = problem.k if problem.lda is None else problem.lda
        ldb = problem.k if problem.ldb is None else problem.ldb
        extra = len(self.epilogue.operands)
        output = 2 + extra
        moments: tuple[Argument, ...] = (Buffer(output + 1),) if self.measured else ()
        if self.normalized:
            assert norm is not None
            moments, output = (Buffer(output), norm, Buffer(output + 1)), output + 2
        results: list[Argument] = [Buffer(output)]
        if self.boxes:
            beside = 2 + self.epilogue.operands.index("full")
            box = (problem.m, problem.n, ldd, 64, 64)
            results = [TensorMap(i, self.epilogue.dtype, *box) for i in (output, beside)]
        args: tuple[Argument, ...] = (
            TensorMap(0, self.dtype, problem.m, problem.k, lda, self.rows, per_slice),
            TensorMap(
                1, self.dtype, problem.n, problem.k, ldb, self.columns // self.cluster, per_slice
            ),
            *results,
            shape,
            *moments,
            *(Buffer(2 + i) for i in range(extra)),
        )
        blocks = min(tiles, self.blocks * multiprocessors // self.cluster) * self.cluster
        grid, block = (1, 1, blocks), (self.threads, 1, 1)
        call = Call(self.kernel, grid, block, args, self.shared, self.cluster)
        name = f"gemm_wide {self.rows}x{self.columns} cluster{self.cluster}"
        return Plan((call,), name=name if self.blocks == 1 else f"{name} blocks{self.blocks}")


def in_registers(epilogue: Epilogue) -> bool:
    """Whether sums are finished where they are: no operand lies like the output."""
    return not {"full", "row"} & set(epilogue.operands)


def in_boxes(epilogue: Epilogue) -> bool:
    """Whether one operand lies like the output, and both are of one 16-bit float type."""
    kinds = dict(zip(epilogue.operands, epilogue.tree.inputs[1:], strict=True))
    alone = epilogue.operands.count("full") == 1 and "row" not in kinds
    return alone and kinds["full"] is epilogue.dtype and epilogue.dtype in _HALVES


def candidates(
    dtype: DType,
    epilogue: Epilogue,
    problem: Matrix,
    *,
    constant: bool = False,
    measured: bool = False,
    normalized: bool = False,
) -> list[WideGemm]:
    """The tiles worth timing; none for what is small, batched or not aligned.

    `constant`, `measured` and `normalized` are those of `WideGemm`.
    """
    types = (epilogue.dtype, *epilogue.tree.inputs[1:])
    fits = problem.batch == 1 and problem.aligned(item_size(dtype))
    fits = fits and vector_width(problem.n, types) == 8 and problem.m >= 512 and problem.n >= 128
    if not fits or dtype not in (*_HALVES, DType.INT8):
        return []
    shapes = [(g, n, c, 1) for g, n in TILES for c in CLUSTERS]
    if in_registers(epilogue) and not normalized:
        shapes += [(2, 128, c, 2) for c in CLUSTERS]
    modes = (constant, measured, normalized)
    return [WideGemm(dtype, epilogue, *shape, *modes) for shape in shapes]
