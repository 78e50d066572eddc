"""com.microsoft: what ONNX Runtime's optimiser and transformer exporters fuse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from polytool.backends.native.ops import activation
from polytool.backends.native.ops.conv import conv, conv_flops, conv_shape
from polytool.backends.native.ops.linear import product_shape
from polytool.backends.native.ops.normalization import (
    layer_normalization,
    simplified_layer_normalization,
)
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, op, shape
from polytool.errors import ModelError
from polytool.tensors import DType

Ints = Sequence[int]
MICROSOFT = "com.microsoft"


@op("Gelu", since=1, domain=MICROSOFT, pointwise=True)
def gelu(xp: Any, x: Array) -> Array:
    """`x` times the normal distribution function of `x`."""
    return activation.gelu(xp, x)


@op("BiasGelu", since=1, domain=MICROSOFT, pointwise=True)
def bias_gelu(xp: Any, x: Array, bias: Array) -> Array:
    """Gelu of `x + bias`."""
    return activation.gelu(xp, x + bias)


@op("FastGelu", since=1, domain=MICROSOFT, pointwise=True)
def fast_gelu(xp: Any, x: Array, bias: Array | None = None) -> Array:
    """Gelu of `x + bias`, approximated by tanh."""
    return activation.gelu(xp, x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", since=1, domain=MICROSOFT, pointwise=True)
def quick_gelu(xp: Any, x: Array, *, alpha: float = 1.702) -> Array:
    """`x * sigmoid(alpha * x)`."""
    return activation.swish(xp, x, alpha=alpha)


@op("BiasAdd", since=1, domain=MICROSOFT, pointwise=True)
def bias_add(xp: Any, x: Array, bias: Array, skip: Array) -> Array:
    """`x + bias + skip`."""
    return x + bias + skip


@op("BiasSplitGelu", since=1, domain=MICROSOFT)
def bias_split_gelu(xp: Any, x: Array, bias: Array) -> Array:
    """The first half of `x + bias` times the Gelu of the second."""
    left, right = xp.split(x + bias, 2, axis=-1)
    return left * activation.gelu(xp, right)


@shape("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu_shape(x: Arg, *_: Arg, **__: Any) -> tuple[int, ...]:
    """Half as wide."""
    return (*x.shape[:-1], x.shape[-1] // 2)


@op("SkipLayerNormalization", since=1, domain=MICROSOFT)
def skip_layer_normalization(
    xp: Any,
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Array, ...]:
    """LayerNormalization of `x + skip + bias`; also gives mean, 1 / deviation and the sum."""
    total = x + skip if bias is None else x + skip + bias
    return (*layer_normalization(xp, total, gamma, beta, epsilon=epsilon), total)


@op("SkipSimplifiedLayerNormalization", since=1, domain=MICROSOFT)
def skip_simplified_layer_normalization(
    xp: Any,
    x: Array,
    skip: Array,
    gamma: Array,
    bias: Array | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Array, ...]:
    """RMSNormalization of `x + skip + bias`; the outputs are those of SkipLayerNormalization."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = simplified_layer_normalization(xp, total, gamma, epsilon=epsilon)
    return y, xp.zeros_like(inverse), inverse, total


