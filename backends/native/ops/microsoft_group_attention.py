"""com.microsoft: GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from polytool.backends.native.ops.attention import (
    causal_bias,
    grouped_matmul,
    merge_heads,
    rotated,
    scores,
    split_heads,
    total_bias,
)
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.registry import Arg, Array, flops, limits, op, shape
from polytool.errors import ModelError

Dims = tuple[int, ...]


@limits("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_limits(
    given: Sequence[bool], *, sliding_window_cache: int = 0, **_: Any
) -> str | None:
    """What newer exports add."""
    if sliding_window_cache:
        return "a cache of the window's size (sliding_window_cache) is not implemented"
    if any(given[12:]):
        return "quantised caches, norms of queries and keys, and query_seqlens are not implemented"
    return None


@op("GroupQueryAttention", since=1, domain=MICROSOFT, host=(6,))
def group_query_attention(
    xp: Any,
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None,
    past_value: Array | None,
    seqlens_k: Array,
    total_sequence_length: Array,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    q_norm_weight: Array | None = None,
    k_norm_weight: Array | None = None,
    query_seqlens: Array | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_norm_epsilon: float | None = None,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    q_norm_epsilon: float | None = None,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    sliding_window_cache: int = 0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
) -> tuple[Array, ...]:
    """Attention with a cache: new keys go behind the `seqlens_k + 1 - length` old ones."""
    q, k, v = _grouped_heads(xp, query, key, value, num_heads, kv_num_heads)
    length, size = q.shape[2:]
    totals = seqlens_k.reshape(-1).astype(np.int64) + 1
    whole = int(np.asarray(total_sequence_length).item())
    starts = xp.zeros_like(totals) if whole == length else totals - length
    positions = starts[:, None] + xp.arange(length)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise ModelError("GroupQueryAttention with do_rotary needs cos_cache and sin_cache")
        ids = positions
        if position_ids is not None:  # of a prompt, the first one counts
            prompt = whole == length
            ids = positions + position_ids.reshape(-1)[0] if prompt else position_ids
        cos, sin = cos_cache[ids][:, None], sin_cache[ids][:, None]
        width, pairs = 2 * cos.shape[-1], bool(rotary_interleaved)
        q, k = (rotated(xp, x, cos, sin, width, interleaved=pairs) for x in (q, k))
    k = _cached(xp, past_key, k, positions, whole)
    v = _cached(xp, past_value, v, positions, whole)
    left = local_window_size - 1 if local_window_size > 0 else -1
    keys, values = k[:, :, :whole], v[:, :, :whole]
    window = causal_bias(xp, length, whole, starts, q.dtype, left, 0 if causal else -1)
    if not causal:
        window = xp.where(xp.arange(whole) < totals.reshape(-1, 1, 1, 1), window, -np.inf)
    sink = head_sink
    if sink is None and smooth_softmax:
        sink = xp.zeros(num_heads, dtype=q.dtype)
    found = scores(
        xp,
        q,
        keys,
        total_bias(window.astype(q.dtype), attention_bias),
        scale=scale or 1 / sqrt(size),
        softcap=softcap,
        sink=sink,
    )
    y = merge_heads(grouped_matmul(found.probabilities, values))
    if qk_output == 1:
        return y, k, v, xp.where(xp.isneginf(window), xp.zeros_like(found.masked), found.masked)
    return y, k, v, found.probabilities


def _grouped_heads(
    xp: Any,
    query: Array,
    key: Array | None,
    value: Array | None,
    num_heads: int,
    kv_num_heads: int,
) -> tuple[Array, Array, Array]:
    if key is None or value is None:
        size = query.shape[2] // (num_heads + 2 * kv_num_heads)
        ends = [num_heads * size, (num_heads + kv_num_heads) * size]
        query, key, value = xp.split(query, ends, axis=2)
    return (
        split_heads(query, num_heads),
        split_heads(key, kv_num_heads),
        split_heads(value, kv_num_heads),
    )


def _cached(xp: Any, past: Array | None, new: Array, positions: Array, total: int) -> Array:
    """A buffer as long as the past one or the total: the past, then `new` at its positions."""
    batch, heads, _, size = new.shape
    capacity = max(total, 0 if past is None else past.shape[2])
    buffer = xp.zeros((batch, heads, capacity, size), dtype=new.dtype)
    for index in range(batch):
        start = int(positions[index, 0])
        if past is not None:
            buffer[index, :, :start] = past[index, :, :start]
        buffer[index, :, start : start + new.shape[2]] = new[index]
    return buffer


@shape("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_shape(
    query: Arg,
    key: Arg | None,
    value: Arg | None,
    past_key: Arg | None,
    past_value: Arg | None,
    seqlens_k: Arg,
    total_sequence_length: Arg,
    *_: Arg | None,
    kv_num_heads: int,
    num_heads: int,
    **__: Any,
) -> list[Dims | None]:
    """(batch, length, width), the caches, the probabilities."""
    batch, length, width = query.shape
    packed = key is None
    size = width // (num_heads + 2 * kv_num_heads) if packed else width // num_heads
    y = (batch, length, num_heads * size)
    if total_sequence_length.value is None:
        return [y, None, None, None]
    total = int(np.asarray(total_sequence_length.value).item())
    capacity = max(total, 0 if past_key is None else past_key.shape[2])
    cache = (batch, kv_num_heads, capacity, size)
    return [y, cache, cache, (batch, num_heads, length, total)]


@flops("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_flops(
    query: Arg, *_: Arg | None, outputs: list[Dims], num_heads: int, **__: Any
) -> int:
    """The two products over the whole cache."""
    keys = outputs[1][2] if len(outputs) > 1 and outputs[1] else query.shape[1]
    return 4 * prod(outputs[0]) * keys
