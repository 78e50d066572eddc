"""ImageDecoder, through Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Array, op, shape
from polytool.errors import MissingDependencyError, ModelError

_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


@op("ImageDecoder", since=20, host=(0,))
def image_decoder(xp: Any, encoded: Array, *, pixel_format: str = "RGB") -> Array:
    """(height, width, channels) uint8; empty where the stream cannot be decoded."""
    try:
        from PIL import Image
    except ImportError as err:
        raise MissingDependencyError("Pillow", "image", "ImageDecoder") from err
    if pixel_format not in _MODES:
        raise ModelError(f"ImageDecoder has no pixel_format {pixel_format!r}")
    try:
        with Image.open(io.BytesIO(np.asarray(encoded).tobytes())) as image:
            pixels = np.asarray(image.convert(_MODES[pixel_format]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # the specification asks for an empty matrix, and Pillow's decoders raise all of these
        return xp.zeros((0, 0, 1 if pixel_format == "Grayscale" else 3), dtype=np.uint8)
    if pixel_format == "Grayscale":
        pixels = pixels[..., None]
    return xp.asarray(np.ascontiguousarray(pixels[..., ::-1] if pixel_format == "BGR" else pixels))


@shape("ImageDecoder")
def image_decoder_shape(*_: Any, **__: Any) -> None:
    """None: data decides."""
