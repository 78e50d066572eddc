"""Normalisations, and what old versions of BatchNormalization mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ops.conftest import Call
from tests.ops.one_node import Case, check, native

Array = np.ndarray[Any, Any]


def floats(*dims: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *dims]).standard_normal(dims).astype(np.float32)


def statistics(*dims: int) -> list[Array]:
    """Scale, bias, mean, variance."""
    return [*(floats(*dims, seed=k) for k in range(3)), np.abs(floats(*dims, seed=3)) + 0.1]


@pytest.mark.ort
@pytest.mark.parametrize("spatial", [(), (5,), (4, 5), (3, 4, 5)])
def test_normalisations_give_what_onnxruntime_gives(spatial: tuple[int, ...]) -> None:
    x = floats(2, 6, *spatial)
    rest = (6, *spatial)
    cases = [
        Case("LayerNormalization", [x, floats(*rest), floats(*rest)], {"axis": 1}, 3, opset=17)
    ]
    cases += [Case("BatchNormalization", [x, *statistics(6)], opset=v) for v in (7, 9, 14, 15)]
    training = {"training_mode": 1, "momentum": 0.7}
    cases += [Case("BatchNormalization", [x, *statistics(6)], training, 3, opset=15)]
    cases += [Case("LpNormalization", [x], {"p": p, "axis": a}) for p in (1, 2) for a in (0, -1)]
    cases += [Case("RMSNormalization", [x, floats(x.shape[-1])], opset=23)]
    if spatial:
        cases += [Case("InstanceNormalization", [x, floats(6), floats(6)], opset=6)]
        groups = {"num_groups": 3}
        cases += [Case("GroupNormalization", [x, floats(6), floats(6)], groups, opset=21)]
        cases += [Case("GroupNormalization", [x, floats(3), floats(3)], groups, opset=18)]
    if len(spatial) == 2:
        cases += [Case("LRN", [x], {"size": n, "alpha": 0.1, "bias": 1.5}) for n in (1, 3, 5, 99)]
        cases += [Case("MeanVarianceNormalization", [x], opset=9)]
    check(*cases)


@pytest.mark.ort
def test_operators_that_exporters_use_before_they_are_standard() -> None:
    x = floats(2, 5, 8)
    check(
        Case("LayerNormalization", [x, floats(8), floats(8)], {"axis": -1}, 3, opset=13),
        Case("SimplifiedLayerNormalization", [x, floats(8)], {"axis": -1}, 2, opset=13),
        *(
            Case("MeanVarianceNormalization", [floats(2, 3, 4, 5)], {"across_channels": k}, opset=1)
            for k in (0, 1)
        ),
    )


def expected(x: Array, stats: list[Array], axes: tuple[int, ...], momentum: float) -> list[Array]:
    """Training: output, running and saved statistics."""
    scale, bias, mean, var = (s.astype(np.float64) for s in stats)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    center, spread = x.mean(axes, dtype=np.float64), x.astype(np.float64).var(axes)
    y = (x - center.reshape(shape)) / np.sqrt(spread.reshape(shape) + 1e-5)
    y = y * scale.reshape(shape) + bias.reshape(shape)
    new = 1 - momentum
    return [y, mean * momentum + center * new, var * momentum + spread * new, center, spread]


@pytest.mark.parametrize("version", [1, 6, 7, 9])
def test_five_outputs_train(version: int) -> None:
    x, stats = floats(3, 4, 5, 2), statistics(4)
    case = Case("BatchNormalization", [x, *stats], {"momentum": 0.8}, 5, opset=version)
    for got, want in zip(native(case), expected(x, stats, (0, 2, 3), 0.8), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 6, 7])
def test_statistics_of_every_feature(version: int) -> None:
    x, stats = floats(3, 4, 5), statistics(4, 5)
    scale, bias, mean, var = stats
    test = {"spatial": 0} | ({"is_test": 1} if version < 7 else {})
    (y,) = native(Case("BatchNormalization", [x, *stats], test, opset=version))
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5
    )
    case = Case("BatchNormalization", [x, *stats], {"spatial": 0}, 5, opset=version)
    for got, want in zip(native(case), expected(x, stats, (0,), 0.9), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_is_test_decides_before_the_number_of_outputs() -> None:
    x, stats = floats(3, 4, 5), statistics(4)
    plain = native(Case("BatchNormalization", [x, *stats], opset=9))
    tested = native(Case("BatchNormalization", [x, *stats], {"is_test": 1}, 1, opset=6))
    np.testing.assert_array_equal(plain[0], tested[0])


def test_a_large_common_offset_does_not_swamp_the_variance(call: Call) -> None:
    x = (floats(2, 3, 400) + np.float32(4096)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    np.testing.assert_allclose(call("InstanceNormalization", x, ones, zeros), exact, atol=2e-3)
    stats = x.mean((0, 2), dtype=np.float64), x.astype(np.float64).var((0, 2))
    mean, var = (s.astype(np.float32) for s in stats)
    y = call("BatchNormalization", x, ones, zeros, mean, var)
    want = (x - stats[0][:, None]) / np.sqrt(stats[1][:, None] + 1e-5)
    np.testing.assert_allclose(y, want, atol=2e-3)


def test_zero_rows_stay_zero(call: Call) -> None:
    x = np.zeros((2, 3), np.float32)
    assert not call("LpNormalization", x).any()
    assert not call("Normalizer", x, norm="L2", domain="ai.onnx.ml").any()
