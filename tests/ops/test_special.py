"""The error function and GELU are as accurate as they say, everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polytool.backends.native.ops.special import erf, gelu

POINTS = np.concatenate(
    [
        np.linspace(-6.5, 6.5, 40001),
        *(sign * np.geomspace(1e-30, 1, 2001) for sign in (1, -1)),
        [0.9, -0.9, np.nextafter(0.9, 2), 1.0, np.nextafter(1.0, 0), 4.0, 6.0],
    ]
)


@pytest.mark.parametrize(("kind", "ulps"), [(np.float32, 1.4), (np.float64, 2.0)])
def test_erf_is_accurate(kind: Any, ulps: float) -> None:
    x = POINTS.astype(kind)
    exact = np.array([math.erf(v) for v in x.tolist()])
    error = np.abs(erf(np, x) - exact) / np.spacing(np.abs(exact).astype(kind)).astype(float)
    assert error.max() < ulps


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_erf_of_special_values(kind: Any) -> None:
    with np.errstate(all="ignore"):
        result = erf(np, np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, 5e-324], kind))
    np.testing.assert_array_equal(result[:3], np.array([np.nan, 1, -1], kind))
    assert result[5] == 1
    assert not np.signbit(result[3])
    assert np.signbit(result[4])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0), (7,), (3, 50000)])
def test_erf_keeps_shape_and_type(kind: Any, shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.5, kind)
    for result in (erf(np, x), gelu(np, x)):
        assert isinstance(result, np.ndarray)
        assert result.shape == shape
        assert result.dtype == kind
    np.testing.assert_allclose(erf(np, x), 0.5204998778130465, 1e-6)


def test_erf_of_a_strided_view() -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(erf(np, x.T), erf(np, x).T)


def test_gelu_in_float32_is_accurate() -> None:
    x = POINTS.astype(np.float32)
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])
    assert (np.abs(gelu(np, x) - exact) / np.maximum(1, np.abs(x))).max() < 1.5 * 2.0**-23


def test_gelu_vanishes_far_below_zero() -> None:
    x = np.array([-6, -8, -20, -100, -1e4, -1e30], np.float32)
    with np.errstate(all="ignore"):
        assert (np.abs(gelu(np, x)) < [1e-7, 1e-9, 1e-25, 1e-30, 1e-30, 1e-30]).all()
        np.testing.assert_array_equal(gelu(np, -x[-2:]), -x[-2:])


def test_gelu_in_float64_is_exact_to_a_rounding() -> None:
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in POINTS.tolist()])
    assert np.abs(gelu(np, POINTS) - exact).max() < 1e-15
