"""Convolutions, each with its epilogue in the same kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.epilogues import (
    epilogue_of,
    multiply,
    on_tensor_cores,
    packed_constant,
    with_epilogue,
)
from polytool.backends.native.cuda.lower_rows import NHWC, explicit_pads
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.cuda.stem import few_channels, implicit_problem, nhwc_constant
from polytool.backends.native.kernels.direct import Direct, Geometry
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.network import Layer, Node
from polytool.errors import UnsupportedError

Array = np.ndarray[Any, Any]
_PACKED = 8  # channels that a tensor-core convolution wants at least


@lowering("Conv")
def convolution(rec: Recorder, layer: Layer) -> None:
    """An implicit product on NHWC images; depthwise and float32 ones directly."""
    with_epilogue(rec, layer, _convolution)


def _convolution(rec: Recorder, layer: Layer) -> None:
    node = layer.nodes[0]
    x, w, bias = [*node.inputs, None][:3]
    assert x is not None and w is not None
    (output,), (product,) = layer.outputs, node.writes()
    shape, weights = rec.shape(x), rec.shape(w)
    if len(shape) != 4 or w.constant is None or output.dtype is None or x.dtype is None:
        raise UnsupportedError("a convolution that is not two-dimensional, or computes its weights")
    out = rec.shape(product)
    g = _geometry(node, shape, weights, out)
    pads = explicit_pads(node.attrs, g.kernel, g.strides, g.dilations, shape, out)
    epilogue, views = epilogue_of(rec, layer, bias, 1, NHWC)
    if on_tensor_cores(node, x.dtype) and not g.depthwise:
        try:
            with rec.attempt():
                _implicit(rec, layer, g, pads, epilogue, views)
            return
        except UnsupportedError:
            pass  # channels that are not aligned: the direct form takes them
    source = rec.dense(rec.view(x), NHWC)
    if g.depthwise:
        op = Direct.depthwise(x.dtype, epilogue, g)
        packed = (
            packed_constant(rec, w, (weights[2] * weights[3], g.out), "taps", _taps)
            if op.vector > 1
            else rec.view(w)
        )
    else:
        op, packed = Direct(x.dtype, epilogue, channels_last=True), rec.view(w)
    rec.launch([op.plan(g)], [source, packed, *views, rec.output(output, NHWC)])


def _geometry(
    node: Node, shape: tuple[int, ...], weights: tuple[int, ...], out: tuple[int, ...]
) -> Geometry:
    a = node.attrs
    kernel = tuple(weights[2:])
    strides = tuple(a.get("strides") or (1, 1))
    dilations = tuple(a.get("dilations") or (1, 1))
    pads = explicit_pads(a, kernel, strides, dilations, shape, out)
    return Geometry(
        shape[0], shape[1], weights[0], shape[2:], out[2:], kernel, strides, pads[:2], dilations,
        int(a.get("group", 1)),
    )  # fmt: skip


def _implicit(
    rec: Recorder, layer: Layer, g: Geometry, pads: tuple[int, ...], epilogue: Epilogue,
    views: list[View],
) -> None:  # fmt: skip
    x, w = layer.nodes[0].inputs[:2]
    assert x is not None and w is not None and x.dtype is not None
    if g.channels % _PACKED and g.groups == 1:
        source, packed, problem = few_channels(rec, x, w, g, pads)
    else:
        source = rec.dense(rec.view(x), NHWC)
        packed = nhwc_constant(rec, w, g.out, g.kernel, g.channels // g.groups)
        problem = implicit_problem(g, pads, g.channels)
    result = rec.output(layer.outputs[0], NHWC)
    multiply(rec, x.dtype, epilogue, problem, [source, packed, *views, result])


def _taps(value: Array) -> Array:
    """[out, 1, kh, kw] to [kh * kw, out]."""
    return value.reshape(value.shape[0], -1).T
