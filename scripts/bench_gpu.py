"""The native engine on the GPU against torch.compile and ONNX Runtime, networks of random weights.

    python scripts/bench_gpu.py [--only NAME ...] [--batch 1 32] [--precision fp16] [--json FILE]
    python scripts/bench_gpu.py --warm ...   # first: compile the peers' networks, on all cores

Time is one synchronous inference with inputs and outputs on the device, wall clock, median of 200
after warm-up, in milliseconds; `graph` is the engine's CUDA graph alone. Errors are relative L2
against torch in float64, mean over `--inputs` random inputs. A peer that cannot run is left out,
with its reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import gpu_peers
from scripts.gpu_networks import NETWORKS, Inputs, export

RUNS, WARM, WARM_S = 200, 20, 0.2  # the GPU's clocks need time, not inferences, to rise
PEERS = ("compile", "onnxrt")


def median(run: Callable[[], Any]) -> float:
    """Milliseconds, after so long a time at work that clocks are steady."""
    until, count = time.perf_counter() + WARM_S, 0
    while count < WARM or time.perf_counter() < until:
        run()
        count += 1
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 4)


def bench(name: str, batch: int, precision: str, peers: list[str], count: int) -> dict[str, Any]:
    """One network at one batch size."""
    model, make = NETWORKS[name](batch)
    samples = [make(seed) for seed in range(count)]
    truth = exact(model, samples)
    row: dict[str, Any] = {"network": name, "batch": batch}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        row |= engine(model, samples, truth, precision, folder)
        for peer in peers:
            try:
                row |= time_peer(peer, model, samples, truth, folder)
            except Exception as err:
                row[f"{peer}_failed"] = f"{type(err).__name__}: {err}"[:300]
    found = [p for p in peers if f"{p}_ms" in row]
    if found:
        best = min(found, key=lambda p: row[f"{p}_ms"])
        row["ratio"] = round(row["ms"] / row[f"{best}_ms"], 3)
        row["error_ratio"] = round(row["error"] / row[f"{best}_error"], 3)
    return row


def exact(model: Any, samples: list[Inputs]) -> list[Any]:
    """Results in float64."""
    import copy

    import torch

    wide = copy.deepcopy(model).cuda().double()
    results = []
    with torch.no_grad():
        for inputs in samples:
            given = (x.cuda().double() if x.is_floating_point() else x.cuda() for x in inputs)
            results.append(wide(*given).cpu().numpy())
    return results


def engine(
    model: Any, samples: list[Inputs], truth: list[Any], precision: str, folder: Path
) -> dict[str, Any]:
    """Build, check and time the native engine."""
    from polytool import BuilderConfig, engine_from_onnx

    path = export(model, samples[0], folder / "model.onnx")
    start = time.perf_counter()
    built = engine_from_onnx(str(path), BuilderConfig(precision=precision, device="cuda"))
    context = built.create_execution_context()
    row: dict[str, Any] = {"build_s": round(time.perf_counter() - start, 1)}
    given = {f"input{i}": x.cuda() for i, x in enumerate(samples[0])}
    feeds = {n: x.cpu().numpy() for n, x in given.items()}
    row["error"] = mean_error(((context.infer(named(s))["y"] for s in samples)), truth)
    (same,) = context.infer(given).values()
    row["same_on_device"] = bool(np.array_equal(same.cpu().numpy(), context.infer(feeds)["y"]))
    parts: dict[str, Callable[[], Any]] = {
        "ms": lambda: context.infer(given),
        "numpy_ms": lambda: context.infer(feeds),
    }
    found = context._replays.find(given) if context._replays is not None else None
    if found is not None:
        parts["graph_ms"] = found[0].launcher(found[1])
    for part, run in parts.items():
        row[part] = median(run)
    program: Any = context._program
    row["on_host"] = program.on_host
    stretch = program.whole()
    row["launches"] = stretch.launches if stretch is not None else None
    row["memory"] = memory(context, model, samples[0], precision)
    context.close()
    return row


def named(inputs: Inputs) -> dict[str, Any]:
    """Feeds for the engine."""
    return {f"input{i}": x.numpy() for i, x in enumerate(inputs)}


def time_peer(
    peer: str, model: Any, samples: list[Inputs], truth: list[Any], folder: Path
) -> dict[str, Any]:
    """Time and error of torch.compile or ONNX Runtime."""
    if peer == "compile":
        made = gpu_peers.torch_compile(model, samples[0])
    else:
        made = gpu_peers.onnxruntime_cuda(model, samples[0], folder)
    error = mean_error(map(made.on, samples), truth)
    return {f"{peer}_ms": median(made.run), f"{peer}_error": error}


def mean_error(results: Iterator[Any], truth: list[Any]) -> float:
    """Mean relative L2."""
    errors = []
    for value, reference in zip(results, truth, strict=True):
        a, r = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        errors.append(np.linalg.norm(a - r) / np.linalg.norm(r))
    return float(f"{statistics.mean(errors):.3e}")


def memory(context: Any, model: Any, inputs: tuple[Any, ...], precision: str) -> dict[str, Any]:
    """MB on the GPU, and the arena without workspaces over the least that tensors take unfused."""
    from polytool import BuilderConfig, engine_from_onnx
    from polytool.backends.native.liveness import liveness_bound

    config = BuilderConfig(precision=precision, device="cpu", optimize=False)
    with tempfile.TemporaryDirectory() as folder:
        unfused = engine_from_onnx(
            str(export(model, inputs, Path(folder) / "unfused.onnx")), config
        ).network
        shapes = {f"input{i}": tuple(x.shape) for i, x in enumerate(inputs)}
        bound = liveness_bound(unfused, shapes)
    held = context.device_memory()
    row: dict[str, Any] = {name: round(size / 1e6, 2) for name, size in held.items()}
    row["bound"] = round(bound / 1e6, 2)
    row["arena_over_bound"] = round((held["arena"] - held["workspace"]) / bound, 3)
    return row


def warm(names: list[str], batches: list[int]) -> None:
    """Fill torch.compile's cache on disk, a process a network."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from scripts import gpu_networks, gpu_peers\n"
        "model, make = gpu_networks.NETWORKS[sys.argv[1]](int(sys.argv[2]))\n"
        "peer = gpu_peers.torch_compile(model, make(0))\n"
        "[peer.run() for _ in range(3)]"
    )
    root = Path(__file__).resolve().parent.parent
    work = [
        subprocess.Popen([sys.executable, "-c", code, name, str(batch)], cwd=root)
        for name in names
        for batch in batches
    ]
    for process in work:
        process.wait()


COLUMNS = {
    "network": "network", "batch": "batch", "ms": "native", "graph_ms": "graph",
    "compile_ms": "torch.compile", "onnxrt_ms": "onnxruntime", "ratio": "to the best",
    "error": "error", "error_ratio": "to the best", "build_s": "build s", "failed": "failed",
}  # fmt: skip


def main() -> int:
    """Run what the command line asks for: a line of JSON each, and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--inputs", type=int, default=10)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.warm:
        warm(options.only, options.batch)
        return 0
    rows: list[dict[str, Any]] = []
    for name in options.only:
        for batch in options.batch:
            count = options.inputs if batch == 1 else 1
            try:
                row = bench(name, batch, options.precision, options.peers, count)
            except Exception as err:
                traceback.print_exc()
                row = {"network": name, "batch": batch, "failed": f"{type(err).__name__}: {err}"}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps(rows, indent=1))
    table = [[row.get(key, "") for key in COLUMNS] for row in rows]
    print(tabulate(table, list(COLUMNS.values())))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
