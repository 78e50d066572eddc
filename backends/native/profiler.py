"""Time per layer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from polytool.backends.native.network import Layer


class Profiler:
    """Collects the time of each layer while it is set as `ExecutionContext.profiler`.

    Attributes:
        spans: layer to start (as `time.perf_counter` tells it) and seconds of each of its runs. A
            control-flow layer's time holds only what its bodies' layers do not account for.
        kernels: layer to the names of the kernels that ran for it on a GPU.
    """

    def __init__(self) -> None:
        self.spans: dict[Layer, list[tuple[float, float]]] = defaultdict(list)
        self.kernels: dict[Layer, tuple[str, ...]] = {}
        self._since = 0.0

    def start(self) -> None:
        """The next layer begins now."""
        self._since = time.perf_counter()

    def layer(self, layer: Layer) -> None:
        """`layer` has just ended."""
        self.spans[layer].append((self._since, time.perf_counter() - self._since))

    def on_device(
        self, begin: float, runs: Sequence[tuple[Layer, tuple[str, ...], float, float]]
    ) -> None:
        """Layers that a device has run, by its own clock.

        Args:
            begin: when the device began, as `time.perf_counter` tells it.
            runs: layer, names of its kernels, seconds from the beginning to its start, and its
                seconds; a layer may come several times, one for each of its steps.
        """
        spans: dict[Layer, tuple[float, float]] = {}
        kernels: dict[Layer, tuple[str, ...]] = {}
        for layer, names, after, seconds in runs:
            start, so_far = spans.get(layer, (begin + after, 0.0))
            spans[layer] = start, so_far + seconds
            kernels[layer] = kernels.get(layer, ()) + names
        for layer, span in spans.items():
            self.spans[layer].append(span)
        self.kernels.update(kernels)
