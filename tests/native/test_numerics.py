"""Rounding on the CPU is bit for bit what hardware and ml_dtypes do."""

import ml_dtypes
import numpy as np
import pytest

from polytool.backends.native.numerics import (
    load,
    round_bfloat16,
    round_float16,
    round_tf32,
    storage,
    store,
    unload,
)
from polytool.tensors import DType


def hard_values() -> np.ndarray:
    """Every float16, the midpoints between neighbours and one ulp around them, random bits."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    middle = (finite[:-1].astype(np.float64) + finite[1:]) / 2
    middle = middle.astype(np.float32)
    around = [np.nextafter(middle, s, dtype=np.float32) for s in (-np.inf, np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32).view(np.float32)
    edges = np.float32([65504, 65519.996, 65520, 65536, 1e30, -65520, 0.0, -0.0, np.inf, -np.inf])
    return np.concatenate([every, middle, *around, random, edges])


@pytest.mark.parametrize(
    ("rounded", "kind"),
    [(round_float16, np.float16), (round_bfloat16, ml_dtypes.bfloat16)],
    ids=["float16", "bfloat16"],
)
def test_rounding_is_the_cast_bit_for_bit(rounded, kind):
    values = hard_values()
    with np.errstate(all="ignore"):
        expected = values.astype(kind).astype(np.float32)
    got = rounded(values)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(got), ~numbers)
    assert np.array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))


def test_tf32_keeps_ten_bits_of_mantissa():
    values = np.float32([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, np.inf])
    assert round_tf32(values).tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, np.inf]


def test_rounding_leaves_its_input_alone_and_keeps_the_shape():
    values = np.float32([[1.0001, 2.0003]]).T
    before = values.copy()
    assert round_float16(values).shape == (2, 1)
    assert np.array_equal(values, before)


def test_float64_is_rounded_to_float16_once():
    value = np.array([1 + 2**-11 + 2**-30])  # over float32 this is a tie and rounds down
    assert store(value, DType.FLOAT16, wide=False)[0] == 1 + 2**-10


def test_fp64_mode_stores_every_wide_float_as_float64():
    for dtype in (DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.DOUBLE):
        assert storage(dtype, wide=True) == np.float64
    assert storage(DType.FLOAT8E5M2, wide=True) == ml_dtypes.float8_e5m2
    assert storage(DType.INT8, wide=True) == np.int8


def test_edges_convert_both_ways():
    value = np.array([1.5, 2.5], ml_dtypes.bfloat16)
    stored = load(value, DType.BFLOAT16, wide=False)
    assert stored.dtype == np.float32
    assert unload(stored, DType.BFLOAT16).dtype == ml_dtypes.bfloat16
