"""Trees of pointwise operators as one kernel, and all copies between strided layouts.

Operands are broadcast and strided as the plan says. Dimensions that every operand walks alike are
merged first, so most shapes end as one vectorised loop. `kernels()` serve every shape;
`specialised` kernels serve every shape of one pattern faster.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.expr import Step, Tree, emit
from polytool.backends.native.kernels.source import (
    C_TYPES,
    UNSIGNED,
    Argument,
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

_THREADS = 256
_MOST_BLOCKS = 132 * 16


@dataclass(frozen=True)
class Operand:
    """Where an operand lies: its shape, aligned to the right of the output's, and its layout.

    Attributes:
        steps: strides in elements; None for dense rows.
        offset: elements before its first one.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...] | None = None
    offset: int = 0

    def along(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Strides along the dimensions of `shape`; zero where it is broadcast."""
        steps = dense(self.shape) if self.steps is None else self.steps
        missing = len(shape) - len(self.shape)
        own = (
            0 if size == 1 and whole != 1 else step
            for size, step, whole in zip(self.shape, steps, shape[missing:], strict=True)
        )
        return (*(0 for _ in range(missing)), *own)


def dense(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense row-major tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def merge(
    shape: tuple[int, ...], steps: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Drop dimensions of size one and merge neighbours that every operand walks as one."""
    kept: list[list[int]] = []  # size, then each operand's stride
    for d, size in enumerate(shape):
        entry = [size, *(s[d] for s in steps)]
        if size == 1:
            continue
        if kept and all(kept[-1][i] == entry[i] * size for i in range(1, len(entry))):
            kept[-1] = [kept[-1][0] * size, *entry[1:]]
        else:
            kept.append(entry)
    if not kept:
        kept = [[1, *(0 for _ in steps)]]
    return tuple(e[0] for e in kept), [tuple(e[i + 1] for e in kept) for i in range(len(steps))]


@dataclass(frozen=True)
class Pattern:
    """What a specialised kernel knows of its shapes.

    Attributes:
        vector: elements a thread takes at once.
        rank: merged dimensions; 0 when every operand is dense or a scalar, -1 for any.
        inner: for each operand, outputs included: 1 when it is contiguous along the last
            dimension, 0 when it is broadcast there, -1 for any stride.
    """

    vector: int
    rank: int
    inner: tuple[int, ...]


@dataclass(frozen=True)
class Pointwise:
    """A tree as a kernel. Buffers: the tree's inputs, then its results."""

    tree: Tree
    contract: bool = True

    @property
    def _types(self) -> tuple[DType, ...]:
        return (*self.tree.inputs, *self.tree.output_dtypes)

    @property
    def _vector(self) -> int:
        return max(1, min(8, 16 // min(item_size(t) for t in self._types)))

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that serve every shape: dense vectors, and anything."""
        n = len(self._types)
        return (
            self.kernel(Pattern(1, -1, (-1,) * n)),
            self.kernel(Pattern(self._vector, 0, (1,) * n)),
        )

    def kernel(self, pattern: Pattern) -> Kernel:
        """The kernel for a pattern."""
        return _kernel(self, pattern)

    def pattern(
        self, shape: tuple[int, ...], operands: Sequence[Operand], results: Sequence[Operand] = ()
    ) -> Pattern:
        """The most special pattern that these shapes fit."""
        sizes, steps, offsets = self._layout(shape, operands, results)
        inner = tuple(s[-1] if s[-1] in (0, 1) and sizes[-1] > 1 else -1 for s in steps)
        vector = self._vector
        while vector > 1 and not self._fits(vector, sizes, steps, offsets, inner):
            vector //= 2
        if -1 in inner:
            vector = 1
        if len(sizes) == 1 and -1 not in inner:
            return Pattern(vector, 0, inner)
        return Pattern(vector, len(sizes), inner)

    def _fits(
        self,
        vector: int,
        sizes: tuple[int, ...],
        steps: list[tuple[int, ...]],
        offsets: list[int],
        inner: tuple[int, ...],
    ) -> bool:
        if sizes[-1] % vector:
            return False
        moved = (
            (*step[:-1], offset)
            for step, offset, way in zip(steps, offsets, inner, strict=True)
            if way == 1
        )
        return all(value % vector == 0 for values in moved for value in values)

    def _layout(
        self, shape: tuple[int, ...], operands: Sequence[Operand], results: Sequence[Operand]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[int]]:
        results = results or [Operand(shape)] * len(self.tree.outputs)
        both = [*operands, *results]
        sizes, steps = merge(shape, [o.along(shape) for o in both])
        return sizes, steps, [o.offset for o in both]

    def plan(
        self,
        shape: tuple[int, ...],
        operands: Sequence[Operand],
        results: Sequence[Operand] = (),
        pattern: Pattern | None = None,
    ) -> Plan:
        """The launch.

        Args:
            shape: of the results.
            operands: one for each input.
            results: where results lie; dense unless given.
            pattern: that of a specialised kernel; a general one otherwise.

        Raises:
            UnsupportedError: more than 2^31 elements, or more than eight merged dimensions.
        """
        sizes, steps, offsets = self._layout(shape, operands, results)
        count = math.prod(shape)
        if count >= 1 << 31 or len(sizes) > 8:
            raise UnsupportedError(
                f"a pointwise kernel takes fewer than 2^31 elements in at most 8 dimensions, not"
                f" {list(shape)}"
            )
        pattern = pattern or self._general(sizes, steps, offsets)
        units = count // pattern.vector
        counted = (*sizes[:-1], sizes[-1] // pattern.vector)
        args: list[Argument] = [
            ctypes.c_uint(units),
            dims(counted),
        ]
        for i, (step, offset) in enumerate(zip(steps, offsets, strict=True)):
            args.append(Buffer(i, offset * item_size(self._types[i])))
            if pattern.rank:
                args.append(strides((*step[:-1], step[-1] * pattern.vector)))
        blocks = min(max(1, -(-units // _THREADS)), _MOST_BLOCKS)
        call = Call(self.kernel(pattern), (blocks, 1, 1), (_THREADS, 1, 1), tuple(args))
        return Plan((call,) if count else ())

    def _general(
        self, sizes: tuple[int, ...], steps: list[tuple[int, ...]], offsets: list[int]
    ) -> Pattern:
        flat = Pattern(self._vector, 0, (1,) * len(steps))
        if (
            len(sizes) == 1
            and all(s == (1,) for s in steps)
            and self._fits(self._vector, sizes, steps, offsets, flat.inner)
        ):
            return flat
        return Pattern(1, -1, (-1,) * len(steps))


@cache
def _kernel(op: Pointwise, pattern: Pattern) -> Kernel:
    types, n = op._types, len(op.tree.inputs)
    params, places, advance, args = [], [], [], []
    loads, names, stores = [], [], []
    for i, dtype in enumerate(types):
        kind, vector, inner = C_TYPES[dtype], pattern.vector, pattern.inner[i]
        params.append(f", {'const ' if i < n else ''}{kind}* x{i}")
        start = f"(i64)unit * {vector}" if not pattern.rank and inner == 1 else "0"
        places.append(f"i64 o{i} = {start};")
        if pattern.rank:
            params.append(f", strides s{i}")
            advance.append(f"o{i} += index * s{i}.step[d];")
        args.append(f"x{i} + o{i}")
        if i >= n:
            loads.append(f"    pack<{kind}, {vector}> p{i};")
        elif inner == 1:
            loads.append(f"    pack<{kind}, {vector}> p{i} = load_pack<{kind}, {vector}>(x{i});")
            names.append(f"widen(p{i}.at[i])")
        else:
            loads.append(f"    const auto v{i} = widen(*x{i});")
            names.append(f"v{i}")
    lines, results = emit(op.tree, names, " " * 8)
    for i, result in enumerate(results, n):
        kind = C_TYPES[types[i]]
        lines.append(f"        p{i}.at[i] = narrow<{kind}>({result});")
        stores.append(f"    store_pack<{kind}, {pattern.vector}>(x{i}, p{i});")
    declared = ", ".join(
        f"{'const ' if i < n else ''}{C_TYPES[t]}* x{i}" for i, t in enumerate(types)
    )
    code = "\n".join(
        (
            f"#define POINTWISE_PARAMS {''.join(params)}",
            f"#define POINTWISE_PLACES {' '.join(places)}",
            f"#define POINTWISE_ADVANCE {' '.join(advance)}",
            f"#define POINTWISE_ARGS {', '.join(args)}",
            f"DEVICE void tree({declared}) {{",
            *loads,
            "#pragma unroll",
            f"    for (int i = 0; i < {pattern.vector}; i++) {{",
            *lines,
            "    }",
            *stores,
            "}",
        )
    )
    return assemble(
        "pointwise",
        "pointwise",
        defines={"VEC": pattern.vector, "RANK": pattern.rank},
        code=code,
        threads=_THREADS,
        contract=op.contract,
    )


def copy(dtype: DType) -> Pointwise:
    """A copy between strided layouts: Slice, Expand, a piece of Concat or Split, a Transpose."""
    kind = UNSIGNED[item_size(dtype)]
    return Pointwise(Tree((kind,), (Step("Identity", (0,), kind),)))
