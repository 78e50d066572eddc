"""The numbers of a comparison, for every element type, against plain formulas."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from polytool.comparators import metrics
from polytool.comparators.frontier import frontier_of, required_atol
from polytool.comparators.metrics import measure
from polytool.comparators.ranks import index_distance, max_ulp, topk_indices
from polytool.errors import UsageError

RNG = np.random.default_rng(0)
FLOATS = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz",
    "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn", "float8_e8m0fnu",
]  # fmt: skip
INTEGERS = ["int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8",
            "int4", "uint4", "int2", "uint2"]  # fmt: skip


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@pytest.mark.parametrize("shape", [(7,), (3, 50), (2, 3, 4, 5), (), (1, 1), (5, 1, 300)])
@pytest.mark.parametrize("block", [metrics.BLOCK, 16])
def test_formulas(shape, block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    r = RNG.standard_normal(shape).astype(np.float32)
    a = (r + 0.01 * RNG.standard_normal(shape)).astype(np.float32)
    found = measure(a, r, quantile=0.9, slices=True)
    a, r = a.astype(float), r.astype(float)
    e = np.abs(a - r)
    expected = {
        "count": e.size,
        "mismatched": e.size,
        "max_abs": e.max(),
        "mean_abs": e.mean(),
        "median_abs": np.median(e),
        "quantile_abs": np.quantile(e, 0.9),
        "max_rel": (e / np.abs(r)).max(),
        "mean_rel": (e / np.abs(r)).mean(),
        "median_rel": np.median(e / np.abs(r)),
        "quantile_rel": np.quantile(e / np.abs(r), 0.9),
        "l2": np.sqrt((e**2).sum()),
        "rel_l2": np.sqrt((e**2).sum() / (r**2).sum()),
        "cosine_similarity": (a * r).sum() / np.sqrt((a**2).sum() * (r**2).sum()),
        "scale": np.abs(r).max(),
        "max_scaled": e.max() / np.abs(r).max(),
        "snr": 10 * np.log10((r**2).sum() / (e**2).sum()),
        "psnr": 20 * np.log10(np.abs(r).max()) - 10 * np.log10((e**2).mean()),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name
    assert found.worst == tuple(np.unravel_index(e.argmax(), shape))
    for norms in found.slices:
        others = tuple(k for k in range(e.ndim) if k != norms.axis)
        np.testing.assert_allclose(norms.error, np.sqrt((e**2).sum(others)), rtol=1e-12)
        np.testing.assert_allclose(norms.reference, np.sqrt((r**2).sum(others)), rtol=1e-12)


def test_slices_are_looked_at_where_they_say_something():
    e = np.ones((2, 20, 3))
    assert [n.axis for n in measure(e, e, slices=True).slices] == [0, 2]
    assert measure(np.ones(50), np.ones(50), slices=True).slices == ()


@pytest.mark.parametrize("name", FLOATS + INTEGERS + ["bool", "complex64", "complex128"])
def test_every_type_equals_itself_and_sees_one_change(name):
    one = np.ones((4, 5)).astype(dtype(name))
    other = one.copy()
    assert measure(one, other, ulp=True).mismatched == 0
    other[2, 3] = dtype(name).type(0.5 if "e8m0" in name else 0)
    found = measure(other, one, ulp=True, quantile=0.5, slices=True, frontier=True)
    assert found.mismatched == 1 and found.worst == (2, 3)
    assert found.max_abs == (0.5 if "e8m0" in name else 1)
    assert found.cosine_similarity < 1


@pytest.mark.parametrize(
    ("a", "r", "expected"),
    [
        (np.array([-128], np.int8), np.array([127], np.int8), 255),
        (np.array([0], np.uint8), np.array([1], np.uint8), 1),
        (np.array([0], np.uint64), np.array([2**64 - 1], np.uint64), 2.0**64),
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2.0**64),
        (np.array([2**53 + 1]), np.array([2**53]), 1),
        (np.array([2**53 + 1], np.uint64), np.array([2**53]), 1),
        (np.array([-1]), np.array([2**64 - 1], np.uint64), 2.0**64),
        (np.array([-8], ml_dtypes.int4), np.array([7], ml_dtypes.int4), 15),
        (np.array([3e38], np.float32), np.array([-3e38], np.float32), 6e38),
        (np.array([1e308]), np.array([-1e307]), 1.1e308),
        (np.array([1 + 1j], np.complex64), np.array([1 - 1j], np.complex64), 2),
        (np.array([False]), np.array([True]), 1),
        (np.array([5], np.int32), np.array([5.5], np.float32), 0.5),
    ],
)
def test_differences_do_not_wrap_around(a, r, expected):
    assert measure(a, r).max_abs == pytest.approx(expected, rel=1e-6)
    assert measure(r, a).max_abs == pytest.approx(expected, rel=1e-6)


def test_extreme_magnitudes_keep_their_norms():
    for scale in (1e-200, 1e200, 1e300, 5e-324):
        r = np.full(16, scale)
        found = measure(2 * r, r, slices=True)
        assert found.rel_l2 == pytest.approx(1) and found.cosine_similarity == pytest.approx(1)
    mixed = measure(np.array([1e200, 0]), np.array([1e200, 1e-200]))
    assert mixed.rel_l2 < 1e-300 and mixed.max_rel == 1


def test_blocks_of_different_magnitude_add_up(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 4)
    r = np.repeat([1e-150, 1.0, 1e150, 1e-3], 4)
    assert measure(2 * r, r).rel_l2 == pytest.approx(1)


def test_equal_specials_are_equal_and_counted():
    r = np.array([np.nan, np.inf, -np.inf, 1, 2], np.float32)
    found = measure(r.copy(), r, ulp=True)
    assert (found.mismatched, found.one_sided, found.not_finite) == (0, 0, 3)
    assert found.max_abs == found.rel_l2 == found.max_ulp == 0


@pytest.mark.parametrize(
    "pair", [(np.nan, 1), (1, np.nan), (np.inf, 1), (np.inf, -np.inf), (np.nan, np.inf)]
)
def test_specials_on_one_side_make_every_error_infinite(pair):
    a, r = np.ones(9, np.float32), np.ones(9, np.float32)
    a[4], r[4] = pair
    found = measure(a, r, quantile=0.5)
    assert found.one_sided == found.mismatched == 1
    assert found.max_abs == found.rel_l2 == found.mean_abs == math.inf
    assert found.snr == -math.inf and math.isnan(found.cosine_similarity)
    assert found.worst == (4,)


def test_strings_are_equal_or_not():
    a, r = np.array([["a", "b"], ["c", ""]], object), np.array([["a", "b"], ["C", ""]], object)
    found = measure(a, r)
    assert (found.mismatched, found.worst, found.values) == (1, (1, 0), ("'c'", "'C'"))
    assert measure(r, r).mismatched == 0


def test_quantiles_beside_infinite_relative_errors():
    found = measure(np.full(4, 1e-9), np.array([0, 0, 0, 1.0]), quantile=0.99)
    assert found.median_rel == found.quantile_rel == math.inf
    assert found.median_abs == pytest.approx(1e-9)


def test_zero_references():
    assert measure(np.zeros(3), np.zeros(3)).cosine_similarity == 1
    found = measure(np.full(3, 1e-9), np.zeros(3))
    assert found.rel_l2 == found.max_rel == math.inf and found.cosine_similarity == 0
    assert measure(np.zeros((0, 3)), np.zeros((0, 3)), quantile=0.5).count == 0


def test_other_shapes_are_refused():
    with pytest.raises(UsageError, match=r"\[2\] and \[3\]"):
        measure(np.ones(2), np.ones(3))


@pytest.mark.parametrize("name", FLOATS)
def test_ulps_count_the_representable_numbers_between(name):
    kind = dtype(name)
    if kind.itemsize == 1:
        every = np.arange(256, dtype=np.uint8).view(kind).astype(np.float64)
        values = np.unique(every[~np.isnan(every)])
        ranks = np.arange(len(values))
    else:
        codes = np.array([0, 1, 2, 1000, 1001, 7000])
        positive = codes.astype(f"u{kind.itemsize}").view(kind).astype(float)
        values, ranks = np.append(-positive[:0:-1], positive), np.append(-codes[:0:-1], codes)
    for i, low in enumerate(values):
        for j in (i, (i + 1) % len(values), 0):
            one, other = np.array([low]).astype(kind), np.array([values[j]]).astype(kind)
            assert max_ulp(one, other) == abs(ranks[i] - ranks[j])


def test_ulp_needs_one_float_type():
    assert max_ulp(np.ones(1, np.float32), np.ones(1)) is None
    assert max_ulp(np.ones(1, int), np.ones(1, int)) is None
    assert max_ulp(np.array([-0.0]), np.array([0.0])) == 0
    assert max_ulp(np.array([np.inf]), np.array([-np.inf])) > 2**62


def test_topk_gives_the_largest_first_and_ties_by_index():
    x = np.array([[1, 5, 5, 2], [9, 0, -1, 9]])
    assert topk_indices(x, 3).tolist() == [[1, 2, 3], [0, 3, 1]]
    assert topk_indices(x, 1, axis=0).tolist() == [[1, 0, 0, 1]]
    assert topk_indices(x, 9).shape == (2, 4)
    assert topk_indices(np.array([0, 1], ml_dtypes.bfloat16), 1).tolist() == [1]
    with pytest.raises(UsageError, match="no axis 2"):
        topk_indices(x, 1, axis=2)


@pytest.mark.parametrize(
    ("a", "r", "expected"),
    [
        ([0, 1, 2], [0, 1, 2], 0),
        ([0, 1, 2], [1, 0, 2], 1),
        ([0, 1, 2], [1, 2, 0], 2),
        ([0, 1, 2], [0, 1, 3], math.inf),
        ([[0, 1], [5, 6]], [[0, 1], [6, 5]], 1),
        ([], [], 0),
        ([1], [1, 2], math.inf),
    ],
)
def test_index_distance_is_in_places(a, r, expected):
    assert index_distance(np.array(a), np.array(r)) == expected


@pytest.mark.parametrize("seed", range(6))
def test_the_frontier_decides_every_tolerance(seed):
    rng = np.random.default_rng(seed)
    r = np.abs(rng.standard_normal(500)) ** rng.integers(1, 8)
    e = rng.random(500) * (r if seed % 2 else 1) * rng.integers(0, 2, 500)
    points = frontier_of(e, r)
    parts = frontier_of(e[200:], r[200:], frontier_of(e[:200], r[:200]))
    assert len(points) < 60
    for rtol in [0, *np.logspace(-8, 3, 40)]:
        needed = max((e - rtol * r).max(), 0)
        assert max(required_atol(points, rtol), 0) == pytest.approx(needed, abs=1e-11)
        assert max(required_atol(parts, rtol), 0) == pytest.approx(needed, abs=1e-11)
