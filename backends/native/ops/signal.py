"""Fourier transforms, windows and the mel filter bank."""

from __future__ import annotations

from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, dtypes, op, shape, upgrade
from polytool.tensors import DType


@op("DFT", since=20, host=(1, 2))
def dft(
    xp: Any,
    x: Array,
    dft_length: Array | None = None,
    axis: Array | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """The transform along `axis`; the last axis holds the value, or real and imaginary part."""
    along = _axis(x.ndim, axis)
    length = _length(x.shape[along], dft_length, onesided=onesided, inverse=inverse)
    signal = _complex(x)
    if inverse and onesided:
        return xp.fft.irfft(signal, n=length, axis=along)[..., None]
    if inverse:
        return _pairs(xp, xp.fft.ifft(signal, n=length, axis=along))
    return _pairs(xp, _forward(xp, signal, length, along, onesided=bool(onesided)))


def _axis(rank: int, axis: Any) -> int:
    return (-2 if axis is None else int(np.asarray(axis).item())) % rank


def _length(size: int, dft_length: Any, *, onesided: int, inverse: int) -> int:
    if dft_length is not None:
        return int(np.asarray(dft_length).item())
    return 2 * (size - 1) if onesided and inverse else size


def _complex(x: Array) -> Array:
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _pairs(xp: Any, x: Array) -> Array:
    return xp.stack([x.real, x.imag], axis=-1)


def _forward(xp: Any, signal: Array, length: int, axis: int, *, onesided: bool) -> Array:
    if onesided and signal.dtype.kind != "c":
        return xp.fft.rfft(signal, n=length, axis=axis)
    y = xp.fft.fft(signal, n=length, axis=axis)
    return y[(slice(None),) * axis + (slice(0, length // 2 + 1),)] if onesided else y


@upgrade("DFT", since=17)
def dft_axis_to_input(node: Node) -> Node:
    """DFT-17 has its axis as an attribute, 1 unless given."""
    axis = np.array(node.attrs.get("axis", 1), dtype=np.int64)
    inputs = [*node.inputs, None][:2]
    return node.raised(inputs=[*inputs, axis], attrs=node.without("axis"))


@shape("DFT")
def dft_shape(
    x: Arg,
    dft_length: Arg | None = None,
    axis: Arg | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> tuple[int, ...] | None:
    """The length along the axis, and one or two values."""
    if any(a is not None and a.value is None for a in (dft_length, axis)):
        return None
    along = _axis(len(x.shape), None if axis is None else axis.value)
    given = None if dft_length is None else dft_length.value
    length = _length(x.shape[along], given, onesided=onesided, inverse=inverse)
    dims = list(x.shape)
    dims[along] = length // 2 + 1 if onesided and not inverse else length
    dims[-1] = 1 if onesided and inverse else 2
    return tuple(dims)


@op("STFT", since=17, host=(1, 3))
def stft(
    xp: Any,
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """The transform of windowed frames: (batch, frames, bins, 2)."""
    size = None if window is None else window.shape[0]
    starts, length = _frames(signal.shape[1], frame_step, size, frame_length)
    frames = _complex(signal)[:, xp.asarray(starts)[:, None] + xp.arange(length)]
    if window is not None:
        frames = frames * window
    return _pairs(xp, _forward(xp, frames, length, 2, onesided=bool(onesided)))


def _frames(size: int, step: Any, window: int | None, frame_length: Any) -> tuple[Array, int]:
    """Where each frame starts, and how long it is."""
    length = size if window is None else window
    if frame_length is not None:
        length = int(np.asarray(frame_length).item())
    hop = int(np.asarray(step).item())
    return np.arange(max((size - length) // hop + 1, 0)) * hop, length


@shape("STFT")
def stft_shape(
    signal: Arg,
    frame_step: Arg,
    window: Arg | None = None,
    frame_length: Arg | None = None,
    *,
    onesided: int = 1,
) -> tuple[int, ...] | None:
    """(batch, frames, bins, 2)."""
    if frame_step.value is None or (frame_length is not None and frame_length.value is None):
        return None
    size = None if window is None else window.shape[0]
    given = None if frame_length is None else frame_length.value
    starts, length = _frames(signal.shape[1], frame_step.value, size, given)
    return (signal.shape[0], len(starts), length // 2 + 1 if onesided else length, 2)


def _cosine_window(size: Array, periodic: int, *terms: float) -> Array:
    """a0 - a1 cos(w) + a2 cos(2 w) over one turn, float64."""
    count = int(np.asarray(size).item())
    turn = count if periodic else count - 1
    angle = 2 * np.pi * np.arange(count) / max(turn, 1)
    parts = ((-1) ** k * a * np.cos(k * angle) for k, a in enumerate(terms))
    return np.ones(count) if turn == 0 else np.asarray(sum(parts))


def _typed(xp: Any, values: Array, output_datatype: int) -> Array:
    return xp.asarray(values.astype(DType(output_datatype).numpy))


@op("HannWindow", since=17, host=(0,))
def hann_window(xp: Any, size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """0.5 - 0.5 cos."""
    return _typed(xp, _cosine_window(size, periodic, 0.5, 0.5), output_datatype)


@op("HammingWindow", since=17, host=(0,))
def hamming_window(xp: Any, size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """25/46 - 21/46 cos."""
    return _typed(xp, _cosine_window(size, periodic, 25 / 46, 21 / 46), output_datatype)


@op("BlackmanWindow", since=17, host=(0,))
def blackman_window(xp: Any, size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
    """0.42 - 0.5 cos + 0.08 cos 2."""
    return _typed(xp, _cosine_window(size, periodic, 0.42, 0.5, 0.08), output_datatype)


@shape("HannWindow", "HammingWindow", "BlackmanWindow")
def window_shape(size: Arg, **_: Any) -> tuple[int, ...] | None:
    """(size,)."""
    return None if size.value is None else (int(np.asarray(size.value).item()),)


@dtypes("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
def window_dtypes(_: list[DType | None], *, output_datatype: int = 1, **__: Any) -> list[DType]:
    """What the attribute names."""
    return [DType(output_datatype)]


@op("MelWeightMatrix", since=17, host=(0, 1, 2, 3, 4))
def mel_weight_matrix(
    xp: Any,
    num_mel_bins: Array,
    dft_length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: int = 1,
) -> Array:
    """(dft_length / 2 + 1, bins): triangles that are equally wide on the mel scale."""
    count, length = int(np.asarray(num_mel_bins).item()), int(np.asarray(dft_length).item())
    low, high = (
        2595 * np.log10(1 + float(np.asarray(f).item()) / 700)
        for f in (lower_edge_hertz, upper_edge_hertz)
    )
    mels = low + np.arange(count + 2) * (high - low) / (count + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    rate = int(np.asarray(sample_rate).item())
    edges = np.floor((length + 1) * hertz / rate).astype(np.int64)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    bins = np.arange(length // 2 + 1)[:, None]
    rising = np.where(peak > left, (bins - left) / np.maximum(peak - left, 1), bins == peak)
    falling = (right - bins) / np.maximum(right - peak, 1)
    weights = np.where((bins >= left) & (bins <= peak), rising, 0)
    weights = np.where((bins >= peak) & (bins < right), falling, weights)
    return _typed(xp, weights, output_datatype)


@shape("MelWeightMatrix")
def mel_weight_matrix_shape(
    num_mel_bins: Arg, dft_length: Arg, *_: Arg, **__: Any
) -> tuple[int, ...] | None:
    """(dft_length / 2 + 1, bins)."""
    if num_mel_bins.value is None or dft_length.value is None:
        return None
    length = int(np.asarray(dft_length.value).item())
    return (length // 2 + 1, int(np.asarray(num_mel_bins.value).item()))
