"""com.microsoft: operators on 8-bit tensors: dequantise, compute in float, quantise."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops import activation
from polytool.backends.native.ops.integers import exact_matmul
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.pool import average_pool, max_pool, pool_shape
from polytool.backends.native.ops.quantization import (
    centred,
    dequantize,
    dequantize_linear,
    on_grid,
    qlinear_conv,
    qlinear_conv_shape,
    quantize,
    quantize_linear,
)
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, op, shape
from polytool.backends.native.ops.softmax import softmax
from polytool.tensors import DType

Ints = Sequence[int]
Dims = tuple[int, ...]


def _quantized(xp: Any, y: Array, scale: Array, zero: Array | None, like: Array) -> Array:
    return quantize(xp, y, scale, zero, DType.of(like))


@op("QLinearAdd", since=1, domain=MICROSOFT)
def qlinear_add(
    xp: Any,
    a: Array,
    a_scale: Array,
    a_zero_point: Array | None,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None,
    c_scale: Array,
    c_zero_point: Array | None = None,
) -> Array:
    """The sum, requantised."""
    y = dequantize(a, a_scale, a_zero_point) + dequantize(b, b_scale, b_zero_point)
    return _quantized(xp, y, c_scale, c_zero_point, a)


@op("QLinearMul", since=1, domain=MICROSOFT)
def qlinear_mul(
    xp: Any,
    a: Array,
    a_scale: Array,
    a_zero_point: Array | None,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None,
    c_scale: Array,
    c_zero_point: Array | None = None,
) -> Array:
    """The product of the integers, requantised."""
    product = centred(a, a_zero_point, rows=False) * centred(b, b_zero_point, rows=False)
    factor = a_scale * b_scale / c_scale
    return on_grid(xp, product.astype(factor.dtype) * factor, c_zero_point, DType.of(a))


@shape("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary_shape(a: Arg, a_scale: Arg, a_zero: Arg | None, b: Arg, *_: Any) -> Dims:
    """Broadcast."""
    return np.broadcast_shapes(a.shape, b.shape)


@op("QLinearWhere", since=1, domain=MICROSOFT)
def qlinear_where(
    xp: Any,
    condition: Array,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    y: Array,
    y_scale: Array,
    y_zero_point: Array,
    z_scale: Array,
    z_zero_point: Array,
) -> Array:
    """One of two tensors, each requantised."""
    chosen = _quantized(xp, dequantize(x, x_scale, x_zero_point), z_scale, z_zero_point, x)
    other = _quantized(xp, dequantize(y, y_scale, y_zero_point), z_scale, z_zero_point, x)
    return xp.where(condition, chosen, other)


@shape("QLinearWhere", domain=MICROSOFT)
def qlinear_where_shape(condition: Arg, x: Arg, xs: Arg, xz: Arg, y: Arg, *_: Arg) -> Dims:
    """Broadcast."""
    return np.broadcast_shapes(condition.shape, x.shape, y.shape)


@op("QLinearSigmoid", since=1, domain=MICROSOFT)
def qlinear_sigmoid(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
) -> Array:
    """1 / (1 + exp(-x)), requantised."""
    y = activation.sigmoid(xp, dequantize(x, x_scale, x_zero_point))
    return _quantized(xp, y, y_scale, y_zero_point, x)


@op("QLinearLeakyRelu", since=1, domain=MICROSOFT)
def qlinear_leaky_relu(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 0.01,
) -> Array:
    """`x` where not negative, else `alpha * x`, requantised."""
    y = activation.leaky_relu(xp, dequantize(x, x_scale, x_zero_point), alpha=alpha)
    return _quantized(xp, y, y_scale, y_zero_point, x)


@op("QLinearSoftmax", since=1, domain=MICROSOFT)
def qlinear_softmax(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = -1,
    opset: int,
) -> Array:
    """Softmax, requantised; before opset 13 over all axes from `axis` on."""
    values = dequantize(x, x_scale, x_zero_point)
    if opset < 13:
        rows = values.reshape(prod(x.shape[: axis % x.ndim]), prod(x.shape[axis % x.ndim :]))
        y = softmax(xp, rows).reshape(x.shape)
    else:
        y = softmax(xp, values, axis=axis)
    return _quantized(xp, y, y_scale, y_zero_point, x)


def _channels_first(xp: Any, x: Array, channels_last: int) -> Array:
    return xp.moveaxis(x, -1, 1) if channels_last else x


def _as_given(xp: Any, x: Array, channels_last: int) -> Array:
    return xp.moveaxis(x, 1, -1) if channels_last else x


@op("QLinearAveragePool", since=1, domain=MICROSOFT)
def qlinear_average_pool(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """AveragePool, requantised."""
    y = average_pool(
        xp,
        dequantize(_channels_first(xp, x, channels_last), x_scale, x_zero_point),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return _as_given(xp, _quantized(xp, y, y_scale, y_zero_point, x), channels_last)


@op("QLinearGlobalAveragePool", since=1, domain=MICROSOFT)
def qlinear_global_average_pool(
    xp: Any,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    *,
    channels_last: int = 0,
) -> Array:
    """The mean of each channel, requantised; the sum is exact."""
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    total = centred(x, x_zero_point, rows=False).sum(axis=axes, keepdims=True, dtype=np.int64)
    factor = x_scale / (y_scale * prod(x.shape[a] for a in axes))
    return on_grid(xp, total.astype(factor.dtype) * factor, y_zero_point, DType.of(x))


@op("NhwcMaxPool", since=1, domain=MICROSOFT, exact=True)
def nhwc_max_pool(
    xp: Any,
    x: Array,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """MaxPool with channels last."""
    y = max_pool(
        xp,
        xp.moveaxis(x, -1, 1),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return xp.moveaxis(y, 1, -1)


def _moved(dims: Dims, channels_last: int) -> Dims:
    return (dims[0], dims[-1], *dims[1:-1]) if channels_last else dims


def _moved_back(dims: Dims, channels_last: int) -> Dims:
    return (dims[0], *dims[2:], dims[1]) if channels_last else dims


@shape("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool_shape(
    x: Arg, *_: Arg | None, channels_last: int = 0, count_include_pad: int = 0, **geometry: Any
) -> Dims:
    """Like AveragePool."""
    y = pool_shape(Arg(_moved(x.shape, channels_last)), **geometry)[0]
    return _moved_back(y, channels_last)


@shape("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool_shape(x: Arg, **geometry: Any) -> Dims:
    """Like MaxPool."""
    return _moved_back(pool_shape(Arg(_moved(x.shape, 1)), **geometry)[0], 1)


@shape("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool_shape(x: Arg, *_: Arg, channels_last: int = 0) -> Dims:
    """Ones for the spatial axes."""
    dims = _moved(x.shape, channels_last)
    return _moved_back((*dims[:2], *[1] * (len(dims) - 2)), channels_last)


@op("QLinearConv", since=1, domain=MICROSOFT)
def nhwc_qlinear_conv(
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
    channels_last: int = 0,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """QLinearConv, where asked for with channels last; the filters stay (M, C / group, *K)."""
    y = qlinear_conv(
        xp,
        _channels_first(xp, x, channels_last),
        x_scale,
        x_zero_point,
        w,
        w_scale,
        w_zero_point,
        y_scale,
        y_zero_point,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return _as_given(xp, y, channels_last)


@shape("QLinearConv", domain=MICROSOFT)
def nhwc_qlinear_conv_shape(
    x: Arg, *rest: Arg | None, channels_last: int = 0, **geometry: Any
) -> Dims:
    """Like QLinearConv."""
    y: Dims = qlinear_conv_shape(Arg(_moved(x.shape, channels_last)), *rest, **geometry)
    return _moved_back(y, channels_last)


@dtypes("QLinearConv", domain=MICROSOFT)
def nhwc_qlinear_conv_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """That of the output's zero point."""
    return [inputs[7]]


