"""What one `infer` of torch tensors costs beside its CUDA graph, on a GPU.

    python scripts/bench_gpu_infer.py [--only bert_base deit_t resnet50] [--rounds 400]

The parts are timed in turn, so that clocks and caches are the same for all. Medians, microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from polytool.backends.native.kernels.launch import Launch
from scripts.gpu_networks import NETWORKS, export


def alternating(parts: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median microseconds of each part; the parts take turns."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds):
        for name, run in parts.items():
            start = time.perf_counter()
            run()
            if turn > rounds // 10:
                times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(t) * 1e6, 1) for name, t in times.items()}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One network at batch 1, in fp16."""
    from polytool import BuilderConfig, engine_from_onnx

    model, make = NETWORKS[name](1)
    inputs = make(0)
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, inputs, Path(folder) / "model.onnx")
        engine = engine_from_onnx(str(path), BuilderConfig(precision="fp16", device="cuda"))
    context = engine.create_execution_context()
    given = {f"input{i}": x.cuda() for i, x in enumerate(inputs)}
    for _ in range(20):
        context.infer(given)
    replays: Any = context._replays
    replay, values = replays.find(given)
    one, other, third = (replay.launcher(values) for _ in range(3))
    last = [one]

    def in_turn() -> None:
        last[0] = third if last[0] is other else other
        last[0]()

    updates, update = [0], Launch.update

    def counted(self: Launch, executable: int, node: int) -> None:
        updates[0] += 1
        update(self, executable, node)

    parts: dict[str, Callable[[], Any]] = {
        "graph": one,
        "two_graphs_in_turn": in_turn,
        "infer": lambda: context.infer(given),
        "infer_again": lambda: context.infer(given),
        "find": lambda: replays.find(given),
        "empty": lambda: replay._empty(replay._framework),
    }
    with mock.patch.object(Launch, "update", counted):
        row: dict[str, Any] = {"network": name, **alternating(parts, rounds)}
        row["updates_an_inference"] = updates[0] / rounds / 2
    row["instances"] = len(replay._handover._ready)
    addresses = next(iter(replay._handover._ready))
    executable = replay._handover._ready[addresses]
    row["changing_nodes"] = len(replay._handover._nodes)

    def change() -> None:
        for launch, node in replay._handover._nodes:
            launch.update(executable, node)

    replay._handover._point(addresses)
    row |= alternating({"change": change, "graph_after_nothing": one}, rounds)
    row |= alternating({"_": change, "graph_after_change": one}, rounds)
    row.pop("_")
    context.close()
    return row


def main() -> int:
    """Print one line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["bert_base", "deit_t", "resnet50"])
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    for name in options.only:
        print(json.dumps(measure(name, options.rounds)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
