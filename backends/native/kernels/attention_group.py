"""Fused attention for the 16-bit types by Hopper's matrix units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from polytool.backends.native.kernels.attention import MMA, Layout, argument
from polytool.backends.native.kernels.matrix_units import group_product, register_product
from polytool.backends.native.kernels.source import (
    C_TYPES,
    SHARED_LIMIT,
    Buffer,
    Call,
    Kernel,
    Plan,
    TensorMap,
    assemble,
    item_size,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

HEADS = (64, 128)
_FORMS = ((1, 64), (2, 64), (1, 128), (2, 128), (3, 128))
_KEYS = range(48, 257)  # of a tile: few are slow, more do not fit into registers
_REGISTERS = 65536  # of a multiprocessor


def forms(
    queries: int, keys: int, head: int, rows_of: DType | None = None
) -> list[tuple[int, int]]:
    """Candidates: warpgroups of 64 queries, keys a tile; also such that few tiles just hold all.

    `rows_of` is the type of a mask that queries have different rows of.
    """
    groups = [g for g in (1, 2, 3, 4) if (g - 1) * 64 < queries]
    tiles = [-(-keys // (16 * n)) * 16 for n in (1, 2, 3)]
    fitting = [(g, t) for g in groups for t in tiles if t in _KEYS]
    general = [form for form in _FORMS if form[0] in groups and form[1] < keys]
    found = dict.fromkeys((*fitting, *general))
    return [(g, t) for g, t in found if g * 128 * _registers(t, head, rows_of) <= _REGISTERS]


def _registers(tile: int, head: int, rows_of: DType | None) -> int:
    """What a thread needs: scores, results, the mask's values, and the rest."""
    mask = 0 if rows_of is None else tile // 4 * max(1, item_size(rows_of) // 2)
    return min(256, -(-(tile // 2 + head // 2 + mask + 32) // 8) * 8)


@dataclass(frozen=True)
class AttentionGroup:
    """One block shape of fused attention.

    Attributes:
        head: elements of a head, 64 or 128.
        mask: the mask's element type: a float type is added, BOOL selects, None for no mask.
        form: warpgroups of 64 queries, keys a tile.
        mask_rows: whether queries have different rows of the mask; its columns must then lie side
            by side, and pairs of them be aligned.
    """

    dtype: DType
    head: int
    mask: DType | None = None
    causal: bool = False
    form: tuple[int, int] = (2, 64)
    mask_rows: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in MMA or self.head not in HEADS:
            raise UnsupportedError(
                "attention by matrix units takes float16 and bfloat16 heads of 64 and 128 elements,"
                f" not {self.dtype.label} of {self.head}"
            )

    @property
    def threads(self) -> int:
        """Threads a block."""
        return self.form[0] * 128

    def shared(self, keys: int) -> int:
        """Bytes of dynamic shared memory for so many keys: two tiles of them, one if it is all."""
        groups, tile = self.form
        tiles = (groups * 64 + (2 if keys <= tile else 4) * tile) * self.head * 2
        tiles += 4 * 8  # barriers
        staged = self.mask is not None and not self.mask_rows
        return tiles + (-(-keys // tile) * tile * 4 if staged else 0)

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor should hold: as registers and shared memory allow."""
        registers = _registers(self.form[1], self.head, self.mask if self.mask_rows else None)
        by_registers = _REGISTERS // (self.threads * registers)
        return max(1, min(by_registers, SHARED_LIMIT // (self.shared(self.form[1]) + 1024), 8))

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel, for every shape."""
        groups, tile = self.form
        defines: dict[str, str | int] = {
            "T": C_TYPES[self.dtype],
            "PACK": MMA[self.dtype][1],
            "HEAD": self.head,
            "GROUPS": groups,
            "BC": tile,
            "BLOCKS": self.blocks,
            "CAUSAL": int(self.causal),
            "MASK": 0 if self.mask is None else 2 if self.mask is DType.BOOL else 1,
            "MASK_ROWS": int(self.mask_rows),
            "T_MASK": C_TYPES[self.mask or DType.FLOAT],
        }
        code = group_product(self.dtype, tile, "scores_group")
        code += "\n" + register_product(self.dtype, 64, "values_group")
        return assemble(
            "attention_group", "attention_group", defines=defines, code=code, threads=self.threads
        )

    def kernels(self) -> tuple[Kernel, ...]:
        """Every kernel that `plan` can ask for."""
        return (self.kernel,)

    def plan(self, layout: Layout) -> Plan:
        """The launch. Buffers: Q, K, V, the mask if there is one, the output."""
        masked = self.mask is not None
        rows, tile = self.form[0] * 64, self.form[1]
        args = (
            self._map(0, layout.q, (layout.queries, layout.heads, layout.batch), rows),
            self._map(1, layout.k, (layout.keys, layout.kv_heads, layout.batch), tile),
            self._map(2, layout.v, (layout.keys, layout.kv_heads, layout.batch), tile),
            Buffer(4 if masked else 3),
            argument(layout),
        )
        grid = (-(-layout.queries // (self.form[0] * 64)), layout.heads, layout.batch)
        block = (self.threads, 1, 1)
        shared = self.shared(layout.keys)
        call = Call(self.kernel, grid, block, (*args, Buffer(3)) if masked else args, shared)
        return Plan((call,), name="attention_group " + "x".join(map(str, self.form)))

    def _map(
        self, index: int, steps: tuple[int, int, int], sizes: tuple[int, int, int], box: int
    ) -> TensorMap:
        batch, head, row = (
            s if n > 1 else self.head for s, n in zip(steps, sizes[::-1], strict=True)
        )
        outer = ((sizes[1], head), (sizes[2], batch))
        return TensorMap(index, self.dtype, sizes[0], self.head, row, box, 64, outer)


def addressable(layout: Layout) -> bool:
    """Whether nothing is broadcast along batch, head or rows: boxes cannot be."""
    sizes = (
        (layout.batch, layout.heads, layout.queries),
        (layout.batch, layout.kv_heads, layout.keys),
    )
    pairs = [
        *zip(layout.q, sizes[0], strict=True),
        *zip(layout.k, sizes[1], strict=True),
        *zip(layout.v, sizes[1], strict=True),
    ]
    return all(step > 0 or size == 1 for step, size in pairs)
