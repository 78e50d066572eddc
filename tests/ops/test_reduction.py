"""Reductions, running sums and softmax: empty sets, integers, large values, NumPy as witness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

Call = Any
AXES = np.array([1], np.int64)
WITNESS = {
    "ReduceSum": lambda x, **k: x.sum(**k),
    "ReduceMean": lambda x, **k: x.mean(**k),
    "ReduceProd": lambda x, **k: x.prod(**k),
    "ReduceMax": lambda x, **k: x.max(**k),
    "ReduceMin": lambda x, **k: x.min(**k),
    "ReduceL1": lambda x, **k: np.abs(x).sum(**k),
    "ReduceL2": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "ReduceSumSquare": lambda x, **k: (x * x).sum(**k),
    "ReduceLogSum": lambda x, **k: np.log(x.sum(**k)),
    "ReduceLogSumExp": lambda x, **k: np.log(np.exp(x).sum(**k)),
}


@pytest.mark.parametrize("op", WITNESS)
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("axes", [None, [0], [-1, 0], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(call: Call, op: str, kind: Any, axes: Any, keepdims: int) -> None:
    x = np.random.default_rng(0).uniform(1, 4, (2, 3, 4)).astype(kind)
    given = [] if axes is None else [np.array(axes, np.int64)]
    result = call(op, x, *given, keepdims=keepdims)
    along = None if axes is None else tuple(axes)
    expected = WITNESS[op](x.astype(float), axis=along, keepdims=bool(keepdims))
    assert isinstance(result, np.ndarray)
    assert result.dtype == kind
    assert result.shape == expected.shape
    expected = expected if result.dtype.kind == "f" else np.trunc(expected + 1e-9)
    np.testing.assert_allclose(result, expected, 1e-5)


@pytest.mark.parametrize(
    ("op", "value"),
    [
        *(("ReduceSum", 0), ("ReduceProd", 1), ("ReduceL1", 0), ("ReduceL2", 0)),
        *(("ReduceSumSquare", 0), ("ReduceLogSum", -np.inf), ("ReduceLogSumExp", -np.inf)),
        *(("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceMean", np.nan)),
    ],
)
def test_reductions_of_nothing(call: Call, op: str, value: float) -> None:
    result = call(op, np.zeros((2, 0, 3), np.float32), AXES, keepdims=0)
    np.testing.assert_array_equal(result, np.full((2, 3), value, np.float32))
    assert call(op, np.zeros((0, 4), np.float32), AXES).shape == (0, 1)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_extremes_of_nothing_are_those_of_the_type(call: Call, kind: Any) -> None:
    x = np.zeros((2, 0), kind)
    low, high = (False, True) if kind is np.bool_ else (np.iinfo(kind).min, np.iinfo(kind).max)
    assert call("ReduceMax", x, AXES).ravel().tolist() == [low] * 2
    assert call("ReduceMin", x, AXES).ravel().tolist() == [high] * 2


@pytest.mark.parametrize("op", WITNESS)
def test_no_axes_may_mean_none(call: Call, op: str) -> None:
    x = np.float32([[1, 2], [3, 4]])
    none = np.zeros(0, np.int64)
    each = call(op, x, none, noop_with_empty_axes=1)
    np.testing.assert_allclose(each, WITNESS[op](x[..., None], axis=-1), 1e-6)
    np.testing.assert_allclose(call(op, x, noop_with_empty_axes=1), each)
    assert call(op, x, none).shape == (1, 1)


def test_small_integers_wrap_around(call: Call) -> None:
    result = call("ReduceSum", np.array([200, 100], np.uint8), keepdims=0)
    assert (result.dtype, result.item()) == (np.dtype(np.uint8), 44)


def test_log_sum_exp_does_not_overflow(call: Call) -> None:
    x = np.float32([[1000, 1000], [-1000, -1000], [np.inf, 0], [-np.inf, -np.inf]])
    expected = [1000 + np.log(2), -1000 + np.log(2), np.inf, -np.inf]
    np.testing.assert_allclose(call("ReduceLogSumExp", x, AXES, keepdims=0), expected, 1e-6)


def test_positions_of_equal_extremes(call: Call) -> None:
    x = np.int32([[2, 7, 7, 1], [3, 3, 1, 1]])
    assert call("ArgMax", x, axis=1, keepdims=0).tolist() == [1, 0]
    assert call("ArgMax", x, axis=-1, keepdims=0, select_last_index=1).tolist() == [2, 1]
    assert call("ArgMin", x, axis=1, select_last_index=1).tolist() == [[3], [3]]
    scalar = call("ArgMax", x[0], axis=0, keepdims=0)
    assert (type(scalar), scalar.shape, scalar.dtype) == (np.ndarray, (), np.dtype(np.int64))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_running_sums_and_products(call: Call, kind: Any) -> None:
    x, axis = np.array([[1, 2, 3], [4, 5, 6]], kind), np.array(1)
    assert call("CumSum", x, axis).tolist() == [[1, 3, 6], [4, 9, 15]]
    assert call("CumSum", x, axis, exclusive=1).tolist() == [[0, 1, 3], [0, 4, 9]]
    assert call("CumSum", x, axis, reverse=1).tolist() == [[6, 5, 3], [15, 11, 6]]
    assert call("CumSum", x, np.array(-1), exclusive=1, reverse=1)[0].tolist() == [5, 3, 0]
    assert call("CumProd", x, axis, exclusive=1, reverse=1)[0].tolist() == [6, 3, 1]
    assert call("CumSum", x, axis).dtype == kind
    assert call("CumSum", x[:, :0], axis, exclusive=1).shape == (2, 0)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_large_values_and_of_nothing(call: Call, op: str) -> None:
    x = np.float32([[1e4, 1e4], [-1e4, 0]])
    expected = {
        "Softmax": [[0.5, 0.5], [0, 1]],
        "LogSoftmax": [[-np.log(2), -np.log(2)], [-1e4, 0]],
        "Hardmax": [[1, 0], [0, 1]],
    }[op]
    np.testing.assert_allclose(call(op, x), expected, 1e-6)
    np.testing.assert_allclose(call(op, x.T, axis=0), np.transpose(expected), 1e-6)
    assert call(op, np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert call(op, np.zeros((3, 0), np.float32)).shape == (3, 0)
