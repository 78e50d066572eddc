"""What passes know of shapes: from the types in the graph, and from probing."""

from __future__ import annotations

import math
from functools import cached_property

from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Network, Tensor
from polytool.backends.native.shapes import ShapePass, probe, sample_inputs
from polytool.tensors import Shape

LARGE = 1 << 22
"""Elements from which on several tensors of a layer do not stay in a GPU's cache."""


class Sizes:
    """Answers about the shapes of tensors of a network and its bodies.

    Probing runs the shape functions on the profiles' shapes, or on two guesses; that happens when
    it is first needed.
    """

    def __init__(self, network: Network, config: BuilderConfig) -> None:
        self._network, self._config = network, config

    @cached_property
    def _passes(self) -> list[ShapePass]:
        samples = [p.to_samples() for p in self._config.profiles] or [sample_inputs(self._network)]
        return probe(self._network, [s for group in samples for s in group])

    def fits(self, tensor: Tensor, into: Tensor) -> bool:
        """Whether `tensor` surely broadcasts to `into` without enlarging it."""
        pairs = [(p.shape(tensor), p.shape(into)) for p in self._passes]
        if pairs and all(a is not None and b is not None for a, b in pairs):
            return all(_within(a, b) for a, b in pairs)
        constant = tensor.constant
        return _within(constant.shape if constant is not None else tensor.shape, into.shape)

    def elements(self, tensor: Tensor) -> int:
        """The most elements that `tensor` has, by its type or the profiles; 0 where none tells."""
        if tensor.spec.is_static and tensor.shape is not None:
            return math.prod(d for d in tensor.shape if isinstance(d, int))
        found = [p.shape(tensor) for p in self._passes] if self._config.profiles else []
        return max((math.prod(shape) for shape in found if shape is not None), default=0)

    def rank(self, tensor: Tensor) -> int | None:
        """The number of dimensions, if probing tells it."""
        found = {None if s is None else len(s) for s in (p.shape(tensor) for p in self._passes)}
        return found.pop() if len(found) == 1 else None

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors surely have one shape."""
        if a is b:
            return True
        if a.spec.is_static and b.spec.is_static:
            return a.shape == b.shape
        return self.fits(a, b) and self.fits(b, a)


def _within(small: Shape | None, large: Shape | None) -> bool:
    if small is None or large is None or len(small) > len(large):
        return False
    tail = large[len(large) - len(small) :]
    return all(a == 1 or (a is not None and a == b) for a, b in zip(small, tail, strict=True))
