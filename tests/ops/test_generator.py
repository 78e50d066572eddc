"""Constants, ranges, random numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from polytool.tensors import DType

Call = Any


STEPS = [(0, 5, 1), (10, 4, -2), (10, 3, -2), (3, 3, 1), (5, 0, 1)]
FRACTIONS = [(0, 1, 0.3), (1, 0, -0.25)]


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        *((kind, n) for n in STEPS for kind in (np.int16, np.int32, np.int64)),
        *((kind, n) for n in STEPS + FRACTIONS for kind in (np.float32, np.float64)),
    ],
)
def test_ranges(call: Call, kind: Any, numbers: tuple[float, float, float]) -> None:
    result = call("Range", *(np.array(v, kind) for v in numbers))
    assert result.dtype == kind
    np.testing.assert_allclose(result, np.arange(*numbers), 1e-6)


def test_range_takes_vectors_of_one(call: Call) -> None:
    one = [np.array([v], np.int64) for v in (0, 3, 1)]
    assert call("Range", *one).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("attributes", "kind", "value"),
    [
        ({"value_float": 0.5}, np.float32, 0.5),
        ({"value_floats": [1.0, 2.0]}, np.float32, [1, 2]),
        ({"value_int": 3}, np.int64, 3),
        ({"value_ints": []}, np.int64, []),
        ({"value_string": "a"}, object, "a"),
        ({"value_strings": ["a", "b"]}, object, ["a", "b"]),
        ({"value": np.float16([1])}, np.float16, [1]),
    ],
)
def test_constants(call: Call, attributes: dict[str, Any], kind: Any, value: Any) -> None:
    result = call("Constant", **attributes)
    assert result.dtype == kind
    assert result.tolist() == value


@pytest.mark.parametrize("kind", [np.int8, np.float64, ml_dtypes.bfloat16, np.bool_])
def test_constants_of_a_shape(call: Call, kind: Any) -> None:
    value = np.array([1], kind)
    result = call("ConstantOfShape", np.array([2, 0, 3]), value=value)
    assert (result.shape, result.dtype) == ((2, 0, 3), value.dtype)
    assert call("ConstantOfShape", np.zeros(0, np.int64), value=value).shape == ()
    assert call("ConstantOfShape", np.array([2])).tolist() == [0, 0]


def test_identity_matrices(call: Call) -> None:
    x = np.zeros((2, 3), np.int32)
    result = call("EyeLike", x, k=1, out_dtypes=(DType.DOUBLE,))
    assert result.dtype == np.float64
    assert result.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_shapes_and_parts_of_them(call: Call) -> None:
    x = np.zeros((2, 3, 4))
    assert call("Shape", x).tolist() == [2, 3, 4]
    assert call("Shape", x, start=-2).tolist() == [3, 4]
    assert call("Shape", x, start=1, end=-1).tolist() == [3]
    assert call("Shape", x, start=2, end=1).tolist() == []
    assert call("Size", np.zeros((0, 3))).item() == 0
    assert call("Shape", np.zeros(())).tolist() == []


RANDOM = {
    "RandomNormal": {"shape": [200, 50], "mean": 2.0, "scale": 3.0},
    "RandomUniform": {"shape": [200, 50], "low": -1.0, "high": 3.0},
    "RandomNormalLike": {"mean": 2.0, "scale": 3.0},
    "RandomUniformLike": {"low": -1.0, "high": 3.0},
    "Bernoulli": {},
    "Multinomial": {"sample_size": 50},
}


@pytest.mark.parametrize("op", RANDOM)
@pytest.mark.parametrize("to", [DType.FLOAT, DType.DOUBLE, DType.INT32])
def test_seeded_numbers_are_the_same_and_others_new(call: Call, op: str, to: DType) -> None:
    x = [] if op in ("RandomNormal", "RandomUniform") else [np.full((200, 50), 0.3, np.float32)]
    draws = [
        call(op, *x, out_dtypes=(to,), seed=s, **RANDOM[op]) for s in (1.5, 1.5, 2.0, None, None)
    ]
    assert all(d.shape == (200, 50) and d.dtype == to.numpy for d in draws)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert (draws[3] != draws[4]).any()


def test_random_numbers_are_distributed_as_asked(call: Call) -> None:
    shape = {"shape": [100_000], "seed": 0.0, "out_dtypes": (DType.DOUBLE,)}
    normal = call("RandomNormal", mean=2.0, scale=3.0, **shape)
    assert abs(normal.mean() - 2) < 0.05
    assert abs(normal.std() - 3) < 0.05
    uniform = call("RandomUniform", low=-1.0, high=3.0, **shape)
    assert uniform.min() >= -1
    assert uniform.max() < 3
    assert abs(uniform.mean() - 1) < 0.02
    chances = np.array([[0.1, 0.9, 0.0, 1.0]] * 20_000, np.float32)
    drawn = call("Bernoulli", chances, seed=0.0, out_dtypes=(DType.FLOAT,))
    np.testing.assert_allclose(drawn.mean(0), [0.1, 0.9, 0, 1], atol=0.01)


def test_multinomial_draws_by_log_probability(call: Call) -> None:
    logits = np.float32([np.log([0.1, 0.6, 0.3]), [1, -np.inf, 1]]) + 100
    drawn = call("Multinomial", logits, sample_size=20_000, seed=3.0, out_dtypes=(DType.INT64,))
    share = np.stack([np.bincount(row, minlength=3) for row in drawn]) / 20_000
    np.testing.assert_allclose(share, [[0.1, 0.6, 0.3], [0.5, 0, 0.5]], atol=0.02)


def test_dropout_keeps_the_expected_value(call: Call) -> None:
    x = np.ones((1000, 100), np.float32)
    y, mask = call("Dropout", x, np.float32(0.25), np.array(True), seed=5)
    assert (y.dtype, mask.dtype) == (np.float32, np.bool_)
    assert abs(y.mean() - 1) < 0.01
    np.testing.assert_array_equal(y != 0, mask)
    for arguments in ((), (np.float32(0.9),), (np.float32(0.9), np.array(False))):
        y, mask = call("Dropout", x, *arguments)
        assert mask.all()
        np.testing.assert_array_equal(y, x)


def test_the_suites_reference_draws_the_same_uniform_numbers(call: Call) -> None:
    from onnx.reference import ReferenceEvaluator

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 15]>'
        "g () => (double[3,4] y) { y = RandomUniform<shape=[3,4], seed=7.0, dtype=11>() }"
    )
    expected = ReferenceEvaluator(model).run(None, {})[0]
    drawn = call("RandomUniform", shape=[3, 4], seed=7.0, out_dtypes=(DType.DOUBLE,))
    np.testing.assert_allclose(drawn, expected)
