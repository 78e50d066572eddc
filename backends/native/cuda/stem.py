"""Convolutions of images with few channels, which fill no 16 bytes: how they become products."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.epilogues import packed_constant
from polytool.backends.native.cuda.recorder import Recorder
from polytool.backends.native.kernels.direct import Geometry
from polytool.backends.native.kernels.gemm import Convolution, Matrix, Problem
from polytool.backends.native.kernels.transpose import PackImage
from polytool.backends.native.network import Tensor

Array = np.ndarray[Any, Any]
_ALIGNED = 8  # elements of 16 bytes
_PAIRED = 4  # channels of each pixel of a pair


def few_channels(
    rec: Recorder, image: Tensor, weights: Tensor, g: Geometry, pads: tuple[int, ...]
) -> tuple[View, View, Problem]:
    """The left and the right operand and the product of a convolution with one group.

    Patches that do not overlap become rows of a matrix. With stride two, pairs of pixels with four
    channels each count as one pixel with eight. Else channels are padded to eight.
    """
    dilated = g.dilations != (1, 1)
    if g.strides == g.kernel and not any(pads) and not dilated:
        depth = g.channels * math.prod(g.kernel)
        if depth % _ALIGNED == 0 and g.kernel[1] % _ALIGNED == 0:
            return _patches(rec, image, weights, g, depth)
    if g.strides[1] == 2 and g.channels <= _PAIRED and not dilated:
        return _pairs(rec, image, weights, g, pads)
    return _padded(rec, image, weights, g, pads)


def _patches(
    rec: Recorder, image: Tensor, weights: Tensor, g: Geometry, depth: int
) -> tuple[View, View, Problem]:
    view, (height, width), (kernel_h, kernel_w) = rec.view(image), g.outputs, g.kernel
    for axis, size in ((2, height * kernel_h), (3, width * kernel_w)):
        view = view.sliced(axis, 0, size)
    cut = view.reshaped((g.batch, g.channels, height, kernel_h, width, kernel_w))
    assert cut is not None  # a dimension of a strided view can always be cut in two
    rows = rec.dense(cut.permuted((0, 2, 4, 1, 3, 5)))
    packed = packed_constant(
        rec, weights, (g.out, depth), "rows", lambda a: a.reshape(a.shape[0], -1)
    )
    return rows, packed, Matrix(g.batch * height * width, g.out, depth)


def _sizes(g: Geometry) -> tuple[int, int, int, int]:
    return g.batch, g.channels, g.sizes[0], g.sizes[1]


def _pairs(
    rec: Recorder, image: Tensor, weights: Tensor, g: Geometry, pads: tuple[int, ...]
) -> tuple[View, View, Problem]:
    assert image.dtype is not None
    taps = -(-g.kernel[1] // 2)
    height = (g.outputs[0] - 1) * g.strides[0] + g.kernel[0]
    columns = g.outputs[1] - 1 + taps
    source = View.new(image.dtype, (g.batch, height, 2 * columns, _PAIRED))
    plan = PackImage(image.dtype, _PAIRED).plan(
        _sizes(g),
        pads[0],
        pads[1],
        (height, 2 * columns),
    )
    rec.launch([plan], [rec.dense(rec.view(image)), source])
    shape = (g.out, g.kernel[0], taps, 2 * _PAIRED)
    packed = packed_constant(rec, weights, shape, "pairs", _pair_weights)
    problem = Convolution(
        g.batch, height, columns, 2 * _PAIRED, g.out, (g.kernel[0], taps), (g.strides[0], 1)
    )
    return source, packed, problem


def _pair_weights(value: Array) -> Array:
    """[out, in, kh, kw] to [out, kh, pairs, 2 * 4]."""
    out, inner, height, width = value.shape
    moved = np.zeros((out, height, -(-width // 2) * 2, _PAIRED), value.dtype)
    moved[:, :, :width, :inner] = value.transpose(0, 2, 3, 1)
    return moved.reshape(out, height, -1, 2 * _PAIRED)


def _padded(
    rec: Recorder, image: Tensor, weights: Tensor, g: Geometry, pads: tuple[int, ...]
) -> tuple[View, View, Problem]:
    assert image.dtype is not None
    channels = -(-g.channels // _ALIGNED) * _ALIGNED
    source = View.new(image.dtype, (g.batch, *g.sizes, channels))
    plan = PackImage(image.dtype, channels).plan(_sizes(g))
    rec.launch([plan], [rec.dense(rec.view(image)), source])
    packed = nhwc_constant(rec, weights, g.out, g.kernel, channels)
    return source, packed, implicit_problem(g, pads, channels)


def nhwc_constant(
    rec: Recorder, weights: Tensor, out: int, kernel: tuple[int, ...], inner: int
) -> View:
    """Weights [out, in, kh, kw] as [out, kh, kw, inner], zeros in the channels that are added."""

    def change(value: Array) -> Array:
        moved = value.transpose(0, 2, 3, 1)
        return np.pad(moved, [(0, 0)] * 3 + [(0, inner - moved.shape[3])])

    return packed_constant(rec, weights, (out, *kernel, inner), f"nhwc{inner}", change)


def implicit_problem(g: Geometry, pads: tuple[int, ...], channels: int) -> Problem:
    """The product that a convolution of an NHWC image is."""
    (height, width), (top, left, bottom, right) = g.sizes, pads
    (kernel_h, kernel_w), (stride_h, stride_w) = g.kernel, g.strides
    image = Convolution(
        g.batch,
        height,
        width,
        channels,
        g.out,
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (top, left, bottom, right),
        (g.dilations[0], g.dilations[1]),
        g.groups,
    )
    return image.as_matrix() or image
