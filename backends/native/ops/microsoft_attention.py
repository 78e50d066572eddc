"""com.microsoft: Attention, MultiHeadAttention and QAttention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from polytool.backends.native.ops.attention import (
    appended,
    causal_bias,
    grouped_matmul,
    merge_heads,
    scores,
    split_heads,
    total_bias,
)
from polytool.backends.native.ops.integers import exact_matmul
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.quantization import centred
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, limits, op, shape
from polytool.tensors import DType

Ints = Sequence[int]
Dims = tuple[int, ...]


def padding_bias(
    xp: Any, mask: Array | None, batch: int, queries: int, keys: int, value: float, dtype: Any
) -> Array | None:
    """A mask in any of ONNX Runtime's forms as what is added to the scores: 0 or `value`.

    (batch,) holds the keys' lengths; (2 * batch,) the ends, then the starts; (3 * batch + 2,)
    lengths, then running sums; (batch, keys) and (batch, queries, keys) hold 1 where a key counts;
    (batch, 1, m, m) is indexed by absolute positions.
    """
    if mask is None:
        return None
    position = xp.arange(keys)
    if mask.ndim == 1:
        allowed = position < mask[:batch, None]
        if mask.shape[0] == 2 * batch and batch:
            allowed = allowed & (position >= mask[batch:, None])
        allowed = allowed[:, None, None]
    elif mask.ndim == 4:
        allowed = mask[:, :, keys - queries : keys, :keys] > 0
    else:
        allowed = mask[:, None, None] > 0 if mask.ndim == 2 else mask[:, None] > 0
    kind = np.dtype(dtype).type
    return xp.where(allowed, kind(0), kind(value))


def _attend(
    xp: Any,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    attention_bias: Array | None,
    *,
    past: int,
    scale: float | None,
    unidirectional: int,
    mask_filter_value: float,
) -> tuple[Array, Array]:
    """The merged heads and the probabilities."""
    queries, keys = q.shape[2], k.shape[2]
    bias = total_bias(
        padding_bias(xp, mask, q.shape[0], queries, keys, mask_filter_value, q.dtype),
        attention_bias,
        causal_bias(xp, queries, keys, past, q.dtype) if unidirectional else None,
    )
    found = scores(xp, q, k, bias, scale=scale or 1 / sqrt(q.shape[3]))
    return merge_heads(grouped_matmul(found.probabilities, v)), found.probabilities


@limits("Attention", "QAttention", domain=MICROSOFT)
def attention_limits(given: Sequence[bool], **attrs: Any) -> str | None:
    """What ONNX Runtime has on CUDA only."""
    for name in ("do_rotary", "past_present_share_buffer"):
        if attrs.get(name):
            return f"{name} runs on CUDA only: export the model for the CPU"
    return None


@op("Attention", since=1, domain=MICROSOFT)
def attention(
    xp: Any,
    x: Array,
    weights: Array,
    bias: Array | None = None,
    mask_index: Array | None = None,
    past: Array | None = None,
    attention_bias: Array | None = None,
    past_sequence_length: Array | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: Ints | None = None,
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Array, Array]:
    """Projection to queries, keys and values, then attention; past and present are (2, ...)."""
    projected = x @ weights if bias is None else x @ weights + bias
    return _self_attention(
        xp,
        projected,
        mask_index,
        past,
        attention_bias,
        num_heads,
        qkv_hidden_sizes,
        scale=scale,
        unidirectional=unidirectional,
        mask_filter_value=mask_filter_value,
    )


def _self_attention(
    xp: Any,
    projected: Array,
    mask: Array | None,
    past: Array | None,
    attention_bias: Array | None,
    num_heads: int,
    sizes: Ints | None,
    **options: Any,
) -> tuple[Array, Array]:
    sizes = sizes or [projected.shape[2] // 3] * 3
    ends = [sizes[0], sizes[0] + sizes[1]]
    q, k, v = (split_heads(p, num_heads) for p in xp.split(projected, ends, axis=2))
    length = 0
    if past is not None:
        length = past.shape[3]
        k, v = appended(xp, past[0], k), appended(xp, past[1], v)
    y, _ = _attend(xp, q, k, v, mask, attention_bias, past=length, **options)
    same = k.shape == v.shape  # with other sizes for V there is no present state
    return y, xp.stack([k, v]) if same else k[None]


@op("QAttention", since=1, domain=MICROSOFT)
def q_attention(
    xp: Any,
    x: Array,
    weight: Array,
    bias: Array,
    input_scale: Array,
    weight_scale: Array,
    mask_index: Array | None = None,
    input_zero_point: Array | None = None,
    weight_zero_point: Array | None = None,
    past: Array | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Array, Array]:
    """Attention whose projection multiplies 8-bit integers."""
    product = exact_matmul(
        xp,
        centred(x, input_zero_point, rows=False),
        centred(weight, weight_zero_point, rows=False),
    )
    projected = product.astype(bias.dtype) * (input_scale * weight_scale) + bias
    return _self_attention(
        xp,
        projected,
        mask_index,
        past,
        None,
        num_heads,
        None,
        scale=scale,
        unidirectional=unidirectional,
        mask_filter_value=mask_filter_value,
    )


@dtypes("QAttention", domain=MICROSOFT)
def q_attention_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """That of the bias."""
    return [inputs[2], inputs[2]]


def _attention_dims(
    x: Arg, past: Arg | None, num_heads: int, sizes: Sequence[int]
) -> list[Dims | None]:
    batch, length = x.shape[:2]
    total = length + (0 if past is None else past.shape[3])
    present = (2, batch, num_heads, total, sizes[1] // num_heads) if sizes[1] == sizes[2] else None
    return [(batch, length, sizes[2]), present]


@shape("Attention", domain=MICROSOFT)
def attention_shape(
    x: Arg,
    weights: Arg,
    bias: Arg | None = None,
    mask_index: Arg | None = None,
    past: Arg | None = None,
    *_: Arg | None,
    num_heads: int,
    qkv_hidden_sizes: Ints | None = None,
    **__: Any,
) -> list[Dims | None]:
    """(batch, length, V's width), and (2, batch, heads, total, size)."""
    sizes = qkv_hidden_sizes or [weights.shape[1] // 3] * 3
    return _attention_dims(x, past, num_heads, sizes)


@shape("QAttention", domain=MICROSOFT)
def q_attention_shape(
    x: Arg, weight: Arg, *rest: Arg | None, num_heads: int, **_: Any
) -> list[Dims | None]:
    """(batch, length, width), and (2, batch, heads, total, size)."""
    past = rest[6] if len(rest) > 6 else None
    return _attention_dims(x, past, num_heads, [weight.shape[1] // 3] * 3)


@flops("Attention", "QAttention", domain=MICROSOFT)
def attention_flops(x: Arg, weights: Arg, *_: Arg | None, outputs: list[Dims], **__: Any) -> int:
    """The projection and the two products; the past is not counted."""
    tokens = prod(x.shape[:2])
    return 2 * tokens * prod(weights.shape) + 4 * tokens * x.shape[1] * outputs[0][2]


@limits("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention_limits(given: Sequence[bool], **_: Any) -> str | None:
    """What ONNX Runtime has on CUDA only."""
    if any(given[8:]):
        return "a shared past buffer runs on CUDA only: export the model with states that grow"
    return None


@op("MultiHeadAttention", since=1, domain=MICROSOFT)
def multi_head_attention(
    xp: Any,
    query: Array,
    key: Array | None = None,
    value: Array | None = None,
    bias: Array | None = None,
    key_padding_mask: Array | None = None,
    attention_bias: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    past_sequence_length: Array | None = None,
    cache_indirection: Array | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Array, ...]:
    """Attention on projected, possibly packed, inputs; keys in heads already are a cache."""
    q, k, v = _heads(xp, query, key, value, bias, num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    k, v = appended(xp, past_key, k), appended(xp, past_value, v)
    y, probabilities = _attend(
        xp,
        q,
        k,
        v,
        key_padding_mask,
        attention_bias,
        past=past,
        scale=scale,
        unidirectional=unidirectional,
        mask_filter_value=mask_filter_value,
    )
    return y, k, v, probabilities


def _heads(
    xp: Any,
    query: Array,
    key: Array | None,
    value: Array | None,
    bias: Array | None,
    num_heads: int,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values in heads, with their biases."""
    if key is None:
        q, k, v = (query[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3))
    elif value is None:
        q = split_heads(query, num_heads)
        k, v = (key[:, :, :, i].transpose(0, 2, 1, 3) for i in range(2))
    else:
        q = split_heads(query, num_heads)
        k, v = (x if x.ndim == 4 else split_heads(x, num_heads) for x in (key, value))
    if bias is None:
        return q, k, v
    width = q.shape[1] * q.shape[3]
    parts = xp.split(bias, [width, 2 * width])
    q_bias, k_bias, v_bias = (p.reshape(1, num_heads, 1, -1) for p in parts)
    cached = key is not None and key.ndim == 4 and value is not None
    return q + q_bias, k if cached else k + k_bias, v if cached else v + v_bias


@shape("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention_shape(
    query: Arg,
    key: Arg | None = None,
    value: Arg | None = None,
    bias: Arg | None = None,
    key_padding_mask: Arg | None = None,
    attention_bias: Arg | None = None,
    past_key: Arg | None = None,
    *_: Arg | None,
    num_heads: int,
    **__: Any,
) -> list[Dims]:
    """(batch, length, width), the caches, the probabilities."""
    batch, length = query.shape[:2]
    if key is None:
        keys, size = length, query.shape[4]
    elif key.shape[2] == num_heads and len(key.shape) == 5:
        keys, size = key.shape[1], key.shape[4]
    elif len(key.shape) == 4:
        keys, size = key.shape[2], key.shape[3]
    else:
        keys, size = key.shape[1], key.shape[2] // num_heads
    size_v = size
    if value is not None:
        size_v = value.shape[3] if len(value.shape) == 4 else value.shape[2] // num_heads
    total = keys + (0 if past_key is None else past_key.shape[2])
    heads = (batch, num_heads)
    return [
        (batch, length, num_heads * size_v),
        (*heads, total, size),
        (*heads, total, size_v),
        (*heads, length, total),
    ]


@flops("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention_flops(
    *inputs: Arg | None, outputs: list[Dims], num_heads: int, **attrs: Any
) -> int:
    """The two products."""
    dims = multi_head_attention_shape(*inputs, num_heads=num_heads, **attrs)
    keys, values, table = dims[1:]
    return int(2 * prod(table) * (keys[3] + values[3]))
