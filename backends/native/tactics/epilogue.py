"""What follows a GEMM or a convolution inside one layer: bias, then pointwise steps, by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Tensor
from polytool.backends.native.tactics.base import Launch, Mode
from polytool.backends.native.tactics.blocks import BLOCK, Program, lower
from polytool.backends.native.tactics.numpy_generic import Generic

Array = np.ndarray[Any, Any]
Finish = Callable[[Array, Any, Any, Any], None]
"""`finish(block, n, m, p)`: block = result[n, m, p], a view of the 3-D result; n, m, p slices."""


class Epilogue:
    """The nodes of a layer after its first.

    Attributes:
        bias: (M,) added first, or None.
        axis: where the result's channels are: 1 for (N, M, P), 2 for GEMM's (1, rows, columns).
        bound: for an int32 product that is computed in float32: its largest magnitude.
    """

    def __init__(
        self,
        layer: Layer,
        mode: Mode,
        bias: Array | None,
        *,
        axis: int = 1,
        bound: int | None = None,
    ) -> None:
        anchor = layer.nodes[0].outputs[0]
        assert anchor is not None
        self.bias = bias
        self._shaped_bias = None
        if bias is not None:
            self._shaped_bias = bias.reshape((-1, 1) if axis == 1 else (1, -1))
        self._axis = axis
        self._program: Program | None = None
        self._rest: tuple[Launch, list[int]] | None = None
        self._positions: list[int] = []
        inputs = layer.inputs
        if len(layer.nodes) > 1:
            program = lower(layer.nodes[1:], layer.outputs[0], mode, anchor, bound)
            if program is not None and _fits(program, anchor):
                self._program = program
                self._positions = [inputs.index(t) for t in program.operands]
            else:
                self._rest = _generic_rest(layer, mode, anchor)

    @property
    def is_empty(self) -> bool:
        """True when a result is final as the product leaves it."""
        return self.bias is None and self._program is None

    def bind(self, shape: tuple[int, ...], args: Sequence[Any]) -> Finish | None:
        """The function that finishes blocks of a result of `shape`; None if there is nothing."""
        program, bias, axis = self._program, self._shaped_bias, self._axis
        if program is None:
            return None if bias is None else _bias_only(bias, axis)
        cuts = (1, 2) if axis == 1 else (0, len(shape) - 1)
        operands = [args[i] for i in self._positions]
        values = [_fold(v, shape, cuts) for v in (*operands, *program.constants)]
        n_operands = len(operands)

        def finish(block: Array, n: slice, m: slice, p: slice) -> None:
            images, rows, columns = block.shape
            step = max(1, BLOCK // max(1, columns * images))
            for start in range(0, rows, step):
                part = block[:, start : start + step] if step < rows else block
                where = (n, slice(m.start + start, m.start + start + part.shape[1]), p)
                if bias is not None:
                    np.add(part, bias[where[1]] if axis == 1 else bias[:, p], out=part)
                cut = [_cut(v, where) for v in values]
                program.execute(cut[:n_operands], cut[n_operands:], part)

        return finish

    def complete(self, result: Array, args: Sequence[Any]) -> Sequence[Any]:
        """The layer's outputs: what could not be done by block is done here."""
        if self._rest is None:
            return (result,)
        launch, positions = self._rest
        return launch(*(result if i < 0 else args[i] for i in positions))


def _fits(program: Program, anchor: Tensor) -> bool:
    """Whether the result surely has the anchor's rank and type."""
    shape = anchor.shape
    return program.dtype == np.float32 and shape is not None and program.rank <= len(shape)


def _generic_rest(layer: Layer, mode: Mode, anchor: Tensor) -> tuple[Launch, list[int]]:
    rest = Layer(layer.kind, layer.nodes[1:], layer.outputs)
    inputs = layer.inputs
    launch = Generic().compile(rest, mode)
    return launch, [-1 if t is anchor else inputs.index(t) for t in rest.inputs]


def _bias_only(bias: Array, axis: int) -> Finish:
    def finish(block: Array, n: slice, m: slice, p: slice) -> None:
        np.add(block, bias[m] if axis == 1 else bias[:, p], out=block)

    return finish


def _fold(value: Any, shape: tuple[int, ...], cuts: tuple[int, int]) -> Any:
    """An operand that broadcasts to `shape`, in three axes: before, between and after `cuts`."""
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    first, second = cuts
    groups = (slice(0, first), slice(first, second), slice(second, None))
    own = (1,) * (len(shape) - value.ndim) + value.shape
    target = tuple(math.prod(own[g]) for g in groups)
    full = tuple(math.prod(shape[g]) for g in groups)
    if any(a not in (1, b) for a, b in zip(target, full, strict=True)):
        return np.broadcast_to(value, shape).reshape(full)
    return value.reshape(target)


def _cut(value: Any, where: Sequence[slice]) -> Any:
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    return value[
        tuple(w if s != 1 else slice(None) for w, s in zip(where, value.shape, strict=True))
    ]
