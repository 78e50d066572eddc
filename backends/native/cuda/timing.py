"""Timing alternatives on the device."""

from __future__ import annotations

from collections.abc import Sequence

from polytool.backends.native.cuda.recorder import Step
from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import prepare_plan

_RUNS = 5


def fastest(
    step: Step,
    addresses: Sequence[int],
    device: driver.Device,
    stream: int,
    timings: dict[str, list[float]],
) -> int:
    """The number of the fastest plan of `step`; milliseconds of all are kept in `timings`."""
    if step.signature is None:
        return 0
    known = timings.get(step.signature)
    if known is None or len(known) != len(step.plans):
        known = [_time(step, i, addresses, device, stream) for i in range(len(step.plans))]
        timings[step.signature] = known
    return min(range(len(known)), key=known.__getitem__)


def _time(
    step: Step, number: int, addresses: Sequence[int], device: driver.Device, stream: int
) -> float:
    """The shortest of several runs in a row, in milliseconds."""
    launches = prepare_plan(step.plans[number], device, addresses, overlap=False)
    start, end = driver.create_event(), driver.create_event()
    best = float("inf")
    try:
        for run in range(_RUNS):
            driver.record(start, stream)
            for launch in launches:
                launch(stream)
            driver.record(end, stream)
            driver.synchronize(stream)
            if run:  # the first one loads the kernel
                best = min(best, driver.elapsed(start, end))
    finally:
        driver.destroy_event(start)
        driver.destroy_event(end)
    return best
