"""Convolutions: Conv, ConvTranspose, ConvInteger, CausalConvWithState, Col2Im."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.integers import exact_product
from polytool.backends.native.ops.registry import Arg, Array, flops, op, shape
from polytool.backends.native.ops.windows import Windows, fold, pad_spatial, patches, windows

Ints = Sequence[int]
# Columns of one block: a few megabytes, so that the product reads them from cache.
_BLOCK = 1 << 20


@op("Conv", since=1)
def conv(
    xp: Any,
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Cross-correlation of (N, C, *S) with (M, C/group, *K), plus a bias a channel."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    y = convolve(xp, x, w, where, group)
    return y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))


def convolve(xp: Any, x: Array, w: Array, where: Windows, group: int) -> Array:
    """The product of every window with every filter, in the type of `x`."""
    n, c, m = x.shape[0], x.shape[1], w.shape[0]
    filters = w.reshape(group, m // group, prod(w.shape[1:]))
    if where.is_pointwise and not any(where.before):
        y = filters @ x.reshape(n, group, c // group, prod(where.out))
        return y.reshape(n, m, *where.out)
    x = pad_spatial(xp, x, where.before, where.reach)
    if group > 1 and w.shape[1] == 1:
        return _depthwise(xp, x, w, where)
    view = patches(xp, x.reshape(n * group, c // group, *x.shape[2:]), where)
    view = view.reshape(n, group, *view.shape[1:])
    y = xp.empty((n, group, m // group, *where.out), dtype=x.dtype)
    row_size = filters.shape[2] * group * prod(where.out[1:])
    rows = max(1, _BLOCK // max(1, row_size))
    inner = (slice(None),) * len(where.out[1:])
    for image in range(n):
        for start in range(0, where.out[0], rows):
            block = (..., slice(start, start + rows), *inner)
            target = y[image][block]
            columns = view[image][block].reshape(group, filters.shape[2], prod(target.shape[2:]))
            target[...] = (filters @ columns).reshape(target.shape)
    return y.reshape(n, m, *where.out)


def _depthwise(xp: Any, x: Array, w: Array, where: Windows) -> Array:
    """One input channel a group: by kernel positions, or by places where these are fewer."""
    n, c = x.shape[:2]
    filters = w.reshape(c, w.shape[0] // c, *where.kernel)
    y = xp.zeros((n, c, filters.shape[1], *where.out), dtype=x.dtype)
    if prod(where.out) < prod(where.kernel):
        flat = filters.reshape(*filters.shape[:2], -1)
        for place, part in where.places():
            window = x[..., *part].reshape(n, c, -1)
            y[..., *place] = xp.einsum("cmk,nck->ncm", flat, window)
    else:
        ones = (1,) * len(where.out)
        for tap, part in where.taps():
            y += filters[:, :, *tap].reshape(c, -1, *ones) * x[:, :, None][..., *part]
    return y.reshape(n, w.shape[0], *where.out)


@shape("Conv", "ConvInteger")
def conv_shape(
    x: Arg,
    w: Arg,
    *_: Arg | None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> tuple[int, ...]:
    """(N, M, *out)."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    return (x.shape[0], w.shape[0], *where.out)


@flops("Conv", "ConvInteger")
def conv_flops(x: Arg, w: Arg, *_: Arg | None, outputs: list[tuple[int, ...]], **__: Any) -> int:
    """Each output element is a product of one window with one filter."""
    return 2 * prod(outputs[0]) * prod(w.shape[1:])


