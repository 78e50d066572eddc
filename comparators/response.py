"""A model's own response: how far its outputs move when everything in it is nudged.

Two sound implementations of a model differ by rounding. How much that may be depends on the model:
a well-conditioned one keeps 1e-6, one that quantises on the fly moves by percents. So tolerances
are taken from the model itself: run it again with relative noise of 2^-22 (four units of rounding
of float32) on every float weight and input, and look how far each output moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NOISE = 2.0**-22
SEEDS = 3

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


Measure = Callable[[], Response]


def perturb(value: Any, rng: np.random.Generator) -> Any:
    """A float array with relative noise of +-2^-22; anything else as it is.

    The noise vanishes where the element type is too coarse to hold it.
    """
    if isinstance(value, list):
        return [perturb(v, rng) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc" or not value.size:
        return value
    signs = rng.integers(0, 2, value.shape, np.int8) * np.float32(2 * NOISE) - np.float32(NOISE)
    moved = value + value * signs
    return moved.astype(value.dtype, copy=False)
