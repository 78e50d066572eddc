"""Attention by matrix units, on the host thread by thread and on the GPU."""

import numpy as np
import pytest

from polytool.backends.native.kernels import attention
from polytool.backends.native.kernels.attention_group import AttentionGroup
from polytool.tensors import DType

H, B = DType.FLOAT16, DType.BFLOAT16


def reference(q, k, v, scale, mask=None, causal=False, offset=0):
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        seen = np.arange(k.shape[2]) <= np.arange(q.shape[2])[:, None] + offset
        scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)) @ v


@pytest.mark.parametrize(
    ("form", "queries", "keys", "head", "causal", "mask"),
    [
        ((2, 64), 70, 64, 64, False, None),
        ((1, 112), 65, 197, 64, False, None),
        ((2, 48), 130, 130, 64, True, None),
        ((1, 80), 64, 70, 64, False, "f2"),
        ((2, 64), 100, 140, 64, False, "bool"),
        ((1, 64), 33, 140, 128, False, "f2"),
        ((3, 32), 150, 150, 128, True, None),
        ((2, 64), 100, 140, 64, False, "f2 rows"),
        ((1, 128), 70, 128, 64, False, "bool rows"),
        ((1, 48), 70, 50, 64, True, "f4 rows"),
    ],
    ids=str,
)
def test_attention_of_packed_keys_and_values(
    run_plan, rng, form, queries, keys, head, causal, mask
):
    batch, heads = 2, 4
    q = rng.standard_normal((batch, queries, heads, head)).astype("f2")
    kv = rng.standard_normal((batch, keys, 2, heads // 2, head)).astype("f2")
    k, v = np.ascontiguousarray(kv[:, :, 0]), np.ascontiguousarray(kv[:, :, 1])
    out = np.full((batch, queries, heads, head), np.nan, "f2")
    extra, kind, by_rows = None, None, mask is not None and "rows" in mask
    if mask is not None:
        extra = rng.standard_normal((batch, 1, queries if by_rows else 1, keys))
        extra = extra < 0.8 if "bool" in mask else extra.astype(mask[:2])
        kind = DType.of(extra)
    inner, rows = (queries * heads * head, head, heads * head), heads // 2 * head
    layout = attention.Layout(
        batch, heads, heads // 2, queries, keys, head**-0.5, inner,
        (keys * rows, head, rows), (keys * rows, head, rows), inner,
        (0,) * 4 if mask is None else (extra.shape[2] * keys, 0, keys if by_rows else 0, 1),
    )  # fmt: skip
    plan = AttentionGroup(H, head, kind, causal, form, by_rows).plan(layout)
    run_plan(plan, [q, k, v, *([] if extra is None else [extra]), out])
    q, k, v = (t.astype("f8").transpose(0, 2, 1, 3) for t in (q, k, v))
    k, v = (np.repeat(t, 2, axis=1) for t in (k, v))
    expected = reference(q, k, v, head**-0.5, extra, causal)
    error = np.abs(out.transpose(0, 2, 1, 3) - expected).max() / np.abs(expected).max()
    assert error < 5e-4
