"""Gather, Scatter, Slice, TopK, Unique: negative indices, duplicates, ties, clamping, strings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from polytool.errors import PolytoolError

Call = Any


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def test_gather_counts_from_the_end_and_keeps_types(call: Call) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(call("Gather", x, ints(-1, 0)), x[[-1, 0]])
    np.testing.assert_array_equal(
        call("Gather", x, np.array([[1], [-4]]), axis=-1), x[:, [[1], [0]]]
    )
    words = np.array(["a", "b"], object)
    for index in (np.array(1), np.array(-1, np.int32)):
        one = call("Gather", words, index)
        assert (type(one), one.shape, one.dtype, one.item()) == (np.ndarray, (), object, "b")
    with pytest.raises(IndexError):
        call("Gather", x, ints(3))


def test_gather_elements_with_fewer_indices_than_data(call: Call) -> None:
    x = np.arange(12).reshape(3, 4)
    assert call("GatherElements", x, np.array([[1, -1]]), axis=0).tolist() == [[4, 9]]
    assert call("GatherElements", x, np.array([[3], [0]]), axis=1).tolist() == [[3], [4]]


def test_gather_nd_with_batches(call: Call) -> None:
    x = np.arange(24).reshape(2, 3, 4)
    assert call("GatherND", x, np.array([[1, 2, -1], [0, 0, 0]])).tolist() == [23, 0]
    assert call("GatherND", x, np.array([[1], [-1]]), batch_dims=1).tolist() == [
        x[0, 1].tolist(),
        x[1, 2].tolist(),
    ]
    indices = np.array([[[1, 0], [2, 3]], [[0, 1], [0, 0]]])
    expected = [[x[b, i, j] for i, j in indices[b]] for b in range(2)]
    assert call("GatherND", x, indices, batch_dims=1).tolist() == expected
    scalar = call("GatherND", x, ints(1, 1, 1))
    assert (type(scalar), scalar.shape) == (np.ndarray, ())


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("add", [1, 24, 24]), ("mul", [1, 240, 63]), ("max", [1, 12, 21]), ("min", [1, 2, 3])],
)
def test_scatter_reduces_over_repeated_indices(call: Call, reduction: str, expected: Any) -> None:
    x, updates = np.float32([1, 2, 3]), np.float32([10, 12, 21])
    found = call("ScatterElements", x, ints(1, -2, 2), updates, reduction=reduction)
    assert found.tolist() == expected
    found = call("ScatterND", x, np.array([[1], [-2], [2]]), updates, reduction=reduction)
    assert found.tolist() == expected
    assert x.tolist() == [1, 2, 3]


def test_scatter_moves_along_its_axis(call: Call) -> None:
    x = np.zeros((2, 3), np.int32)
    found = call("ScatterElements", x, np.array([[2], [0]]), np.int32([[5], [6]]), axis=1)
    assert found.tolist() == [[0, 0, 5], [6, 0, 0]]
    found = call("ScatterND", x, np.array([[1]]), np.int32([[7, 8, 9]]))
    assert found.tolist() == [[0, 0, 0], [7, 8, 9]]


@pytest.mark.parametrize("length", [0, 1, 4, 5])
@pytest.mark.parametrize("step", [1, 2, -1, -2])
def test_slice_clamps_as_specified(call: Call, length: int, step: int) -> None:
    x = np.arange(length)
    bounds = [-(2**63), -9, -length - 1, -length, -2, -1, 0, 1, length, length + 1, 2**63 - 1]
    for start, end in itertools.product(bounds, bounds):
        low, high = (0, length) if step > 0 else (0, length - 1)
        first = min(max(start + length if start < 0 else start, low), high)
        low, high = (0, length) if step > 0 else (-1, length - 1)
        last = min(max(end + length if end < 0 else end, low), high)
        expected = list(range(first, last, step)) if length else []
        found = call("Slice", x, ints(start), ints(end), ints(0), ints(step))
        assert found.tolist() == expected, (start, end)


def test_slice_of_some_axes(call: Call) -> None:
    x = np.arange(24).reshape(2, 3, 4)
    found = call("Slice", x, ints(0, 3), ints(1, 0), ints(-2, -1), ints(1, -2))
    np.testing.assert_array_equal(found, x[:, 0:1, 3:0:-2])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("length", [7, 1000])
@pytest.mark.parametrize("kind", [np.float32, np.int64, np.uint8])
def test_top_k_prefers_the_first_of_equals(
    call: Call, length: int, kind: Any, largest: int
) -> None:
    x = np.random.default_rng(0).integers(0, 50, (3, length, 2)).astype(kind)
    for k in (0, 1, 5):
        values, places = call("TopK", x, ints(k), axis=1, largest=largest)
        keys = -x.astype(np.int64) if largest else x.astype(np.int64)
        expected = np.argsort(keys, 1, kind="stable")[:, :k]
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(x, expected, 1))
        assert (values.dtype, places.dtype) == (kind, np.int64)


def test_top_k_of_more_than_there_is(call: Call) -> None:
    with pytest.raises(PolytoolError, match="5 of 4 elements along axis -1"):
        call("TopK", np.zeros((2, 4)), ints(5))


def test_top_k_of_extreme_values(call: Call) -> None:
    x = np.array([-128, 127, 0, -128], np.int8)
    assert call("TopK", x, ints(4))[1].tolist() == [1, 2, 0, 3]
    long = np.zeros(1000, np.float32)
    long[[10, 500]] = [-np.inf, np.inf]
    assert call("TopK", long, ints(3))[1].tolist() == [500, 0, 1]
    long[700] = np.nan
    values, places = call("TopK", long, ints(2))
    assert places.tolist() == [700, 500]
    assert np.isnan(values[0])


def test_unique(call: Call) -> None:
    x = np.float32([2, 1, 1, 3, 4, 3])
    ordered = [r.tolist() for r in call("Unique", x)]
    assert ordered == [[1, 2, 3, 4], [1, 0, 3, 4], [1, 0, 0, 2, 3, 2], [2, 1, 2, 1]]
    as_found = [r.tolist() for r in call("Unique", x, sorted=0)]
    assert as_found == [[2, 1, 3, 4], [0, 1, 3, 4], [0, 1, 1, 2, 3, 2], [1, 2, 2, 1]]
    rows = np.array([[1, 0], [1, 0], [0, 5]])
    values, first, inverse, counts = call("Unique", rows, axis=0, sorted=0)
    assert values.tolist() == [[1, 0], [0, 5]]
    assert (first.tolist(), inverse.tolist(), counts.tolist()) == ([0, 2], [0, 0, 1], [2, 1])
    words = call("Unique", np.array(["b", "a", "b"], object))
    assert (words[0].tolist(), words[0].dtype) == (["a", "b"], object)


def test_non_zero_and_compress(call: Call) -> None:
    assert call("NonZero", np.float32([[1, 0], [0, -2]])).tolist() == [[0, 1], [0, 1]]
    assert call("NonZero", np.zeros((2, 2))).shape == (2, 0)
    assert call("NonZero", np.array(5)).shape == (0, 1)
    assert call("NonZero", np.array(0)).shape == (0, 0)
    x = np.arange(6).reshape(3, 2)
    assert call("Compress", x, np.array([False, True]), axis=0).tolist() == [[2, 3]]
    assert call("Compress", x, np.array([True, False, True])).tolist() == [0, 2]


def test_reverse_sequence(call: Call) -> None:
    x = np.arange(12).reshape(4, 3)
    expected = x.copy()
    for column, length in enumerate([4, 1, 2]):
        expected[:length, column] = x[:length, column][::-1]
    np.testing.assert_array_equal(call("ReverseSequence", x, ints(4, 1, 2)), expected)
    flipped = call("ReverseSequence", x.T, ints(4, 1, 2), batch_axis=0, time_axis=1)
    np.testing.assert_array_equal(flipped, expected.T)


def test_one_hot(call: Call) -> None:
    values = np.float32([2, 5])
    found = call("OneHot", ints(0, -1, 3, -4), np.array(3), values)
    assert found.tolist() == [[5, 2, 2], [2, 2, 5], [2, 2, 2], [2, 2, 2]]
    assert call("OneHot", ints(1), ints(2), values, axis=0).tolist() == [[2], [5]]
    assert call("OneHot", np.float32([1]), np.array(2.0), values).tolist() == [[2, 5]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3), (0, 3), (3, 0)])
@pytest.mark.parametrize("k", [-5, -1, 0, 1, 5])
def test_triangles_as_numpy_cuts_them(call: Call, shape: tuple[int, ...], k: int) -> None:
    x = np.arange(1, 1 + int(np.prod(shape))).reshape(shape)
    np.testing.assert_array_equal(call("Trilu", x, np.array(k)), np.triu(x, k))
    np.testing.assert_array_equal(call("Trilu", x, np.array(k), upper=0), np.tril(x, k))


def test_caches_are_written_where_each_sample_says(call: Call) -> None:
    past, update = np.zeros((2, 1, 4, 1)), np.arange(1.0, 5).reshape(2, 1, 2, 1)
    linear = call("TensorScatter", past, update, ints(0, 2))
    assert linear[..., 0].tolist() == [[[1, 2, 0, 0]], [[0, 0, 3, 4]]]
    circular = call("TensorScatter", past, update, ints(3, 1), mode="circular")
    assert circular[..., 0].tolist() == [[[2, 0, 0, 1]], [[0, 3, 4, 0]]]
    assert call("TensorScatter", past, update)[..., 0].tolist() == [[[1, 2, 0, 0]], [[3, 4, 0, 0]]]
    assert not past.any()
