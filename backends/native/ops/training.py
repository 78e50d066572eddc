"""ai.onnx.preview.training: the optimisers' update steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, dtypes, op, shape
from polytool.tensors import DType

TRAINING = "ai.onnx.preview.training"


def _groups(tensors: tuple[Array, ...], kinds: int) -> list[tuple[Array, ...]]:
    """Variadic inputs x1 x2 ..., g1 g2 ..., h1 h2 ... as (x1, g1, h1), (x2, g2, h2) ..."""
    count = len(tensors) // kinds
    return [tensors[i::count] for i in range(count)]


def _columns(rows: list[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(value for column in zip(*rows, strict=True) for value in column)


@op("Adagrad", since=1, domain=TRAINING)
def adagrad(
    xp: Any,
    r: Array,
    t: Array,
    *tensors: Array,
    decay_factor: float = 0.0,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
) -> tuple[Array, ...]:
    """New parameters, then new accumulated squared gradients."""
    rate = r / (1 + t.astype(r.dtype) * decay_factor)
    rows = []
    for x, g, h in _groups(tensors, 3):
        gradient = norm_coefficient * x + g
        total = h + gradient * gradient
        rows.append((x - rate * gradient / (xp.sqrt(total) + epsilon), total))
    return _columns(rows)


@op("Adam", since=1, domain=TRAINING)
def adam(
    xp: Any,
    r: Array,
    t: Array,
    *tensors: Array,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Array, ...]:
    """New parameters, then new averaged gradients, then new averaged squared gradients."""
    step = int(np.asarray(t).item())
    rate = r * ((1 - beta**step) ** 0.5 / (1 - alpha**step)) if step > 0 else r
    rows = []
    for x, g, v, h in _groups(tensors, 4):
        gradient = norm_coefficient * x + g
        first = alpha * v + (1 - alpha) * gradient
        second = beta * h + (1 - beta) * gradient * gradient
        moved = x - rate * first / (xp.sqrt(second) + epsilon)
        rows.append(((1 - norm_coefficient_post) * moved, first, second))
    return _columns(rows)


@op("Momentum", since=1, domain=TRAINING)
def momentum(
    xp: Any,
    r: Array,
    t: Array,
    *tensors: Array,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Array, ...]:
    """New parameters, then new momenta; `mode` is standard or nesterov."""
    adjusted = beta if int(np.asarray(t).item()) > 0 else 1.0
    rows = []
    for x, g, v in _groups(tensors, 3):
        gradient = norm_coefficient * x + g
        velocity = alpha * v + adjusted * gradient
        direction = gradient + alpha * velocity if mode == "nesterov" else velocity
        rows.append((x - r * direction, velocity))
    return _columns(rows)


def _kept(inputs: Any, kinds: int) -> list[Any]:
    """The inputs that have an output: all kinds but the gradients, which come second."""
    count = (len(inputs) - 2) // kinds
    return [*inputs[2 : 2 + count], *inputs[2 + 2 * count :]]


@shape("Adagrad", "Momentum", domain=TRAINING)
def two_states_shape(*inputs: Arg, **_: Any) -> list[tuple[int, ...]]:
    """Like the parameters and states."""
    return [a.shape for a in _kept(inputs, 3)]


@shape("Adam", domain=TRAINING)
def adam_shape(*inputs: Arg, **_: Any) -> list[tuple[int, ...]]:
    """Like the parameters and states."""
    return [a.shape for a in _kept(inputs, 4)]


@dtypes("Adagrad", "Momentum", domain=TRAINING)
def two_states_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """Those of the parameters and states."""
    return _kept(inputs, 3)


@dtypes("Adam", domain=TRAINING)
def adam_dtypes(inputs: list[DType | None], **_: Any) -> list[DType | None]:
    """Those of the parameters and states."""
    return _kept(inputs, 4)
