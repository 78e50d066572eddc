"""Choosing among the candidates of a step by running them.

A candidate is timed as a chain in one CUDA graph, each link with its own copy of the constants,
after the second-level cache has been flushed: so the gap before a launch, and its overlap with the
predecessor, count as they do in an engine, and weights come from memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from polytool.backends.native.cuda.recorder import Step
from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import Launchable, prepare_plan
from polytool.backends.native.kernels.source import Candidate
from polytool.errors import PolytoolError

_LINKS, _PROBE = 8, 3
_REPEATS = 5
_COPIES = 256 << 20  # bytes of copied constants
_LONG = 0.25  # milliseconds from which on the gaps between launches do not matter


def time_candidates(
    step: Step, addresses: Sequence[int], device: driver.Device, stream: int
) -> dict[str, float]:
    """Milliseconds of every candidate of `step`, by name; infinite for one that fails.

    The step's inputs must hold real data.

    Raises:
        RunnerError: all of them fail.
    """
    with _Bench(step, addresses, device, stream) as bench:
        times = bench.time_all()
    return {plan.name: took for plan, took in zip(step.plans, times, strict=True)}


@dataclass
class _Bench:
    step: Step
    addresses: Sequence[int]
    device: driver.Device
    stream: int

    def __enter__(self) -> _Bench:
        self._held: list[int] = []
        self._flush_size = 2 * self.device.l2
        self._flush = self._allocate(self._flush_size)
        constants = [
            (i, v.storage.size) for i, v in enumerate(self.step.views) if v.storage.make is not None
        ]
        size = sum(s for _, s in constants)
        links = max(1, min(_LINKS, _COPIES // max(size, 1)))
        self._chain = [list(self.addresses)]
        for _ in range(links - 1):
            own = list(self.addresses)
            for i, bytes_ in constants:
                own[i] = self._allocate(bytes_ + 256)
                driver.copy(own[i], self.addresses[i], bytes_, self.stream)
            self._chain.append(own)
        self._start, self._end = driver.create_event(), driver.create_event()
        return self

    def _allocate(self, size: int) -> int:
        self._held.append(driver.allocate(size))
        return self._held[-1]

    def __exit__(self, *_: object) -> None:
        driver.synchronize(self.stream)
        driver.destroy_event(self._start)
        driver.destroy_event(self._end)
        for address in self._held:
            driver.free(address)

    def time_all(self) -> list[float]:
        """Milliseconds a candidate; those far behind the best so far only by a quick look."""
        times: list[float] = []
        best, failure = float("inf"), None
        for plan in self.step.plans:
            try:
                took = self._time(plan, best)
            except PolytoolError as err:
                took, failure = float("inf"), err
            times.append(took)
            best = min(best, took)
        if failure is not None and best == float("inf"):
            raise failure
        return times

    def _time(self, plan: Candidate, best: float) -> float:
        chain = [prepare_plan(plan, self.device, own) for own in self._chain]
        for launch in chain[0]:  # loads it
            launch(self.stream)
        driver.synchronize(self.stream)
        quick = self._run(chain[:_PROBE], 2)
        if quick > 2.0 * best + 0.004 or quick > _LONG or len(chain) <= _PROBE:
            return quick
        return self._run(chain, _REPEATS)

    def _run(self, chain: Sequence[Sequence[Launchable]], repeats: int) -> float:
        """Median milliseconds of one link."""
        with driver.Graph.capture(self.stream) as graph:
            for launches in chain:
                for launch in launches:
                    launch(self.stream)
        times = []
        try:
            for _ in range(repeats):
                driver.fill(self._flush, self._flush_size, 1, self.stream)
                driver.record(self._start, self.stream)
                graph.launch(self.stream)
                driver.record(self._end, self.stream)
                driver.synchronize(self.stream)
                times.append(driver.elapsed(self._start, self._end))
        finally:
            graph.close()
        return statistics.median(times) / len(chain)
