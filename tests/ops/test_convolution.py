"""Convolutions and pooling with every attribute, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polytool.backends.native.ops.windows import windows
from tests.ops.conftest import Call
from tests.ops.one_node import Case, check, sweep

Rng = np.random.Generator


def floats(rng: Rng, *dims: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(dims).astype(np.float32)


def ints(rng: Rng, low: int, high: int, count: int) -> list[int]:
    return rng.integers(low, high, count).tolist()


def draw_conv(rng: Rng) -> Iterator[Case]:
    rank, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 4]))
    per_group, filters = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel = ints(rng, 1, 4, rank)
    attrs: dict[str, Any] = {"group": group, "strides": ints(rng, 1, 4, rank)}
    if rng.integers(2):
        attrs |= {"pads": ints(rng, 0, 3, 2 * rank), "dilations": ints(rng, 1, 3, rank)}
    else:
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    x = floats(rng, 2, group * per_group, *ints(rng, 5, 10, rank))
    w = floats(rng, group * filters, per_group, *kernel)
    bias = [floats(rng, group * filters)] if rng.integers(2) else []
    yield Case("Conv", [x, w, *bias], attrs, opset=11)


def draw_conv_transpose(rng: Rng) -> Iterator[Case]:
    rank, group = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    per_group, filters = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    size, kernel = ints(rng, 2, 6, rank), ints(rng, 1, 4, rank)
    strides, dilations = ints(rng, 1, 4, rank), ints(rng, 1, 3, rank)
    attrs: dict[str, Any] = {"group": group, "strides": strides, "dilations": dilations}
    kind = rng.integers(3)
    if kind == 0:
        attrs["pads"] = ints(rng, 0, 2, 2 * rank)
        attrs["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    elif kind == 1:
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    else:
        geometry = zip(size, strides, kernel, dilations, strict=True)
        full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in geometry]
        attrs["output_shape"] = [max(n - int(rng.integers(0, 3)), 1) for n in full]
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "NOTSET"]))
    x, w = (
        floats(rng, 2, group * per_group, *size),
        floats(rng, group * per_group, filters, *kernel),
    )
    bias = [floats(rng, group * filters)] if rng.integers(2) else []
    yield Case("ConvTranspose", [x, w, *bias], attrs, opset=11)


def draw_pool(rng: Rng) -> Iterator[Case]:
    rank, op = int(rng.integers(1, 4)), str(rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    kernel = ints(rng, 1, 4, rank)
    attrs: dict[str, Any] = {"kernel_shape": kernel, "ceil_mode": int(rng.integers(2))}
    if rng.integers(2):
        attrs["strides"] = ints(rng, 1, 4, rank)
        attrs["dilations"] = ints(rng, 1, 3, rank)
        attrs["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    else:  # ONNX Runtime refuses the negative padding of strides above the kernel's size
        attrs["strides"] = [int(rng.integers(1, k + 1)) for k in kernel]
        attrs["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    outputs = 1
    x = floats(rng, 2, 3, *ints(rng, 6, 10, rank))
    if op == "AveragePool":
        attrs["count_include_pad"] = int(rng.integers(2))
    elif op == "LpPool":
        attrs["p"] = int(rng.integers(1, 4))
    elif rng.integers(2):
        outputs, attrs["storage_order"] = 2, int(rng.integers(2))
        x = np.round(x * 2)  # equals: the first in memory wins
    elif rng.integers(2):
        x = rng.integers(-20, 20, x.shape).astype(np.int8)
    yield Case(op, [x], attrs, outputs, opset=18 if op == "LpPool" else 22)


DRAWS = [draw_conv, draw_conv_transpose, draw_pool]


@pytest.mark.ort
@pytest.mark.parametrize("draw", DRAWS)
def test_random_geometry_gives_what_onnxruntime_gives(draw: Any) -> None:
    sweep(draw, range(40))


@pytest.mark.ort
@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
def test_much_random_geometry_gives_what_onnxruntime_gives(draw: Any) -> None:
    sweep(draw, range(1000, 1400))


@pytest.mark.ort
def test_global_pools() -> None:
    x = floats(np.random.default_rng(0), 2, 3, 4, 5)
    check(
        Case("GlobalAveragePool", [x]),
        Case("GlobalMaxPool", [x]),
        Case("GlobalLpPool", [x], {"p": 3}, opset=2),
        Case("GlobalMaxPool", [x[:, :, 0]]),
    )


@pytest.mark.ort
def test_deformable_convolution() -> None:
    rng = np.random.default_rng(0)
    grouped = [floats(rng, 2, 4, 6, 7), floats(rng, 6, 2, 3, 3), floats(rng, 2, 36, 4, 5)]
    weighted = [*grouped, floats(rng, 6), floats(rng, 2, 18, 4, 5)]
    padded = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    wild = [floats(rng, 2, 4, 6, 7), floats(rng, 6, 4, 3, 3), 3 * floats(rng, 2, 18, 3, 4)]
    check(
        Case("DeformConv", weighted, {"group": 2, "offset_group": 2}, opset=19, atol=1e-4),
        Case("DeformConv", wild, padded, opset=19, atol=1e-4),
    )


@pytest.mark.ort
def test_blocks_are_added_up_to_images() -> None:
    rng = np.random.default_rng(0)
    geometry = {"dilations": [2, 1], "strides": [2, 3], "pads": [0, 1, 0, 0]}
    size, block = np.array([5, 5]), np.array([2, 2])
    check(
        Case("Col2Im", [floats(rng, 2, 18, 16), np.array([5, 6]), np.array([2, 3])], opset=18),
        Case("Col2Im", [floats(rng, 2, 12, 4), size, block], geometry, opset=18),
    )


@pytest.mark.ort
def test_windows_that_are_larger_than_the_number_of_places() -> None:
    rng = np.random.default_rng(0)
    x, wide = (
        floats(rng, 2, 3, 9, 8),
        {"strides": [2, 1], "dilations": [2, 1], "pads": [1, 0, 0, 2]},
    )
    size, block = np.array([9, 8]), np.array([6, 7])
    check(
        Case("Conv", [x, floats(rng, 6, 1, 4, 6)], {"group": 3, **wide}, opset=11),
        Case("ConvTranspose", [x[:, :, :2, :3], floats(rng, 3, 2, 5, 4)], wide, opset=11),
        Case("ConvTranspose", [x[:, :, :2, :1], floats(rng, 3, 2, 3, 4)], {"strides": [3, 4]}),
        Case("Col2Im", [floats(rng, 2, 84, 8), size, block], opset=18),
    )


def test_integer_convolution_is_exact_where_float32_is_not(call: Call) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 700, 5, 5)).astype(np.uint8)
    w = rng.integers(1, 128, (4, 700, 3, 3)).astype(np.int8)
    windows_of_x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,mcij->nmhw", windows_of_x.astype(np.int64), w.astype(np.int64))
    assert exact.min() > 1 << 24
    y = call("ConvInteger", x, w)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, exact)


def test_integer_accumulation_wraps_like_int32(call: Call) -> None:
    length = (1 << 31) // (255 * 255) + 10
    a, b = np.full((1, length), 255, np.uint8), np.full((length, 1), 255, np.uint8)
    y = call("MatMulInteger", a, b)
    assert y.item() == (255 * 255 * length) - (1 << 32)


def test_max_pool_keeps_nan_with_and_without_indices(call: Call) -> None:
    x = np.array([[[1, np.nan, 0, 5]]], dtype=np.float32)
    plain = call("MaxPool", x, kernel_shape=[2], n_outputs=1)
    values, index = call("MaxPool", x, kernel_shape=[2], n_outputs=2)
    np.testing.assert_array_equal(plain, [[[np.nan, np.nan, 5]]])
    np.testing.assert_array_equal(values, plain)
    assert index[0, 0, 2] == 3


def test_a_window_that_starts_behind_the_padded_input_is_dropped() -> None:
    assert windows([4], [1], [3], pads=[0, 1], ceil_mode=True).out == (2,)
    assert windows([4], [2], [3], ceil_mode=True).out == (2,)
    assert windows([4], [1], [2], ceil_mode=True).out == (2,)


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 0, 5, 5)])
def test_empty_images_give_empty_or_zero_images(call: Call, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, dtype=np.float32)
    y = call("Conv", x, np.ones((3, shape[1], 3, 3), np.float32), pads=[1, 1, 1, 1])
    assert y.shape == (shape[0], 3, *shape[2:])
    assert not y.any()
