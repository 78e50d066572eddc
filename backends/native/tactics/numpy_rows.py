"""What works along the last axes, in blocks of rows: normalisations, Softmax, global averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.passes.fuse_residual_norm import residual_parts
from polytool.backends.native.passes.match import NORMALIZATIONS
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant
from polytool.backends.native.tactics.pool import parallel

Array = np.ndarray[Any, Any]
Kernel = Callable[[Array, Array], None]
"""`kernel(rows, out)`: both (rows, n), float32 and contiguous."""
_BLOCK = 1 << 16


def by_rows(kernel: Callable[..., None], *arrays: Array) -> None:
    """Run `kernel` on the same blocks of rows of each array, over the pool if there are several."""
    rows, size = arrays[0].shape
    step = max(1, _BLOCK // max(1, size))
    if rows <= 2 * step:
        kernel(*arrays)
        return
    count = -(-rows // step)
    parallel(lambda i: kernel(*[a[i * step : (i + 1) * step] for a in arrays]), count)


_FLAT = 8  # times their deviation: of a mean beyond that, the rounding would show; centre again


@cache
def _ones(size: int) -> Array:
    return np.ones(size, np.float32)


def row_sums(x: Array) -> Array:
    """The sum of each row, (rows, 1): a BLAS dot product, several times faster than `sum`."""
    sums: Array = np.vecdot(x, _ones(x.shape[1]))
    return sums[:, None]


def _single(layer: Layer, mode: Mode, domain: str, names: Sequence[str]) -> Node | None:
    """The layer's only node, if it is one of `names` on a float32 input that is no constant."""
    node = only_node(layer)
    if node is None or mode.wide or node.domain != domain or node.op not in names:
        return None
    x = node.inputs[0]
    if x is None or x.constant is not None or stored_as(x) != FLOAT or len(layer.outputs) != 1:
        return None
    return node if node.outputs[0] is layer.outputs[0] else None


class Normalize(Tactic):
    """LayerNormalization, RMSNormalization and their older names; only the first output."""

    name = "numpy.normalize"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = _single(layer, mode, "", NORMALIZATIONS)
        return node is not None and _is_plain(node)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        kernel, size_of = _bound(layer.nodes[0], mode)
        fallback = Generic().compile(layer, mode)

        def launch(x: Array) -> Sequence[Any]:
            size = size_of(x.shape)
            if not size:
                return fallback(x)
            out = np.empty(x.shape, np.float32)
            by_rows(kernel, np.ascontiguousarray(x).reshape(-1, size), out.reshape(-1, size))
            return (out,)

        return launch


class ResidualNormalize(Tactic):
    """The sum of some tensors, and its normalisation while a block of it is in the cache."""

    name = "numpy.residual_norm"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        if layer.kind != "residual_norm" or mode.wide:
            return False
        addends, norm = residual_parts(layer)
        return all(stored_as(t) == FLOAT for t in (*addends, *layer.outputs)) and _is_plain(norm)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        addends, norm = residual_parts(layer)
        kernel, size_of = _bound(norm, mode)
        places = [layer.inputs.index(t) for t in addends]
        count = len(layer.outputs)
        fallback = Generic().compile(layer, mode)

        def rows(a: Array, b: Array, *others: Array) -> None:
            rest, results = others[:-count], others[-count:]
            total = np.add(a, b, out=results[0])
            for addend in rest:
                np.add(total, addend, out=total)
            kernel(total, results[-1])

        def launch(*args: Array) -> Sequence[Any]:
            given = [args[i] for i in places]
            shape = given[0].shape
            size = size_of(shape)
            if not size or any(x.shape != shape for x in given):
                return fallback(*args)
            results = [np.empty(shape, np.float32) for _ in range(count)]
            by_rows(rows, *(np.ascontiguousarray(x).reshape(-1, size) for x in (*given, *results)))
            return results

        return launch


def _is_plain(node: Node) -> bool:
    """Whether a normalisation computes in float32, with a scale and a bias that are constants."""
    constant = all(t is None or t.constant is not None for t in node.inputs[1:])
    return constant and node.attrs.get("stash_type", 1) == 1


