"""ai.onnx.ml: what classifiers and regressors have in common: labels and post transforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polytool.backends.native.ops.registry import Array
from polytool.errors import ModelError
from polytool.tensors import DType

ML = "ai.onnx.ml"
Labels = Sequence[int] | Sequence[str]


def as_matrix(x: Array) -> Array:
    """(N, F) in a float type; a vector is one row."""
    x = x.reshape(1, -1) if x.ndim < 2 else x
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def label_array(labels: Labels, index: Array) -> Array:
    """The label of each index: int64, or strings."""
    kind = object if labels and isinstance(labels[0], str) else np.int64
    return np.array(labels, dtype=kind)[index]


def label_dtype(strings: Sequence[str] | None) -> DType:
    """The type of the labels that a classifier gives."""
    return DType.STRING if strings else DType.INT64


def post_transform(scores: Array, name: str) -> Array:
    """Apply NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT to each row."""
    if name == "NONE":
        return scores
    if name == "LOGISTIC":
        return 1 / (1 + np.exp(-scores))
    if name == "SOFTMAX":
        e = np.exp(scores - scores.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    if name == "SOFTMAX_ZERO":
        return _softmax_zero(scores)
    if name == "PROBIT":
        return _probit(scores)
    raise ModelError(f"ai.onnx.ml has no post_transform {name!r}")


def _softmax_zero(scores: Array) -> Array:
    """Softmax in which a score of zero stays (nearly) zero, as ONNX Runtime computes it."""
    peak = scores.max(axis=1, keepdims=True)
    zero = np.abs(scores) <= 1e-7
    e = np.where(zero, scores * np.exp(-peak), np.exp(scores - peak))
    total = e.sum(axis=1, keepdims=True)
    return np.where(total == 0, 0.5, e / np.where(total == 0, 1, total)).astype(scores.dtype)


def _probit(p: Array) -> Array:
    """The inverse of the normal distribution function, by Winitzki's formula, as elsewhere."""
    x = 2 * p - 1
    log = np.log((1 - x) * (1 + x))
    half = 2 / (np.pi * 0.147) + log / 2
    root = np.sqrt(np.sqrt(half * half - log / 0.147) - half)
    return (np.sqrt(2.0) * np.where(np.isneginf(log), 0, np.copysign(root, x))).astype(p.dtype)


def two_columns(positive: Array, name: str, *, complement: bool) -> Array:
    """One column of scores of the positive class as two, transformed as ONNX Runtime does.

    `complement`: the scores are probabilities, so the other class has one minus that; else it has
    minus that. Only LOGISTIC and PROBIT change the scores.
    """
    if name == "PROBIT":
        quantile = _probit(positive)
        return np.concatenate([-quantile, quantile], axis=1)
    if name == "LOGISTIC":
        return post_transform(np.concatenate([-positive, positive], axis=1), name)
    return np.concatenate([1 - positive if complement else -positive, positive], axis=1)
