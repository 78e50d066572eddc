"""Quantised operators are exact: rounding half to even, saturation, int32 sums."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from polytool.tensors import DType
from tests.ops.conftest import Call
from tests.ops.one_node import Case, check, native

Array = np.ndarray[Any, Any]
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, ml_dtypes.uint4, ml_dtypes.int4]
FLOAT8 = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2fnuz,
]


def floats(*dims: int) -> Array:
    return np.random.default_rng(list(dims)).standard_normal(dims).astype(np.float32)


def integers(kind: Any, *dims: int) -> Array:
    return np.random.default_rng(list(dims)).integers(-128, 256, dims).astype(kind)


def scalar(value: float, kind: Any = np.float32) -> Array:
    return np.array(value).astype(kind)


def granularities() -> list[tuple[Array, dict[str, int], Array]]:
    """Per tensor, axis and block: the scale, the attributes, the scale for every element."""
    column, block = np.abs(floats(6)) + 0.1, np.abs(floats(4, 2)) + 0.1
    return [
        (scalar(0.3), {}, scalar(0.3)),
        (column, {"axis": 1}, column),
        (block, {"axis": 1, "block_size": 3}, block.repeat(3, axis=1)),
    ]


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("granularity", granularities())
def test_integers_are_rounded_shifted_and_saturated(kind: Any, granularity: Any) -> None:
    scale, attrs, spread = granularity
    x, limits = floats(4, 6) * 100, ml_dtypes.iinfo(kind)
    zero = np.full(scale.shape, 2).astype(kind)
    (y,) = native(Case("QuantizeLinear", [x, scale, zero], attrs, opset=21))
    assert y.dtype == kind
    want = np.clip(np.rint(x / spread) + 2, limits.min, limits.max)
    np.testing.assert_array_equal(y.astype(np.int64), want)


@pytest.mark.ort
@pytest.mark.parametrize("kind", INTEGERS)
def test_every_granularity_gives_what_onnxruntime_gives(kind: Any) -> None:
    values, cases = (integers(np.uint8, 4, 6) % 7).astype(kind), []
    for scale, attrs, _ in granularities():
        zero = np.full(scale.shape, 2).astype(kind)
        cases.append(Case("DequantizeLinear", [values, scale, zero], attrs, opset=21))
        if np.dtype(kind).isbuiltin == 1:
            x = floats(4, 6) * 100
            cases.append(Case("QuantizeLinear", [x, scale, zero], attrs, opset=21))
    check(*cases)


@pytest.mark.ort
@pytest.mark.parametrize("kind", FLOAT8)
def test_float8_saturates_when_asked(kind: Any) -> None:
    x, zero = floats(4, 6) * np.float32(1000), scalar(0, kind)
    largest, exact = float(ml_dtypes.finfo(kind).max), x / np.float32(0.3)
    for saturate, bounded in ((0, exact), (1, np.clip(exact, -largest, largest))):
        attrs = {"saturate": saturate}
        (y,) = native(Case("QuantizeLinear", [x, scalar(0.3), zero], attrs, opset=19))
        assert y.dtype == kind
        want = bounded.astype(kind).astype(np.float32)
        np.testing.assert_array_equal(y.astype(np.float32), want)
    check(Case("DequantizeLinear", [floats(4, 6).astype(kind), scalar(0.3), zero], opset=19))


def test_halves_go_to_the_even_neighbour_and_the_zero_point_is_added_after(call: Call) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    y = call("QuantizeLinear", x, scalar(1), scalar(1, np.uint8), out_dtypes=(DType.UINT8,))
    assert y.tolist() == [1, 3, 3, 1, 0, 255, 0]


def test_int32_is_dequantised_without_losing_bits_to_the_zero_point(call: Call) -> None:
    x, zero = np.array([2**30 + 1], np.int32), np.array(2**30, np.int32)
    assert call("DequantizeLinear", x, scalar(0.5), zero).tolist() == [0.5]


@pytest.mark.parametrize(
    ("x", "scale", "zero"),
    [([0, 2, -3, -2.5, 1.34, 0.5], 5 / 255, 153), ([1, 2.1, 4], 4 / 255, 0), ([0, 0], 1, 0)],
)
def test_dynamic_ranges_include_zero(call: Call, x: list[float], scale: float, zero: int) -> None:
    y, y_scale, y_zero = call("DynamicQuantizeLinear", np.array(x, np.float32))
    assert y_scale == pytest.approx(scale)
    assert (y_zero.dtype, int(y_zero)) == (np.uint8, zero)
    np.testing.assert_allclose((y.astype(int) - zero) * y_scale, x, atol=scale)


@pytest.mark.ort
def test_integer_products_give_what_onnxruntime_gives() -> None:
    a, b = integers(np.uint8, 3, 8), integers(np.int8, 8, 5)
    column = np.arange(-2, 3).astype(np.int8)
    scales = np.abs(floats(5)) * np.float32(0.01) + np.float32(0.001)
    image, filters = integers(np.uint8, 1, 4, 7, 7), integers(np.int8, 6, 2, 3, 3)
    geometry = {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}
    bias = np.arange(-3, 3).astype(np.int32) * 40
    check(
        Case("MatMulInteger", [a, b, scalar(7, np.uint8), column], opset=10),
        Case("MatMulInteger", [np.stack([a, a]), b, scalar(7, np.uint8)], opset=10),
        Case(
            "ConvInteger",
            [image, filters.astype(np.uint8), scalar(7, np.uint8)],
            geometry,
            opset=10,
        ),
        Case(
            "QLinearMatMul",
            [
                a,
                scalar(0.01),
                scalar(3, np.uint8),
                b,
                scales,
                0 * column,
                scalar(0.02),
                scalar(9, np.uint8),
            ],
            opset=10,
            steps=1,
        ),
        Case(
            "QLinearConv",
            [
                *(image, scalar(0.02), scalar(5, np.uint8)),
                *(filters, np.abs(floats(6)) * np.float32(0.02), np.zeros(6, np.int8)),
                *(scalar(0.2), scalar(9, np.uint8), bias),
            ],
            geometry,
            opset=10,
            steps=1,
        ),
    )


def test_a_zero_point_for_each_row(call: Call) -> None:
    a, b = integers(np.uint8, 3, 8), integers(np.int8, 8, 5)
    rows = np.array([1, 2, 250], np.uint8)
    want = (a.astype(int) - rows[:, None]) @ b.astype(int)
    np.testing.assert_array_equal(call("MatMulInteger", a, b, rows), want)


@pytest.mark.parametrize("kind", FLOAT8)
def test_float8_products_are_computed_in_float32(call: Call, kind: Any) -> None:
    a, b = floats(3, 40).astype(kind), floats(40, 5).astype(kind)
    one, zero = scalar(1), scalar(0, kind)
    y = call("QLinearMatMul", a, one, zero, b, one, zero, scalar(0.25), zero)
    exact = a.astype(np.float64) @ b.astype(np.float64) / 0.25
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=0.13, atol=0.02)


@pytest.mark.parametrize(
    "kind", [ml_dtypes.float4_e2m1fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float6_e3m2fn]
)
def test_types_without_infinity_always_saturate(call: Call, kind: Any) -> None:
    x, zero = np.array([1e6, -1e6, 0.6], np.float32), scalar(0, kind)
    y = call("QuantizeLinear", x, scalar(1), zero, saturate=0, out_dtypes=(DType.of(zero),))
    largest = float(ml_dtypes.finfo(kind).max)
    assert y.dtype == kind
    assert y.astype(np.float32).tolist()[:2] == [largest, -largest]
    back = call("DequantizeLinear", y, scalar(2), zero)
    assert back.tolist()[:2] == [2 * largest, -2 * largest]
