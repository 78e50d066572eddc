"""How fast is it: time runners on a model, alone or side by side.

    from polytool.agreement import Request
    from polytool.benchmarking import Schedule, benchmark

    found = benchmark(Request("model.onnx", ["native", "onnxrt"]), Schedule(seconds=3.0))
    print(found.timings[0].latency()["median"], found.ratios[0].ratio)

This is what `polytool bench` calls. Every runner has a process of its own, and they take turns:
while one is timed the others wait. To time a Runner that you hold, see `polytool.stopwatch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polytool.bench_worker import Ready, Worker
from polytool.errors import UsageError
from polytool.machine_load import OtherLoad
from polytool.timings import PERCENTILES, Benchmark, Timing, Turn

if TYPE_CHECKING:
    from polytool.agreement import Request

_PAUSE = 0.02  # seconds between turns: threads of the one that ran may still be spinning
_PHASES = 50  # inferences that are timed by a device's clock
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how often to time.

    Attributes:
        seconds: of inferences, at least, of each runner.
        iterations: inferences, at least, of each runner.
        warm_up: seconds of inferences before those that count.
        streams: how many inferences run at once, on contexts of their own.
        batch: size of a batch dimension that the model leaves open.
        resident: keep inputs and outputs on the device.
        profile: inferences after the others in which each layer is timed.
        percentiles: of the latency.
        turns: how many each of several runners takes.
    """

    seconds: float = 3.0
    iterations: int = 10
    warm_up: float = 0.2
    streams: int = 1
    batch: int | None = None
    resident: bool = False
    profile: int = 0
    percentiles: tuple[float, ...] = PERCENTILES
    turns: int = 5

    def __post_init__(self) -> None:
        wrong = [p for p in self.percentiles if not 0 < p <= 100]
        if wrong:
            raise UsageError(f"{wrong[0]:g} is no percentile: take numbers above 0 up to 100")


def benchmark(
    request: Request, schedule: Schedule | None = None, progress: Progress | None = None
) -> Benchmark:
    """Time the runners of a request.

    Args:
        request: the model, the runners and their inputs; results are not kept.
        schedule: how long and how often.
        progress: told what is being done.

    Raises:
        UsageError: options contradict each other, or a runner cannot do what is asked.
        ModelError: the model, an engine or a file cannot be read or written.
        RunnerError: a runner failed.
    """
    from polytool.agreement import check

    check(request)
    schedule = schedule or Schedule()
    say = progress or (lambda _: None)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(
                    _alone(request, name),
                    streams=schedule.streams,
                    batch=schedule.batch,
                    resident=schedule.resident,
                )
            )
            for name in request.runners
        ]
        ready = []
        for worker in workers:
            say(f"building {worker.name}")
            ready.append(worker.call("load"))
        names = _numbered([r.name for r in ready])
        load = OtherLoad(worker.pid for worker in workers)
        turns = _take_turns(workers, schedule, say)
        busy = load.measured()
        notes = list(dict.fromkeys(note for r in ready for note in r.notes))
        timings = tuple(
            _timing(worker, r, name, turns_, schedule, say, notes)
            for worker, r, name, turns_ in zip(workers, ready, names, turns, strict=True)
        )
        for worker in workers:
            notes += worker.call("close")
    if schedule.profile and not any(t.layers for t in timings):
        raise UsageError(notes[-1])
    return Benchmark(
        timings, ready[0].inputs, schedule.streams, schedule.percentiles, busy, tuple(notes)
    )


def _alone(request: Request, name: str) -> Request:
    """The request with that runner only; engines and tactics are the native runner's business."""
    native = name == "native"
    return replace(
        request,
        runners=(name,),
        engine=request.engine if native else None,
        save_engine=request.save_engine if native else None,
        save_timing_cache=request.save_timing_cache if native else None,
        save_tactics=request.save_tactics if native else None,
    )


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, each of them once."""
    made: list[str] = []
    for name in names:
        count, unique = 2, name
        while unique in made:
            unique, count = f"{name}#{count}", count + 1
        made.append(unique)
    return made


def _take_turns(workers: Sequence[Worker], schedule: Schedule, say: Progress) -> list[list[Turn]]:
    """The turns of each worker; the order of the workers changes from round to round."""
    count = schedule.turns if len(workers) > 1 else 1
    seconds, iterations = schedule.seconds / count, -(-schedule.iterations // count)
    turns: list[list[Turn]] = [[] for _ in workers]
    for number in range(count):
        order = list(enumerate(workers))
        for index, worker in order if number % 2 == 0 else order[::-1]:
            say(f"timing {worker.name}")
            worker.call("warm_up", schedule.warm_up if number == 0 else 0.0)
            turns[index].append(worker.call("turn", seconds, iterations))
            time.sleep(_PAUSE)
    return turns


def _timing(
    worker: Worker,
    ready: Ready,
    name: str,
    turns: Sequence[Turn],
    schedule: Schedule,
    say: Progress,
    notes: list[str],
) -> Timing:
    """Everything about one runner."""
    phases: tuple[Mapping[str, float], ...] = worker.call("phases", _PHASES)
    layers: Any = ()
    if schedule.profile:
        say(f"profiling {name}")
        try:
            layers = worker.call("profile", schedule.profile)
        except UsageError as err:  # others may be able to tell
            notes.append(str(err))
    return Timing(
        name=name,
        turns=tuple(turns),
        items=schedule.batch or 1,
        build_seconds=ready.build_seconds,
        first_seconds=ready.first_seconds,
        phases=phases,
        layers=layers,
        profiled=schedule.profile,
        memory=worker.call("memory"),
        settings=ready.settings,
    )
