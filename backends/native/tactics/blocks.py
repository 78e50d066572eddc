"""Pointwise nodes as a list of in-place steps that run on cache-sized blocks.

`Program` is what a chain of Add, Clip, Sigmoid ... becomes: ufunc calls over a few registers. A
convolution runs it on each block of its result while that is in cache; the pointwise tactic runs
it on blocks of whole tensors. Everything is float32 (bool for masks), nothing is rounded between
the steps, as in `numpy_generic`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.network import Node, Tensor
from polytool.backends.native.tactics.base import Mode
from polytool.backends.native.tactics.lowering import Lowering, Refused, copy, stored_as
from polytool.backends.native.tactics.numpy_generic import stored_constant
from polytool.backends.native.tactics.pointwise import LOWERINGS
from polytool.backends.native.tactics.pool import buffer_for, parallel, scratch

Array = np.ndarray[Any, Any]
BLOCK = 1 << 15
"""Elements of a block: a few float32 operands of it fit into a 1 MiB second-level cache."""


@dataclass(frozen=True)
class Program:
    """Steps over registers: operands, constants, the result, temporaries, in this order.

    Attributes:
        operands: the tensors from outside that the steps read, constants and the anchor left out.
        constants: arrays of more than one element, or Python scalars.
        temporaries: the dtype of each temporary.
        steps: `(function, a, b, c, result)` as register indexes; -1 for an absent operand.
        dtype: of the result.
        rank: the result has at least this many axes.
    """

    operands: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    temporaries: tuple[np.dtype[Any], ...]
    steps: tuple[tuple[Any, int, int, int, int], ...]
    dtype: np.dtype[Any]
    rank: int

    def execute(self, operands: Sequence[Any], constants: Sequence[Any], out: Array) -> None:
        """Run on one block; operands and constants broadcast to `out`, which holds the anchor."""
        registers = [*operands, *constants, out]
        for index, dtype in enumerate(self.temporaries):
            registers.append(_temporary(index, dtype, out))
        for function, a, b, c, result in self.steps:
            if b < 0:
                function(registers[a], registers[result])
            elif c < 0:
                function(registers[a], registers[b], registers[result])
            else:
                function(registers[a], registers[b], registers[c], registers[result])


def _temporary(index: int, dtype: np.dtype[Any], like: Array) -> Array:
    if dtype == np.float32 and like.size >= 2048:
        return scratch(f"block{index}", like.shape)
    return np.empty(like.shape, dtype)


def lower(
    nodes: Sequence[Node],
    output: Tensor,
    mode: Mode,
    anchor: Tensor | None = None,
    bound: int | None = None,
) -> Program | None:
    """The program of pointwise `nodes`; None where some node has no float32 steps.

    Args:
        anchor: the tensor whose block already lies in the result's memory when the steps run.
        bound: for an int32 anchor that is computed in float32: its largest possible magnitude.
    """
    if mode.wide:
        return None
    lowering = Lowering(lambda t: stored_constant(t, mode))
    try:
        if anchor is not None:
            lowering.anchor(anchor, bound)
        for node in nodes:
            handler = LOWERINGS.get((node.domain, node.op))
            if handler is None or node.bodies or len(node.outputs) != 1:
                return None
            result = node.outputs[0]
            if result is None:
                return None
            value = handler(lowering, node)
            if stored_as(result) != lowering.dtype(value) and not lowering.holds(result, value):
                return None
            lowering.define(result, value)
        return _allocate(lowering, lowering.final(output))
    except Refused:
        return None


def _allocate(lowering: Lowering, final: int) -> Program:
    """Give every value a register; what dies lends its register to what is made from it."""
    final = lowering.as_step(final)
    steps = lowering.live_steps(final)
    last = {arg: i for i, step in enumerate(steps) for arg in step.arguments}
    n_operands, n_constants = len(lowering.operands), len(lowering.constants)
    out = n_operands + n_constants
    register = {v: i for i, v in enumerate(lowering.operands.values())}
    register |= {v: n_operands + i for i, v in enumerate(lowering.constants)}
    dtype = lowering.dtype(final)
    temporaries: list[np.dtype[Any]] = []
    free: list[int] = []
    if lowering.anchored is None:
        free.append(out)
    else:
        register[lowering.anchored] = out

    def kind(index: int) -> np.dtype[Any]:
        return dtype if index == out else temporaries[index - out - 1]

    done = []
    for index, step in enumerate(steps):
        used = [register[a] for a in step.arguments]
        dying = [
            r for a, r in zip(step.arguments, used, strict=True) if r >= out and last[a] == index
        ]
        dying = list(dict.fromkeys(dying))
        choices = [r for r in (*(dying if step.in_place else ()), *free) if kind(r) == step.dtype]
        if index == len(steps) - 1 and (step.in_place or out not in used):
            target = out
        elif choices:
            target = out if out in choices else choices[0]
        else:
            temporaries.append(step.dtype)
            target = out + len(temporaries)
        free = [r for r in dict.fromkeys((*free, *dying)) if r != target]
        register[step.result] = target
        a, b, c = (*used, -1, -1)[:3]
        done.append((step.function, a, b, c, target))
    if register[final] != out:
        done.append((copy, register[final], -1, -1, out))
    return Program(
        tuple(lowering.operands),
        tuple(lowering.constants.values()),
        tuple(temporaries),
        tuple(done),
        dtype,
        lowering.rank,
    )


@dataclass(frozen=True)
class Grid:
    """How a broadcast of several operands is cut into blocks.

    Attributes:
        shape: of the result.
        folded: the result's shape with axes merged wherever all operands allow it.
        operands: the folded shape of each operand; None for a scalar.
        axis: the folded axis that blocks cut; those before it are taken one by one.
        step: how far a block reaches along it.
        count: how many blocks.
    """

    shape: tuple[int, ...]
    folded: tuple[int, ...]
    operands: tuple[tuple[int, ...] | None, ...]
    axis: int
    step: int
    count: int

    def fold(self, operand: Any, index: int) -> Any:
        """Operand `index` in its folded shape; no copy where it is contiguous."""
        shape = self.operands[index]
        return operand if shape is None else operand.reshape(shape)

    def block(self, index: int) -> tuple[Any, ...]:
        """Where block `index` lies in the folded result."""
        per_row = -(-self.folded[self.axis] // self.step)
        row, position = divmod(index, per_row)
        where: list[Any] = []
        for size in reversed(self.folded[: self.axis]):
            row, digit = divmod(row, size)
            where.insert(0, digit)
        start = position * self.step
        return (*where, slice(start, min(start + self.step, self.folded[self.axis])))


def grid_of(shapes: Sequence[tuple[int, ...] | None], least_rank: int) -> Grid:
    """The grid for operands of `shapes` (None for Python scalars), which broadcast together."""
    known = [s for s in shapes if s is not None]
    shape = np.broadcast_shapes(*known, (1,) * least_rank)
    rank = len(shape)
    padded = [None if s is None else (1,) * (rank - len(s)) + s for s in shapes]
    folded: list[int] = []
    sizes: list[list[int]] = [[] for _ in padded]
    pattern_before: tuple[bool, ...] | None = None
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        pattern = tuple(s is not None and s[axis] != 1 for s in padded)
        if pattern == pattern_before:
            folded[-1] *= size
            for own, s in zip(sizes, padded, strict=True):
                if s is not None:
                    own[-1] *= s[axis]
        else:
            folded.append(size)
            for own, s in zip(sizes, padded, strict=True):
                own.append(1 if s is None else s[axis])
        pattern_before = pattern
    if not folded:
        folded = [1]
        sizes = [[1] for _ in padded]
    axis = len(folded) - 1
    while axis > 0 and math.prod(folded[axis:]) <= BLOCK:
        axis -= 1
    inner = math.prod(folded[axis + 1 :])
    step = max(1, BLOCK // max(1, inner))
    if step < folded[axis]:  # equal blocks rather than a small last one
        step = -(-folded[axis] // -(-folded[axis] // step))
    outer = math.prod(folded[:axis])
    count = outer * -(-folded[axis] // step) if math.prod(shape) else 0
    folded_operands = tuple(
        None if s is None else tuple(own) for s, own in zip(padded, sizes, strict=True)
    )
    return Grid(tuple(shape), tuple(folded), folded_operands, axis, step, count)


def run_grid(program: Program, grid: Grid, operands: Sequence[Any]) -> Array:
    """A new array: the program on every block of the broadcast of `operands` and constants."""
    out = np.empty(grid.shape, program.dtype)
    n_operands = len(operands)
    if grid.count <= 1:
        if grid.count:
            program.execute(operands, program.constants, out)
        return out
    values = [grid.fold(v, i) for i, v in enumerate((*operands, *program.constants))]
    folded = out.reshape(grid.folded)

    def block(index: int) -> None:
        where = grid.block(index)
        cut = [_cut(value, where) for value in values]
        program.execute(cut[:n_operands], cut[n_operands:], folded[where])

    row = grid.folded[-1] if len(grid.folded) > 1 else BLOCK
    parallel(block, grid.count, buffer_for(row))
    return out


def _cut(value: Any, where: tuple[Any, ...]) -> Any:
    """The part of a folded operand that broadcasts to a block."""
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    sizes = value.shape
    return value[
        tuple(
            (0 if type(w) is int else slice(None)) if size == 1 else w
            for w, size in zip(where, sizes, strict=False)
        )
    ]
