"""Where tensors lie on the device: allocations, and strided views of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polytool.backends.native.kernels.pointwise import Operand, dense
from polytool.backends.native.kernels.source import item_size
from polytool.tensors import DType

Dims = tuple[int, ...]


@dataclass(eq=False)
class Storage:
    """Memory that one step writes: a stretch of the arena, or a constant.

    Attributes:
        make: the content of a constant; None in the arena.
        key: what the content of a constant depends on, so that equal ones are uploaded once.
    """

    size: int
    make: Callable[[], np.ndarray] | None = None
    key: object = None


@dataclass(frozen=True)
class View:
    """A tensor in a storage.

    Attributes:
        steps: strides in elements, in the order of the tensor's own dimensions.
        offset: elements before its first one.
    """

    storage: Storage
    dtype: DType
    shape: Dims
    steps: Dims
    offset: int = 0

    @classmethod
    def new(cls, dtype: DType, shape: Dims, order: Sequence[int] | None = None) -> View:
        """A new dense tensor; `order` lists the dimensions from the slowest to the fastest."""
        order = range(len(shape)) if order is None else order
        packed = dense([shape[d] for d in order])
        steps = tuple(packed[list(order).index(d)] for d in range(len(shape)))
        return cls(Storage(math.prod(shape) * item_size(dtype)), dtype, shape, steps)

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Row-major without gaps."""
        return self.lies_like(range(len(self.shape)))

    def lies_like(self, order: Sequence[int]) -> bool:
        """Without gaps in this order of dimensions; those of size one do not count."""
        expected = 1
        for d in reversed(list(order)):
            if self.shape[d] != 1 and self.steps[d] != expected:
                return False
            expected *= self.shape[d]
        return True

    @property
    def is_packed(self) -> bool:
        """Without gaps in some order of dimensions."""
        return self.lies_like(self.order)

    @property
    def order(self) -> tuple[int, ...]:
        """Dimensions from the slowest to the fastest."""
        return tuple(sorted(range(len(self.shape)), key=lambda d: (-self.steps[d], d)))

    @property
    def operand(self) -> Operand:
        """How pointwise kernels see it."""
        return Operand(self.shape, self.steps, self.offset)

    @property
    def whole(self) -> View:
        """The storage from its beginning, for plans that add the offset themselves."""
        return View(self.storage, self.dtype, self.shape, self.steps)

    def permuted(self, permutation: Sequence[int]) -> View:
        """The transposed view."""
        shape = tuple(self.shape[p] for p in permutation)
        steps = tuple(self.steps[p] for p in permutation)
        return View(self.storage, self.dtype, shape, steps, self.offset)

    def reshaped(self, shape: Dims) -> View | None:
        """The same elements under another shape; None where that needs a copy."""
        dummy = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), self.shape, self.steps)
        try:
            steps = np.reshape(dummy, shape, copy=False).strides
        except ValueError:
            return None
        return View(self.storage, self.dtype, shape, tuple(steps), self.offset)

    def broadcast(self, shape: Dims) -> View:
        """Repeated along new and size-one dimensions, without a copy."""
        return View(self.storage, self.dtype, shape, self.operand.along(shape), self.offset)

    def sliced(self, axis: int, start: int, length: int, step: int = 1) -> View:
        """Some of the elements along one axis."""
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        steps = (*self.steps[:axis], self.steps[axis] * step, *self.steps[axis + 1 :])
        offset = self.offset + start * self.steps[axis]
        return View(self.storage, self.dtype, shape, steps, offset)
