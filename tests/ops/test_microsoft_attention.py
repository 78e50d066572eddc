"""com.microsoft's attention operators against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polytool.errors import PolytoolError
from tests.ops.one_node import Case, check, micro, native, onnxruntime

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.ort
BATCH, LENGTH, HEADS, SIZE = 2, 5, 4, 4
WIDTH = HEADS * SIZE


def floats(*dims: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *dims]).standard_normal(dims).astype(np.float32)


def int32(values: Any) -> Array:
    return np.array(values, dtype=np.int32)


def bits(*dims: int) -> Array:
    drawn = np.random.default_rng(dims).integers(0, 2, dims)
    return drawn.astype(np.int32)


MASKS = {
    "none": None,
    "lengths": int32([3, 5]),
    "ends and starts": int32([4, 5, 1, 0]),
    "keys": int32([[1, 1, 1, 0, 0], [1] * 5]),
    "queries and keys": bits(BATCH, LENGTH, LENGTH),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_masks_of_attention(mask: str, unidirectional: int) -> None:
    x, w, b = floats(BATCH, LENGTH, WIDTH), floats(WIDTH, 3 * WIDTH) * 0.3, floats(3 * WIDTH)
    options = {"num_heads": HEADS, "unidirectional": unidirectional}
    check(micro("Attention", x, w.astype(np.float32), b, MASKS[mask], **options))


def test_pasts_sizes_and_biases_of_attention() -> None:
    x, w, b = floats(BATCH, LENGTH, WIDTH), floats(WIDTH, 3 * WIDTH), floats(3 * WIDTH)
    past, bias = floats(2, BATCH, HEADS, 3, SIZE), floats(BATCH, HEADS, LENGTH, LENGTH)
    heads: dict[str, Any] = {"num_heads": HEADS, "atol": 1e-4}
    narrow = {"qkv_hidden_sizes": [WIDTH, WIDTH, 8]}
    check(
        micro("Attention", x, w, b, None, past, outputs=2, unidirectional=1, **heads),
        micro("Attention", x, w, b, None, None, bias, scale=0.3, **heads),
        micro("Attention", x, floats(WIDTH, 40), floats(40), **narrow, **heads),
        micro("Attention", x, w, **heads),
    )


def test_multi_head_attention() -> None:
    q = floats(BATCH, LENGTH, WIDTH)
    k, v = (floats(BATCH, 7, WIDTH, seed=s) for s in (1, 2))
    own = [floats(BATCH, LENGTH, WIDTH, seed=s) for s in (3, 4)]
    b, past = floats(3 * WIDTH), [floats(BATCH, HEADS, 3, SIZE, seed=s) for s in (5, 6)]
    cached = [floats(BATCH, HEADS, 7, SIZE, seed=s) for s in (7, 8)]
    name, heads = "MultiHeadAttention", {"num_heads": HEADS}
    masks = [
        int32([3, 7]),
        int32([[1] * 3 + [0] * 4, [1] * 7]),
        int32([3, 7, 0, 5, 10, 0, 7, 14]),
        bits(BATCH, LENGTH, 7),
    ]
    check(
        micro(name, q, k, v, **heads),
        micro(name, q, k, v, b, **heads),
        micro(name, q, k, floats(BATCH, 7, 24), floats(2 * WIDTH + 24), **heads),
        *(micro(name, q, k, v, b, mask, **heads) for mask in masks),
        micro(name, q, k, v, b, None, floats(1, HEADS, LENGTH, 7), outputs=3, scale=0.2, **heads),
        micro(name, q, *own, b, None, None, *past, outputs=3, **heads),
        micro(name, q, *own, b, None, None, *past, outputs=3, unidirectional=1, **heads),
        micro(name, q, *own, unidirectional=1, **heads),
        micro(name, q, *cached, **heads),
        micro(name, q, *cached, b, **heads),
    )


def test_packed_inputs_are_those_apart() -> None:
    # ONNX Runtime packs on CUDA only
    q, k, v = (floats(BATCH, LENGTH, HEADS, SIZE, seed=s) for s in range(3))
    flat = [x.reshape(BATCH, LENGTH, WIDTH) for x in (q, k, v)]
    (apart,) = native(micro("MultiHeadAttention", *flat, num_heads=HEADS))
    (qkv,) = native(micro("MultiHeadAttention", np.stack([q, k, v], axis=3), num_heads=HEADS))
    kv = np.stack([k, v], axis=3)
    (pair,) = native(micro("MultiHeadAttention", flat[0], kv, num_heads=HEADS))
    np.testing.assert_array_equal(qkv, apart)
    np.testing.assert_array_equal(pair, apart)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_attention(kind: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH, LENGTH, WIDTH)).astype(np.uint8)
    low = np.iinfo(kind).min
    w = rng.integers(low, low + 256, (WIDTH, 3 * WIDTH)).astype(kind)
    scale, zero = np.array(0.001, np.float32), np.array(120, np.uint8)
    columns = np.abs(floats(3 * WIDTH)) * np.float32(0.02)
    zeros = np.zeros(3 * WIDTH, kind)
    b, past = floats(3 * WIDTH), floats(2, BATCH, HEADS, 3, SIZE)
    one: dict[str, Any] = {"num_heads": HEADS, "unidirectional": 1, "atol": 1e-4}
    every = (x, w, b, scale, columns, int32([3, 5]), zero, zeros)
    check(
        micro("QAttention", *every, **one),
        micro("QAttention", x, w, b, scale, scale, None, zero, **one),
        micro("QAttention", *every[:5], None, zero, zeros, past, outputs=2, **one),
    )


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved: int, rank: int) -> None:
    x = floats(2, 5, 64) if rank == 3 else floats(2, 4, 5, 16)
    rng = np.random.default_rng(0)
    positions, caches = rng.integers(0, 20, (2, 5)), [floats(20, 8), floats(20, 8, seed=1)]
    partial: dict[str, Any] = {"num_heads": 4, "rotary_embedding_dim": 8}
    half = [c[:, :4].copy() for c in caches]
    check(
        micro("RotaryEmbedding", x, positions, *caches, interleaved=interleaved),
        micro("RotaryEmbedding", x, np.array([3]), *caches, interleaved=interleaved),
        micro("RotaryEmbedding", x, positions, *half, interleaved=interleaved, **partial),
    )


SHARED, WIDE = 2, 16  # key heads; ONNX Runtime rotates multiples of 16 only
STEPS = {  # batch, new tokens, cache, cached tokens and new ones less one, longest
    "prompt": (BATCH, LENGTH, None, [LENGTH - 1] * BATCH, LENGTH),
    "token": (BATCH, 1, 12, [6, 3], 7),
    "chunk": (1, 4, 12, [8], 9),
    "cache that grows": (1, 1, 6, [6], 7),
}
EXTRAS: list[dict[str, Any]] = [
    {},
    {"do_rotary": 1},
    {"do_rotary": 1, "rotary_interleaved": 1},
    {"local_window_size": 2},
    {"softcap": 3.0},
    {"smooth_softmax": 1},
    {"scale": 0.1},
]


def group_inputs(step: str) -> list[Any]:
    batch, length, cache, lengths, total = STEPS[step]
    query = floats(batch, length, HEADS * WIDE)
    new = [floats(batch, length, SHARED * WIDE, seed=s) for s in (1, 2)]
    old = [None if cache is None else floats(batch, SHARED, cache, WIDE, seed=s) for s in (3, 4)]
    return [query, *new, *old, int32(lengths), int32(total)]


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_group_query_attention(step: str, extra: dict[str, Any]) -> None:
    caches = [floats(32, WIDE // 2), floats(32, WIDE // 2, seed=1)] if "do_rotary" in extra else []
    options = {"num_heads": HEADS, "kv_num_heads": SHARED} | extra
    check(micro("GroupQueryAttention", *group_inputs(step), *caches, outputs=3, **options))


def test_optional_inputs_of_group_query_attention() -> None:
    name = "GroupQueryAttention"
    heads: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": SHARED}
    prompt, token = group_inputs("prompt"), group_inputs("token")
    packed = floats(BATCH, LENGTH, (HEADS + 2 * SHARED) * WIDE)
    caches = [floats(32, WIDE // 2), floats(32, WIDE // 2, seed=1)]
    positions = np.random.default_rng(0).integers(0, 20, (BATCH, LENGTH))
    bias, sink = floats(1, HEADS, 1, 7), floats(HEADS)
    check(
        micro(name, packed, None, None, *prompt[3:], outputs=3, **heads),
        micro(name, *token, None, None, None, bias, outputs=3, **heads),
        micro(name, *token, None, None, None, None, sink, outputs=3, **heads),
        *(micro(name, *prompt, outputs=4, qk_output=k, **heads) for k in (1, 2)),
        micro(name, *prompt, *caches, positions, outputs=3, do_rotary=1, **heads),
        micro(name, *prompt, outputs=3, causal=0, **heads),
    )


def test_what_is_not_implemented_says_so() -> None:
    x, w = floats(BATCH, LENGTH, WIDTH), floats(WIDTH, 3 * WIDTH)
    with pytest.raises(PolytoolError, match="runs on CUDA only"):
        native(micro("Attention", x, w, num_heads=HEADS, do_rotary=1))
    heads: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": SHARED}
    scales = [np.float32([0.1])] * 2
    with pytest.raises(PolytoolError, match="cache of 2 bits"):
        quantised = (*group_inputs("token"), *[None] * 5, *scales)
        native(micro("GroupQueryAttention", *quantised, kv_cache_bit_width=2, **heads))


def valid(case: Case, lengths: list[int], kept: list[int]) -> tuple[Any, Any]:
    """What both engines give, without the rows that the operator leaves unspecified."""
    want = onnxruntime(case)
    assert want is not None, f"ONNX Runtime refuses {case}"
    return tuple(  # type: ignore[return-value]  # two of them
        [
            np.concatenate([x[b, :n].ravel() for b, n in enumerate(lengths)]),
            *(
                np.concatenate([cache[b, :, :n].ravel() for b, n in enumerate(kept)])
                for cache in caches
            ),
        ]
        for x, *caches in (native(case), want)
    )


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(
    ("before", "new"), [([0, 0], [3, 5]), ([2, 4], [5, 1]), ([5, 3], [0, 2])], ids=str
)
def test_padded_chunks_of_group_query_attention(
    before: list[int], new: list[int], window: int | None
) -> None:
    """Of six cached rows the window of four keeps what ONNX Runtime keeps."""
    batch, length, cache = 2, 5, 6 if window else 12
    query = floats(batch, length, HEADS * WIDE)
    both = [floats(batch, length, SHARED * WIDE, seed=s) for s in (1, 2)]
    old = [floats(batch, SHARED, cache, WIDE, seed=s) for s in (3, 4)]
    totals = [b + n for b, n in zip(before, new, strict=True)]
    options: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": SHARED, "do_rotary": 1}
    kept = totals
    if window:
        options |= {"local_window_size": window, "sliding_window_cache": 1}
        kept = [t if t <= cache else t - 3 * -((cache - t) // 3) for t in totals]
    case = micro(
        "GroupQueryAttention",
        *(query, *both, *old, int32([t - 1 for t in totals]), int32(max(totals))),
        *(floats(32, WIDE // 2, seed=s) for s in (0, 1)),
        *[None] * 7,
        int32(new),
        outputs=3,
        **options,
    )
    got, want = valid(case, new, kept)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", ["token", "chunk", "cache that grows"])
def test_a_cache_of_the_size_of_the_window(step: str) -> None:
    query, k, v, *_ = group_inputs(step)
    batch, length = query.shape[:2]
    for total in range(length + 1, 20):
        old = [floats(batch, SHARED, 6, WIDE, seed=s) for s in (3, 4)]
        case = micro(
            "GroupQueryAttention",
            *(query, k, v, *old, int32([total - 1] * batch), int32(total)),
            outputs=3,
            num_heads=HEADS,
            kv_num_heads=SHARED,
            local_window_size=4,
            sliding_window_cache=1,
        )
        kept = total if total <= 6 else total - 3 * -((6 - total) // 3)
        got, want = valid(case, [length] * batch, [kept] * batch)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize(
    ("bits", "step"), [(4, "token"), (4, "chunk"), (8, "token"), (8, "chunk"), (8, "window")]
)
def test_quantised_caches_of_group_query_attention(bits: int, kind: str, step: str) -> None:
    query, k, v, old, _, lengths, total = group_inputs("token" if step == "window" else step)
    rng = np.random.default_rng(bits)
    rows = (*old.shape[:3], WIDE * bits // 8)
    caches = [rng.integers(0, 256, rows).astype(np.uint8) for _ in range(2)]
    shape = (1,) if kind == "PER_TENSOR" else (1, SHARED, 1, WIDE)
    scales = [rng.uniform(0.02, 0.1, shape).astype(np.float32) for _ in range(2)]
    options = {"num_heads": HEADS, "kv_num_heads": SHARED}
    if step == "window":
        options |= {"local_window_size": 4, "sliding_window_cache": 1}
    case = micro(
        "GroupQueryAttention",
        *(query, k, v, *(c.view(np.int8) if bits == 8 else c for c in caches), lengths, total),
        *(*[None] * 5, *scales),
        outputs=3,
        kv_cache_bit_width=bits,
        k_quant_type=kind,
        v_quant_type=kind,
        **options,
    )
    got, want = valid(case, [query.shape[1]] * len(query), [n + 1 for n in lengths])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_norms_of_queries_and_keys() -> None:
    """ONNX Runtime has them on CUDA only: held against norms before the operator."""
    inputs = group_inputs("token")
    caches = [floats(32, WIDE // 2, seed=s) for s in (0, 1)]
    weights = [floats(WIDE, seed=s) for s in (5, 6)]
    options = {"num_heads": HEADS, "kv_num_heads": SHARED, "do_rotary": 1}
    fused = micro(
        "GroupQueryAttention",
        *(*inputs, *caches, *[None] * 5, *weights),
        outputs=3,
        k_norm_epsilon=1e-3,
        **options,
    )
    apart = list(inputs)
    for i, epsilon in ((0, 1e-6), (1, 1e-3)):
        x = inputs[i].reshape(BATCH, 1, -1, WIDE)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * weights[i]
        apart[i] = x.reshape(inputs[i].shape)
    want = onnxruntime(micro("GroupQueryAttention", *apart, *caches, outputs=3, **options))
    assert want is not None
    for ours, theirs in zip(native(fused), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
