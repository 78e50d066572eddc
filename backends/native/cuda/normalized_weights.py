"""What a product of normalised rows makes of its weights at build time.

With d the deviation of a row of x, and the mean of the rows of `scale * W` taken off beforehand,
`LayerNormalization(x) W = x (scale W - mean) / d + offset W`: of x only d is needed besides.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import numpy as np

from polytool.backends.native.network import Constant

Array = np.ndarray[Any, Any]
_CHOICE, _FEW = 192, 48  # elements of a row of weights that may be rounded the other way, and are


@dataclasses.dataclass(frozen=True)
class NormalizedWeights:
    """The constants of a normalisation and of products behind it, whose columns stand side by side.

    Attributes:
        products: matrices [k, n], or [n, k] where they are `turned`.
        biases: what each product adds, n elements or one.
        scale, offset: of the normalisation, k elements each.
        centred: whether it takes off the mean.
    """

    products: tuple[Constant, ...]
    biases: tuple[Constant | None, ...]
    scale: Constant
    offset: Constant | None
    centred: bool
    turned: bool

    @property
    def widths(self) -> list[int]:
        """Columns of each product."""
        return [p.shape[0 if self.turned else 1] for p in self.products]

    def packed(self) -> Array:
        """[n, k] in the type of the product's weights, times a power of two."""
        exact = self._exact() / self._power
        rounded = exact.astype(self.products[0].dtype.numpy)
        return _balanced(exact, rounded) if self.centred else rounded

    def factor(self) -> Array:
        """What the products of `packed` are to be multiplied with."""
        return np.array([self._power], np.float32)

    def shift(self) -> Array:
        """What the products of the normalised rows add, [n]."""
        total = np.concatenate(
            [
                np.zeros(n, np.float32) if bias is None else np.resize(_wide(bias), n)
                for n, bias in zip(self.widths, self.biases, strict=True)
            ]
        )
        if self.offset is not None:
            total += self._matrix() @ _wide(self.offset).reshape(-1)
        return total

    def _matrix(self) -> Array:
        wide = [_wide(p) for p in self.products]
        return np.concatenate([w if self.turned else w.T for w in wide])

    def _exact(self) -> Array:
        weights = self._matrix() * _wide(self.scale).reshape(-1)
        if self.centred:
            weights -= weights.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        return weights

    @cached_property
    def _power(self) -> float:
        """Of two: the largest element becomes at most one, so that few are subnormal."""
        largest = float(np.abs(self._exact()).max(initial=0.0))
        return 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0


def _wide(constant: Constant) -> Array:
    return np.asarray(constant.array()).astype(np.float32)


def _balanced(exact: Array, rounded: Array) -> Array:
    """`rounded` with a few elements rounded the other way, so that its rows sum to nothing again.

    A row of equal values has to give zero, which its small deviation would make large otherwise.
    """
    some = np.s_[:, :: max(1, exact.shape[1] // _CHOICE)]
    total = rounded.sum(1, keepdims=True, dtype=np.float32)
    here = rounded[some]
    error = here.astype(np.float32) - exact[some]
    other = np.nextafter(here, np.where(error > 0, -np.inf, np.inf).astype(here.dtype))
    step = other.astype(np.float32) - here.astype(np.float32)
    helps = step * total < 0
    nearness = np.divide(error, -step, out=np.zeros_like(error), where=helps)
    few = min(_FEW, here.shape[1])
    chosen = np.argpartition(-nearness, few - 1, axis=1)[:, :few]
    steps = np.take_along_axis(np.where(helps, step, 0), chosen, 1)
    chosen = np.take_along_axis(chosen, np.argsort(-np.abs(steps), axis=1), 1)
    steps = np.take_along_axis(np.where(helps, step, 0), chosen, 1)
    taken = np.zeros(steps.shape, bool)
    for i in range(few):  # the largest first
        taken[:, i] = np.abs(steps[:, i]) <= np.abs(total[:, 0])
        total[:, 0] += np.where(taken[:, i], steps[:, i], 0)
    both = (np.take_along_axis(values, chosen, 1) for values in (other, here))
    np.put_along_axis(here, chosen, np.where(taken, *both), 1)
    return rounded
