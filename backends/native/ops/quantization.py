"""QuantizeLinear and its family, and the integer products of ONNX's own domain."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.conv import convolve_integers
from polytool.backends.native.ops.integers import exact_matmul, saturate
from polytool.backends.native.ops.linear import product_shape
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, op, shape
from polytool.backends.native.ops.windows import windows
from polytool.tensors import DType

Ints = Sequence[int]
_LARGEST = {
    DType.FLOAT8E4M3FN: 448.0,
    DType.FLOAT8E4M3FNUZ: 240.0,
    DType.FLOAT8E5M2: 57344.0,
    DType.FLOAT8E5M2FNUZ: 57344.0,
}


def widened(x: Array) -> Array:
    """Types that NumPy lacks, eight bits or fewer, as float32; everything else as it is."""
    return x if x.dtype.isbuiltin == 1 else x.astype(np.float32)


def spread(xp: Any, parameter: Array, x: Array, axis: int, block_size: int = 0) -> Array:
    """A scale or zero point, shaped to broadcast against `x`: per tensor, axis or block."""
    if block_size:
        axis %= x.ndim
        whole = xp.repeat(parameter, min(block_size, x.shape[axis]), axis=axis)
        return whole[(slice(None),) * axis + (slice(0, x.shape[axis]),)]
    if parameter.ndim == 1 and parameter.size > 1:
        return parameter.reshape(-1, *[1] * (x.ndim - axis % x.ndim - 1))
    return parameter.reshape(()) if parameter.size == 1 else parameter


def quantize(
    xp: Any,
    x: Array,
    scale: Array,
    zero: Array | None,
    dtype: DType,
    *,
    saturates: bool = True,
) -> Array:
    """`x / scale`, rounded half to even, plus `zero`, saturated; all broadcast already."""
    return on_grid(xp, x / scale, zero, dtype, saturates=saturates)


def on_grid(
    xp: Any, scaled: Array, zero: Array | None, dtype: DType, *, saturates: bool = True
) -> Array:
    """What is already divided by its scale, rounded, plus `zero`, saturated."""
    if dtype.is_integer:
        rounded = xp.rint(scaled)
        if zero is not None:  # small integers, so the sum stays exact
            rounded = rounded + zero.astype(rounded.dtype)
        return saturate(xp, rounded, dtype)
    if zero is not None:
        scaled = scaled + widened(zero)
    if saturates and dtype in _LARGEST:
        limit = _LARGEST[dtype]
        scaled = xp.clip(scaled, -limit, limit)
    return scaled.astype(dtype.numpy)


def dequantize(x: Array, scale: Array, zero: Array | None = None) -> Array:
    """`(x - zero) * scale` in the type of `scale`; all broadcast already."""
    if zero is not None and DType.of(x).is_integer and DType.of(x).bits > 16:
        return (x.astype(np.int64) - zero).astype(scale.dtype) * scale
    values = x.astype(scale.dtype)
    return (values if zero is None else values - zero.astype(scale.dtype)) * scale


@op("QuantizeLinear", since=10)
def quantize_linear(
    xp: Any,
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Round to the grid of `y_scale`; `precision` names the type that the division happens in."""
    scale = spread(xp, widened(y_scale), x, axis, block_size)
    zero = None if y_zero_point is None else spread(xp, y_zero_point, x, axis, block_size)
    kind = scale.dtype if scale.dtype.kind == "f" else np.dtype(np.float64)
    if precision and kind != np.float64:
        # float16 and bfloat16 are emulated on float32, which is never less precise
        kind = np.promote_types(DType(precision).numpy, np.float32)
    x = widened(x).astype(kind)
    return quantize(xp, x, scale.astype(kind), zero, out_dtypes[0], saturates=bool(saturate))


@dtypes("QuantizeLinear")
def quantize_linear_dtypes(
    inputs: list[DType | None], *, output_dtype: int = 0, **_: Any
) -> list[DType | None]:
    """The zero point's type, else `output_dtype`, else uint8."""
    zero = inputs[2] if len(inputs) > 2 else None
    return [zero or (DType(output_dtype) if output_dtype else DType.UINT8)]


