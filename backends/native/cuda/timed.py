"""Launches with events between them: what each part of an inference takes on the device."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import Launchable


class TimedGraph:
    """Groups of launches as one graph, with an event before, between and behind them.

    So the host's part in launching is in no group's time.

    Args:
        groups: launches that have run before, in order.
        stream: what they run on.
    """

    def __init__(self, groups: Sequence[Sequence[Launchable]], stream: int) -> None:
        self._stream = stream
        groups = [*groups, ()]  # the last tells what an event alone takes
        self._events = [driver.create_event() for _ in range(len(groups) + 1)]
        with driver.Graph.capture(stream) as self._graph:
            driver.record_in_graph(self._events[0], stream)
            for launches, event in zip(groups, self._events[1:], strict=True):
                for launch in launches:
                    launch(stream)
                driver.record_in_graph(event, stream)

    def run(self) -> tuple[float, list[tuple[float, float]]]:
        """Run once and wait.

        Returns:
            When it began, as `time.perf_counter` tells it, and of each group how long after that it
            began and how long it took, in seconds, without what its event took.
        """
        driver.synchronize(self._stream)
        begin = time.perf_counter()
        self._graph.launch(self._stream)
        driver.synchronize(self._stream)
        first = self._events[0]
        after = [driver.elapsed(first, event) / 1e3 for event in self._events]
        *spans, empty = itertools.pairwise(after)
        least = empty[1] - empty[0]
        return begin, [(start, max(end - start - least, 0.0)) for start, end in spans]

    def close(self) -> None:
        """Free the graph and its events."""
        self._graph.close()
        for event in self._events:
            driver.destroy_event(event)
