"""Fourier transforms, windows, image decoding."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from polytool.errors import MissingDependencyError
from tests.ops.conftest import Call
from tests.ops.one_node import Case, check

Image = pytest.importorskip("PIL.Image")


def floats(*dims: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(list(dims)).standard_normal(dims).astype(np.float32)


@pytest.mark.ort
@pytest.mark.parametrize("length", [None, 6, 11])
def test_transforms_give_what_onnxruntime_gives(length: int | None) -> None:
    n = None if length is None else np.array(length)
    cases = []
    for parts, inverse, onesided in ((1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0)):
        attrs = {"inverse": inverse, "onesided": onesided}
        x = floats(2, 8, parts)
        cases.append(Case("DFT", [x, n], attrs | {"axis": 1}, opset=17, atol=1e-4))
        cases.append(Case("DFT", [x, n, np.array(-2)], attrs, opset=20, atol=1e-4))
    check(*cases)


@pytest.mark.ort
@pytest.mark.parametrize("onesided", [0, 1])
def test_frames_give_what_onnxruntime_gives(onesided: int) -> None:
    x, step, length = floats(2, 40, 1), np.array(5), np.array(16)
    check(
        Case("STFT", [x, step, floats(16)], {"onesided": onesided}, opset=17, atol=1e-4),
        Case("STFT", [x, step, None, length], {"onesided": onesided}, opset=17, atol=1e-4),
    )


@pytest.mark.ort
def test_mel_filters_give_what_onnxruntime_gives() -> None:
    edges = np.array(20, np.float32), np.array(3500, np.float32)
    counts = np.array(8), np.array(64), np.array(8000)
    check(Case("MelWeightMatrix", [*counts, *edges], opset=17))


def test_the_transform_and_its_inverse_are_one(call: Call) -> None:
    x = floats(3, 7, 1)
    spectrum = call("DFT", x, onesided=1)
    assert spectrum.shape == (3, 4, 2)
    back = call("DFT", spectrum, np.array(7), inverse=1, onesided=1)
    np.testing.assert_allclose(back, x, atol=1e-6)


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows_are_symmetric_and_a_single_sample_is_one(call: Call, name: str) -> None:
    window = call(name, np.array(9), periodic=0)
    np.testing.assert_allclose(window, window[::-1], atol=1e-7)
    assert window.max() == pytest.approx(1)
    np.testing.assert_allclose(call(name, np.array(8)), window[:8], atol=1e-7)
    assert call(name, np.array(1), periodic=0).tolist() == [1]
    assert call(name, np.array(0)).shape == (0,)


def encoded(mode: str, kind: str, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, kind)
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_images_are_decoded_to_rows_columns_channels(call: Call, kind: str) -> None:
    stream = encoded("RGB", kind, PIXELS)
    np.testing.assert_array_equal(call("ImageDecoder", stream), PIXELS)
    np.testing.assert_array_equal(
        call("ImageDecoder", stream, pixel_format="BGR"), PIXELS[..., ::-1]
    )
    assert call("ImageDecoder", stream, pixel_format="Grayscale").shape == (4, 5, 1)


def test_other_modes_become_the_one_asked_for(call: Call) -> None:
    grey = encoded("L", "PNG", PIXELS[..., 0].copy())
    assert call("ImageDecoder", grey).shape == (4, 5, 3)


@pytest.mark.parametrize("cut", [0, 10, 50])
def test_what_cannot_be_decoded_gives_an_empty_image(call: Call, cut: int) -> None:
    stream = encoded("RGB", "PNG", PIXELS)[:cut]
    assert call("ImageDecoder", stream).shape == (0, 0, 3)


def test_without_pillow_the_error_names_the_extra(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = encoded("RGB", "PNG", PIXELS)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"polytool\[image\]"):
        call("ImageDecoder", stream)
