"""What a benchmark measured: times of inferences, statistics of them, and ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.backends.base import LayerTime

PERCENTILES = (90.0, 95.0, 99.0)


@dataclass(frozen=True)
class Inference:
    """One timed inference.

    Attributes:
        start: as `time.perf_counter` tells it, which is one clock for all processes.
        seconds: by the wall clock, from `infer` to its outputs.
        stream: which of several that run at once.
    """

    start: float
    seconds: float
    stream: int = 0


@dataclass(frozen=True)
class Turn:
    """Inferences one after the other, or several at a time, without a pause.

    Small models run a million times, so their times are kept as arrays of doubles.

    Attributes:
        starts, latencies: start and seconds of each inference, by stream.
        seconds: from the start of the first to the end of the last.
    """

    starts: tuple[Sequence[float], ...]
    latencies: tuple[Sequence[float], ...]
    seconds: float

    @property
    def inferences(self) -> Iterator[Inference]:
        """All of them, stream by stream."""
        for stream, times in enumerate(zip(self.starts, self.latencies, strict=True)):
            for start, seconds in zip(*times, strict=True):
                yield Inference(start, seconds, stream)

    def __len__(self) -> int:
        return sum(map(len, self.latencies))

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(s for stream in self.latencies for s in stream)


@dataclass(frozen=True)
class Timing:
    """What was measured of one runner.

    Attributes:
        name: the runner.
        turns: its timed inferences.
        items: size of the batch, where one was asked for; else 1.
        build_seconds: until the model was ready to be run: parsing, building or loading.
        first_seconds: of the first inference, with all that is left until then.
        phases: `h2d`, `compute`, `d2h`, `enqueue` of further inferences; empty without a device.
        layers: the time of each layer in further inferences, where that was asked for.
        profiled: how many inferences `layers` is from.
        memory: bytes: `host_peak` of its process, `host_model` of it for the model, and what a
            device holds by purpose, as `device_weights`.
        settings: precision, device, versions.
    """

    name: str
    turns: tuple[Turn, ...]
    items: int = 1
    build_seconds: float = 0.0
    first_seconds: float = 0.0
    phases: tuple[Mapping[str, float], ...] = ()
    layers: tuple[LayerTime, ...] = ()
    profiled: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inferences(self) -> Iterator[Inference]:
        """Of all turns."""
        return (i for turn in self.turns for i in turn.inferences)

    @property
    def count(self) -> int:
        """How many inferences were timed."""
        return sum(map(len, self.turns))

    @property
    def throughput(self) -> float:
        """Inferences a second."""
        return self.count / max(sum(turn.seconds for turn in self.turns), 1e-12)

    def latency(self, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
        """`min`, `mean`, `median`, `max` and percentiles as `p99`, in seconds."""
        return summary([i.seconds for i in self.inferences], percentiles)

    def to_json(self, percentiles: Sequence[float] = PERCENTILES) -> dict[str, Any]:
        """Plain JSON."""
        names = dict.fromkeys(n for phases in self.phases for n in phases)
        return {
            "name": self.name,
            "latency": self.latency(percentiles),
            "throughput": self.throughput,
            "items_per_second": self.throughput * self.items,
            "iterations": self.count,
            "build_seconds": self.build_seconds,
            "first_seconds": self.first_seconds,
            "phases": {
                n: summary([p[n] for p in self.phases if n in p], percentiles) for n in names
            },
            "profile": [layer_to_json(x, self.profiled) for x in self.layers],
            "memory": dict(self.memory),
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Ratio:
    """How long one runner takes in terms of another.

    Attributes:
        runner, reference: their names.
        ratio: the median over the turns of median time over median time.
        low, high: the smallest and the largest of these.
    """

    runner: str
    reference: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark measured.

    Attributes:
        timings: of each runner, in the order in which they were chosen.
        inputs: input name to its type and shape, as text.
        streams: how many inferences ran at once.
        percentiles: which were asked for.
        other_load: processors that other work kept busy meanwhile; None where that is not known.
        notes: what the user should know.
    """

    timings: tuple[Timing, ...]
    inputs: Mapping[str, str]
    streams: int = 1
    percentiles: tuple[float, ...] = PERCENTILES
    other_load: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Tables, as `polytool bench` prints them, without colours."""
        import click

        from polytool.bench_text import describe

        return click.unstyle(describe(self))

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Of every runner but the first to the first."""
        first, *others = self.timings
        found = []
        for timing in others:
            each = [a.median / b.median for a, b in zip(timing.turns, first.turns, strict=True)]
            found.append(
                Ratio(timing.name, first.name, statistics.median(each), min(each), max(each))
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; times in seconds."""
        return {
            "runners": [timing.to_json(self.percentiles) for timing in self.timings],
            "ratios": [vars(ratio) for ratio in self.ratios],
            "inputs": dict(self.inputs),
            "streams": self.streams,
            "other_load": self.other_load,
            "notes": list(self.notes),
        }


def summary(values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """`min`, `mean`, `median`, `max`, and percentiles as `p99`."""
    return {
        "min": min(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "max": max(values),
        **{f"p{p:g}": percentile(values, p) for p in percentiles},
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all do not exceed (nearest rank, as in trtexec)."""
    ranked = sorted(values)
    return ranked[max(math.ceil(percent / 100 * len(ranked)), 1) - 1]


def layer_to_json(layer: LayerTime, inferences: int) -> dict[str, Any]:
    """Plain JSON: seconds an inference."""
    return {
        "layer": layer.layer,
        "kind": layer.kind,
        "nodes": list(layer.nodes),
        "kernels": list(layer.kernels),
        "seconds": layer.seconds / max(inferences, 1),
        "median_seconds": statistics.median(s for _, s in layer.spans),
        "runs": len(layer.spans),
    }
