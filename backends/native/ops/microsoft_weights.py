"""com.microsoft: weights in a few bits, and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from polytool.backends.native.ops.attention import merge_heads, rotated, split_heads
from polytool.backends.native.ops.linear import product_shape
from polytool.backends.native.ops.microsoft_fused import MICROSOFT
from polytool.backends.native.ops.normalization import layer_normalization
from polytool.backends.native.ops.quantization import dequantize, widened
from polytool.backends.native.ops.registry import Arg, Array, dtypes, flops, limits, op, shape
from polytool.tensors import DType

Dims = tuple[int, ...]


def unpacked(xp: Any, packed: Array, bits: int) -> Array:
    """Small unsigned integers out of bytes along the last axis, low bits first."""
    if bits == 8:
        return packed
    shifts = xp.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1)


@op("MatMulNBits", since=1, domain=MICROSOFT)
def matmul_n_bits(
    xp: Any,
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Array:
    """`A @ W'` with W (N, K) in 2, 4 or 8 bits, a scale and a zero point for each block of K."""
    if b.size == 0:
        y = xp.zeros((*a.shape[:-1], N), dtype=a.dtype)
    else:
        w = block_weights(xp, b, scales, zero_points, g_idx, K, N, bits, block_size)
        y = a @ w.astype(a.dtype, copy=False).T
    return y if bias is None else y + bias


def block_weights(
    xp: Any,
    b: Array,
    scales: Array,
    zero_points: Array | None,
    g_idx: Array | None,
    k: int,
    n: int,
    bits: int,
    block_size: int,
) -> Array:
    """The weights (n, k) in the scales' type."""
    blocks = -(-k // block_size)
    values = unpacked(xp, b.reshape(n, blocks, -1), bits).reshape(n, -1)[:, :k]
    scales = scales.reshape(n, blocks)
    if zero_points is None:
        zero = xp.full((n, blocks), 1 << (bits - 1), dtype=scales.dtype)
    elif zero_points.dtype == np.uint8:
        zero = unpacked(xp, zero_points.reshape(n, -1), bits)[:, :blocks].astype(scales.dtype)
    else:
        zero = zero_points.reshape(n, blocks).astype(scales.dtype)
    block = xp.arange(k) // block_size if g_idx is None else g_idx[:k]
    return (values.astype(scales.dtype) - zero[:, block]) * scales[:, block]


@shape("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits_shape(a: Arg, *_: Arg | None, K: int, N: int, **__: Any) -> Dims:
    """Like A, N wide."""
    return product_shape(a.shape, (K, N))


@flops("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits_flops(a: Arg, *_: Arg | None, N: int, **__: Any) -> int:
    """A multiply-add for each weight and row."""
    return 2 * prod(a.shape) * N


@op("GatherBlockQuantized", since=1, domain=MICROSOFT)
def gather_block_quantized(
    xp: Any,
    data: Array,
    indices: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Array:
    """Gather from a table that has a scale and a zero point for each block of an axis."""
    values, zeros = data, zero_points
    if data.dtype == np.uint8:
        values = unpacked(xp, data, bits)
        if zeros is not None:
            zeros = unpacked(xp, zeros, bits)[..., : scales.shape[-1]]
    table = widened(values).astype(scales.dtype)
    axis = quantize_axis % table.ndim
    block = block_size or table.shape[axis]
    where = (slice(None),) * axis + (xp.arange(table.shape[axis]) // block,)
    if zeros is not None:
        table = table - widened(zeros).astype(scales.dtype)[where]
    elif data.dtype == np.uint8:
        table = table - (1 << (bits - 1))
    table = table * scales[where]
    size = table.shape[gather_axis]
    inside = (indices >= -size) & (indices < size)
    picked = xp.take(table, xp.where(inside, indices, 0), axis=gather_axis)
    ones = (1,) * (table.ndim - gather_axis % table.ndim - 1)
    return xp.where(inside.reshape(*inside.shape, *ones), picked, xp.zeros_like(picked))


@shape("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized_shape(
    data: Arg, indices: Arg, *_: Arg | None, bits: int = 4, gather_axis: int = 0, **__: Any
) -> Dims:
    """The gathered axis replaced by the indices'."""
    dims = list(data.shape)
    if data.dtype is DType.UINT8:
        dims[-1] *= 8 // bits
    axis = gather_axis % len(dims)
    return (*dims[:axis], *indices.shape, *dims[axis + 1 :])


@dtypes("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """That of the scales."""
    return [inputs[2]]


@op("EmbedLayerNormalization", since=1, domain=MICROSOFT)
def embed_layer_normalization(
    xp: Any,
    input_ids: Array,
    segment_ids: Array | None,
    word_embedding: Array,
    position_embedding: Array,
    segment_embedding: Array | None,
    gamma: Array,
    beta: Array,
    mask: Array | None = None,
    position_ids: Array | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
) -> tuple[Array, Array, Array]:
    """LayerNormalization of word, position and segment embedding; lengths; their sum."""
    places = xp.arange(input_ids.shape[1]) if position_ids is None else position_ids
    total = word_embedding[input_ids] + position_embedding[places]
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids]
    y = layer_normalization(xp, total, gamma, beta, epsilon=epsilon)[0]
    if mask is None:
        lengths = xp.zeros(input_ids.shape[0], dtype=np.int32)
    else:
        lengths = (mask == 1).sum(axis=1).astype(np.int32)
    return y, lengths, total


@shape("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization_shape(
    input_ids: Arg, segment_ids: Arg | None, word_embedding: Arg, *_: Arg | None, **__: Any
) -> list[Dims]:
    """(batch, length, width), (batch,), (batch, length, width)."""
    y = (*input_ids.shape, word_embedding.shape[1])
    return [y, input_ids.shape[:1], y]


@dtypes("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The embedding's type, and int32."""
    return [inputs[2], DType.INT32, inputs[2]]


@limits("QEmbedLayerNormalization", domain=MICROSOFT)
def q_embed_layer_normalization_limits(given: Sequence[bool], **_: Any) -> str | None:
    """The table of segments is optional, but not without its scale."""
    if (len(given) > 4 and given[4]) == (len(given) > 10 and given[10]):
        return None
    return "of the segment embedding and its scale one is left out"


@op("QEmbedLayerNormalization", since=1, domain=MICROSOFT)
def q_embed_layer_normalization(
    xp: Any,
    input_ids: Array,
    segment_ids: Array | None,
    word: Array,
    position: Array,
    segment: Array | None,
    gamma: Array,
    beta: Array,
    mask: Array | None,
    word_scale: Array,
    position_scale: Array,
    segment_scale: Array | None,
    gamma_scale: Array,
    beta_scale: Array,
    word_zero: Array,
    position_zero: Array,
    segment_zero: Array | None,
    gamma_zero: Array,
    beta_zero: Array,
    *,
    epsilon: float = 1e-12,
) -> tuple[Array, Array]:
    """EmbedLayerNormalization with 8-bit tables."""
    table = None if segment_scale is None else dequantize(segment, segment_scale, segment_zero)
    y, lengths, _ = embed_layer_normalization(
        xp,
        input_ids,
        segment_ids,
        dequantize(word, word_scale, word_zero),
        dequantize(position, position_scale, position_zero),
        table,
        dequantize(gamma, gamma_scale, gamma_zero),
        dequantize(beta, beta_scale, beta_zero),
        mask,
        epsilon=epsilon,
    )
    return y, lengths


@shape("QEmbedLayerNormalization", domain=MICROSOFT)
def q_embed_layer_normalization_shape(
    input_ids: Arg, segment_ids: Arg | None, word: Arg, *_: Arg | None, **__: Any
) -> list[Dims]:
    """(batch, length, width), (batch,)."""
    return [(*input_ids.shape, word.shape[1]), input_ids.shape[:1]]


@dtypes("QEmbedLayerNormalization", domain=MICROSOFT)
def q_embed_layer_normalization_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """float32 and int32."""
    return [inputs[8], DType.INT32]


@op("RotaryEmbedding", since=1, domain=MICROSOFT)
def rotary_embedding(
    xp: Any,
    x: Array,
    position_ids: Array,
    cos_cache: Array,
    sin_cache: Array,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Array:
    """RotaryEmbedding with a table for all positions; one position is where to start."""
    flat = x.ndim == 3
    width = 2 * cos_cache.shape[1]
    heads = split_heads(x, num_heads or x.shape[2] // width) if flat else x
    ids = position_ids
    if position_ids.size == 1 and position_ids.ndim == 1:
        ids = position_ids.reshape(1, 1) + xp.arange(heads.shape[2])
    cos, sin = cos_cache[ids][:, None], sin_cache[ids][:, None]
    size = rotary_embedding_dim or width
    y = rotated(xp, heads, cos, sin, size, interleaved=bool(interleaved))
    return merge_heads(y) if flat else y


@shape("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_shape(x: Arg, *_: Arg, **__: Any) -> Dims:
    """Like the input."""
    return x.shape