@op("QLinearConcat", since=1, domain=MICROSOFT)
def qlinear_concat(
    xp: Any, y_scale: Array, y_zero_point: Array, *inputs: Array, axis: int
) -> Array:
    """Tensors, each followed by its scale and zero point, requantised side by side."""
    triples = [inputs[i : i + 3] for i in range(0, len(inputs), 3)]
    parts = [_quantized(xp, dequantize(*t), y_scale, y_zero_point, y_zero_point) for t in triples]
    return xp.concatenate(parts, axis=axis)


@shape("QLinearConcat", domain=MICROSOFT)
def qlinear_concat_shape(y_scale: Arg, y_zero_point: Arg, *inputs: Arg, axis: int) -> Dims:
    """The axis as long as all together."""
    tensors = inputs[::3]
    dims = list(tensors[0].shape)
    dims[axis] = sum(t.shape[axis] for t in tensors)
    return tuple(dims)


@dtypes("QLinearConcat", "QLinearWhere", domain=MICROSOFT)
def second_input_dtype(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """That of the second input."""
    return [inputs[1]]


@op("QGemm", since=1, domain=MICROSOFT)
def q_gemm(
    xp: Any,
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """`alpha * A @ B + C` in integers, requantised, or in float without an output scale.

    `C` is int32 with the scale of the product.
    """
    left, right = centred(a, a_zero_point, rows=False), b.astype(np.int32)
    if transB:
        right = right.T
    if b_zero_point is not None:
        right = right - b_zero_point.astype(np.int32)
    total = exact_matmul(xp, left.T if transA else left, right)
    if c is not None:
        total = total + c
    factor = a_scale * b_scale * alpha
    if y_scale is None:
        return total.astype(factor.dtype) * factor
    factor = factor / y_scale
    dtype = DType.of(a if y_zero_point is None else y_zero_point)
    return on_grid(xp, total.astype(factor.dtype) * factor, y_zero_point, dtype)


@shape("QGemm", domain=MICROSOFT)
def q_gemm_shape(
    a: Arg, a_scale: Arg, a_zero: Arg, b: Arg, *_: Any, transA: int = 0, transB: int = 0, **__: Any
) -> Dims:
    """Rows of A, columns of B."""
    return (a.shape[1 if transA else 0], b.shape[0 if transB else 1])


@dtypes("QGemm", domain=MICROSOFT)
def q_gemm_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """float32 without an output scale, else that of the zero point."""
    scale, zero = ([*inputs, None, None, None])[7:9]
    return [inputs[1] if scale is None else zero or inputs[0]]


@flops("QGemm", domain=MICROSOFT)
def q_gemm_flops(a: Arg, *_: Any, outputs: list[Dims], **__: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    return 2 * prod(a.shape) * outputs[0][1]


@op("QuantizeLinear", since=1, domain=MICROSOFT)
def microsoft_quantize_linear(
    xp: Any,
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    *,
    axis: int = 1,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """QuantizeLinear, for more types in older models."""
    return quantize_linear(xp, x, y_scale, y_zero_point, axis=axis, out_dtypes=out_dtypes)


@op("DequantizeLinear", since=1, domain=MICROSOFT)
def microsoft_dequantize_linear(
    xp: Any, x: Array, x_scale: Array, x_zero_point: Array | None = None, *, axis: int = 1
) -> Array:
    """DequantizeLinear, for more types in older models."""
    return dequantize_linear(xp, x, x_scale, x_zero_point, axis=axis)


@dtypes("QuantizeLinear", domain=MICROSOFT)
def microsoft_quantize_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The zero point's type, else uint8."""
    return [(inputs[2] if len(inputs) > 2 else None) or DType.UINT8]


@dtypes("DequantizeLinear", domain=MICROSOFT)
def microsoft_dequantize_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The scale's type."""
    return [inputs[1]]


@shape(
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearSoftmax",
    domain=MICROSOFT,
)
def same_shape(x: Arg, *_: Arg | None, **__: Any) -> Dims:
    """Like the input."""
    return x.shape
