"""Products of 8-bit integers, exact in float32 BLAS.

A zero point moves the activations' 256 values to -z ... 255 - z, so no partial sum of products
with weights w exceeds 255 times the larger of the sums of positive and of negative w: below 2**24
float32 holds it exactly. Where the real weights of some column pass that, the reduced axis is cut
in two; the sum of the two halves is then rounded once, as the conversion from int32 would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.blocks import lower
from polytool.backends.native.tactics.epilogue import Epilogue
from polytool.backends.native.tactics.gemm_plans import ConstantMatrix
from polytool.backends.native.tactics.lowering import EXACT, clip
from polytool.backends.native.tactics.memo import Memo
from polytool.backends.native.tactics.numpy_conv import Convolution, Plan
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant
from polytool.backends.native.tactics.pool import parallel, scratch
from polytool.tensors import DType

Array = np.ndarray[Any, Any]
_BYTES = (DType.INT8, DType.UINT8)
_BLOCK = 1 << 15
_COLUMNS = 1 << 20
_ZERO, _FULL = np.float32(0), np.float32(255)


def _weights(node: Node, mode: Mode, columns: int) -> Array | None:
    """The constant second operand minus its zero point (one, or one a column): 8 or 16 bits."""
    b = node.inputs[1]
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if b is None or b.constant is None or b.dtype not in _BYTES:
        return None
    if zero is not None and zero.constant is None:
        return None
    values: Array = stored_constant(b, mode)
    if zero is not None:
        offset = stored_constant(zero, mode).astype(np.int16).reshape(-1)
        if offset.size not in (1, values.shape[columns]):
            return None
        if offset.any():
            shape = [1] * values.ndim
            shape[columns] = offset.size
            values = values - offset.reshape(shape)
    if values.dtype == np.uint8 or (values.size and abs(values).max() > 127):
        return values.astype(np.int16)
    return values.astype(np.int8, copy=False)


def column_bound(weights: Array) -> int:
    """No partial sum of a column's products with centred 8-bit values has a larger magnitude.

    The column sums are products with ones: exact, because a column whose float32 sum would round
    is far beyond what the bound is compared with.
    """
    depth, columns = weights.shape
    bound = 0.0
    step = max(1, _COLUMNS // max(1, depth))
    ones = np.ones(depth, np.float32)
    for start in range(0, columns, step):
        part = weights[:, start : start + step].astype(np.float32)
        total = ones @ part
        size = ones @ np.abs(part, out=part)
        bound = max(bound, float((size + np.abs(total)).max()) / 2)
    return math.ceil(255 * bound)


def filter_bound(weights: Array) -> int:
    """`column_bound` of convolution filters (M, ...)."""
    return column_bound(weights.reshape(len(weights), -1).T)


def _takes_bytes(node: Node) -> bool:
    x = node.inputs[0]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or x.constant is not None or x.dtype not in _BYTES:
        return False
    return zero is None or zero.dtype == x.dtype


class _Centre:
    """The activations minus their zero point, as float32 in this thread's scratch memory."""

    def __init__(self, layer: Layer, mode: Mode) -> None:
        node = layer.nodes[0]
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        assert node.inputs[0] is not None
        self.source = layer.inputs.index(node.inputs[0])
        self._zero = -1
        self._constant: Array = np.zeros(1, np.uint8)
        if zero is not None and zero.constant is None:
            self._zero = layer.inputs.index(zero)
        elif zero is not None:
            self._constant = stored_constant(zero, mode)

    def __call__(self, args: Sequence[Any]) -> Array | None:
        """None where there is a zero point a row."""
        x = args[self.source]
        value = self._constant if self._zero < 0 else args[self._zero]
        if value.size != 1:
            return None
        zero = float(value.item())
        result = scratch("centred", x.shape)
        np.copyto(result, x)
        if zero:
            np.subtract(result, np.float32(zero), out=result)
        return result


def _finishes(layer: Layer, mode: Mode, bound: int) -> bool:
    """Whether nothing that needs exact int32 sees sums of 2**24 and more."""
    if bound < EXACT:
        return True
    anchor = layer.nodes[0].outputs[0]
    return len(layer.nodes) > 1 and (
        lower(layer.nodes[1:], layer.outputs[0], mode, anchor, bound) is not None
    )


