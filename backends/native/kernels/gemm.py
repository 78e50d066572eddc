"""Matrix products and convolutions (NHWC, implicit GEMM) on tensor cores, with any epilogue.

Made for small problems, where launches and latency decide: split over k inside a cluster, weights
fetched before the predecessor has finished. A config is a tile shape; all are candidates.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.matrix_units import GROUP_TYPES, group_product
from polytool.backends.native.kernels.source import (
    C_TYPES,
    SHARED_LIMIT,
    Argument,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    item_size,
    magic,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_MMA = {
    DType.FLOAT16: ("mma_half", "float"),
    DType.BFLOAT16: ("mma_bfloat", "float"),
    DType.FLOAT: ("mma_tf32", "float"),
    DType.INT8: ("mma_int8", "int"),
}


@dataclass(frozen=True)
class Tile:
    """How a block is cut: BM x BN outputs, warps along both, slices of k in flight.

    Attributes:
        group: whether warpgroups (four warps, 64 rows) multiply straight from shared memory.
    """

    m: int
    n: int
    warps_m: int
    warps_n: int
    stages: int
    group: bool = False

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.warps_m * self.warps_n * 32

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return max(self.stages * (self.m + self.n) * 128, self.m * (self.n + 8) * 4)

    def __str__(self) -> str:
        form = "g" if self.group else "w"
        return f"{self.m}x{self.n}{form}{self.warps_m}{self.warps_n}s{self.stages}"


TILES = (
    Tile(256, 128, 8, 1, 4, True),
    Tile(128, 256, 4, 2, 4, True),
    Tile(128, 128, 8, 1, 5, True),
    Tile(128, 128, 4, 2, 5, True),
    Tile(128, 64, 8, 1, 6, True),
    Tile(64, 256, 4, 2, 5, True),
    Tile(64, 128, 4, 1, 6, True),
    Tile(64, 64, 4, 1, 6, True),
    Tile(64, 64, 4, 1, 10, True),
    Tile(64, 32, 4, 1, 8, True),
    Tile(128, 128, 2, 4, 3),
    Tile(128, 64, 4, 2, 6),
    Tile(64, 64, 2, 2, 6),
    Tile(64, 32, 2, 2, 6),
    Tile(32, 64, 2, 2, 6),
    Tile(32, 32, 2, 2, 6),
    Tile(16, 64, 1, 4, 6),
)
"""Candidates, from the largest tile to the smallest."""
SPLITS = (1, 2, 3, 4, 6, 8)


class Shape(ctypes.Structure):
    """`struct gemm_shape` of gemm.cuh."""

    _fields_ = (
        *((n, ctypes.c_int) for n in ("m", "n", "k", "tiles_m", "tiles_n", "col_batch")),
        *((n, ctypes.c_longlong) for n in ("lda", "ldb", "ldd", "batch_a", "batch_b", "batch_d")),
        *((n, ctypes.c_int) for n in ("height", "width", "channels", "pixel", "kernel_w")),
        *((n, ctypes.c_int) for n in ("stride_h", "stride_w", "pad_h", "pad_w")),
        *((n, ctypes.c_int) for n in ("dilation_h", "dilation_w")),
        *((n, ctypes.c_uint) for n in ("q", "q_magic", "q_shift", "p", "p_magic", "p_shift")),
        *((n, ctypes.c_uint) for n in ("c_magic", "c_shift", "s_magic", "s_shift")),
        *((n, ctypes.c_uint) for n in ("wide_magic", "wide_shift", "tail_magic", "tail_shift")),
        *((n, ctypes.c_uint) for n in ("ranks_magic", "ranks_shift")),
    )


@dataclass(frozen=True)
class Matrix:
    """A batch of products: A [batch, m, k] times the transpose of B [batch, n, k].

    Strides are in elements; those of k are one.
    """

    m: int
    n: int
    k: int
    batch: int = 1
    lda: int | None = None
    ldb: int | None = None
    ldd: int | None = None
    batch_a: int = 0
    batch_b: int = 0
    batch_d: int = 0
    col_batch: int = 0

    def fill(self, shape: Shape, slice_k: int) -> None:
        """Write the problem into the kernel's argument."""
        shape.m, shape.n, shape.k = self.m, self.n, self.k
        shape.lda = self.k if self.lda is None else self.lda
        shape.ldb = self.k if self.ldb is None else self.ldb
        shape.ldd = self.n if self.ldd is None else self.ldd
        shape.batch_a, shape.batch_b, shape.batch_d = self.batch_a, self.batch_b, self.batch_d
        shape.col_batch = self.col_batch

    def image(self, slice_k: int) -> int:
        """Which form of the kernel serves it."""
        return 0

    def aligned(self, item: int) -> bool:
        """Whether the rows of A and B start at multiples of 16 bytes."""
        leading = (self.k, self.lda, self.ldb, self.batch_a, self.batch_b)
        return all(v is None or v * item % 16 == 0 for v in leading)


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution of an NHWC image with weights [out, kh, kw, in / groups]."""

    batch_size: int
    height: int
    width: int
    channels: int
    out: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = (self.height, self.width)
        return tuple(  # type: ignore[return-value]  # two of them
            (
                sizes[i]
                + self.pads[i]
                + self.pads[i + 2]
                - self.dilations[i] * (self.kernel[i] - 1)
                - 1
            )
            // self.strides[i]
            + 1
            for i in (0, 1)
        )

    @property
    def m(self) -> int:
        """Rows of the implicit product: output pixels."""
        return self.batch_size * self.output[0] * self.output[1]

    @property
    def n(self) -> int:
        """Columns of the implicit product: output channels of a group."""
        return self.out // self.groups

    @property
    def k(self) -> int:
        """Depth of the implicit product."""
        return self.kernel[0] * self.kernel[1] * self.channels // self.groups

    @property
    def batch(self) -> int:
        """Independent products: groups."""
        return self.groups

    def fill(self, shape: Shape, slice_k: int) -> None:
        """Write the problem into the kernel's argument."""
        inner = self.channels // self.groups
        shape.m, shape.n, shape.k = self.m, self.n, self.k
        shape.ldb, shape.ldd = self.k, self.out
        shape.batch_a, shape.batch_b, shape.batch_d = inner, self.n * self.k, self.n
        shape.col_batch = self.n
        shape.height, shape.width, shape.channels = self.height, self.width, inner
        shape.pixel, shape.kernel_w = self.channels, self.kernel[1]
        shape.stride_h, shape.stride_w = self.strides
        shape.pad_h, shape.pad_w = self.pads[:2]
        shape.dilation_h, shape.dilation_w = self.dilations
        shape.p, shape.q = self.output
        shape.q_magic, shape.q_shift = magic(shape.q)
        shape.p_magic, shape.p_shift = magic(shape.p)
        by = inner // slice_k if self.image(slice_k) == 2 else inner
        shape.c_magic, shape.c_shift = magic(by)
        shape.s_magic, shape.s_shift = magic(self.kernel[1])

    def image(self, slice_k: int) -> int:
        """Which form of the kernel serves it."""
        return 2 if self.channels // self.groups % slice_k == 0 else 1

    def aligned(self, item: int) -> bool:
        """Whether every pixel's channels of a group start at a multiple of 16 bytes."""
        return self.channels // self.groups * item % 16 == 0

    def as_matrix(self) -> Matrix | None:
        """The plain product that a 1x1 convolution with stride 1 is."""
        plain = self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)
        return Matrix(self.m, self.out, self.channels) if plain and self.groups == 1 else None


