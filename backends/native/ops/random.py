"""Operators that draw random numbers.

A `seed` makes a node draw the same numbers at every call; without one they are new each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, dtypes, op, shape, upgrade
from polytool.tensors import DType

Dims = tuple[int, ...]


def generator(seed: float | None) -> np.random.RandomState:
    """The generator that ONNX's own reference implementation uses."""
    if seed is None or math.isnan(seed):
        return np.random.RandomState()
    return np.random.RandomState(int(seed) & 0xFFFFFFFF)


def _typed(xp: Any, values: Array, dtype: DType) -> Array:
    return xp.asarray(np.asarray(values).astype(dtype.numpy))


@op("RandomNormal", since=1, random=True)
def random_normal(
    xp: Any,
    *,
    shape: Sequence[int],
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: int = 1,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Normally distributed numbers."""
    return _typed(xp, generator(seed).normal(mean, scale, shape), out_dtypes[0])


@op("RandomUniform", since=1, random=True)
def random_uniform(
    xp: Any,
    *,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: int = 1,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Numbers evenly distributed from `low` to `high`."""
    return _typed(xp, generator(seed).uniform(low, high, shape), out_dtypes[0])


@op("RandomNormalLike", since=1, random=True)
def random_normal_like(
    xp: Any,
    x: Array,
    *,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: int | None = None,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Normally distributed numbers in the shape of `x`."""
    return _typed(xp, generator(seed).normal(mean, scale, x.shape), out_dtypes[0])


@op("RandomUniformLike", since=1, random=True)
def random_uniform_like(
    xp: Any,
    x: Array,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: int | None = None,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Numbers evenly distributed from `low` to `high` in the shape of `x`."""
    return _typed(xp, generator(seed).uniform(low, high, x.shape), out_dtypes[0])


@op("Bernoulli", since=15, random=True)
def bernoulli(
    xp: Any,
    x: Array,
    *,
    seed: float | None = None,
    dtype: int | None = None,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """One with the probability that `x` gives, else zero."""
    chances = x.get() if hasattr(x, "get") else x
    return _typed(xp, generator(seed).binomial(1, chances), out_dtypes[0])


@op("Multinomial", since=7, random=True)
def multinomial(
    xp: Any,
    x: Array,
    *,
    sample_size: int = 1,
    seed: float | None = None,
    dtype: int = 6,
    out_dtypes: tuple[DType, ...],
) -> Array:
    """Outcomes drawn from each row's unnormalised log-probabilities."""
    logits = (x.get() if hasattr(x, "get") else x).astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    draws = generator(seed).uniform(size=(x.shape[0], sample_size)) * chances[:, -1:]
    outcomes = (chances[:, None, :] <= draws[:, :, None]).sum(axis=2)
    return _typed(xp, outcomes, out_dtypes[0])


@shape("RandomNormal", "RandomUniform")
def stated_shape(*, shape: Sequence[int], **_: Any) -> Dims:
    """The attribute."""
    return tuple(shape)


@shape("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def same_shape(x: Arg, **_: Any) -> Dims:
    """The shape of the input."""
    return x.shape


@shape("Multinomial")
def multinomial_shape(x: Arg, *, sample_size: int = 1, **_: Any) -> Dims:
    """Batch and samples."""
    return x.shape[0], sample_size


@dtypes("RandomNormal", "RandomUniform")
def stated_dtype(inputs: list[DType | None], *, dtype: int = 1, **_: Any) -> list[DType]:
    """The attribute, else float32."""
    return [DType(dtype)]


@dtypes("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def same_dtype(
    inputs: list[DType | None], *, dtype: int | None = None, **_: Any
) -> list[DType | None]:
    """The attribute, else the type of the input."""
    return [inputs[0] if dtype is None else DType(dtype)]


@dtypes("Multinomial")
def multinomial_dtype(inputs: list[DType | None], *, dtype: int = 6, **_: Any) -> list[DType]:
    """The attribute, else int32."""
    return [DType(dtype)]


@op("Dropout", since=12, random=True, host=(1, 2))
def dropout(
    xp: Any,
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> tuple[Array, Array]:
    """In training, zeros with probability `ratio` and the rest scaled up; else `x` as it is."""
    chance = 0.5 if ratio is None else float(ratio.item())
    if training_mode is None or not training_mode.item() or chance == 0:
        return x, xp.ones(x.shape, bool)
    mask = xp.asarray(generator(seed).uniform(0, 1, x.shape) >= chance)
    return mask * x * (1 / (1 - chance)), mask


@shape("Dropout")
def dropout_shape(
    x: Arg, ratio: Arg | None = None, training_mode: Arg | None = None, *, seed: int | None = None
) -> list[Dims]:
    """The shape of the input, twice."""
    return [x.shape] * 2


@dtypes("Dropout")
def dropout_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """The mask is boolean."""
    return [inputs[0], DType.BOOL]


@upgrade("Dropout", since=1)
def dropout_without_test_flag(node: Node) -> Node | list[Node]:
    """Versions 1 and 6 drop values unless `is_test` is set."""
    if node.attrs.get("is_test"):
        return node.raised(attrs={})
    ratio = np.array(node.attrs.get("ratio", 0.5), np.float32)
    training = node.raised(inputs=[node.inputs[0], ratio, np.array(True)], attrs={}, version=12)
    return _with_mask_like_data(training)


@upgrade("Dropout", since=7)
def dropout_without_ratio(node: Node) -> list[Node]:
    """Versions 7 to 10 are for inference only; the mask of 7 has the type of the data."""
    inference = node.raised(attrs={}, version=12)
    return _with_mask_like_data(inference) if node.version < 10 else [inference]


upgrade("Dropout", since=10)(dropout_without_ratio)


def _with_mask_like_data(node: Node) -> list[Node]:
    if len(node.outputs) < 2 or not node.outputs[1]:
        return [node]
    mask = node.fresh("mask")
    like = Node("CastLike", "", 15, [mask, node.inputs[0]], [node.outputs[1]], {}, node.name)
    return [node.raised(outputs=[node.outputs[0], mask]), like]
