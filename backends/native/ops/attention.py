"""Attention, RotaryEmbedding and LinearAttention.

Heads are (batch, heads, length, size) throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, op, shape
from polytool.errors import ModelError
from polytool.tensors import DType

Dims = tuple[int, ...]


def split_heads(x: Array, heads: int) -> Array:
    """(batch, length, heads * size) as (batch, heads, length, size)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """The inverse of `split_heads`."""
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def appended(xp: Any, past: Array | None, new: Array) -> Array:
    """A cache followed by what is new, along the sequence."""
    return new if past is None else xp.concatenate([past, new], axis=2)


@dataclass(frozen=True)
class Scores:
    """What attention computes on its way: raw, soft-capped, masked, normalised."""

    raw: Array
    capped: Array
    masked: Array
    probabilities: Array


def scores(
    xp: Any,
    q: Array,
    k: Array,
    bias: Array | None,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Array | None = None,
) -> Scores:
    """Attention of every query to every key; fewer key heads are shared by groups of queries.

    `bias` is added before the softmax and broadcasts to (batch, heads, queries, keys). A row in
    which it is -inf throughout attends nothing: its probabilities are zero. `sink` (heads) is the
    score of one more key, whose value is zero.
    """
    root = sqrt(scale)
    raw = grouped_matmul(q * root, (k * root).swapaxes(-1, -2))
    capped = xp.tanh(raw / softcap) * softcap if softcap > 0 else raw
    masked = capped if bias is None else capped + bias
    peak = _row_max(xp, masked)
    if sink is not None:
        sink = sink.reshape(-1, 1, 1)
        peak = xp.maximum(peak, sink)
    peak = xp.where(xp.isneginf(peak), xp.zeros_like(peak), peak)
    e = xp.exp(masked - peak)
    total = e.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + xp.exp(sink - peak)
    probabilities = e / xp.where(total == 0, xp.ones_like(total), total)
    if bias is not None:
        nothing = xp.isneginf(_row_max(xp, bias))
        probabilities = xp.where(nothing, xp.zeros_like(peak), probabilities)
    return Scores(raw, capped, masked, probabilities)


def _row_max(xp: Any, x: Array) -> Array:
    if x.shape[-1] == 0:
        return xp.full((*x.shape[:-1], 1), -np.inf, dtype=x.dtype)
    return x.max(axis=-1, keepdims=True)


