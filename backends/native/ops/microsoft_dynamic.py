"""com.microsoft: dynamically quantised products and LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.integers import exact_matmul
from polytool.backends.native.ops.linear import product_shape
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.quantization import centred, dynamic_range
from polytool.backends.native.ops.recurrent import LSTM_DEFAULT, Recurrence, lstm_step
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, limits, op, shape
from polytool.tensors import DType


def dynamic_matmul(xp: Any, x: Array, weights: Array, scale: Array) -> Array:
    """`x`, quantised to uint8 by its own range, times zero-centred int32 weights, rescaled."""
    x_scale, zero = dynamic_range(xp, x)
    values = xp.clip(xp.rint(x / x_scale) + zero, 0, 255) - zero
    product = exact_matmul(xp, values, weights)
    return product.astype(x.dtype) * (x_scale * scale)


@op("DynamicQuantizeMatMul", since=1, domain=MICROSOFT)
def dynamic_quantize_matmul(
    xp: Any,
    a: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Float times quantised matrix; scale and zero point are one or per column."""
    y = dynamic_matmul(xp, a, centred(b, b_zero_point, rows=False), b_scale)
    return y if bias is None else y + bias


@op("MatMulIntegerToFloat", since=1, domain=MICROSOFT)
def matmul_integer_to_float(
    xp: Any,
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """MatMulInteger, rescaled."""
    left = centred(a, a_zero_point, rows=a.ndim > 1)
    product = exact_matmul(xp, left, centred(b, b_zero_point, rows=False))
    rows = a_scale[:, None] if a_scale.ndim == 1 and a_scale.size > 1 else a_scale
    y = product.astype(a_scale.dtype) * (rows * b_scale)
    return y if bias is None else y + bias


@dtypes("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """That of the scales."""
    return [inputs[2]]


@shape("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def dynamic_matmul_shape(a: Arg, b: Arg, *_: Arg | None, **__: Any) -> tuple[int, ...]:
    """Like MatMul."""
    return product_shape(a.shape, b.shape)


@flops("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=MICROSOFT)
def dynamic_matmul_flops(a: Arg, *_: Any, outputs: list[tuple[int, ...]], **__: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    return 2 * prod(outputs[0]) * a.shape[-1]


@limits("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm_limits(given: Sequence[bool], **_: Any) -> str | None:
    """The scales are required, behind optional inputs."""
    if len(given) < 11 or not given[8] or not given[10]:
        return "it lacks the scales of its weights"
    return None


@op("DynamicQuantizeLSTM", since=1, domain=MICROSOFT)
def dynamic_quantize_lstm(
    xp: Any,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    w_scale: Array | None = None,
    w_zero_point: Array | None = None,
    r_scale: Array | None = None,
    r_zero_point: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[Array, ...]:
    """LSTM with weights (directions, features, 4 * hidden) in 8 bits.

    The input is quantised once, over the steps of the longest sequence; the last output anew at
    every step.
    """
    steps = x.shape[0]
    if sequence_lens is not None:
        x = x[: int(sequence_lens.max())]
    frame = Recurrence(xp, direction, 0, sequence_lens, clip)
    functions = frame.functions(activations, activation_alpha, activation_beta, LSTM_DEFAULT)
    hidden, runs = r.shape[1], []
    h0, c0 = frame.initial(initial_h, x, hidden), frame.initial(initial_c, x, hidden)
    for i, backwards in enumerate(frame.reversed):
        times_w = _quantised(xp, w, w_scale, w_zero_point, i)
        times_r = _quantised(xp, r, r_scale, r_zero_point, i)
        gates = times_w(x.reshape(prod(x.shape[:2]), x.shape[2])).reshape(*x.shape[:2], 4 * hidden)
        if b is not None:
            gates = gates + (b[i, : 4 * hidden] + b[i, 4 * hidden :])
        step = lstm_step(
            frame, times_r, None if p is None else p[i], functions[i], bool(input_forget)
        )
        runs.append(frame.run(gates, step, (h0[i], c0[i]), backwards))
    y, *states = frame.collect(runs)
    if y.shape[0] < steps:
        padding = xp.zeros((steps - y.shape[0], *y.shape[1:]), dtype=y.dtype)
        y = xp.concatenate([y, padding])
    return y, *states


def _quantised(
    xp: Any, weights: Array, scale: Array | None, zero: Array | None, direction: int
) -> Callable[[Array], Array]:
    """`x -> x @ weights[direction]` with `x` quantised; per tensor or per column."""
    assert scale is not None  # inputs 8 to 11 are required, behind optional ones
    matrix = weights[direction].astype(np.int32)
    if zero is not None:
        matrix = matrix - zero.astype(np.int32)[direction]
    factor = scale[direction]
    return lambda x: dynamic_matmul(xp, x, matrix, factor)


@shape("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm_shape(
    x: Arg, w: Arg, r: Arg, *_: Arg | None, **__: Any
) -> list[tuple[int, ...]]:
    """Y, Y_h, Y_c."""
    (time, batch), (directions, hidden) = x.shape[:2], r.shape[:2]
    state = (directions, batch, hidden)
    return [(time, directions, batch, hidden), state, state]


@flops("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm_flops(x: Arg, w: Arg, r: Arg, *_: Arg | None, **__: Any) -> int:
    """The two matrix products of every time step."""
    directions, hidden, gates = r.shape
    return 2 * x.shape[0] * x.shape[1] * directions * gates * (x.shape[2] + hidden)
