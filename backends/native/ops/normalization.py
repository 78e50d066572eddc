"""Normalisations over batch, channels, groups, layers and norms."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from polytool.backends.native.ops.registry import (
    Arg,
    Array,
    Node,
    dtypes,
    op,
    shape,
    upgrade,
)
from polytool.errors import RunnerError
from polytool.tensors import DType

Ints = Sequence[int]


def mean(x: Array, axes: Ints) -> Array:
    """The mean over `axes`, kept as ones; NaN without a warning where there is nothing."""
    axes = tuple(axes)
    return x.sum(axis=axes, keepdims=True) / prod(x.shape[a] for a in axes)


def centred(x: Array, axes: Ints) -> tuple[Array, Array]:
    """`x` less its mean over `axes`, and the mean.

    Of equal values only the rounding of their mean would be left, which dividing by a small
    deviation makes large; so what is left is centred again.
    """
    center = mean(x, axes)
    rest = x - center
    return rest - mean(rest, axes), center


def per_channel(values: Array, rank: int) -> Array:
    """(C,) as (1, C, 1, ...), to broadcast against (N, C, *spatial)."""
    return values.reshape(1, -1, *[1] * (rank - 2)) if rank > 1 else values


@op("BatchNormalization", since=14)
def batch_normalization(
    xp: Any,
    x: Array,
    scale: Array,
    bias: Array,
    input_mean: Array,
    input_var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array | tuple[Array, ...]:
    """Normalise each channel by given statistics, or in training mode by its own."""
    if not training_mode:
        factor = scale / xp.sqrt(input_var + epsilon)
        centered = x - per_channel(input_mean, x.ndim)
        return centered * per_channel(factor, x.ndim) + per_channel(bias, x.ndim)
    axes = [a for a in range(x.ndim) if a != 1]
    center = mean(x, axes)
    var = mean((x - center) ** 2, axes)
    y = (x - center) / xp.sqrt(var + epsilon) * per_channel(scale, x.ndim)
    running_mean = input_mean * momentum + center.reshape(-1) * (1 - momentum)
    running_var = input_var * momentum + var.reshape(-1) * (1 - momentum)
    return y + per_channel(bias, x.ndim), running_mean, running_var


@upgrade("BatchNormalization", since=1)
def batch_normalization_is_test(node: Node) -> Node:
    """Versions 1 and 6 say by `is_test` what 7 says by the number of outputs."""
    attrs = node.without("is_test", "consumed_inputs")
    outputs = node.outputs[:1] if node.attrs.get("is_test") else node.outputs
    return node.raised(attrs=attrs, outputs=outputs)


@upgrade("BatchNormalization", since=7)
def batch_normalization_modes(node: Node) -> Node:
    """Versions 7 and 9 train when they have five outputs; 7 also has statistics a feature."""
    if any(node.outputs[1:]) or not node.attrs.get("spatial", 1):
        return node.raised(op="BatchNormalizationLegacy")
    return node.raised(attrs=node.without("spatial", "momentum"), outputs=node.outputs[:1])


@op("BatchNormalizationLegacy", since=1)
def batch_normalization_legacy(
    xp: Any,
    x: Array,
    scale: Array,
    bias: Array,
    input_mean: Array,
    input_var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    n_outputs: int = 1,
) -> tuple[Array, ...]:
    """BatchNormalization-7 where it trains, or with `spatial=0`: statistics of every feature."""

    def broadcast(values: Array) -> Array:
        return per_channel(values, x.ndim) if spatial else values[None]

    axes = [a for a in range(x.ndim) if a != 1] if spatial else [0]
    center, var = broadcast(input_mean), broadcast(input_var)
    if n_outputs > 1:
        center = mean(x, axes)
        var = mean((x - center) ** 2, axes)
    y = (x - center) / xp.sqrt(var + epsilon) * broadcast(scale) + broadcast(bias)
    center, var = center.reshape(input_mean.shape), var.reshape(input_var.shape)
    running_mean = input_mean * momentum + center * (1 - momentum)
    running_var = input_var * momentum + var * (1 - momentum)
    return y, running_mean, running_var, center, var


@shape("BatchNormalization", "BatchNormalizationLegacy")
def batch_normalization_shape(x: Arg, scale: Arg, *_: Arg, **__: Any) -> list[tuple[int, ...]]:
    """Y like X, statistics like the scale."""
    return [x.shape, *[scale.shape] * 4]


@dtypes("BatchNormalization")
def batch_normalization_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """Y has X's type, the statistics that of the given ones."""
    return [inputs[0], inputs[3], inputs[4]]


@op("InstanceNormalization", since=1)
def instance_normalization(
    xp: Any,
    x: Array,
    scale: Array,
    bias: Array,
    *,
    consumed_inputs: Ints | None = None,
    epsilon: float = 1e-5,
) -> Array:
    """Normalise each channel of each sample over its spatial axes."""
    y = standardize(xp, x, range(2, x.ndim), epsilon)
    return y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def standardize(xp: Any, x: Array, axes: Ints, epsilon: float) -> Array:
    """Zero mean and unit variance over `axes`."""
    rest, _ = centred(x, axes)
    return rest / xp.sqrt(mean(rest * rest, axes) + epsilon)