@op("ConvInteger", since=10)
def conv_integer(
    xp: Any,
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Conv of 8-bit integers in int32; padding stands for zero, so it holds the zero point."""
    where = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    return convolve_integers(xp, x, w, x_zero_point, w_zero_point, where, group)


def convolve_integers(
    xp: Any,
    x: Array,
    w: Array,
    x_zero: Array | None,
    w_zero: Array | None,
    where: Windows,
    group: int,
) -> Array:
    """The int32 convolution of `x - x_zero` with `w - w_zero` (one for all, or one a filter)."""
    x = x.astype(np.int32) if x_zero is None else x.astype(np.int32) - x_zero.astype(np.int32)
    w = w.astype(np.int32)
    if w_zero is not None:
        w = w - w_zero.astype(np.int32).reshape(-1, *[1] * (w.ndim - 1))
    filters = w.reshape(w.shape[0], prod(w.shape[1:]))
    return exact_product(
        xp, lambda a, b: convolve(xp, a, b.reshape(w.shape), where, group), x, filters, axis=1
    )


@op("ConvTranspose", since=1)
def conv_transpose(
    xp: Any,
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """The gradient of Conv: every input element adds its multiple of the filter to the output."""
    where = transposed_windows(
        x.shape[2:],
        w.shape[2:],
        auto_pad=auto_pad,
        dilations=dilations,
        output_padding=output_padding,
        output_shape=output_shape,
        pads=pads,
        strides=strides,
    )
    n, c = x.shape[:2]
    filters = w.reshape(group, c // group, prod(w.shape[1:]))
    columns = filters.swapaxes(1, 2) @ x.reshape(n, group, c // group, prod(x.shape[2:]))
    m = w.shape[1] * group
    y = fold(xp, columns.reshape(n, m, *where.kernel, *where.out), where)
    return y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))


def transposed_windows(
    size: Ints,
    kernel: Ints,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Windows:
    """Windows over the *output* of a ConvTranspose, one for each input element."""
    rank = len(size)
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    extra = output_padding or [0] * rank
    pads = pads if pads and auto_pad in ("NOTSET", "") else [0] * (2 * rank)
    if output_shape is not None:
        output_shape = output_shape[-rank:] if rank else []  # old models give N and C as well
    before, after, out = [], [], []
    for axis, (n, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        full = s * (n - 1) + extra[axis] + (k - 1) * d + 1
        front, back = pads[axis], pads[rank + axis]
        if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = min(full, n * s) if output_shape is None else output_shape[axis]
            total = full - wanted
            front = max(total, 0) // 2 if auto_pad == "SAME_UPPER" else -(-max(total, 0) // 2)
            back = total - front
        before.append(front)
        after.append(back)
        out.append(max(full - front - back, 0))
    return Windows(*map(tuple, (out, kernel, strides, dilations, before, after, size)))


@shape("ConvTranspose")
def conv_transpose_shape(
    x: Arg,
    w: Arg,
    b: Arg | None = None,
    *,
    group: int = 1,
    kernel_shape: Ints | None = None,
    **geometry: Any,
) -> tuple[int, ...]:
    """(N, M, *out)."""
    where = transposed_windows(x.shape[2:], w.shape[2:], **geometry)
    return (x.shape[0], w.shape[1] * group, *where.size)


@flops("ConvTranspose")
def conv_transpose_flops(x: Arg, w: Arg, *_: Arg | None, **__: Any) -> int:
    """Each input element multiplies the filters of its channel."""
    return 2 * prod(x.shape) * prod(w.shape[1:])


@op("Col2Im", since=18, host=(1, 2))
def col2im(
    xp: Any,
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Add up blocks (N, C * prod(block), L) to images (N, C, *image_shape)."""
    image, block = [int(d) for d in image_shape], [int(d) for d in block_shape]
    where = windows(image, block, strides, dilations, pads)
    channels = x.shape[1] // prod(block)
    return fold(xp, x.reshape(x.shape[0], channels, *block, *where.out), where)


@shape("Col2Im")
def col2im_shape(x: Arg, image_shape: Arg, block_shape: Arg, **_: Any) -> tuple[int, ...] | None:
    """(N, C, *image_shape)."""
    if image_shape.value is None or block_shape.value is None:
        return None
    channels = x.shape[1] // prod(int(d) for d in block_shape.value)
    return (x.shape[0], channels, *(int(d) for d in image_shape.value))


@op("CausalConvWithState", since=27)
def causal_conv_with_state(
    xp: Any,
    x: Array,
    w: Array,
    b: Array | None = None,
    past_state: Array | None = None,
    *,
    activation: str = "none",
) -> tuple[Array, Array]:
    """Depthwise causal convolution over (N, C, L); the state is the last k - 1 positions."""
    history = w.shape[2] - 1
    if past_state is None:
        past_state = xp.zeros((*x.shape[:2], history), dtype=x.dtype)
    x = xp.concatenate([past_state, x], axis=2)
    y = _depthwise(xp, x, w, windows(x.shape[2:], w.shape[2:]))
    if b is not None:
        y = y + b[:, None]
    if activation in ("silu", "swish"):
        y = y / (1 + xp.exp(-y))
    return y, x[:, :, x.shape[2] - history :]


@shape("CausalConvWithState")
def causal_conv_with_state_shape(x: Arg, w: Arg, *_: Arg | None, **__: Any) -> list[Any]:
    """The input's shape, and (N, C, k - 1)."""
    return [x.shape, (*x.shape[:2], w.shape[2] - 1)]


@flops("CausalConvWithState")
def causal_conv_with_state_flops(x: Arg, w: Arg, *_: Arg | None, **__: Any) -> int:
    """A filter of length k at every position."""
    return 2 * prod(x.shape) * w.shape[2]
