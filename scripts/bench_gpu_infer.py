"""Where the time of one `infer` of torch tensors goes, on a GPU.

    python scripts/bench_gpu_infer.py [--only bert_base deit_t resnet50] [--rounds 6]

A table for each network, medians in microseconds. Columns: the whole call; before `cuGraphLaunch`
(Python); that call itself; from there to `cuStreamSynchronize` (Python, while the GPU is at work);
that wait; what follows (Python). Rows: what is run, each in blocks of its own that take turns, so
that every one is in its steady state and clocks are the same for all. Below: the graph by the
clock of the device, and what single calls cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import Launch
from scripts.gpu_networks import NETWORKS, export

BLOCK, SETTLE = 40, 5
COLUMNS = ("total", "before", "launch", "between", "wait", "after")

Run = Callable[[], Any]


def split(run: Run, raw: driver.Raw, count: int) -> list[tuple[float, ...]]:
    """Seconds of each of `COLUMNS`, `count` times; the result is dropped outside of them."""
    marks: list[float] = []

    def marked(function: Callable[..., int]) -> Callable[..., int]:
        def call(*args: Any) -> int:
            marks.append(time.perf_counter())
            status = function(*args)
            marks.append(time.perf_counter())
            return status

        return call

    rows = []
    with (
        mock.patch.object(raw, "launch", marked(raw.launch)),
        mock.patch.object(raw, "synchronize", marked(raw.synchronize)),
    ):
        for _ in range(count):
            marks.clear()
            start = time.perf_counter()
            result = run()
            end = time.perf_counter()
            del result
            launched, called, waited, done = marks
            rows.append(
                (end - start, launched - start, called - launched, waited - called, done - waited,
                 end - done)
            )  # fmt: skip
    return rows


def plain(run: Run, count: int) -> list[float]:
    """Seconds of whole calls, with nothing between, and the results dropped within them."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def blocks(parts: dict[str, Run], raw: driver.Raw, rounds: int) -> dict[str, list[float]]:
    """Median microseconds: of the call as it is, then of its `COLUMNS`; parts take turns."""
    whole: dict[str, list[float]] = {name: [] for name in parts}
    split_up: dict[str, list[tuple[float, ...]]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, run in parts.items():
            plain(run, SETTLE)
            whole[name] += plain(run, BLOCK)
            split_up[name] += split(run, raw, BLOCK)
    return {
        name: [
            round(statistics.median(column) * 1e6, 1)
            for column in (whole[name], *zip(*split_up[name], strict=True))
        ]
        for name in parts
    }


def spans(run: Run, stream: int, count: int = 100) -> float:
    """Median microseconds between events around a launch that nothing else delays."""
    start, end = driver.create_event(), driver.create_event()
    times = []
    for _ in range(count):
        driver.record(start, stream)
        run()
        driver.record(end, stream)
        driver.synchronize(stream)
        times.append(driver.elapsed(start, end) * 1e3)
    driver.destroy_event(start)
    driver.destroy_event(end)
    return round(statistics.median(times), 1)


def examine(context: Any, given: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Everything about a context that is ready, with inputs on the device."""
    for _ in range(20):
        context.infer(given)
    early = statistics.median(plain(lambda: context.infer(given), 200)) * 1e6
    plain(lambda: context.infer(given), 2000)  # the GPU's clocks need time to rise
    replays = context._replays
    replay, values = replays.find(given)
    raw, stream, handover = replays._raw, replays.stream, replay._handover
    one, other = replay.launcher(values), replay.launcher(values)
    turns = itertools.cycle((one, other))
    fresh = itertools.cycle([handover._graph.instantiate() for _ in range(2)])

    def never_updated() -> None:
        raw.launch(next(fresh), stream)
        raw.synchronize(stream)

    def one_address() -> Any:
        replay._next = None  # the output is made first, where the last one was
        return context.infer(given)

    kept: list[Any] = []

    def kept_a_while() -> None:
        kept.append(context.infer(given))
        del kept[:-2]

    def after_idle() -> None:
        until = time.perf_counter() + 30e-6
        while time.perf_counter() < until:
            pass
        one()

    one()
    addresses = next(reversed(handover._ready))
    executable = handover._ready[addresses]
    handover._point(addresses)

    def change() -> None:
        for launch, node in handover._nodes:
            launch.update(executable, node)

    def after_change() -> None:
        change()
        one()

    parts: dict[str, Run] = {
        "graph": one,
        "graph after 30 us of idling": after_idle,
        "two instances in turn": lambda: next(turns)(),
        "two that were never updated": never_updated,
        "graph with nodes changed": after_change,
        "infer": lambda: context.infer(given),
        "infer, output made first": one_address,
        "infer, two results kept": kept_a_while,
    }
    updates, update = [0], Launch.update

    def counted(self: Launch, executable: int, node: int) -> None:
        updates[0] += 1
        update(self, executable, node)

    timed = blocks(parts, raw, rounds)
    with mock.patch.object(Launch, "update", counted):
        plain(parts["infer"], 100)
        infer_updates, updates[0] = updates[0], 0
        plain(parts["infer, two results kept"], 100)
    single: dict[str, Run] = {
        "find": lambda: replays.find(given),
        "empty": lambda: replay._empty(replay._framework),
        "query": lambda: [raw.query(s()) for s in replay._streams],
        "change": change,
    }
    return {
        "rows": timed,
        "us": {n: round(statistics.median(plain(f, 500)) * 1e6, 2) for n, f in single.items()},
        "gpu_us": {
            "graph": spans(lambda: raw.launch(executable, stream), stream),
            "never_updated": spans(lambda: raw.launch(next(fresh), stream), stream),
        },
        "infer_right_after_the_build": round(early, 1),
        "streams_busy": [raw.query(s()) for s in replay._streams],
        "updates_in_100": {"infer": infer_updates, "two results kept": updates[0]},
        "instances": len(handover._ready),
        "changing_nodes": len(handover._nodes),
        "copied": len(handover._in.launches) + len(handover._out.launches),
        "nodes": handover._graph.nodes,
    }


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One network at batch 1, in fp16."""
    from polytool import BuilderConfig, engine_from_onnx

    model, make = NETWORKS[name](1)
    inputs = make(0)
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, inputs, Path(folder) / "model.onnx")
        engine = engine_from_onnx(str(path), BuilderConfig(precision="fp16", device="cuda"))
    context = engine.create_execution_context()
    found = examine(context, {f"input{i}": x.cuda() for i, x in enumerate(inputs)}, rounds)
    context.close()
    return found


def main() -> int:
    """A table and a line of JSON for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["bert_base", "deit_t", "resnet50"])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    for name in options.only:
        found = measure(name, options.rounds)
        rows = [[part, *times] for part, times in found.pop("rows").items()]
        print(tabulate(rows, [f"{name}, us", "as it is", *COLUMNS]))
        print(json.dumps({"network": name, **found}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
