"""A benchmark as text: who is fastest, one table of latencies, one of what it costs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from polytool.text import emphasis, shorten, table
from polytool.timings import Benchmark, Timing, summary

MOST_LAYERS = 20
_BUSY = 0.3  # other processors' worth of work above which figures are worth little
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_PHASES = {
    "h2d": "host to device",
    "compute": "compute",
    "d2h": "device to host",
    "enqueue": "enqueue",
}


def describe(found: Benchmark, *, profile: bool = False) -> str:
    """The whole benchmark, at most about 100 columns wide.

    Args:
        found: what was measured.
        profile: whether to show layers.
    """
    parts = [_headline(found), _latencies(found), _costs(found)]
    parts += [_phases(t, found.percentiles) for t in found.timings if t.phases]
    parts += [_layers(t) for t in found.timings if profile and t.layers]
    parts.append("\n".join(_facts(found)))
    return "\n\n".join(part for part in parts if part)


def _headline(found: Benchmark) -> str:
    medians = {t.name: t.latency(())["median"] for t in found.timings}
    fastest, *others = sorted(medians, key=medians.__getitem__)
    each = f"{emphasis(fastest)}  {_time(medians[fastest])} an inference"
    ratios = {r.runner: r.ratio for r in found.ratios} | {found.timings[0].name: 1.0}
    compared = [f"{ratios[n] / ratios[fastest]:.2f} x as fast as {n}" for n in others]
    return ": ".join([each, ", ".join(compared)]) if others else each


def _latencies(found: Benchmark) -> str:
    rows = [t.latency(found.percentiles) for t in found.timings]
    scale, unit = _unit(min(row["median"] for row in rows))
    columns = ["median", "mean", "min", *(f"p{p:g}" for p in found.percentiles), "max"]
    ratios = {r.runner: r for r in found.ratios}
    cells = []
    for timing, row in zip(found.timings, rows, strict=True):
        numbers = [_number(row[c] / scale) for c in columns]
        ratio = ratios.get(timing.name)
        how = f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "1"
        speed = _number(timing.throughput * timing.items)
        cells.append([timing.name, *numbers, speed] + ([how] if ratios else []))
    batch = found.timings[0].items
    headers = [f"latency in {unit}", *columns, "items/s" if batch > 1 else "per second"]
    headers += [f"time of {found.timings[0].name}"] if ratios else []
    return table(cells, headers, align="l" + "r" * (len(columns) + 1) + ("l" if ratios else ""))


def _costs(found: Benchmark) -> str:
    device = dict.fromkeys(
        name for t in found.timings for name in t.memory if name.startswith("device_")
    )
    headers = ["", "ready after", "first inference", "model in memory", "process at most"]
    headers += [f"GPU {name.removeprefix('device_')}" for name in device]
    rows = []
    for timing in found.timings:
        sizes = [timing.memory.get(n, 0) for n in ("host_model", "host_peak", *device)]
        times = [_time(timing.build_seconds), _time(timing.first_seconds)]
        rows.append([timing.name, *times, *(f"{size / 2**20:.0f} MiB" for size in sizes)])
    return table(rows, headers, align="l" + "r" * (len(headers) - 1))


def _phases(timing: Timing, percentiles: Sequence[float]) -> str:
    """By the device's clock."""
    found = {n: [p[n] for p in timing.phases if n in p] for n in _PHASES}
    rows = {n: summary(values, percentiles) for n, values in found.items() if values}
    scale, unit = _unit(max(row["median"] for row in rows.values()))
    columns = ["median", "mean", "min", *(f"p{p:g}" for p in percentiles), "max"]
    cells = [[_PHASES[n], *(_number(row[c] / scale) for c in columns)] for n, row in rows.items()]
    return table(cells, [f"{timing.name}, {unit}", *columns], align="l" + "r" * len(columns))


def _layers(timing: Timing) -> str:
    """The layers that take longest, and the kinds of all."""
    total = max(sum(layer.seconds for layer in timing.layers), 1e-12)
    ranked = sorted(timing.layers, key=lambda layer: -layer.seconds)
    shown, hidden = ranked[:MOST_LAYERS], ranked[MOST_LAYERS:]
    scale, unit = _unit(shown[0].seconds / timing.profiled)
    rows = [
        [
            _number(layer.seconds / timing.profiled / scale),
            f"{100 * layer.seconds / total:.1f} %",
            layer.kind,
            shorten(" ".join(dict.fromkeys(layer.kernels)), 30),
            shorten(_nodes(layer.nodes) or layer.layer, 40),
        ]
        for layer in shown
    ]
    kinds: dict[str, float] = defaultdict(float)
    for layer in timing.layers:
        kinds[layer.kind] += layer.seconds
    best = sorted(kinds.items(), key=lambda item: -item[1])[:5]
    said = ", ".join(f"{kind} {100 * seconds / total:.0f} %" for kind, seconds in best)
    each = total / timing.profiled
    together = [phases["compute"] for phases in timing.phases if "compute" in phases]
    both = f", {_time(statistics.median(together))} without events between" if together else ""
    lines = [
        f"{timing.name} layer by layer: {len(ranked)} layers, {_time(each)} an inference{both}: "
        f"{said}",
        table(rows, [unit, "share", "kind", "kernels", "nodes"], align="rrlll"),
    ]
    if hidden:
        rest = 100 * sum(layer.seconds for layer in hidden) / total
        lines.append(f"... and {len(hidden)} more, {rest:.1f} %")
    return "\n".join(lines)


def _nodes(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} +{len(nodes) - 1}" if nodes else ""


def _facts(found: Benchmark) -> Iterator[str]:
    counts = [f"{t.name} {t.count}" for t in found.timings]
    turns = len(found.timings[0].turns)
    how = f" in {turns} turns each" if turns > 1 else ""
    streams = f", {found.streams} at a time" if found.streams > 1 else ""
    yield f"inferences  {', '.join(counts)}{how}{streams}"
    if found.other_load is not None and found.other_load > _BUSY:
        yield (
            f"other processes kept {found.other_load:.1f} processors busy: measure again on an "
            "idle machine"
        )


def _unit(seconds: float) -> tuple[float, str]:
    return next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])


def _time(seconds: float) -> str:
    scale, unit = _unit(seconds)
    return f"{_number(seconds / scale)} {unit}"


def _number(value: float) -> str:
    """Three or four digits."""
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
