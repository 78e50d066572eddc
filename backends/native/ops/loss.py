"""Losses: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss."""

from __future__ import annotations

from typing import Any

from polytool.backends.native.ops.registry import Arg, Array, op, shape
from polytool.backends.native.ops.softmax import log_softmax


@op("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    xp: Any,
    x: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    """Minus the log-probability (N, C, ...) of each target class (N, ...), weighted by class."""
    counted = xp.ones(target.shape, dtype=bool)
    if ignore_index is not None:
        counted = target != ignore_index
    classes = xp.where(counted, target, xp.zeros_like(target))
    chosen = xp.take_along_axis(x, classes[:, None].astype("int64"), axis=1)[:, 0]
    factor = counted.astype(x.dtype)
    if weight is not None:
        factor = factor * weight[classes]
    loss = xp.where(counted, -chosen, xp.zeros_like(chosen)) * factor
    if reduction == "none":
        return loss
    total = xp.asarray(loss.sum())
    return total if reduction == "sum" else xp.asarray(total / factor.sum())


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    xp: Any,
    scores: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """NegativeLogLikelihoodLoss of the logarithm of the softmax over classes, and that itself."""
    logs = log_softmax(xp, scores, axis=1)
    loss = negative_log_likelihood_loss(
        xp, logs, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, logs


@shape("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def loss_shape(
    x: Arg, target: Arg, *_: Arg | None, reduction: str = "mean", **__: Any
) -> list[tuple[int, ...]]:
    """A scalar, or like the target; and like the scores."""
    return [target.shape if reduction == "none" else (), x.shape]
