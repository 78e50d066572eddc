"""Features of numbers: Binarizer and TfIdfVectorizer."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.network import Layer
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@lowering("Binarizer", domain="ai.onnx.ml")
def binarizer(rec: Recorder, layer: Layer) -> None:
    """One above the threshold, else zero."""
    node, (output,) = layer.nodes[0], layer.outputs
    x = rec.view(given(node, 0))
    body = "y[unit] = narrow<T_y>(widen(x[unit]) > (R_x)threshold ? 1 : 0);"
    threshold = float(node.attrs.get("threshold", 0.0))
    compute(rec, node.op, x.shape, {"x": x}, {"y": rec.output(output)}, body, threshold=threshold)


def _table(rec: Recorder, values: Any, dtype: Any) -> View:
    array = np.asarray(values, dtype)
    key = ("host", array.dtype.str, array.shape, array.tobytes())
    return rec.constant(lambda: array, array.shape, DType.of(array), key)


@lowering("TfIdfVectorizer")
def tf_idf_vectorizer(rec: Recorder, layer: Layer) -> None:
    """A thread counts one n-gram of the pool in one row."""
    node, (output,) = layer.nodes[0], layer.outputs
    a = node.attrs
    x, pool = rec.view(given(node, 0)), a.get("pool_int64s")
    if not x.dtype.is_integer or not pool:
        raise UnsupportedError("n-grams of strings live on the host")
    starts = [*a["ngram_counts"], len(pool)]
    grams = [
        (place, length)
        for length, (start, end) in enumerate(pairwise(starts), 1)
        for place in range(start, end, length)
    ]
    shape = rec.shape(output)
    rows, tokens = math.prod(shape[:-1]), x.shape[-1]
    result = rec.output(output)
    compute(rec, "zeros", shape, {}, {"y": result}, "y[unit] = 0;")
    views = {
        "x": x,
        "pool": _table(rec, pool, np.int64),
        "grams": _table(rec, grams, np.int64),
        "columns": _table(rec, a["ngram_indexes"], np.int64),
        "weights": _table(rec, a.get("weights") or [1.0] * len(grams), np.float32),
    }
    mode = str(a["mode"])
    body = f"""
        const i64 place = grams[at[1] * 2], length = grams[at[1] * 2 + 1];
        if (length < shortest || length > longest) break;
        float count = 0;
        for (i64 step = 1; step <= (length == 1 ? 1 : skips + 1); step++)
            for (i64 start = 0; start + (length - 1) * step < tokens; start++) {{
                bool same = true;
                for (i64 i = 0; i < length; i++)
                    same &= (i64)x[at[0] * tokens + start + i * step] == pool[place + i];
                count += same;
            }}
        if ({int(mode == "IDF")}) count = fminf(count, 1);
        y[at[0] * width + columns[at[1]]] = count * {"1" if mode == "TF" else "weights[at[1]]"};"""
    compute(
        rec, node.op, (rows, len(grams)), views, {"y": result}, body,
        shortest=int(a["min_gram_length"]), longest=int(a["max_gram_length"]),
        skips=int(a["max_skip_count"]), tokens=tokens, width=shape[-1],
    )  # fmt: skip
