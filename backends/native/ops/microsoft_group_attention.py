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
from polytool.backends.native.ops.microsoft_cache import (
    cached,
    dequantised,
    newest,
    quantised,
    resident,
)
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.normalization import mean
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, limits, op, shape
from polytool.errors import ModelError
from polytool.tensors import DType

Dims = tuple[int, ...]


@limits("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_limits(
    given: Sequence[bool],
    *,
    kv_cache_bit_width: int = 0,
    qk_output: int = 0,
    sliding_window_cache: int = 0,
    **_: Any,
) -> str | None:
    """What newer exports add."""
    if any(given[12:14]) and kv_cache_bit_width not in (4, 8):
        return f"a cache of {kv_cache_bit_width} bits is not implemented, only of 4 or 8"
    if sliding_window_cache and qk_output:
        return "scores (qk_output) over a cache of the window's size are not implemented"
    if sliding_window_cache and any(given[10:11]):
        return "attention_bias over a cache of the window's size is not implemented"
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
    """Attention with a cache: new keys go behind the `seqlens_k + 1 - length` old ones.

    With `query_seqlens`, only so many of the new rows are valid, and the rest is padding. With
    `sliding_window_cache`, the cache holds the newest positions only; see `resident`.
    """
    q, k, v = _grouped_heads(xp, query, key, value, num_heads, kv_num_heads)
    length, size = q.shape[2:]
    if q_norm_weight is not None and k_norm_weight is not None:
        q = _normalised(xp, q, q_norm_weight, q_norm_epsilon or qk_norm_epsilon)
        k = _normalised(xp, k, k_norm_weight, k_norm_epsilon or qk_norm_epsilon)
    totals = seqlens_k.reshape(-1).astype(np.int64) + 1
    whole = int(np.asarray(total_sequence_length).item())
    if query_seqlens is not None:
        valid = query_seqlens.reshape(-1).astype(np.int64)
    else:
        valid = xp.full_like(totals, length)
        if sliding_window_cache:
            valid = xp.minimum(valid, totals)
    prompt = query_seqlens is None and whole == length
    starts = xp.zeros_like(totals) if prompt else totals - valid
    positions = starts[:, None] + xp.arange(length)
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise ModelError("GroupQueryAttention with do_rotary needs cos_cache and sin_cache")
        ids = positions
        if position_ids is not None:  # of a prompt, the first one counts
            ids = positions + position_ids.reshape(-1)[0] if prompt else position_ids
        ids = xp.minimum(ids, len(cos_cache) - 1)  # padding may lie beyond
        cos, sin = cos_cache[ids][:, None], sin_cache[ids][:, None]
        width, pairs = 2 * cos.shape[-1], bool(rotary_interleaved)
        q, k = (rotated(xp, x, cos, sin, width, interleaved=pairs) for x in (q, k))
    before = starts  # cached rows that are read
    if sliding_window_cache:
        if past_key is None or past_value is None:
            raise ModelError("GroupQueryAttention with sliding_window_cache needs a cache")
        capacity = past_key.shape[2]
        before = resident(xp, starts, capacity, local_window_size)
        whole = int((before + valid).max())
    if k_scale is not None and v_scale is not None:
        if past_key is not None and past_key.dtype not in (np.int8, np.uint8):
            raise ModelError(f"GroupQueryAttention has no cache of {past_key.dtype} with scales")
        k = quantised(xp, k, k_scale, kv_cache_bit_width)
        v = quantised(xp, v, v_scale, kv_cache_bit_width)
    k = cached(xp, past_key, k, before, valid, whole)
    v = cached(xp, past_value, v, before, valid, whole)
    left = local_window_size - 1 if local_window_size > 0 else -1
    keys, values = k[:, :, :whole], v[:, :, :whole]
    if k_scale is not None and v_scale is not None:
        keys = dequantised(xp, keys, k_scale, kv_cache_bit_width, q.dtype)
        values = dequantised(xp, values, v_scale, kv_cache_bit_width, q.dtype)
    window = causal_bias(xp, length, whole, before, q.dtype, left, 0 if causal else -1)
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
    if sliding_window_cache:
        kept = resident(xp, totals, capacity, local_window_size)
        k, v = (newest(xp, x, before + valid, kept, capacity) for x in (k, v))
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


def _normalised(xp: Any, x: Array, weight: Array, epsilon: float) -> Array:
    return x / xp.sqrt(mean(x * x, [x.ndim - 1]) + epsilon) * weight


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
    sliding_window_cache: int = 0,
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
    capacity = 0 if past_key is None else past_key.shape[2]
    if not sliding_window_cache:
        capacity = max(total, capacity)
    width = size if past_key is None else past_key.shape[3]
    cache = (batch, kv_num_heads, capacity, width)
    return [y, cache, cache, (batch, num_heads, length, total)]


@dtypes("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The caches keep their type."""
    kinds = [inputs[i] if len(inputs) > i and inputs[i] else inputs[0] for i in (3, 4)]
    return [inputs[0], *kinds, inputs[0]]


@flops("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention_flops(
    query: Arg, *_: Arg | None, outputs: list[Dims], num_heads: int, **__: Any
) -> int:
    """The two products over the whole cache."""
    keys = outputs[1][2] if len(outputs) > 1 and outputs[1] else query.shape[1]
    return 4 * prod(outputs[0]) * keys