Problem = Matrix | Convolution


@dataclass(frozen=True)
class Gemm:
    """One tile shape of the tensor-core product.

    Attributes:
        dtype: of A and B; float32 means tf32 products.
        image: form of A (see gemm.cuh).
        vector: columns a store; all operands with columns must be aligned to it.
        constant: B and the column operands are constants, so they may be read before the launches
            in front have finished. Must be False for a product of two activations.
    """

    dtype: DType
    epilogue: Epilogue
    tile: Tile
    image: int = 0
    vector: int = 8
    constant: bool = True

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel, for every shape."""
        mma, acc = _MMA[self.dtype]
        tile = self.tile
        if tile.group:
            mma = "mma_group"
        defines: dict[str, str | int] = {
            "T_IN": C_TYPES[self.dtype],
            "T_OUT": C_TYPES[self.epilogue.dtype],
            "ACC": acc,
            "MMA": mma,
            "BM": tile.m,
            "BN": tile.n,
            "WARPS_M": tile.warps_m,
            "WARPS_N": tile.warps_n,
            "STAGES": tile.stages,
            "VEC": self.vector,
            "IMAGE": self.image,
            "GROUP": int(tile.group),
            "CONSTANT_B": int(self.constant),
        }
        if self.dtype is DType.FLOAT:
            defines["ROUND_TF32"] = 1
        code = self.epilogue.code(self.vector, tile.n)
        if tile.group:
            code += "\n" + group_product(self.dtype, tile.n // tile.warps_n)
        return assemble("gemm_tile", "gemm", defines=defines, code=code, threads=tile.threads)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.tile.shared + self.epilogue.column_bytes(self.tile.n, self.vector)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (self.kernel,)

    def plan(self, problem: Problem, split: int = 1) -> Plan:
        """The launch. Buffers: A, B, the epilogue's operands, then the output."""
        shape = Shape()
        slice_k = 128 // item_size(self.dtype)
        problem.fill(shape, slice_k)
        shape.tiles_m = -(-problem.m // self.tile.m)
        shape.tiles_n = -(-problem.n // self.tile.n)
        shape.wide_magic, shape.wide_shift = magic(8 * shape.tiles_n)
        shape.tail_magic, shape.tail_shift = magic(shape.tiles_m % 8 or 8)
        shape.ranks_magic, shape.ranks_shift = magic(split)
        extra = len(self.epilogue.operands)
        args: tuple[Argument, ...] = (
            Buffer(0),
            Buffer(1),
            Buffer(2 + extra),
            shape,
            *(Buffer(2 + i) for i in range(extra)),
        )
        grid = (shape.tiles_m * shape.tiles_n, problem.batch, split)
        block = (self.tile.threads, 1, 1)
        call = Call(self.kernel, grid, block, args, self.shared, split)
        return Plan((call,), name=f"gemm {self.tile} k/{split}")


def vector_width(n: int, dtypes: Sequence[DType]) -> int:
    """Columns that one store may cover when rows have `n` columns."""
    widest = max(item_size(d) for d in dtypes)
    return next(v for v in (8, 4, 2, 1) if n % v == 0 and (v == 1 or v * widest <= 32))


def candidates(
    dtype: DType,
    epilogue: Epilogue,
    problem: Problem,
    multiprocessors: int = 132,
    *,
    constant: bool = True,
) -> list[tuple[Gemm, int]]:
    """Tile shapes with a split of k that are worth timing for `problem`.

    `constant` is that of `Gemm`: False when B or a column operand is computed.

    Raises:
        UnsupportedError: the operands' rows are not aligned to 16 bytes.
    """
    item = item_size(dtype)
    if not problem.aligned(item):
        raise UnsupportedError(
            f"a tensor-core product needs rows aligned to 16 bytes, k = {problem.k} {dtype.label}"
            " is not; use the generic product"
        )
    n = problem.n
    vector = vector_width(n, (epilogue.dtype, *epilogue.tree.inputs[1:]))
    slice_k = 128 // item
    slices = -(-problem.k // slice_k)
    found = []
    for tile in TILES:
        if tile.group and dtype not in GROUP_TYPES:
            continue
        tiles = -(-problem.m // tile.m) * -(-n // tile.n) * problem.batch
        if tile.n > max(32, 2 * n) or tile.m > max(32, 2 * problem.m):
            continue
        gemm = Gemm(dtype, epilogue, tile, problem.image(slice_k), vector, constant)
        if gemm.shared > SHARED_LIMIT:
            continue
        for split in SPLITS:
            blocks = tiles * split
            if split > 1 and (blocks > 1.5 * multiprocessors or slices < 2 * split):
                continue
            if blocks * 4 < multiprocessors and split < 4 and slices >= 4 * split:
                continue  # a larger split of the same tile keeps more of the chip busy
            found.append((gemm, split))
    return found