@shape("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization_shape(x: Arg, *_: Arg | None, **__: Any) -> list[tuple[int, ...]]:
    """Like the input; statistics a row."""
    row = (*x.shape[:-1], 1)
    return [x.shape, row, row, x.shape]


@dtypes("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The statistics are float32."""
    return [inputs[0], DType.FLOAT, DType.FLOAT, inputs[0]]


@op("FusedMatMul", since=1, domain=MICROSOFT)
def fused_matmul(
    xp: Any,
    a: Array,
    b: Array,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Array:
    """`alpha * A @ B`, with the last two axes, or the first and the batch axes, exchanged."""
    left, right = _operand(xp, a, transBatchA, transA), _operand(xp, b, transBatchB, transB)
    product = left @ right
    return product if alpha == 1 else product * alpha


def _order(rank: int, batch: int, last: int) -> list[int]:
    order = list(range(rank))
    if batch and rank > 2:
        order = [*order[1:-1], 0, order[-1]]
    if last and rank > 1:
        order[-2:] = order[-1], order[-2]
    return order


def _operand(xp: Any, x: Array, batch: int, last: int) -> Array:
    return x.transpose(_order(x.ndim, batch, last)) if batch or last else x


@shape("FusedMatMul", domain=MICROSOFT)
def fused_matmul_shape(
    a: Arg,
    b: Arg,
    *,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
    **_: Any,
) -> tuple[int, ...]:
    """Like MatMul of the transposed operands."""
    left = tuple(a.shape[i] for i in _order(len(a.shape), transBatchA, transA))
    right = tuple(b.shape[i] for i in _order(len(b.shape), transBatchB, transB))
    return product_shape(left, right)


@flops("FusedMatMul", domain=MICROSOFT)
def fused_matmul_flops(a: Arg, b: Arg, *, outputs: list[tuple[int, ...]], **_: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    columns = outputs[0][-1] if len(b.shape) > 1 else 1
    return 2 * prod(a.shape) * columns if columns else 0


# name -> function and the names of its parameters in `activation_params`
_FUSED_ACTIVATIONS = {
    "Relu": (activation.relu, ()),
    "LeakyRelu": (activation.leaky_relu, ("alpha",)),
    "Sigmoid": (activation.sigmoid, ()),
    "HardSigmoid": (activation.hard_sigmoid, ("alpha", "beta")),
}


def fused_activation(xp: Any, x: Array, name: str, parameters: Sequence[float]) -> Array:
    """The activation behind a fused convolution or product."""
    if not name:
        return x
    if name == "Tanh":
        return xp.tanh(x)
    if name == "Clip":
        return xp.clip(x, parameters[0], parameters[1])
    if name not in _FUSED_ACTIVATIONS:
        raise ModelError(f"{name!r} is no activation that com.microsoft operators fuse")
    function, names = _FUSED_ACTIVATIONS[name]
    return partial(function, **dict(zip(names, parameters, strict=False)))(xp, x)


@op("FusedConv", since=1, domain=MICROSOFT)
def fused_conv(
    xp: Any,
    x: Array,
    w: Array,
    b: Array | None = None,
    z: Array | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Conv, plus `z`, then an activation."""
    y = conv(
        xp,
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return fused_activation(xp, y if z is None else y + z, activation, activation_params)


@shape("FusedConv", domain=MICROSOFT)
def fused_conv_shape(
    x: Arg,
    w: Arg,
    *_: Arg | None,
    activation: str = "",
    activation_params: Sequence[float] = (),
    **geometry: Any,
) -> tuple[int, ...]:
    """Like Conv."""
    dims: tuple[int, ...] = conv_shape(x, w, **geometry)
    return dims


flops("FusedConv", domain=MICROSOFT)(conv_flops)


@op("FusedGemm", since=1, domain=MICROSOFT)
def fused_gemm(
    xp: Any,
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """`activation(alpha * A @ B + beta * C)`."""
    y = (a.T if transA else a) @ (b.T if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is not None:
        y = y + (c if beta == 1 else c * beta)
    given = (activation_alpha, activation_beta, activation_gamma)
    return fused_activation(xp, y, activation, [p for p in given if p is not None])


@shape("FusedGemm", domain=MICROSOFT)
def fused_gemm_shape(
    a: Arg, b: Arg, *_: Arg | None, transA: int = 0, transB: int = 0, **__: Any
) -> tuple[int, ...]:
    """Rows of A, columns of B."""
    return (a.shape[1 if transA else 0], b.shape[0 if transB else 1])


@flops("FusedGemm", domain=MICROSOFT)
def fused_gemm_flops(a: Arg, *_: Arg | None, outputs: list[tuple[int, ...]], **__: Any) -> int:
    """A multiply-add for each element of the reduced axis."""
    return 2 * prod(a.shape) * outputs[0][1]
