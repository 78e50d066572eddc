"""ai.onnx.ml: linear models and support vector machines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.ml_scores import (
    ML,
    as_matrix,
    label_array,
    label_dtype,
    two_columns,
)
from polytool.backends.native.ops.ml_scores import (
    post_transform as transformed,
)
from polytool.backends.native.ops.registry import Arg, Array, dtypes, op, shape
from polytool.errors import ModelError, RunnerError
from polytool.tensors import DType

Ints = Sequence[int]
Floats = Sequence[float]


def _linear(x: Array, coefficients: Floats, intercepts: Floats | None, rows: int) -> Array:
    """(N, rows) scores."""
    weights = np.array(coefficients, dtype=x.dtype).reshape(rows, -1)
    scores = x @ weights.T
    return scores + np.array(intercepts, dtype=x.dtype) if intercepts else scores


@op("LinearRegressor", since=1, domain=ML, host=(0,))
def linear_regressor(
    xp: Any,
    x: Array,
    *,
    coefficients: Floats,
    intercepts: Floats | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Array:
    """One linear function a target."""
    scores = _linear(as_matrix(x), coefficients, intercepts, targets)
    return (
        scores
        if targets == 1 and post_transform != "PROBIT"
        else transformed(scores, post_transform)
    )


@shape("LinearRegressor", domain=ML)
def linear_regressor_shape(x: Arg, *, targets: int = 1, **_: Any) -> tuple[int, int]:
    """(N, targets)."""
    return (x.shape[0] if len(x.shape) > 1 else 1, targets)


@op("LinearClassifier", since=1, domain=ML, host=(0,))
def linear_classifier(
    xp: Any,
    x: Array,
    *,
    classlabels_ints: Ints | None = None,
    classlabels_strings: Sequence[str] | None = None,
    coefficients: Floats,
    intercepts: Floats | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Array, Array]:
    """The class with the highest score, and the scores; one function may serve two classes."""
    labels = classlabels_strings or classlabels_ints or []
    x = as_matrix(x)
    rows = len(intercepts) if intercepts else max(len(coefficients) // max(x.shape[1], 1), 1)
    scores = _linear(x, coefficients, intercepts, rows)
    if rows > 1:
        return label_array(labels, scores.argmax(axis=1)), transformed(scores, post_transform)
    index = (scores[:, 0] > 0).astype(np.int64)
    if len(labels) == 2:
        return label_array(labels, index), two_columns(scores, post_transform, complement=True)
    return index, transformed(scores, post_transform)


def _kernel(x: Array, vectors: Array, kind: str, parameters: Floats | None) -> Array:
    """(N, vectors)."""
    gamma, offset, degree = parameters or (0.0, 0.0, 0.0)
    if kind == "RBF":
        distance = ((x[:, None, :] - vectors) ** 2).sum(axis=2)
        return np.exp(-gamma * distance)
    product = x @ vectors.T
    if kind == "LINEAR":
        return product
    if kind == "POLY":
        return (gamma * product + offset) ** int(degree)
    if kind == "SIGMOID":
        return np.tanh(gamma * product + offset)
    raise ModelError(f"ai.onnx.ml has no kernel_type {kind!r}")


@op("SVMRegressor", since=1, domain=ML, host=(0,))
def svm_regressor(
    xp: Any,
    x: Array,
    *,
    coefficients: Floats,
    kernel_params: Floats | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Floats,
    support_vectors: Floats | None = None,
) -> Array:
    """A sum of kernels; its sign (1 or -1) for a one-class machine."""
    x = as_matrix(x)
    weights = np.array(coefficients, dtype=x.dtype)
    if n_supports:
        if n_supports != weights.size:
            raise RunnerError(f"an SVM has {n_supports} supports, {weights.size} coefficients")
        vectors = np.array(support_vectors, dtype=x.dtype).reshape(n_supports, -1)
        scores = _kernel(x, vectors, kernel_type, kernel_params) @ weights
    else:
        scores = x @ weights
    scores = (scores + x.dtype.type(rho[0]))[:, None]
    if one_class:
        return np.where(scores > 0, 1, -1).astype(x.dtype)
    return scores  # a single score: like ONNX Runtime, no post transform


@shape("SVMRegressor", domain=ML)
def svm_regressor_shape(x: Arg, **_: Any) -> tuple[int, int]:
    """(N, 1)."""
    return (x.shape[0] if len(x.shape) > 1 else 1, 1)


@op("SVMClassifier", since=1, domain=ML, host=(0,))
def svm_classifier(
    xp: Any,
    x: Array,
    *,
    classlabels_ints: Ints | None = None,
    classlabels_strings: Sequence[str] | None = None,
    coefficients: Floats,
    kernel_params: Floats | None = None,
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Floats | None = None,
    prob_b: Floats | None = None,
    rho: Floats,
    support_vectors: Floats | None = None,
    vectors_per_class: Ints | None = None,
) -> tuple[Array, Array]:
    """The class with the most votes of pairwise machines (libsvm), or the best linear score."""
    labels = classlabels_strings or classlabels_ints or []
    classes, x = max(len(labels), 1), as_matrix(x)
    if not vectors_per_class or not sum(vectors_per_class):
        weights = np.array(coefficients, dtype=x.dtype).reshape(classes, -1)
        scores = x @ weights.T + x.dtype.type(rho[0])
        return label_array(labels, scores.argmax(axis=1)), transformed(scores, post_transform)
    vectors = np.array(support_vectors, dtype=x.dtype).reshape(sum(vectors_per_class), -1)
    if len(coefficients) < len(vectors):
        raise RunnerError(f"an SVM has {len(vectors)} supports, {len(coefficients)} coefficients")
    kernels = _kernel(x, vectors, kernel_type, kernel_params)
    weights = np.array(coefficients, dtype=x.dtype).reshape(-1, len(vectors))
    pairs = _pair_scores(kernels, weights, vectors_per_class, rho)
    best = _votes(pairs, classes).argmax(axis=1)
    if prob_a:
        scores = _pair_probabilities(pairs, classes, prob_a, prob_b or [0.0] * len(prob_a))
        return label_array(labels, best), transformed(scores, post_transform)
    if pairs.shape[1] == 1:
        scores = transformed(np.concatenate([-pairs, pairs], axis=1), post_transform)
    else:
        scores = transformed(pairs, post_transform)
    return label_array(labels, best), scores


def _pair_scores(kernels: Array, weights: Array, counts: Ints, rho: Floats) -> Array:
    """(N, pairs): one decision for every pair of classes; positive is for the first."""
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    pairs = itertools.combinations(range(len(counts)), 2)
    scores = [
        kernels[:, parts[i]] @ weights[j - 1, parts[i]]
        + kernels[:, parts[j]] @ weights[i, parts[j]]
        + kernels.dtype.type(rho[index])
        for index, (i, j) in enumerate(pairs)
    ]
    return np.stack(scores, axis=1)


def _votes(pairs: Array, classes: int) -> Array:
    votes = np.zeros((pairs.shape[0], classes), dtype=np.int64)
    for index, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        first = pairs[:, index] > 0
        votes[:, i] += first
        votes[:, j] += ~first
    return votes


def _pair_probabilities(pairs: Array, classes: int, prob_a: Floats, prob_b: Floats) -> Array:
    """(N, classes) from pairwise sigmoids (Wu, Lin, Weng 2004, as libsvm iterates it)."""
    p = np.zeros((pairs.shape[0], classes, classes), dtype=np.float64)
    for index, (i, j) in enumerate(itertools.combinations(range(classes), 2)):
        value = 1 / (1 + np.exp(pairs[:, index].astype(np.float64) * prob_a[index] + prob_b[index]))
        p[:, i, j] = np.clip(value, 1e-7, 1 - 1e-7)
        p[:, j, i] = 1 - p[:, i, j]
    q = -p.swapaxes(1, 2) * p
    diagonal = np.arange(classes)
    q[:, diagonal, diagonal] = (p * p).sum(axis=1)
    result = np.full((pairs.shape[0], classes), 1 / classes)
    product = np.einsum("nij,nj->ni", q, result)
    for _ in range(max(100, classes)):
        total = (result * product).sum(axis=1, keepdims=True)
        moving = np.abs(product - total).max(axis=1) >= 0.005 / classes
        if not moving.any():
            break
        new, new_product, t = result.copy(), product.copy(), total[:, 0].copy()
        for k in range(classes):
            own = q[:, k, k]
            step = (t - new_product[:, k]) / own
            new[:, k] += step
            t = (t + step * (step * own + 2 * new_product[:, k])) / (1 + step) ** 2
            new_product = (new_product + step[:, None] * q[:, k]) / (1 + step)[:, None]
            new /= (1 + step)[:, None]
        result = np.where(moving[:, None], new, result)
        product = np.einsum("nij,nj->ni", q, result)
    return result.astype(pairs.dtype)


@dtypes("LinearClassifier", "SVMClassifier", domain=ML)
def classifier_dtypes(
    _: list[DType | None], *, classlabels_strings: Sequence[str] | None = None, **__: Any
) -> list[DType]:
    """Labels by attribute, scores in float32."""
    return [label_dtype(classlabels_strings), DType.FLOAT]


@shape("LinearClassifier", "SVMClassifier", domain=ML)
def classifier_shape(x: Arg, **_: Any) -> list[tuple[int, ...] | None]:
    """(N,); how many scores there are depends on the transform."""
    return [(x.shape[0] if len(x.shape) > 1 else 1,), None]
