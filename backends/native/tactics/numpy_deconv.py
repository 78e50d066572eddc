"""ConvTranspose with constant filters and its epilogue, on float32.

One GEMM gives every input element's multiples of the filters. Where filters do not overlap they
are only put in their places, else added up in an image with margins, channel block by channel
block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.ops.conv import transposed_windows
from polytool.backends.native.ops.windows import Windows
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.conv_plans import multiply
from polytool.backends.native.tactics.epilogue import Epilogue, Finish
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant
from polytool.backends.native.tactics.pool import blocks_of, parallel, scratch

Array = np.ndarray[Any, Any]
_BLOCK = 1 << 17


class Deconv(Tactic):
    """Transposed convolution."""

    name = "numpy.deconv"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = layer.nodes[0]
        if node.op != "ConvTranspose" or node.domain or mode.wide or node.precision == "tf32":
            return False
        x, w, *bias = node.inputs
        if x is None or w is None or x.constant is not None or w.constant is None:
            return False
        if any(t is not None and t.constant is None for t in bias) or len(layer.outputs) != 1:
            return False
        return stored_as(x) == FLOAT and int(node.attrs.get("group", 1)) == 1

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        x, w, *rest = node.inputs
        assert x is not None and w is not None
        filters = stored_constant(w, mode)
        channels, m = filters.shape[:2]
        packed = np.ascontiguousarray(filters.reshape(channels, -1).T)
        bias = stored_constant(rest[0], mode) if rest and rest[0] is not None else None
        epilogue = Epilogue(layer, mode, bias)
        source = layer.inputs.index(x)
        fallback = Generic().compile(layer, mode)

        def launch(*args: Any) -> Sequence[Any]:
            value = args[source]
            where = _windows(node, value.shape, filters.shape)
            shape = (value.shape[0], m, *where.size)
            if math.prod(shape) == 0 or value.size == 0 or min(where.before) < 0:
                return fallback(*args)
            out = np.empty(shape, np.float32)
            flat = np.ascontiguousarray(value).reshape(*value.shape[:2], -1)
            _run(packed, flat, where, out, epilogue.bind(shape, args))
            return epilogue.complete(out, args)

        return launch


def _windows(node: Node, shape: Sequence[int], filters: Sequence[int]) -> Windows:
    names = ("auto_pad", "dilations", "output_padding", "output_shape", "pads", "strides")
    attrs = {name: node.attrs[name] for name in names if name in node.attrs}
    return transposed_windows(shape[2:], filters[2:], **attrs)


def _run(packed: Array, x: Array, where: Windows, out: Array, finish: Finish | None) -> None:
    images, m = out.shape[:2]
    taps = math.prod(where.kernel)
    pixels = math.prod(where.size)
    parts = blocks_of(m, max(1, _BLOCK // max(pixels, taps * x.shape[2])))
    blocks = [(n, a, b) for n in range(images) for a, b in parts]
    flat = out.reshape(images, m, pixels)

    def block(index: int) -> None:
        n, first, last = blocks[index]
        rows = packed[first * taps : last * taps]
        columns = scratch("columns", (len(rows), x.shape[2]))
        multiply(rows, x[n], columns)
        columns = columns.reshape(last - first, *where.kernel, *where.out)
        _put_together(columns, where, out[n, first:last])
        if finish is not None:
            part = flat[n : n + 1, first:last]
            finish(part, slice(n, n + 1), slice(first, last), slice(0, pixels))

    parallel(block, len(blocks))


def _put_together(columns: Array, where: Windows, out: Array) -> None:
    """Every input element's filter multiples (m, *kernel, *in) into the output (m, *size)."""
    apart = where.kernel == where.strides and set(where.dilations) == {1}
    exact = all(n == k * o for n, k, o in zip(where.size, where.kernel, where.out, strict=True))
    if apart and exact and not any(where.before):
        for piece, place in where.pieces():
            out[_all(place)] = columns[_all(piece)]
        return
    margins = zip(where.size, where.before, where.reach, strict=True)
    image = scratch("image", (len(out), *(n + b + max(a, 0) for n, b, a in margins)))
    image[...] = 0
    for piece, place in where.pieces():
        image[_all(place)] += columns[_all(piece)]
    crop = [slice(b, b + n) for b, n in zip(where.before, where.size, strict=True)]
    np.copyto(out, image[_all(crop)])


def _all(spatial: Sequence[Any]) -> Any:
    """An index of the spatial axes, for every channel."""
    return (slice(None), *spatial)
