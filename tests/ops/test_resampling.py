"""Resize, Upsample, GridSample, region pooling and suppression, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polytool.errors import ModelError
from tests.ops.conftest import Call
from tests.ops.one_node import Case, check, native, sweep

Rng = np.random.Generator
COORDINATES = [
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def floats(rng: Rng, *dims: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(dims).astype(np.float32)


def draw_resize(rng: Rng) -> Iterator[Case]:
    mode, coordinates = (
        str(rng.choice(["nearest", "linear", "cubic"])),
        str(rng.choice(COORDINATES)),
    )
    rank = 3 if mode == "nearest" and rng.integers(2) else 2
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    size = rng.integers(4, 9, rank).tolist()
    roi = None
    if mode == "nearest":
        attrs["nearest_mode"] = str(rng.choice(ROUNDING))
    elif mode == "cubic":
        attrs |= {"exclude_outside": int(rng.integers(2)), "cubic_coeff_a": -0.5}
    if coordinates == "tf_crop_and_resize":
        roi = np.array([0, 0, *[0.125] * rank, 1, 1, *[1.25] * rank], dtype=np.float32)
        attrs["extrapolation_value"] = 3.0
    elif mode != "nearest" and rng.integers(2):
        attrs["antialias"] = 1
    x = floats(rng, 1, 2, *size)
    crops = roi is not None  # where no size changes, ONNX Runtime forgets the region
    if coordinates == "align_corners" or rng.integers(2):
        # With scales, ONNX Runtime aligns the corners of the rounded size: see below.
        wanted = rng.integers(2, 14, rank)
        sizes = np.array([1, 2, *(wanted + (wanted == size) * crops)], dtype=np.int64)
        yield Case("Resize", [x, roi, None, sizes], attrs, opset=19, atol=1e-4)
    else:
        exact = crops or mode == "nearest"  # else a tie may hang on the last bit
        factors = rng.choice([0.5, 2, 4] if exact else [0.5, 0.6, 1.3, 2, 3], rank)
        scales = np.array([1, 1, *factors], dtype=np.float32)
        yield Case("Resize", [x, roi, scales], attrs, opset=19, atol=1e-4)


def draw_grid_sample(rng: Rng) -> Iterator[Case]:
    rank = int(rng.integers(2, 4))
    modes = ["linear", "nearest", "cubic"] if rank == 2 else ["linear", "nearest"]
    attrs = {
        "mode": str(rng.choice(modes)),
        "padding_mode": str(rng.choice(["zeros", "border", "reflection"])),
        "align_corners": int(rng.integers(2)),
    }
    grid = rng.uniform(-1.7, 1.7, (2, *[3] * rank, rank)).astype(np.float32)
    x = floats(rng, 2, 3, *rng.integers(2, 6, rank).tolist())
    yield Case("GridSample", [x, grid], attrs, opset=20, atol=1e-4)


def draw_regions(rng: Rng) -> Iterator[Case]:
    x, images = floats(rng, 2, 3, 9, 11), np.array([0, 1, 0, 1])
    corners = np.sort(rng.uniform(-2, 14, (4, 2, 2)), axis=1).reshape(4, 4).astype(np.float32)
    attrs = {
        "mode": str(rng.choice(["avg", "max"])),
        "output_height": int(rng.integers(1, 4)),
        "output_width": int(rng.integers(1, 4)),
        "sampling_ratio": int(rng.integers(0, 3)),
        "spatial_scale": float(rng.choice([0.5, 1.0])),
        "coordinate_transformation_mode": str(rng.choice(["half_pixel", "output_half_pixel"])),
    }
    yield Case("RoiAlign", [x, corners, images], attrs, opset=16, atol=1e-4)
    rois = np.concatenate([images[:, None], np.round(np.abs(corners))], axis=1).astype(np.float32)
    pooled = {"pooled_shape": rng.integers(1, 4, 2).tolist(), "spatial_scale": 0.5}
    yield Case("MaxRoiPool", [x, rois], pooled)


def draw_suppression(rng: Rng) -> Iterator[Case]:
    boxes = rng.uniform(0, 10, (2, 20, 4)).astype(np.float32)
    scores = np.round(rng.uniform(0, 1, (2, 3, 20)), 1).astype(np.float32)  # many equal ones
    inputs = [boxes, scores, np.array([int(rng.choice([3, 20]))])]
    inputs.append(np.array([rng.choice([0, 0.1, 0.5])], dtype=np.float32))
    if rng.integers(2):
        inputs.append(np.array([0.3], dtype=np.float32))
    box = {"center_point_box": int(rng.integers(2))}
    yield Case("NonMaxSuppression", inputs, box, opset=11)


DRAWS = [draw_resize, draw_grid_sample, draw_regions, draw_suppression]


@pytest.mark.ort
@pytest.mark.parametrize("draw", DRAWS)
def test_random_attributes_give_what_onnxruntime_gives(draw: Any) -> None:
    sweep(draw, range(40))


@pytest.mark.ort
@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
def test_many_random_attributes_give_what_onnxruntime_gives(draw: Any) -> None:
    sweep(draw, range(1000, 1400))


@pytest.mark.ort
@pytest.mark.parametrize("scale", [0.5, 0.6, 1.5, 2.0])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_forms_give_what_onnxruntime_gives(mode: str, scale: float) -> None:
    x = floats(np.random.default_rng(0), 1, 2, 5, 7)
    scales = np.array([1, 1, scale, scale], dtype=np.float32)
    cases = [Case("Resize", [x, scales], {"mode": mode}, opset=10)]
    if scale >= 1:
        cases.append(Case("Upsample", [x, scales], {"mode": mode}, opset=9))
        cases.append(Case("Upsample", [x], {"mode": mode, "scales": scales.tolist()}, opset=7))
    check(*cases)


@pytest.mark.ort
def test_old_sampling_forms_give_what_onnxruntime_gives() -> None:
    rng = np.random.default_rng(0)
    x, rois = floats(rng, 2, 3, 9, 11), np.array([[0, 0, 5, 5], [1, 2, 9, 7]], dtype=np.float32)
    bins = {"output_height": 2, "output_width": 3}
    grid = rng.uniform(-1.5, 1.5, (2, 3, 4, 2)).astype(np.float32)
    check(
        Case("RoiAlign", [x, rois, np.array([0, 1])], bins, opset=10),
        *(Case("GridSample", [x, grid], {"mode": m}, opset=16) for m in ("bilinear", "bicubic")),
    )


@pytest.mark.ort
@pytest.mark.parametrize("align_corners", [0, 1])
def test_affine_grids(align_corners: int) -> None:
    rng, attrs = np.random.default_rng(0), {"align_corners": align_corners}
    check(
        Case("AffineGrid", [floats(rng, 2, 2, 3), np.array([2, 3, 4, 5])], attrs, opset=20),
        Case("AffineGrid", [floats(rng, 2, 3, 4), np.array([2, 3, 4, 5, 6])], attrs, opset=20),
    )


def test_upsample_1_scales_height_and_width() -> None:
    x = floats(np.random.default_rng(0), 1, 2, 3, 4)
    attrs = {"height_scale": 2.0, "width_scale": 3.0, "mode": "nearest"}
    (y,) = native(Case("Upsample", [x], attrs, opset=1))
    np.testing.assert_array_equal(y, x.repeat(2, axis=2).repeat(3, axis=3))


def test_a_coordinate_on_the_last_bit_of_float32_falls_where_onnxruntime_puts_it(
    call: Call,
) -> None:
    # 3 / 0.6 is 4.9999998 in float64 of the float32 scale, and 5 in float32
    x = np.arange(10, dtype=np.float32)
    y = call(
        "Resize",
        x,
        None,
        np.array([0.6], np.float32),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    assert y.tolist() == [0, 1, 3, 5, 6, 8]


def test_aligned_corners_with_scales_follow_the_length_before_rounding(call: Call) -> None:
    # as the conformance suite has it; ONNX Runtime gives 0, 3
    x, scales = np.arange(4, dtype=np.float32), np.array([0.6], np.float32)
    y = call(
        "Resize", x, None, scales, mode="linear", coordinate_transformation_mode="align_corners"
    )
    np.testing.assert_allclose(y, [0, 3 / 1.4], rtol=1e-6)


def test_integers_are_truncated_and_antialiased_ones_rounded(call: Call) -> None:
    x, sizes = np.array([10, 13], np.uint8), np.array([3])
    plain = call("Resize", x, None, None, sizes, mode="linear")
    assert (plain.dtype, plain.tolist()) == (np.uint8, [10, 11, 13])
    down = call("Resize", x, None, None, np.array([1]), mode="linear", antialias=1)
    assert down.tolist() == [12]  # 11.5, half to even


def test_text_is_resized_by_its_nearest_neighbours(call: Call) -> None:
    x = np.array(["a", "b"], dtype=object)
    assert call("Resize", x, None, None, np.array([4])).tolist() == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"mode": "lanczos"}, "no mode 'lanczos'"),
        ({"nearest_mode": "up"}, "no nearest_mode 'up'"),
        ({"coordinate_transformation_mode": "polar"}, "'polar'"),
    ],
)
def test_unknown_modes_are_errors(call: Call, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call("Resize", np.ones(2, np.float32), None, None, np.array([4]), **attrs)


def test_no_box_is_selected_without_a_limit(call: Call) -> None:
    boxes, scores = np.ones((1, 3, 4), np.float32), np.ones((1, 1, 3), np.float32)
    assert call("NonMaxSuppression", boxes, scores).shape == (0, 3)
    assert call("NonMaxSuppression", boxes, scores, np.array([2])).shape == (2, 3)
