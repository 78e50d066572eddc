"""Arithmetic, logic and activations at the places where NumPy and ONNX part ways."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

Call = Any
SIGNED = [np.int8, np.int16, np.int32, np.int64]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("kind", SIGNED)
def test_integer_division_truncates_toward_zero(call: Call, kind: Any) -> None:
    pairs = list(itertools.product([-7, -6, -1, 0, 1, 6, 7], [-3, -2, -1, 1, 2, 3]))
    a, b = np.array(pairs, kind).T
    result = call("Div", a, b)
    assert result.dtype == kind
    assert result.tolist() == [int(x / y) for x, y in pairs]


@pytest.mark.parametrize("kind", SIGNED + UNSIGNED)
def test_integer_division_by_zero_does_not_fail(call: Call, kind: Any) -> None:
    assert call("Div", np.array([1, 0, 5], kind), np.array([0, 0, 0], kind)).dtype == kind


@pytest.mark.parametrize("kind", [*SIGNED, *UNSIGNED, np.float32, np.float64])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min"])
def test_results_have_the_type_of_the_operands(call: Call, op: str, kind: Any) -> None:
    for shape in ((), (3,), (0, 2)):
        result = call(op, np.full(shape, 7, kind), np.array(2, kind))
        assert isinstance(result, np.ndarray)
        assert (result.shape, result.dtype) == (shape, np.dtype(kind))


def test_mod_takes_the_divisors_sign_and_fmod_the_dividends(call: Call) -> None:
    a, b = np.array([-4, 7, 5, 4, -7, 8]), np.array([2, -3, 8, -2, 3, 5])
    assert call("Mod", a, b).tolist() == [0, -2, 5, 0, 2, 3]
    assert call("Mod", a, b, fmod=1).tolist() == [0, 1, 5, 0, -1, 3]


def test_mod_of_special_floats(call: Call) -> None:
    inf, nan = np.inf, np.nan
    x = np.float32([5, -5, 5, -5, inf, 0.0, -0.0, 3, nan])
    y = np.float32([inf, inf, -inf, -inf, 2, -3, 3, 0, 1])
    result = call("Mod", x, y)
    np.testing.assert_array_equal(result, np.float32([5, inf, -inf, -5, nan, -0.0, 0, nan, nan]))
    assert np.signbit(result[5])
    assert not np.signbit(result[6])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0, -1.0, 2.5])
def test_pow_with_one_exponent_equals_pow_with_many(call: Call, exponent: float) -> None:
    x = np.float32([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 1e-20])
    with np.errstate(all="ignore"):  # NumPy takes the square root where the exponent is a scalar
        expected = np.power(x.astype(np.float64), np.full(8, exponent)).astype(np.float32)
    np.testing.assert_allclose(call("Pow", x, np.array(exponent, np.float32)), expected, 1e-6)
    np.testing.assert_allclose(call("Pow", x, np.full(8, exponent, np.float32)), expected, 1e-6)


def test_pow_keeps_the_type_of_the_base(call: Call) -> None:
    kinds = [np.int32, np.int64, np.float32, np.float64]
    for base, exponent in itertools.product(kinds, kinds):
        result = call("Pow", np.array([1, 2, 3], base), np.array([2, 2, 2], exponent))
        assert result.dtype == base
        assert result.tolist() == [1, 4, 9]


def test_pow_of_integers_with_negative_exponents_truncates(call: Call) -> None:
    assert call("Pow", np.array([1, -1, 2, -3]), np.array([-2, -3, -1, -2])).tolist() == [
        1,
        -1,
        0,
        0,
    ]
    assert call("Pow", np.array([2, 3], np.int32), np.float32([0.5, 2.7])).tolist() == [1, 19]


def test_clip_with_crossed_bounds_takes_the_upper(call: Call) -> None:
    x = np.float32([-5, 0, 5, np.nan])
    np.testing.assert_array_equal(
        call("Clip", x, np.float32(3), np.float32(1)), np.float32([1, 1, 1, np.nan])
    )
    np.testing.assert_array_equal(call("Clip", x, None, np.float32(1))[:3], [-5, 0, 1])


def test_rounding_goes_to_even(call: Call) -> None:
    x = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997])
    assert call("Round", x).tolist() == [-2, -2, 0, 0, 2, 2, 0]


@pytest.mark.parametrize("op", ["Max", "Min", "Relu", "Clip"])
def test_nan_is_kept(call: Call, op: str) -> None:
    arguments = [np.float32([np.nan, 1])] + ([np.float32(0)] if op != "Relu" else [])
    assert np.isnan(call(op, *arguments)[0])


@pytest.mark.parametrize("kind", UNSIGNED)
def test_shifts_beyond_the_width_give_zero(call: Call, kind: Any) -> None:
    bits = np.iinfo(kind).bits
    for direction in ("LEFT", "RIGHT"):
        result = call(
            "BitShift", np.array([1, 3], kind), np.array([bits, 200], kind), direction=direction
        )
        assert result.tolist() == [0, 0]


@pytest.mark.parametrize("kind", SIGNED)
def test_right_shifts_of_negative_numbers_keep_the_sign(call: Call, kind: Any) -> None:
    x, y = np.array([-8, -8, -8, 8], kind), np.array([1, 100, -1, -1], kind)
    assert call("BitShift", x, y, direction="RIGHT").tolist() == [-4, -1, -1, 0]
    assert call("BitShift", x, y, direction="LEFT").tolist() == [-16, 0, 0, 0]


def test_strings_compare_and_are_selected(call: Call) -> None:
    a, b = np.array(["x", "y"], object), np.array("x", object)
    equal = call("Equal", a, b)
    assert equal.dtype == bool
    assert equal.tolist() == [True, False]
    assert call("Where", equal, a, np.array(["1", "2"], object)).tolist() == ["x", "2"]


def test_infinities_are_told_by_sign(call: Call) -> None:
    x = np.float32([np.inf, -np.inf, np.nan, 1])
    assert call("IsInf", x).tolist() == [True, True, False, False]
    assert call("IsInf", x, detect_negative=0).tolist() == [True, False, False, False]
    assert call("IsInf", x, detect_positive=0).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("op", "limits"),
    [
        ("Sigmoid", (0, 1)),
        ("Softplus", (0, 1000)),
        ("Softsign", (-0.999001, 0.999001)),
        ("Tanh", (-1, 1)),
        ("Elu", (-1, 1000)),
        ("Selu", (-1.7580993408473766, 1050.7010221481323)),
        ("Celu", (-1, 1000)),
        ("Mish", (0, 1000)),
        ("Swish", (0, 1000)),
        ("Gelu", (0, 1000)),
        ("HardSigmoid", (0, 1)),
        ("HardSwish", (0, 1000)),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_activations_do_not_overflow(call: Call, op: str, limits: Any, kind: Any) -> None:
    result = call(op, np.array([-1000, 1000], kind))
    assert result.dtype == kind
    np.testing.assert_allclose(result, limits, 1e-6, 1e-6)


def test_small_arguments_keep_their_digits(call: Call) -> None:
    x = np.float32([1e-6, -1e-6, -3e-4])
    np.testing.assert_allclose(call("Elu", x)[1:], np.expm1(x.astype(float))[1:], 3e-7)
    np.testing.assert_allclose(call("Softplus", np.float32([-20])), np.log1p(np.exp(-20.0)), 3e-7)


def test_leaky_relu_with_any_slope(call: Call) -> None:
    x = np.float32([-2, 0, 2])
    assert call("LeakyRelu", x, alpha=0.5).tolist() == [-1, 0, 2]
    assert call("LeakyRelu", x, alpha=2.0).tolist() == [-4, 0, 2]
    assert call("LeakyRelu", x, alpha=-0.5).tolist() == [1, 0, 2]


def test_shrink_of_integers_truncates(call: Call) -> None:
    result = call("Shrink", np.array([-3, 0, 3], np.int32), lambd=1.5, bias=1.5)
    assert result.dtype == np.int32
    assert result.tolist() == [-1, 0, 1]
