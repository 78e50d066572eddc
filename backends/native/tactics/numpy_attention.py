"""Attention: scores, softmax in place, values; one head or all at a time.

Lowered to float16 or bfloat16 it rounds where the GPU's kernel does: exponentials, whose sum is
taken before, are rounded when they multiply V, and the product is divided by the sum. An operator
that the model itself declares in these types goes by the standard, which leaves that open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.numerics import round_bfloat16, round_float16
from polytool.backends.native.tactics.base import Launch, Mode, Tactic, only_node
from polytool.backends.native.tactics.numpy_generic import Generic
from polytool.backends.native.tactics.numpy_rows import row_sums
from polytool.backends.native.tactics.pool import parallel
from polytool.tensors import DType

Array = np.ndarray[Any, Any]
_PLAIN = {"scale", "q_num_heads", "kv_num_heads", "softmax_precision", "qk_matmul_output_mode"}
# By precision: the type of queries, keys, values and mask, and how exponentials are rounded.
_STORED_AS = {"fp32": DType.FLOAT, "fp16": DType.FLOAT16, "bf16": DType.BFLOAT16}
_ROUNDED = {"fp32": None, "fp16": round_float16, "bf16": round_bfloat16}
# Scores up to which all heads are computed at once, in one thread.
_SMALL = 1 << 16


class Attention(Tactic):
    """(batch, heads, length, size) queries, keys and values, and an additive mask."""

    name = "numpy.attention"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = only_node(layer)
        if node is None or node.domain or node.op != "Attention" or mode.wide:
            return False
        stored = _STORED_AS.get(node.precision)
        if stored is None or len(layer.outputs) != 1 or not _is_plain(node):
            return False
        return all(
            t is not None
            and t.constant is None
            and t.dtype is stored
            and t.shape is not None
            and (len(t.shape) == 4 or i == 3)
            for i, t in enumerate(node.inputs)
        )

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        places = [layer.inputs.index(t) for t in node.inputs if t is not None]
        scale = node.attrs.get("scale")
        fallback = Generic().compile(layer, mode)
        reduce = _ROUNDED[node.precision]

        def launch(*args: Any) -> Sequence[Any]:
            q, k, v, *mask = (args[i] for i in places)
            if q.shape[1] != k.shape[1] or k.size == 0 or v.size == 0 or q.size == 0:
                return fallback(*args)
            factor = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
            shape = (*q.shape[:3], k.shape[2])
            bias = None
            if mask:
                if mask[0].shape[-1] != k.shape[2] or mask[0].ndim > 4:
                    return fallback(*args)
                bias = np.broadcast_to(mask[0], shape)
            result = _attend(q, k, v, bias, factor, reduce)
            return fallback(*args) if result is None else (result,)

        return launch


def _is_plain(node: Node) -> bool:
    """No cache, causal mask, cap or window, and only the first output."""
    attrs = {k: v for k, v in node.attrs.items() if v}
    if set(attrs) - _PLAIN or len(node.inputs) not in (3, 4):
        return False
    return node.outputs[0] is not None and all(t is None for t in node.outputs[1:])


def _attend(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    scale: float,
    reduce: Callable[[Array], Array] | None,
) -> Array | None:
    """None where some row attends nothing: what it gives is the operator's business."""
    batch, heads, rows, _ = q.shape
    out = np.empty((batch, heads, rows, v.shape[3]), np.float32)
    whole = batch * heads * rows * k.shape[2] <= _SMALL
    sound = [True]

    def head(index: int) -> None:
        n, h = divmod(index, heads)
        at = (slice(None), slice(None)) if whole else (slice(n, n + 1), slice(h, h + 1))
        scores = np.matmul(q[at], k[at].swapaxes(-1, -2))
        if scale != 1.0:
            np.multiply(scores, np.float32(scale), out=scores)
        if bias is not None:
            np.add(scores, bias[at], out=scores)
        flat = scores.reshape(-1, scores.shape[-1])
        peak = np.maximum.reduce(flat, axis=1, keepdims=True)
        if np.isneginf(peak).any():
            sound[0] = False
            return
        np.subtract(flat, peak, out=flat)
        np.exp(flat, out=flat)
        sums = row_sums(flat)
        if reduce is None:
            np.divide(flat, sums, out=flat)
            np.matmul(scores, v[at], out=out[at])
            return
        np.matmul(reduce(scores), v[at], out=out[at])
        np.divide(out[at], sums.reshape(*scores.shape[:-1], 1), out=out[at])

    if whole:
        head(0)
    else:
        parallel(head, batch * heads)
    return out if sound[0] else None
