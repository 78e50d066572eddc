"""A normalisation and the product behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer
from polytool.backends.native.tactics.base import Launch, Mode, Tactic

Array = np.ndarray[Any, Any]


class NormGemm(Tactic):
    """One after the other, each by the best tactic for it alone; nothing is rounded in between."""

    name = "numpy.norm_gemm"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        return layer.kind == "norm_gemm"

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        from polytool.backends.native.tactics import choose

        norm, rest = Layer.single(layer.nodes[0]), Layer("gemm", layer.nodes[1:], layer.outputs)
        normalize, multiply = (choose(part, mode).compile(part, mode) for part in (norm, rest))

        def launch(x: Array) -> Sequence[Any]:
            return multiply(*normalize(x))

        return launch