def _grouped(xp: Any, x: Array, groups: int, epsilon: float) -> Array:
    grouped = x.reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)
    return standardize(xp, grouped, (2,), epsilon)


@op("GroupNormalization", since=21)
def group_normalization(
    xp: Any,
    x: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,
) -> Array:
    """Normalise each group of channels of each sample; scale and bias are per channel."""
    y = _grouped(xp, x, num_groups, epsilon).reshape(x.shape)
    return y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


@op("GroupNormalization", since=18)
def group_normalization_18(
    xp: Any, x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5, num_groups: int
) -> Array:
    """GroupNormalization with scale and bias per group."""
    y = _grouped(xp, x, num_groups, epsilon) * scale[:, None] + bias[:, None]
    return y.reshape(x.shape)


@op("LayerNormalization", since=1)
def layer_normalization(
    xp: Any,
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, Array, Array]:
    """Normalise over all axes from `axis` on. Exporters use it long before opset 17 defines it."""
    axes = range(axis % x.ndim, x.ndim)
    rest, center = centred(x, axes)
    inverse = 1 / xp.sqrt(mean(rest * rest, axes) + epsilon)
    y = rest * inverse * scale
    return (y if bias is None else y + bias), center, inverse


@shape("LayerNormalization", "SimplifiedLayerNormalization")
def layer_normalization_shape(x: Arg, *_: Arg | None, axis: int = -1, **__: Any) -> list[Any]:
    """Y like X; the statistics with ones from `axis` on."""
    axis = axis % len(x.shape)
    reduced = (*x.shape[:axis], *[1] * (len(x.shape) - axis))
    return [x.shape, reduced, reduced]


@dtypes("LayerNormalization", "SimplifiedLayerNormalization")
def layer_normalization_dtypes(
    inputs: list[DType | None], *, stash_type: int = 1, **_: Any
) -> list[DType | None]:
    """Y has X's type, the statistics `stash_type`."""
    return [inputs[0], DType(stash_type), DType(stash_type)]


@op("SimplifiedLayerNormalization", since=1)
def simplified_layer_normalization(
    xp: Any,
    x: Array,
    scale: Array,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, Array]:
    """RMSNormalization as ONNX Runtime named it before ONNX had one; also gives 1 / rms."""
    axes = range(axis % x.ndim, x.ndim)
    inverse = 1 / xp.sqrt(mean(x * x, axes) + epsilon)
    return x * inverse * scale, inverse


@op("RMSNormalization", since=23)
def rms_normalization(
    xp: Any, x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """Divide by the root mean square over all axes from `axis` on."""
    return x / xp.sqrt(mean(x * x, range(axis % x.ndim, x.ndim)) + epsilon) * scale


@op("LpNormalization", since=1)
def lp_normalization(xp: Any, x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Divide by the p-norm along `axis`; zeros stay zeros."""
    if p == 1:
        norm = xp.abs(x).sum(axis=axis, keepdims=True)
    else:
        norm = xp.sqrt((x * x).sum(axis=axis, keepdims=True))
    return x / xp.where(norm == 0, xp.ones_like(norm), norm)


@op("LRN", since=1)
def lrn(
    xp: Any, x: Array, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Array:
    """Divide by a power of the mean square over `size` neighbouring channels."""
    channels = x.shape[1]
    if size < 1:
        raise RunnerError(f"LRN cannot add up {size} channels")
    if not x.size:
        return x  # of 2**31 channels, perhaps
    before, after = (min(n, channels) for n in ((size - 1) // 2, size // 2))
    squares = xp.zeros((x.shape[0], before + channels + after, *x.shape[2:]), dtype=x.dtype)
    squares[:, before : before + channels] = x * x
    total = xp.zeros_like(x)
    for offset in range(before + after + 1):
        total += squares[:, offset : offset + channels]
    return x / (bias + alpha / size * total) ** beta


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(xp: Any, x: Array, *, axes: Ints = (0, 2, 3)) -> Array:
    """Zero mean and unit variance over `axes`."""
    axes = [a % x.ndim for a in axes]
    rest, _ = centred(x, axes)
    return rest / (xp.sqrt(mean(rest * rest, axes)) + 1e-9)


@op("MeanVarianceNormalization", since=1)
def mean_variance_normalization_1(
    xp: Any, x: Array, *, across_channels: int = 0, normalize_variance: int = 1
) -> Array:
    """The experimental form; like ONNX Runtime, with statistics over the batch as well."""
    axes = [a for a in range(x.ndim) if across_channels or a != 1]
    rest, _ = centred(x, axes)
    return rest / (xp.sqrt(mean(rest * rest, axes)) + 1e-9) if normalize_variance else rest


@shape(
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "LRN",
    "MeanVarianceNormalization",
)
def same_shape(x: Arg, *_: Arg | None, **__: Any) -> tuple[int, ...]:
    """Like the first input."""
    return x.shape
