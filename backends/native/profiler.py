"""Time per layer."""

from __future__ import annotations

import time
from collections import defaultdict

from polytool.backends.native.network import Layer


class Profiler:
    """Collects seconds per layer while it is set as `ExecutionContext.profiler`.

    Attributes:
        seconds: layer to the seconds of each of its runs. A control-flow layer's time holds only
            what its bodies' layers do not account for.
    """

    def __init__(self) -> None:
        self.seconds: dict[Layer, list[float]] = defaultdict(list)
        self._since = 0.0

    def start(self) -> None:
        """The next layer begins now."""
        self._since = time.perf_counter()

    def layer(self, layer: Layer) -> None:
        """`layer` has just ended."""
        self.seconds[layer].append(time.perf_counter() - self._since)
