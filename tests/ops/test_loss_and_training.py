"""Losses against ONNX Runtime; the optimisers' steps against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ops.conftest import Call
from tests.ops.one_node import Case, check

TRAINING = "ai.onnx.preview.training"


def floats(*dims: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *dims]).standard_normal(dims).astype(np.float32)


@pytest.mark.ort
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dims", [(), (2,), (2, 3)])
def test_losses_give_what_onnxruntime_gives(reduction: str, dims: tuple[int, ...]) -> None:
    x, weight = floats(3, 5, *dims), np.abs(floats(5))
    target = np.random.default_rng(0).integers(0, 5, (3, *dims))
    ignored = np.where(target == 2, -7, target)
    attrs = {"reduction": reduction}
    cases = []
    for op, outputs in (("NegativeLogLikelihoodLoss", 1), ("SoftmaxCrossEntropyLoss", 2)):
        cases.append(Case(op, [x, target], attrs, outputs, opset=13))
        cases.append(Case(op, [x, target, weight], attrs, outputs, opset=13))
        skipping = attrs | {"ignore_index": -7}
        cases.append(Case(op, [x, ignored, weight], skipping, outputs, opset=13))
    check(*cases)


def test_a_confident_softmax_has_a_finite_loss(call: Call) -> None:
    scores, labels = np.float32([[0, 200]]), np.array([0])
    loss, logs = call("SoftmaxCrossEntropyLoss", scores, labels)
    assert (float(loss), logs.tolist()) == (200, [[-200, 0]])


def test_several_parameters_are_updated_at_once(call: Call) -> None:
    a, b = np.float32([1, 2]), np.float32([3])
    rate, step = np.float32(0.5), np.array(1)
    gradients, velocities = (np.float32([1, 0]), np.float32([2])), (0 * a, 0 * b)
    new = call(
        "Momentum",
        *(rate, step, a, b, *gradients, *velocities),
        domain=TRAINING,
        alpha=0.9,
        beta=1.0,
        mode="standard",
        norm_coefficient=0.0,
    )
    assert [v.tolist() for v in new] == [[0.5, 2], [2], [1, 0], [2]]


def test_the_first_step_of_adam_is_the_rate(call: Call) -> None:
    x, g = np.float32([1, 1, 1]), np.float32([5, -0.01, 300])
    zeros = np.zeros(3, np.float32)
    rate, step = np.float32(0.1), np.array(1)
    new = call("Adam", rate, step, x, g, zeros, zeros, domain=TRAINING, epsilon=0.0)
    np.testing.assert_allclose(new[0], [0.9, 1.1, 0.9], rtol=1e-6)
