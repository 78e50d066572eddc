"""A model's own response: how far its outputs move when everything in it is nudged.

Two sound implementations of a model differ by rounding. How much that may be depends on the model:
a well-conditioned one keeps 1e-6, one that quantises on the fly moves by percents. So tolerances
are taken from the model itself: run it again with relative noise of 2^-22 (four units of rounding
of float32) on every float weight and input, and look how far each output moves.

Ten times that response is allowed. In a smooth model ten times the noise would move the outputs as
far; in one that rounds or branches on the way, noise of 2^-22 may happen to flip nothing where ten
times as much flips something. So where ten times the response is not enough, the response to ten
times the noise is measured as well, and counts if it is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NOISE = 2.0**-22
MORE = 10.0
SEEDS = 3
_TILE = (1 << 18) + 7  # signs that are drawn for large weights; no multiple of a matrix's width

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Response:
    """Outputs of one runner without and with noise.

    Attributes:
        source: what was run, for people: `native fp32, 3 seeds of 2^-22 noise`.
        clean: the outputs of each iteration without noise.
        noisy: for each seed, the outputs of each iteration with noise.
    """

    source: str
    clean: Sequence[Values]
    noisy: Sequence[Sequence[Values]]


Measure = Callable[[float], Response]
"""Measures the response to that many times the noise: 1 or `MORE`."""


def describe(times: float) -> str:
    """What was run with that many times the noise, for `Response.source`."""
    amount = "2^-22" if times == 1 else f"{times:g} * 2^-22"
    return f"native fp32, {SEEDS} seeds of {amount} noise"


def perturb(value: Any, rng: np.random.Generator, times: float = 1.0) -> Any:
    """A float array with relative noise of +-2^-22 or some times that; anything else as it is.

    The noise vanishes where the element type is too coarse to hold it.
    """
    if isinstance(value, list):
        return [perturb(v, rng, times) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc" or not value.size:
        return value
    size = np.float32(times * NOISE)
    if value.size > _TILE and value.dtype == np.float32:
        return _perturb_tiled(value, rng, size)
    moved = value + value * (rng.integers(0, 2, value.shape, np.int8) * (2 * size) - size)
    return moved.astype(value.dtype, copy=False)


def _perturb_tiled(value: Any, rng: np.random.Generator, size: np.float32) -> Any:
    """The same for large weights, where drawing every sign anew would take most of the time."""
    signs = rng.integers(0, 2, _TILE, np.int8) * np.float32(2) - np.float32(1)
    factors = 1 + signs * size
    source = np.ascontiguousarray(value).reshape(-1)
    result = np.empty_like(source)
    for start in range(0, source.size, _TILE):
        part = source[start : start + _TILE]
        np.multiply(part, factors[: part.size], out=result[start : start + _TILE])
    return result.reshape(value.shape)
