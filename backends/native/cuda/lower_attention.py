"""Fused attention."""

from __future__ import annotations

import math

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.library import attention_request
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels import attention as attention_kernels
from polytool.backends.native.kernels.attention_group import (
    HEADS,
    AttentionGroup,
    addressable,
    forms,
)
from polytool.backends.native.kernels.source import SHARED_LIMIT
from polytool.backends.native.network import Layer
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@lowering("Attention")
def attention(rec: Recorder, layer: Layer) -> None:
    """Fused attention over views of any strides; the result lies as [batch, row, head, element]."""
    (node,) = layer.nodes
    q, k, v = (rec.view(given(node, i)) for i in range(3))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    unknown = set(node.attrs) - {"scale", "is_causal"}
    if unknown or len(node.inputs) > 4 or len(layer.outputs) > 1 or len(q.shape) != 4:
        raise UnsupportedError("an attention with more than a scale, a mask and causality")
    q, k, v = (_rows_contiguous(rec, t) for t in (q, k, v))
    batch, heads, rows, size = q.shape
    if v.shape[3] != size:
        raise UnsupportedError("an attention whose values have another size than its queries")
    output = rec.output(layer.outputs[0], (0, 2, 1, 3))
    views = [q, k, v]
    mask_steps, mask_rows, mask_pairs = (0, 0, 0, 0), True, False
    mask_dtype: DType | None = None
    if mask is not None:
        m = rec.view(mask).broadcast((batch, heads, rows, k.shape[2]))
        by_batch, by_head, by_row, by_column = m.steps
        mask_steps = (by_batch, by_head, by_row, by_column)
        mask_dtype, mask_rows = m.dtype, by_row != 0
        even = (by_batch, by_head, by_row, m.offset, k.shape[2])
        mask_pairs = by_column == 1 and not any(s % 2 for s in even)
        views.append(m)
    scale = float(node.attrs.get("scale") or 1.0 / math.sqrt(size))
    if scale < 0:
        raise UnsupportedError("an attention with a negative scale")
    in_rows = [(t.steps[0], t.steps[1], t.steps[2]) for t in (q, k, v, output)]
    layout = attention_kernels.Layout(
        batch,
        heads,
        k.shape[1],
        rows,
        k.shape[2],
        scale,
        q=in_rows[0],
        k=in_rows[1],
        v=in_rows[2],
        o=in_rows[3],
        mask=mask_steps,
    )
    causal = bool(node.attrs.get("is_causal", 0))
    fitting = attention_kernels.fitting_forms(k.shape[2], mask is not None)
    kernels: list[attention_kernels.Attention | AttentionGroup] = [
        attention_kernels.Attention(q.dtype, size, mask_dtype, causal, form, mask_rows, mask_pairs)
        for form in (*attention_kernels.FORMS, *fitting)
    ]
    matched = mask is None or not mask_rows or mask_pairs
    if size in HEADS and matched and addressable(layout):
        in_rows_of = mask_dtype if mask_rows else None
        kernels += [
            AttentionGroup(q.dtype, size, mask_dtype, causal, form, in_rows_of is not None)
            for form in forms(rows, k.shape[2], size, in_rows_of)
        ]
    plans = [a.plan(layout) for a in kernels if a.shared(layout.keys) <= SHARED_LIMIT]
    signature = f"attention {q.dtype.label} {layout!r} {mask_dtype} {mask_pairs} {causal}"
    libraries = [attention_request(q.dtype, layout, size, causal)] if mask is None else []
    rec.launch(plans, [*views, output], signature=signature, libraries=libraries)


def _rows_contiguous(rec: Recorder, view: View) -> View:
    """A view whose rows are contiguous and start at multiples of 16 bytes."""
    item = 8
    if view.steps[3] == 1 and not view.offset % item and all(s % item == 0 for s in view.steps[:3]):
        return view
    return rec.dense(view)