@op("DequantizeLinear", since=10)
def dequantize_linear(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """Back from the grid of `x_scale`."""
    scale = spread(xp, widened(x_scale), x, axis, block_size)
    zero = None if x_zero_point is None else spread(xp, x_zero_point, x, axis, block_size)
    return dequantize(x, scale, zero)


@dtypes("DequantizeLinear")
def dequantize_linear_dtypes(
    inputs: list[DType | None], *, output_dtype: int = 0, **_: Any
) -> list[DType | None]:
    """`output_dtype`, else the scale's type."""
    return [DType(output_dtype) if output_dtype else inputs[1]]


@shape("QuantizeLinear", "DequantizeLinear")
def quantize_linear_shape(x: Arg, *_: Arg | None, **__: Any) -> tuple[int, ...]:
    """Like the input."""
    return x.shape


def dynamic_range(xp: Any, x: Array, low: int = 0, high: int = 255) -> tuple[Array, Array]:
    """Scale and integral zero point that map the range of `x`, widened to zero, to low..high."""
    if x.size == 0:
        return xp.ones((), dtype=x.dtype), xp.full((), low, dtype=x.dtype)
    smallest, largest = xp.minimum(x.min(), 0), xp.maximum(x.max(), 0)
    scale = xp.asarray((largest - smallest) / (high - low))
    scale = xp.where(largest == smallest, xp.ones_like(scale), scale)
    return scale, xp.clip(xp.rint(low - smallest / scale), low, high)


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(xp: Any, x: Array) -> tuple[Array, Array, Array]:
    """Quantise to uint8 by the range of `x`: values, scale, zero point."""
    scale, zero = dynamic_range(xp, x)
    return quantize(xp, x, scale, zero, DType.UINT8), scale, zero.astype(np.uint8)


@dtypes("DynamicQuantizeLinear")
def dynamic_quantize_linear_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """uint8, float32, uint8."""
    return [DType.UINT8, DType.FLOAT, DType.UINT8]


@shape("DynamicQuantizeLinear")
def dynamic_quantize_linear_shape(x: Arg, **_: Any) -> list[tuple[int, ...]]:
    """Like the input, and two scalars."""
    return [x.shape, (), ()]


def centred(x: Array, zero: Array | None, *, rows: bool) -> Array:
    """A quantised matrix minus its zero point, int32; a vector counts per row or per column."""
    values = x.astype(np.int32)
    if zero is None:
        return values
    zero = zero.astype(np.int32)
    if zero.ndim == 1 and zero.size > 1 and rows:
        zero = zero[:, None]
    return values - zero


@op("MatMulInteger", since=10)
def matmul_integer(
    xp: Any,
    a: Array,
    b: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
) -> Array:
    """The int32 product of 8-bit matrices."""
    left = centred(a, a_zero_point, rows=a.ndim > 1)
    return exact_matmul(xp, left, centred(b, b_zero_point, rows=False))


@shape("MatMulInteger")
def matmul_integer_shape(a: Arg, b: Arg, *_: Arg | None, **__: Any) -> tuple[int, ...]:
    """Like MatMul."""
    return product_shape(a.shape, b.shape)


@flops("MatMulInteger")
def matmul_integer_flops(a: Arg, *_: Any, outputs: list[tuple[int, ...]], **__: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    return 2 * prod(outputs[0]) * a.shape[-1]


def _per_matrix(scale: Array, *, rows: bool) -> Array:
    """A scale shaped to multiply the product: one, per row of `a`, per column of `b`."""
    return scale[:, None] if rows and scale.ndim == 1 and scale.size > 1 else scale


@op("QLinearMatMul", since=10)
def qlinear_matmul(
    xp: Any,
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """The product of quantised matrices, requantised."""
    rows = a.ndim > 1
    if DType.of(a).is_integer:
        left = centred(a, a_zero_point, rows=rows)
        product = exact_matmul(xp, left, centred(b, b_zero_point, rows=False))
    else:
        left = widened(a) - _per_matrix(widened(a_zero_point), rows=rows)
        product = left @ (widened(b) - widened(b_zero_point))
    factor = _per_matrix(a_scale, rows=rows) * b_scale / y_scale
    scaled = product.astype(factor.dtype) * factor
    return on_grid(xp, scaled, y_zero_point, DType.of(y_zero_point))


@shape("QLinearMatMul")
def qlinear_matmul_shape(
    a: Arg, a_scale: Arg, a_zero_point: Arg, b: Arg, *_: Arg, **__: Any
) -> tuple[int, ...]:
    """Like MatMul."""
    return product_shape(a.shape, b.shape)


@flops("QLinearMatMul")
def qlinear_matmul_flops(a: Arg, *_: Any, outputs: list[tuple[int, ...]], **__: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    return 2 * prod(outputs[0]) * a.shape[-1]


@op("QLinearConv", since=10)
def qlinear_conv(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Conv of 8-bit integers with an int32 bias, requantised; weights may have a scale a filter."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    total = convolve_integers(xp, x, w, x_zero_point, w_zero_point, where, group)
    ones = (1,) * (x.ndim - 2)
    if b is not None:
        total = total + b.reshape(-1, *ones)
    factor = (x_scale * w_scale / y_scale).reshape(-1, *ones)
    scaled = total.astype(factor.dtype) * factor
    return on_grid(xp, scaled, y_zero_point, DType.of(y_zero_point))


@shape("QLinearConv")
def qlinear_conv_shape(
    x: Arg,
    x_scale: Arg,
    x_zero_point: Arg,
    w: Arg,
    *_: Arg | None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
    **__: Any,
) -> tuple[int, ...]:
    """(N, M, *out)."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    return (x.shape[0], w.shape[0], *where.out)


@flops("QLinearConv")
def qlinear_conv_flops(
    x: Arg, xs: Arg, xz: Arg, w: Arg, *_: Any, outputs: list[tuple[int, ...]], **__: Any
) -> int:
    """Each output element is a product of one window with one filter."""
    return 2 * prod(outputs[0]) * prod(w.shape[1:])