class IntegerGemm(Tactic):
    """MatMulInteger with constant weights."""

    name = "numpy.gemm_integer"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = layer.nodes[0]
        if node.domain or node.op != "MatMulInteger" or mode.wide or len(layer.outputs) != 1:
            return False
        b = node.inputs[1]
        if b is None or b.constant is None or len(b.constant.shape) != 2 or not _takes_bytes(node):
            return False
        weights = _weights(node, mode, 1)
        return weights is not None and 0 < len(_halves(weights)) <= (
            2 if _finishes(layer, mode, column_bound(weights)) else 1
        )

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        weights = _weights(layer.nodes[0], mode, 1)
        assert weights is not None
        cuts = _halves(weights)
        parts = [ConstantMatrix(weights[a:b]) for a, b in cuts]
        epilogue = Epilogue(layer, mode, None, axis=2, bound=column_bound(weights))
        centre = _Centre(layer, mode)
        depth, columns = weights.shape
        fallback = Generic().compile(layer, mode)

        def launch(*args: Any) -> Sequence[Any]:
            x = args[centre.source]
            if x.ndim < 2 or x.shape[-1] != depth or x.size == 0 or columns == 0:
                return fallback(*args)
            values = centre(args)
            if values is None:
                return fallback(*args)
            shape = (*x.shape[:-1], columns)
            rows = math.prod(x.shape[:-1])
            values = values.reshape(rows, depth)
            out = np.empty((rows, columns), np.float32)
            finish = epilogue.bind(shape, args)
            if len(parts) == 1:
                parts[0].multiply(values, out, finish)
            else:
                rest = np.empty_like(out)
                for (a, b), part, target in zip(cuts, parts, (out, rest), strict=True):
                    part.multiply(values[:, a:b], target, None)
                np.add(out, rest, out=out)
                if finish is not None:
                    finish(out[None], slice(0, 1), slice(0, rows), slice(0, columns))
            return epilogue.complete(out.reshape(shape), args)

        return launch


def _halves(weights: Array) -> list[tuple[int, int]]:
    """The reduced axis whole or in two, so that float32 is exact; empty where that fails."""
    depth = len(weights)
    for cuts in ([(0, depth)], [(0, depth // 2), (depth // 2, depth)]):
        if all(column_bound(weights[a:b]) < EXACT for a, b in cuts):
            return cuts
    return []


class IntegerConv(Tactic):
    """ConvInteger with constant filters."""

    name = "numpy.conv_integer"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = layer.nodes[0]
        if node.domain or node.op != "ConvInteger" or mode.wide or len(layer.outputs) != 1:
            return False
        if not _takes_bytes(node) or min(node.attrs.get("pads") or [0]) < 0:
            return False
        weights = _weights(node, mode, 0)
        if weights is None or weights.ndim < 3:
            return False
        return filter_bound(weights) < EXACT

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        weights = _weights(node, mode, 0)
        assert weights is not None
        convolution = Convolution.of(node, weights.astype(np.float32))
        epilogue = Epilogue(layer, mode, None, bound=filter_bound(weights))
        centre = _Centre(layer, mode)
        fallback = Generic().compile(layer, mode)
        plans: Memo[tuple[int, ...], tuple[Plan, tuple[int, ...], Any]] = Memo()

        def launch(*args: Any) -> Sequence[Any]:
            x = args[centre.source]
            known = plans.get(x.shape) or convolution.plan(x.shape)
            values = None if known is None else centre(args)
            if known is None or values is None:
                return fallback(*args)
            plan, shape, view = plans.keep(x.shape, known)
            out = np.empty(shape, np.float32)
            plan.run(view(values), view(out), epilogue.bind(shape, args))
            return epilogue.complete(out, args)

        return launch


class DynamicQuantize(Tactic):
    """DynamicQuantizeLinear in blocks, in place."""

    name = "numpy.dynamic_quantize"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        (node, *rest) = layer.nodes
        if rest or node.op != "DynamicQuantizeLinear" or node.domain or mode.wide:
            return False
        return node.inputs[0] is not None and node.inputs[0].constant is None

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        wanted = [i for i, t in enumerate(layer.nodes[0].outputs) if t is not None]

        def launch(x: Array) -> Sequence[Any]:
            scale, zero = byte_range(x)
            x = np.ascontiguousarray(x)
            out = np.empty(x.shape, np.uint8)
            quantize_blocks(x.reshape(-1), scale, zero, out.reshape(-1))
            results = (out, np.asarray(scale), np.asarray(zero, np.uint8))
            return [results[i] for i in wanted]

        return launch


def byte_range(x: Array) -> tuple[np.float32, np.float32]:
    """Scale and zero point as DynamicQuantizeLinear defines them, in float32 throughout."""
    if x.size == 0:
        return np.float32(1), np.float32(0)
    flat = x.reshape(-1)
    low, high = np.minimum.reduce(flat), np.maximum.reduce(flat)
    low, high = _ZERO if low > 0.0 else low, _ZERO if high < 0.0 else high
    scale = (high - low) / _FULL if high != low else np.float32(1)
    position = float(-low / scale)
    if position != position:  # the range is not a number
        return scale, np.float32(position)
    return scale, np.float32(round(min(max(position, 0.0), 255.0)))


def quantize_blocks(x: Array, scale: np.float32, zero: np.float32, out: Array) -> None:
    """`out` = round(x / scale) + zero, saturated to 0 ... 255; flat arrays."""
    low, high = -zero, _FULL - zero

    def block(index: int) -> None:
        start = index * _BLOCK
        part = x[start : start + _BLOCK]
        values = scratch("quantized", part.shape)
        np.divide(part, scale, out=values)
        np.rint(values, out=values)
        clip(values, low, high, values)
        np.add(values, zero, out=values)
        np.copyto(out[start : start + _BLOCK], values, casting="unsafe")

    count = -(-x.size // _BLOCK)
    if count > 4:
        parallel(block, count)
    else:
        for index in range(count):
            block(index)
