"""Pointwise chains in cache-sized blocks, all steps on one block, over the thread pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.blocks import Grid, Program, grid_of, lower, run_grid
from polytool.backends.native.tactics.memo import Memo


class Pointwise(Tactic):
    """One or several pointwise operators on float32."""

    name = "numpy.pointwise"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        return self._program(layer, mode) is not None

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        program = self._program(layer, mode)
        assert program is not None
        return launch_pointwise(program, [layer.inputs.index(t) for t in program.operands])

    @staticmethod
    def _program(layer: Layer, mode: Mode) -> Program | None:
        first = layer.nodes[0]
        operator = first.operator
        if mode.wide or len(layer.outputs) != 1 or operator is None:
            return None
        if not operator.pointwise and first.op != "BatchNormalization":
            return None
        program = lower(layer.nodes, layer.outputs[0], mode)
        return program if program is not None and program.operands else None


def launch_pointwise(program: Program, positions: Sequence[int]) -> Launch:
    """Run `program` on the arguments at `positions`; the grid of each set of shapes is kept."""
    constants = tuple(c.shape if isinstance(c, np.ndarray) else None for c in program.constants)
    grids: Memo[Any, Grid] = Memo()
    in_order = list(positions) == list(range(len(positions)))

    def launch(*args: Any) -> Sequence[Any]:
        operands = args if in_order else [args[i] for i in positions]
        key = tuple([a.shape for a in operands])
        grid = grids.get(key)
        if grid is None:
            grid = grids.keep(key, grid_of((*key, *constants), program.rank))
        return (run_grid(program, grid, operands),)

    return launch
