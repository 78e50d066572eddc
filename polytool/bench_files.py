"""Files that a benchmark writes: times and layers as trtexec's JSON, and a timeline."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from polytool.backends.base import LayerTime
from polytool.files import StrPath, replacing, write_all
from polytool.timings import Benchmark, Timing

_TIMES = {"h2d": "inMs", "compute": "computeMs", "d2h": "outMs", "enqueue": "enqMs"}


def save_times(found: Benchmark, path: StrPath) -> None:
    """Write every inference: a list of `runner`, `stream`, `startMs`, `endMs`, `latencyMs`.

    Where a runner computes on a device, inferences that were timed there follow: `runner`, `inMs`,
    `computeMs`, `outMs`, `enqMs`. Times begin with the first inference.
    """
    zero = _zero(found)
    rows: list[dict[str, Any]] = []
    for timing in found.timings:
        for inference in timing.inferences:
            start = 1e3 * (inference.start - zero)
            latency = 1e3 * inference.seconds
            rows.append(
                {
                    "runner": timing.name,
                    "stream": inference.stream,
                    "startMs": start,
                    "endMs": start + latency,
                    "latencyMs": latency,
                }
            )
        rows += [
            {"runner": timing.name, **{_TIMES[n]: 1e3 * s for n, s in phases.items()}}
            for phases in timing.phases
        ]
    _write(rows, path)


def save_profile(found: Benchmark, path: StrPath) -> None:
    """Write the layers of every runner, in execution order.

    For each runner `count` (how many inferences were profiled) and `runner`, then its layers:
    `name`, `timeMs` of all inferences, `averageMs` of one, `medianMs` of a run, `percentage`, and
    `runner`, `kind`, `nodes` and `kernels`, which trtexec does not have.
    """
    rows: list[dict[str, Any]] = []
    for timing in found.timings:
        if not timing.layers:
            continue
        total = sum(layer.seconds for layer in timing.layers)
        rows.append({"count": timing.profiled, "runner": timing.name})
        rows += [
            {
                "name": layer.layer,
                "timeMs": 1e3 * layer.seconds,
                "averageMs": 1e3 * layer.seconds / timing.profiled,
                "medianMs": 1e3 * statistics.median(s for _, s in layer.spans),
                "percentage": 100 * layer.seconds / max(total, 1e-12),
                "runner": timing.name,
                **_facts(layer),
            }
            for layer in timing.layers
        ]
    _write(rows, path)


def save_timeline(found: Benchmark, path: StrPath) -> None:
    """Write inferences and layers as chrome://tracing and https://ui.perfetto.dev open them.

    A runner is a process in it, a stream a thread, and the profiled layers are one more thread.
    """
    zero = _zero(found)
    events: list[dict[str, Any]] = []
    for process, timing in enumerate(found.timings, 1):
        events += _events(timing, process, zero)
    _write({"traceEvents": events, "displayTimeUnit": "ms"}, path)


def _zero(found: Benchmark) -> float:
    return min(i.start for timing in found.timings for i in timing.inferences)


def _events(timing: Timing, process: int, zero: float) -> Iterator[dict[str, Any]]:
    streams = sorted({i.stream for i in timing.inferences})
    layers = len(streams)
    yield _named("process_name", process, 0, timing.name)
    for stream in streams:
        several = len(streams) > 1
        yield _named("thread_name", process, stream, f"stream {stream}" if several else "inference")
    for number, inference in enumerate(timing.inferences):
        span = (inference.start, inference.seconds)
        yield _complete(f"inference {number}", process, inference.stream, span, zero, {})
    if timing.layers:
        yield _named("thread_name", process, layers, "layers")
    for layer in timing.layers:
        for span in layer.spans:
            yield _complete(_title(layer), process, layers, span, zero, _facts(layer))


def _facts(layer: LayerTime) -> dict[str, Any]:
    return {"kind": layer.kind, "nodes": list(layer.nodes), "kernels": list(layer.kernels)}


def _title(layer: LayerTime) -> str:
    return layer.layer if layer.kind in layer.layer else f"{layer.kind}: {layer.layer}"


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _complete(
    name: str,
    process: int,
    thread: int,
    span: tuple[float, float],
    zero: float,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """An event with a beginning and a length, in microseconds."""
    return {
        "name": name,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": 1e6 * (span[0] - zero),
        "dur": 1e6 * span[1],
        "args": facts,
    }


def _write(value: dict[str, Any] | Sequence[Any], path: StrPath) -> None:
    with replacing(path) as fd:
        write_all(fd, json.dumps(value, allow_nan=False).encode())