def _bound(node: Node, mode: Mode) -> tuple[Kernel, Callable[[tuple[int, ...]], int]]:
    """A normalisation with its constants, and the length of a row, 0 for shapes it cannot do."""
    scale, *rest = (stored_constant(t, mode) for t in node.inputs[1:] if t is not None)
    centred = node.op == "LayerNormalization"
    axis = int(node.attrs.get("axis", -1))
    kernel = normalizer(
        scale.reshape(-1),
        rest[0].reshape(-1) if rest and centred else None,
        float(node.attrs.get("epsilon", 1e-5)),
        centred,
    )

    def size_of(shape: tuple[int, ...]) -> int:
        size = math.prod(shape[axis % len(shape) :])
        known = size == scale.size and 0 not in shape and not (rest and rest[0].size != size)
        return size if known else 0

    return kernel, size_of


def normalizer(scale: Array, bias: Array | None, epsilon: float, centred: bool) -> Kernel:
    """Rows minus their mean (if `centred`), over their root mean square, scaled and shifted."""
    size = len(scale)

    def inverse_of(values: Array) -> Array:
        inverse: Array = 1.0 / np.sqrt(np.vecdot(values, values) / size + np.float32(epsilon))
        return inverse

    def kernel(x: Array, out: Array) -> None:
        if centred:
            mean = row_sums(x) / size
            values = np.subtract(x, mean, out=out)
            inverse = inverse_of(values)
            if (np.abs(mean[:, 0] * inverse) > _FLAT).any():
                np.subtract(values, row_sums(values) / size, out=out)
                inverse = inverse_of(values)
        else:
            values, inverse = x, inverse_of(x)
        np.multiply(values, inverse[:, None], out=out)
        np.multiply(out, scale, out=out)
        if bias is not None:
            np.add(out, bias, out=out)

    return kernel


class SkipNormalize(Tactic):
    """com.microsoft SkipLayerNormalization; only the first output."""

    name = "numpy.skip_normalize"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = _single(layer, mode, "com.microsoft", ("SkipLayerNormalization",))
        if node is None:
            return False
        skip, *rest = node.inputs[1:]
        if skip is None or skip.constant is not None or stored_as(skip) != FLOAT:
            return False
        return all(t is None or t.constant is not None for t in rest)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        x, skip, *rest = node.inputs
        assert x is not None and skip is not None
        gamma, beta, bias = (
            None if t is None else stored_constant(t, mode) for t in (*rest, None, None, None)[:3]
        )
        assert gamma is not None
        kernel = normalizer(gamma, beta, float(node.attrs.get("epsilon", 1e-12)), True)
        first, second = layer.inputs.index(x), layer.inputs.index(skip)

        def launch(*args: Any) -> Sequence[Any]:
            total = args[first] + args[second]
            if bias is not None:
                np.add(total, bias, out=total)
            total = np.ascontiguousarray(total)
            out = np.empty(total.shape, np.float32)
            if total.size:
                size = total.shape[-1]
                by_rows(kernel, total.reshape(-1, size), out.reshape(-1, size))
            return (out,)

        return launch


class Softmax(Tactic):
    """Softmax along the last axis."""

    name = "numpy.softmax"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = _single(layer, mode, "", ("Softmax",))
        return node is not None and node.version >= 13

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        axis = int(layer.nodes[0].attrs.get("axis", -1))
        fallback = Generic().compile(layer, mode)

        def launch(x: Array) -> Sequence[Any]:
            if x.size == 0 or axis % x.ndim != x.ndim - 1:
                return fallback(x)
            out = np.empty(x.shape, np.float32)
            size = x.shape[-1]
            by_rows(softmax_rows, np.ascontiguousarray(x).reshape(-1, size), out.reshape(-1, size))
            return (out,)

        return launch


def softmax_rows(x: Array, out: Array) -> None:
    """Exponentials of each row, normalised."""
    np.subtract(x, np.maximum.reduce(x, axis=1, keepdims=True), out=out)
    np.exp(out, out=out)
    np.divide(out, row_sums(out), out=out)


class GlobalAverage(Tactic):
    """GlobalAveragePool."""

    name = "numpy.global_average"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        return _single(layer, mode, "", ("GlobalAveragePool",)) is not None

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        fallback = Generic().compile(layer, mode)

        def launch(x: Array) -> Sequence[Any]:
            size = math.prod(x.shape[2:])
            if x.size == 0:
                return fallback(x)
            rows = np.ascontiguousarray(x).reshape(-1, size)
            out = np.empty((len(rows), 1), np.float32)
            by_rows(_means, rows, out)
            return (out.reshape(*x.shape[:2], *[1] * (x.ndim - 2)),)

        return launch


def _means(x: Array, out: Array) -> None:
    np.divide(row_sums(x), np.float32(x.shape[1]), out=out)
