"""Timing one runner: warm up, then infer again and again, in one thread or in several.

with polytool.runner("native", "model.onnx") as runner:
    watch = Stopwatch(runner, [feeds])
    watch.warm_up(0.2)
    print(watch.turn(seconds=3.0, iterations=10).median)
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack

from polytool.backends.base import Feeds, LayerTime, Runner
from polytool.collection import paused_collection
from polytool.errors import UsageError
from polytool.timings import Turn

_Times = tuple["array[float]", "array[float]"]
"""Starts and latencies of one stream."""


class Stopwatch:
    """Times an active runner.

    Args:
        runner: what to time.
        feeds: inputs, taken in turns.
        streams: how many inferences run at once, each in a thread of its own.

    Raises:
        UsageError: there are no inputs, or the runner cannot run several at once.
    """

    def __init__(self, runner: Runner, feeds: Sequence[Feeds], *, streams: int = 1) -> None:
        if not feeds:
            raise UsageError("there are no inputs to time an inference with")
        self._feeds = list(feeds)
        self._open = ExitStack()
        others = [self._open.enter_context(runner.another()) for _ in range(streams - 1)]
        self._runners = [runner, *others]

    def close(self) -> None:
        """Close the further runners that several streams need."""
        self._open.close()

    def first(self) -> float:
        """Seconds of the first inference; of the slowest runner where there are several."""
        return max(self._once(runner) for runner in self._runners)

    def warm_up(self, seconds: float) -> None:
        """Infer for that long, at least once."""
        self._together(seconds, 1)

    def turn(self, seconds: float, iterations: int) -> Turn:
        """Infer for at least that long and at least that often."""
        start = time.perf_counter()
        times = self._together(seconds, iterations)
        took = time.perf_counter() - start
        return Turn(tuple(s for s, _ in times), tuple(s for _, s in times), took)

    def phases(self, count: int) -> tuple[dict[str, float], ...]:
        """The parts of further inferences; empty where the runner does not know them."""
        runner = self._runners[0]
        found = [runner.phases(self._feeds[i % len(self._feeds)]) for i in range(count)]
        return tuple(phases for phases in found if phases)

    def profile(self, count: int) -> tuple[LayerTime, ...]:
        """The time of each layer in further inferences.

        Raises:
            UsageError: the runner cannot tell.
        """
        return self._runners[0].profile(self._feeds[0], count)

    def _once(self, runner: Runner) -> float:
        start = time.perf_counter()
        runner.infer(self._feeds[0])
        return time.perf_counter() - start

    def _together(self, seconds: float, iterations: int) -> list[_Times]:
        """All streams at once; each does its share of the iterations."""
        share = -(-iterations // len(self._runners))
        if len(self._runners) == 1:
            return [self._stream(0, seconds, share)]
        found: dict[int, _Times] = {}
        failures: list[BaseException] = []

        def work(stream: int) -> None:
            try:
                found[stream] = self._stream(stream, seconds, share)
            except BaseException as err:  # raised again in the caller's thread
                failures.append(err)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self._runners))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [found[stream] for stream in sorted(found)]

    def _stream(self, stream: int, seconds: float, iterations: int) -> _Times:
        infer, feeds, clock = self._runners[stream].infer, self._feeds, time.perf_counter
        starts, latencies = array("d"), array("d")
        index = stream
        with paused_collection():
            end = clock() + seconds
            while len(starts) < iterations or clock() < end:
                feed = feeds[index % len(feeds)]
                start = clock()
                infer(feed)
                latencies.append(clock() - start)
                starts.append(start)
                index += 1
        return starts, latencies
