"""Cast and BitCast: rounding once, saturation, wrap-around, strings."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import polytool
from polytool.backends.native.numerics import store
from polytool.errors import PolytoolError
from polytool.tensors import DType

Call = Any
INF, NAN = np.inf, np.nan


def cast(call: Call, x: Any, to: DType, **attrs: Any) -> Any:
    """What the executor stores."""
    value = call("Cast", x, to=int(to), out_dtypes=(to,), **attrs)
    with np.errstate(all="ignore"):
        return store(value, to, wide=False)


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("to", "largest", "beyond"),
    [
        (DType.FLOAT8E4M3FN, 448, NAN),
        (DType.FLOAT8E4M3FNUZ, 240, NAN),
        (DType.FLOAT8E5M2, 57344, INF),
        (DType.FLOAT8E5M2FNUZ, 57344, NAN),
    ],
)
def test_float8_saturates_unless_told_otherwise(
    call: Call, source: Any, to: DType, largest: float, beyond: float
) -> None:
    x = np.array([1e6, INF, NAN, largest, 0.3], source)
    nearest = 0.3125
    saturated = cast(call, x, to).astype(np.float32)
    np.testing.assert_array_equal(saturated, np.float32([largest, largest, NAN, largest, nearest]))
    plain = cast(call, -x, to, saturate=0).astype(np.float32)
    np.testing.assert_array_equal(plain, -np.float32([beyond, beyond, NAN, largest, nearest]))


@pytest.mark.parametrize(
    ("mode", "saturate", "expected"),
    [
        ("up", 1, [2.0**-127, 1, 2, 2, 2, 4, 2.0**127, 2.0**127, NAN]),
        ("nearest", 1, [2.0**-127, 1, 1, 2, 2, 4, 2.0**127, 2.0**127, NAN]),
        ("down", 1, [2.0**-127, 1, 1, 1, 1, 2, 2.0**127, 2.0**127, NAN]),
        ("nearest", 0, [NAN, 1, 1, 2, 2, 4, NAN, NAN, NAN]),
    ],
)
def test_float8e8m0_rounds_as_asked(
    call: Call, mode: str, saturate: int, expected: list[float]
) -> None:
    x = np.float32([0, 1, 1.25, 1.5, 1.75, 3, 3e38, INF, NAN])
    result = cast(call, x, DType.FLOAT8E8M0, round_mode=mode, saturate=saturate)
    np.testing.assert_array_equal(result.astype(np.float64), expected)


@pytest.mark.parametrize(
    "to",
    [
        *(DType.FLOAT8E4M3FN, DType.FLOAT8E5M2, DType.FLOAT4E2M1),
        *(DType.FLOAT6E2M3, DType.FLOAT6E3M2),
    ],
)
def test_float64_is_rounded_once(call: Call, to: DType) -> None:
    codes = np.arange(1 << to.bits, dtype=np.uint8).view(to.numpy).astype(np.float64)
    values = np.unique(codes[np.isfinite(codes)])
    midpoints = (values[1:] + values[:-1]) / 2
    tiny = np.abs(midpoints) * 2.0**-40 + 2.0**-140
    above = cast(call, midpoints + tiny, to).astype(np.float64)
    below = cast(call, midpoints - tiny, to).astype(np.float64)
    np.testing.assert_array_equal(above, values[1:])
    np.testing.assert_array_equal(below, values[:-1])


@pytest.mark.parametrize("to", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT])
def test_large_integers_are_rounded_once(call: Call, to: DType) -> None:
    x = np.array([2**24 + 1, 2**25 + 3, -(2**31) + 65, 2**53 - 1, 1025], np.int64)
    with np.errstate(all="ignore"):
        exact = np.array([float(to.numpy.type(np.float64(v))) for v in x.tolist()])
    if to is DType.FLOAT:
        x = np.append(x, [2**62 + 2**38 + 1, -(2**63)])  # float64 would round on the way
        exact = np.append(exact, [2.0**62 + 2.0**39, -(2.0**63)])
    np.testing.assert_array_equal(cast(call, x, to).astype(np.float64), exact)


@pytest.mark.parametrize(
    ("x", "to", "expected"),
    [
        (np.int16([200, -129]), DType.INT8, [-56, 127]),
        (np.int64([2**40 + 5, -1]), DType.UINT32, [5, 2**32 - 1]),
        (np.float32([3.9, -3.9]), DType.INT32, [3, -3]),
        (np.float32([0.0, -0.0, 0.1, NAN, INF]), DType.BOOL, [0, 0, 1, 1, 1]),
        (np.array([True, False]), DType.FLOAT, [1, 0]),
        (np.float32([7, -8, 3]), DType.INT4, [7, -8, 3]),
        (np.array([-8, 7], ml_dtypes.int4), DType.INT8, [-8, 7]),
        (np.array([-2, 1], ml_dtypes.int2), DType.FLOAT, [-2, 1]),
        (np.array([6, -0.5], ml_dtypes.float4_e2m1fn), DType.INT32, [6, 0]),
    ],
)
def test_numbers_convert(call: Call, x: Any, to: DType, expected: list[float]) -> None:
    result = cast(call, x, to)
    assert result.dtype == to.numpy
    assert result.astype(np.float64).tolist() == expected


def test_strings_are_read(call: Call) -> None:
    texts = np.array([["100.5", "1e-5", "+INF"], ["-inf", "NaN", " 7 "]], object)
    expected = np.float32([[100.5, 1e-5, INF], [-INF, NAN, 7]])
    np.testing.assert_array_equal(cast(call, texts, DType.FLOAT), expected)
    whole = np.array(["100.5", "-7", "9223372036854775807"], object)
    assert cast(call, whole, DType.INT64).tolist() == [100, -7, 2**63 - 1]
    assert cast(call, np.array(["300", "-1"], object), DType.UINT8).tolist() == [44, 255]


@pytest.mark.ort
def test_strings_are_written_as_onnxruntime_writes_them(call: Call) -> None:
    ort = pytest.importorskip("onnxruntime")
    values = [0.1, 1 / 3, 314.15926, 1e10, 123456789.0, 3.0, NAN, INF, -INF, -0.0, 1e-7, 1234567.9]
    for x in (np.float32(values), np.float64(values), np.int64([1, -5]), np.array([True, False])):
        name = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 19]>'
            f"g ({DType(name).name.lower()}[N] x) => (string[N] y) {{ y = Cast<to=8>(x) }}"
        )
        session = ort.InferenceSession(model.SerializeToString())
        expected = session.run(None, {"x": x})[0]
        assert cast(call, x, DType.STRING).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("x", "to"),
    [
        (np.float16([1.5, -0.0, 65504, 6e-8]), DType.UINT16),
        (np.array([1.5, 3e38], ml_dtypes.bfloat16), DType.INT16),
        (np.uint16([0x3E00, 0xFFFF, 1]), DType.FLOAT16),
        (np.float32([1.5, -2]), DType.INT32),
        (np.array([7, -8], ml_dtypes.int4), DType.UINT4),
        (np.array([15, 3], ml_dtypes.uint4), DType.INT4),
        (np.array([1.5, -6], ml_dtypes.float4_e2m1fn), DType.UINT4),
        (np.array([1.5, -6], ml_dtypes.float8_e4m3fn), DType.UINT8),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp64"])
def test_bits_are_kept(x: Any, to: DType, precision: str) -> None:
    source = DType.of(x)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("BitCast", ["x"], ["y"], to=int(to))],
        "g",
        [onnx.helper.make_tensor_value_info("x", int(source), x.shape)],
        [onnx.helper.make_tensor_value_info("y", int(to), x.shape)],
    )
    opsets = [onnx.helper.make_opsetid("", 26)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    with polytool.runner("native", model, precision=precision) as runner:
        result = runner.infer({"x": x})["y"]
    bits = np.uint16 if source.bits == 16 else np.uint32 if source.bits == 32 else np.uint8
    mask = (1 << source.bits) - 1
    assert (result.view(bits) & mask).tolist() == (x.view(bits) & mask).tolist()
    assert result.dtype == to.numpy


def test_bits_of_another_size_are_refused(call: Call) -> None:
    with pytest.raises(PolytoolError, match="types of one size"):
        call(
            "BitCast",
            np.float32([1]),
            to=int(DType.INT64),
            in_dtypes=(DType.FLOAT,),
            out_dtypes=(DType.INT64,),
        )


@pytest.mark.parametrize("to", [DType.FLOAT16, DType.BFLOAT16])
def test_doubles_are_rounded_once_to_what_is_stored(call: Call, to: DType) -> None:
    step = 2.0**-10 if to is DType.FLOAT16 else 2.0**-7
    x = np.array([1 + step / 2 + 1e-12, 1 + step * 1.5 - 1e-12, -1 - step / 2 - 1e-12, 1e300, NAN])
    expected = np.float32([1 + step, 1 + step, -1 - step, INF, NAN])
    stored = cast(call, x, to)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, expected)
