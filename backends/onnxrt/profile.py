"""How long the nodes of a session take, by onnxruntime's own profiler."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from polytool.backends.base import LayerTime
from polytool.backends.onnxrt import session
from polytool.backends.onnxrt.source import Source
from polytool.backends.onnxrt.values import to_ort
from polytool.errors import RunnerError

_KERNEL = "_kernel_time"


def node_times(
    source: Source,
    config: session.SessionConfig,
    who: str,
    feeds: Mapping[str, Any],
    iterations: int,
    named: Collection[str],
) -> tuple[LayerTime, ...]:
    """The times of all nodes, in execution order; the run before the first counted is left out.

    Args:
        source: the model.
        config: how its session is made.
        who: what messages call the model.
        feeds: inputs that fit.
        iterations: how often to run.
        named: names of the model's own nodes; others are onnxruntime's.

    Raises:
        RunnerError: onnxruntime failed.
    """
    given = {k: to_ort(v) for k, v in feeds.items() if v is not None}
    with tempfile.TemporaryDirectory() as folder:
        run = session.open_session(source, config, who=who, profile=os.path.join(folder, "p"))
        names = [o.name for o in run.get_outputs()]
        try:
            run.run_with_ort_values(names, given)
            start = time.perf_counter()
            for _ in range(iterations):
                run.run_with_ort_values(names, given)
        except Exception as err:
            raise RunnerError(f"onnxruntime failed in {who}: {session.clean(err)}") from err
        with open(run.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    return _layers(events, start, named)


def _layers(
    events: list[dict[str, Any]], start: float, named: Collection[str]
) -> tuple[LayerTime, ...]:
    """Events of kernels by node, from the second run on, which began at `start`."""
    _, since, *_ = sorted(e["ts"] for e in events if e["name"] == "model_run")
    spans: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
            continue
        if event["ts"] >= since:
            at = start + (event["ts"] - since) / 1e6
            args = event["args"]
            name = event["name"].removesuffix(_KERNEL)
            provider = args.get("provider", "").removesuffix("ExecutionProvider")
            spans[name, args.get("op_name", ""), provider].append((at, event["dur"] / 1e6))
    return tuple(
        LayerTime(name, kind, (name,) if name in named else (), (provider,), tuple(times))
        for (name, kind, provider), times in spans.items()
    )