def grouped_matmul(a: Array, b: Array) -> Array:
    """`a @ b` where each head of `b` serves a group of consecutive heads of `a`."""
    batch, heads, rows, width = a.shape
    shared = b.shape[1]
    if heads == shared:
        return a @ b
    grouped = a.reshape(batch, shared, heads // shared * rows, width) @ b
    return grouped.reshape(batch, heads, rows, b.shape[3])


def causal_bias(
    xp: Any,
    queries: int,
    keys: int,
    offset: Array | int,
    dtype: Any,
    left: int = -1,
    right: int = 0,
) -> Array:
    """0 where query i may see key j, else -inf: `p - left <= j <= p + right` with p = i + offset.

    -1 leaves a side open. `offset` is a number, or one a batch; then the result is 4-D.
    """
    position = xp.arange(queries)[:, None] + (
        offset if isinstance(offset, int) else offset.reshape(-1, 1, 1, 1)
    )
    distance = xp.arange(keys) - position
    allowed = xp.ones(distance.shape, dtype=bool)
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    return additive(xp, allowed, dtype)


def additive(xp: Any, allowed: Array, dtype: Any) -> Array:
    """A boolean mask as what is added to the scores: 0 or -inf."""
    dtype = np.dtype(dtype)
    return xp.where(allowed, dtype.type(0), dtype.type(-np.inf))


def total_bias(*parts: Array | None) -> Array | None:
    """The sum of those that are there."""
    there = [p for p in parts if p is not None]
    total = there[0] if there else None
    for part in there[1:]:
        total = total + part
    return total


@op("Attention", since=23)
def attention(
    xp: Any,
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Array, ...]:
    """softmax(scale q k' + mask) v, with the updated cache and the scores at a chosen stage."""
    flat = q.ndim == 3
    if flat:
        if q_num_heads is None or kv_num_heads is None:
            raise ModelError("Attention on 3-D inputs needs q_num_heads and kv_num_heads")
        q, k, v = (
            split_heads(q, q_num_heads),
            split_heads(k, kv_num_heads),
            split_heads(v, kv_num_heads),
        )
    k, v = appended(xp, past_key, k), appended(xp, past_value, v)
    queries, keys = q.shape[2], k.shape[2]
    offset: Array | int = 0 if past_key is None else past_key.shape[2]
    padding = None
    if nonpad_kv_seqlen is not None:
        lengths = nonpad_kv_seqlen.reshape(-1, 1, 1, 1)
        padding = additive(xp, xp.arange(keys) < lengths, q.dtype)
        offset = lengths - queries if past_key is None else offset
    window = None
    if is_causal or left_window_size >= 0 or right_window_size >= 0:
        right = min(right_window_size, 0) if right_window_size >= 0 else 0
        right = right if is_causal else right_window_size
        window = causal_bias(xp, queries, keys, offset, q.dtype, left_window_size, right)
    bias = total_bias(_mask_bias(xp, attn_mask, keys, q.dtype), window, padding)
    found = scores(
        xp, q, k, bias, scale=1 / sqrt(q.shape[3]) if scale is None else scale, softcap=softcap
    )
    y = grouped_matmul(found.probabilities, v)
    stages = (found.raw, found.capped, found.masked, found.probabilities)
    return (merge_heads(y) if flat else y), k, v, stages[qk_matmul_output_mode]


def _mask_bias(xp: Any, mask: Array | None, keys: int, dtype: Any) -> Array | None:
    """The mask as an additive bias, extended by -inf to all keys."""
    if mask is None:
        return None
    bias = additive(xp, mask, dtype) if mask.dtype == bool else mask.astype(dtype)
    missing = keys - bias.shape[-1]
    if missing <= 0:
        return bias
    return xp.concatenate(
        [bias, xp.full((*bias.shape[:-1], missing), -np.inf, dtype=dtype)], axis=-1
    )


@shape("Attention")
def attention_shape(
    q: Arg,
    k: Arg,
    v: Arg,
    attn_mask: Arg | None = None,
    past_key: Arg | None = None,
    *_: Arg | None,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    **__: Any,
) -> list[Dims]:
    """Y like Q with V's head size, the caches, and (batch, heads, queries, keys)."""
    past = 0 if past_key is None else past_key.shape[2]
    if len(q.shape) == 3:
        heads, shared = q_num_heads or 1, kv_num_heads or 1
        batch, queries, total = q.shape[0], q.shape[1], k.shape[1] + past
        size_k, size_v = k.shape[2] // shared, v.shape[2] // shared
        y: Dims = (batch, queries, heads * size_v)
    else:
        (batch, heads, queries, size_k), shared = q.shape, k.shape[1]
        total, size_v = k.shape[2] + past, v.shape[3]
        y = (batch, heads, queries, size_v)
    caches = [(batch, shared, total, size_k), (batch, shared, total, size_v)]
    return [y, *caches, (batch, heads, queries, total)]


@flops("Attention")
def attention_flops(
    q: Arg, k: Arg, v: Arg, *rest: Arg | None, outputs: list[Dims], **attrs: Any
) -> int:
    """The two products."""
    keys: int = attention_shape(q, k, v, *rest, **attrs)[3][3]
    return 2 * keys * (prod(q.shape) + prod(outputs[0]))


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    xp: Any,
    x: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Array:
    """Rotate pairs of features by an angle that grows with the position."""
    flat = x.ndim == 3
    if flat and not num_heads:
        raise ModelError("RotaryEmbedding on a 3-D input needs num_heads")
    heads = split_heads(x, num_heads) if flat and num_heads else x
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    y = rotated(
        xp,
        heads,
        cos_cache[:, None],
        sin_cache[:, None],
        rotary_embedding_dim or heads.shape[3],
        interleaved=bool(interleaved),
    )
    return merge_heads(y) if flat else y


def rotated(xp: Any, x: Array, cos: Array, sin: Array, size: int, *, interleaved: bool) -> Array:
    """Rotate the first `size` features; pairs are neighbours, or the two halves."""
    part, rest = x[..., :size], x[..., size:]
    if interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
    else:
        a, b = part[..., : size // 2], part[..., size // 2 :]
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        turned = xp.stack([real, imaginary], axis=-1).reshape(part.shape)
    else:
        turned = xp.concatenate([real, imaginary], axis=-1)
    return xp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


@shape("RotaryEmbedding")
def rotary_embedding_shape(x: Arg, *_: Arg | None, **__: Any) -> Dims:
    """Like the input."""
    return x.shape


@op("LinearAttention", since=27)
def linear_attention(
    xp: Any,
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Array, Array]:
    """A state (batch, heads, d_k, d_v) that every token decays, corrects and adds to.

    Gates say how much of the state stays; the delta rule writes only what the state does not
    already give for the key.
    """
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise ModelError(f"LinearAttention has no update_rule {update_rule!r}")
    q = split_heads(query, q_num_heads)
    k, v = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    batch, _, length, d_k = k.shape
    gate = None if decay is None else xp.exp(split_heads(decay, kv_num_heads))[..., None]
    rate = None if beta is None else beta.transpose(0, 2, 1)[..., None]
    state = past_state
    if state is None:
        state = xp.zeros((batch, kv_num_heads, d_k, v.shape[3]), dtype=query.dtype)
    outputs = xp.zeros((batch, q_num_heads, length, v.shape[3]), dtype=query.dtype)
    for time in range(length):
        new, where = v[:, :, time], k[:, :, time, :, None]
        if gate is not None:
            state = state * gate[:, :, time]
        if rate is not None:
            new = rate[:, :, time] * (new - (state * where).sum(axis=2))
        state = state + where * new[:, :, None, :]
        outputs[:, :, time] = grouped_matmul(q[:, :, time : time + 1], state)[:, :, 0]
    return merge_heads(outputs * (scale or 1 / sqrt(d_k))), state


@shape("LinearAttention")
def linear_attention_shape(
    query: Arg, key: Arg, value: Arg, *_: Arg | None, kv_num_heads: int, q_num_heads: int, **__: Any
) -> list[Dims]:
    """The output of all query heads, and the state."""
    d_k, d_v = key.shape[2] // kv_num_heads, value.shape[2] // kv_num_heads
    state = (query.shape[0], kv_num_heads, d_k, d_v)
    return [(*query.shape[:2], q_num_heads * d_v), state]


@dtypes("LinearAttention")
def linear_attention_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The state keeps its type, or takes the query's."""
    past = inputs[3] if len(inputs) > 3 else None
    return [inputs[0], past or inputs[0]]


@flops("LinearAttention")
def linear_attention_flops(
    query: Arg, key: Arg, value: Arg, *_: Arg | None, kv_num_heads: int, q_num_heads: int, **__: Any
) -> int:
    """Decay, correction and update of the state, and reading it."""
    d_k, d_v = key.shape[2] // kv_num_heads, value.shape[2] // kv_num_heads
    tokens = query.shape[0] * query.shape[1]
    return tokens * d_k * d_v * (5 * kv_num_heads + 2 * q_num_heads)
