"""Fused attention for the 16-bit types; one kernel for every sequence length, mask and layout."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property

from polytool.backends.native.kernels.source import (
    C_TYPES,
    SHARED_LIMIT,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

MMA = {
    DType.FLOAT16: ("mma_half", "pack_half"),
    DType.BFLOAT16: ("mma_bfloat", "pack_bfloat"),
}
FORMS = (
    (4, 1, 64),
    (8, 1, 64),
    (2, 2, 64),
    (1, 4, 64),
    (2, 2, 128),
    (1, 4, 128),
    (2, 4, 128),
    (1, 8, 128),
    (4, 2, 128),
)
"""Candidates: warps along queries (16 each), warps along keys, keys a tile."""
_WARPS = ((4, 1), (8, 1), (7, 1), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8))
_MOST_KEYS = 256  # of one warp: what its registers hold


def fitting_forms(keys: int, masked: bool) -> list[tuple[int, int, int]]:
    """Forms in which one tile, or two, just hold all keys: less waste, and all is on its way."""
    most = _MOST_KEYS // 2 if masked else _MOST_KEYS  # the mask's values are in registers, too
    found: list[tuple[int, int, int]] = []
    for rows, key_warps in _WARPS:
        for tiles in (1, 2):
            part = -(-keys // (16 * key_warps * tiles)) * 16
            if part <= most and (rows, key_warps, part * key_warps) not in (*FORMS, *found):
                found.append((rows, key_warps, part * key_warps))
    return found


class Shape(ctypes.Structure):
    """`struct attention_shape` of attention.cuh."""

    _fields_ = (
        *((n, ctypes.c_int) for n in ("queries", "keys", "group", "causal_offset")),
        ("scale", ctypes.c_float),
        *((n, ctypes.c_longlong * 3) for n in "qkvo"),
        ("mask", ctypes.c_longlong * 4),
    )


@dataclass(frozen=True)
class Layout:
    """Sizes of one attention, and where its tensors lie: strides of batch, head, row.

    Attributes:
        scale: of the scores, positive.
        mask: strides of batch, head, row and column; zero where the mask is broadcast.
        causal_offset: query i sees keys up to i + offset.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    scale: float
    q: tuple[int, int, int]
    k: tuple[int, int, int]
    v: tuple[int, int, int]
    o: tuple[int, int, int]
    mask: tuple[int, int, int, int] = (0, 0, 0, 0)
    causal_offset: int = 0


def argument(layout: Layout) -> Shape:
    """The kernels' argument."""
    return Shape(
        layout.queries,
        layout.keys,
        layout.heads // layout.kv_heads,
        layout.causal_offset,
        layout.scale,
        *((ctypes.c_longlong * 3)(*s) for s in (layout.q, layout.k, layout.v, layout.o)),
        (ctypes.c_longlong * 4)(*layout.mask),
    )


@dataclass(frozen=True)
class Attention:
    """One block shape of fused attention.

    Attributes:
        head: elements of a head, a multiple of 16 up to 256.
        mask: the mask's element type: a float type is added, BOOL selects, None for no mask.
        form: warps along queries, warps along keys, keys a tile.
        mask_rows: whether queries have different rows of the mask.
        mask_pairs: whether its columns lie side by side, and pairs of them are aligned.
    """

    dtype: DType
    head: int
    mask: DType | None = None
    causal: bool = False
    form: tuple[int, int, int] = (4, 1, 64)
    mask_rows: bool = True
    mask_pairs: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in MMA or self.head % 16 or not 16 <= self.head <= 256:
            raise UnsupportedError(
                f"fused attention takes float16 and bfloat16 heads of 16, 32 .. 256 elements, not"
                f" {self.dtype.label} of {self.head}"
            )

    def shared(self, keys: int) -> int:
        """Bytes of dynamic shared memory for so many keys: two tiles of them, one if it is all."""
        rows, key_warps, tile = self.form
        tiles = (rows * 16 + (2 if keys <= tile else 4) * tile) * (self.head + 8) * 2
        parts = rows * key_warps * 32 * (self.head // 2 + 4) * 4
        return max(tiles, parts if key_warps > 1 else 0)

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor should hold: as registers and shared memory allow."""
        rows, key_warps, tile = self.form
        registers = self.head * 3 // 4 + tile // key_warps // 2 + 40  # results, queries, scores
        by_registers = 65536 // (32 * rows * key_warps * registers)
        return max(1, min(by_registers, SHARED_LIMIT // (self.shared(tile) + 1024), 8))

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel, for every shape."""
        mma, pack = MMA[self.dtype]
        threads = self.form[0] * self.form[1] * 32
        defines: dict[str, str | int] = {
            "T": C_TYPES[self.dtype],
            "MMA": mma,
            "PACK": pack,
            "HEAD": self.head,
            "ROW_WARPS": self.form[0],
            "KEY_WARPS": self.form[1],
            "BC": self.form[2],
            "MASK_ROWS": int(self.mask_rows),
            "MASK_PAIRS": int(self.mask_pairs),
            "BLOCKS": self.blocks,
            "CAUSAL": int(self.causal),
            "MASK": 0 if self.mask is None else 2 if self.mask is DType.BOOL else 1,
            "T_MASK": C_TYPES[self.mask or DType.FLOAT],
        }
        return assemble("attention", "attention", defines=defines, threads=threads)

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (self.kernel,)

    def plan(self, layout: Layout) -> Plan:
        """The launch. Buffers: Q, K, V, the mask if there is one, the output."""
        masked = self.mask is not None
        args = (Buffer(0), Buffer(1), Buffer(2), Buffer(4 if masked else 3), argument(layout))
        rows = self.form[0] * 16
        grid = (-(-layout.queries // rows), layout.heads, layout.batch)
        block = (self.kernel.threads, 1, 1)
        shared = self.shared(layout.keys)
        call = Call(self.kernel, grid, block, (*args, Buffer(3)) if masked else args, shared)
        return Plan((call,), name="attention " + "x".join(map(str, self.form)))
