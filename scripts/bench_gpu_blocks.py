"""Time hand-assembled networks of the engine's GPU blocks against torch.compile.

    PYTHONPATH=. python scripts/bench_gpu_blocks.py --networks resnet50,bert --batches 1,32 \\
        --peers --out results

Every block is checked against torch in float32, every candidate of every layer is timed, the best
are captured into one CUDA graph, and whole networks are compared with the float32 network. Time is
one synchronous run, wall clock, median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from polytool.backends.native.kernels import driver
from polytool.backends.native.tactics import cublaslt, cudnn
from scripts.bench_gpu_networks import NETWORKS, new_network
from scripts.bench_gpu_tune import Device, compile_layers

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def wall(run: Callable[[], None], count: int = 200) -> tuple[float, float]:
    """Median and 99th percentile of one run, milliseconds."""
    for _ in range(20):
        run()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return statistics.median(times), times[int(count * 0.99)]


def peer(name: str, batch: int) -> tuple[Any, list[torch.Tensor], Any]:
    """torch.compile's network in fp16, its inputs, and what torch gives in float32."""
    model, inputs = NETWORKS[name][0](batch)
    model = model.cuda()
    inputs = [t.cuda() for t in inputs]
    halves = [t.half() if t.is_floating_point() else t for t in inputs]
    with torch.no_grad():
        expected = model(*(t.float() if t.is_floating_point() else t for t in halves))
    return model, halves, expected


def compiled(model: Any) -> Any:
    return torch.compile(model.half(), mode="reduce-overhead", dynamic=False)


def warm_peers(names: list[str], batches: list[int]) -> None:
    """Fill torch.compile's cache, in a process of its own."""
    for name in names:
        for batch in batches:
            model, inputs, _ = peer(name, batch)
            fast = compiled(model)
            with torch.no_grad():
                for _ in range(3):
                    fast(*inputs)
            torch.cuda.synchronize()


def run_peer(name: str, batch: int) -> dict[str, Any]:
    model, inputs, expected = peer(name, batch)
    fast = compiled(model)
    with torch.no_grad():

        def once() -> None:
            fast(*inputs)
            torch.cuda.synchronize()

        median, high = wall(once)
        got = fast(*inputs).float()
    error = float((got - expected).norm() / expected.norm())
    return {"ms": median, "p99": high, "error": error}


def run_own(device: Device, name: str, batch: int, fusions: int) -> dict[str, Any]:
    model, inputs, expected = peer(name, batch)
    model = model.float().cpu()
    start = time.perf_counter()
    net = new_network(device, fusions)
    result = NETWORKS[name][1](net, model.cuda(), inputs)
    built = time.perf_counter() - start
    seconds = compile_layers(device, net.plans)
    start = time.perf_counter()
    device.tune(net.layers)
    tuned = time.perf_counter() - start
    report: dict[str, Any] = {"build_s": built, "compile_s": seconds, "tune_s": tuned}
    for overlap in (False, True):
        device.overlap = overlap
        launches = [r for layer in net.layers for r in layer.best.make(layer.addresses())]
        graph = device.capture(launches)
        launch = driver.Raw().launch

        def once(launch: Any = launch, executable: int = graph.executable) -> None:
            driver.raise_status(launch(executable, device.stream), "cuGraphLaunch")
            driver.synchronize(device.stream)

        median, high = wall(once)
        key = "ms" if overlap else "ms_no_overlap"
        report |= {key: median, f"{key}_p99": high, "nodes": graph.nodes}
        report[f"{key}_graph"] = device.time_graph(graph, 50, False)
    once()
    got = result.float().reshape(expected.shape)
    report["error"] = float((got - expected).norm() / expected.norm())
    report["sum_of_best"] = sum(layer.best.time for layer in net.layers)
    report["layers"] = table(net.layers)
    return report


def table(layers: list[Any]) -> list[dict[str, Any]]:
    """One row a distinct layer: its count, its best way, and the best of each family."""
    counts = Counter(layer.key for layer in layers)
    rows, seen = [], set()
    for layer in layers:
        if layer.key in seen:
            continue
        seen.add(layer.key)
        families: dict[str, float] = {}
        for choice in layer.choices:
            family = choice.label.split("#")[0].split(" ")[0]
            families[family] = min(families.get(family, float("inf")), choice.time)
        rows.append(
            {
                "layer": layer.name,
                "key": str(layer.key),
                "count": counts[layer.key],
                "best": layer.best.label,
                "us": layer.best.time * 1e3,
                "families": {k: v * 1e3 for k, v in families.items()},
                "all": {c.label: round(c.time * 1e3, 2) for c in layer.choices},
            }
        )
    return rows


def show(name: str, batch: int, own: dict[str, Any], other: dict[str, Any] | None) -> None:
    print(
        f"== {name} b{batch}: {own['ms']:.4f} ms (no overlap {own['ms_no_overlap']:.4f}, graph"
        f" {own['ms_graph']:.4f}, sum of bests {own['sum_of_best']:.4f}, {own['nodes']} nodes),"
        f" error {own['error']:.2e}; build {own['build_s']:.1f} compile {own['compile_s']:.1f}"
        f" tune {own['tune_s']:.1f} s"
    )
    if other:
        print(
            f"   torch.compile {other['ms']:.4f} ms, error {other['error']:.2e}: ratio"
            f" {own['ms'] / other['ms']:.3f}"
        )
    for row in own["layers"]:
        rest = " ".join(f"{k} {v:.1f}" for k, v in row["families"].items())
        best = f"{row['us']:6.2f} us {row['layer']:18s} {row['best']:28s}"
        print(f"   {row['count']:2d} x {best} {rest}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default="bert,vit_b16,resnet50")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--fusions", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    names = options.networks.split(",")
    batches = [int(b) for b in options.batches.split(",")]
    if options.warm:
        warm_peers(names, batches)
        return
    began = time.perf_counter()
    warming = []
    if options.peers:
        for name in names:
            arguments = [sys.executable, __file__, "--warm", "--networks", name]
            log = (options.out / f"warm-{name}.log").open("w")
            arguments += ["--batches", options.batches]
            warming.append(subprocess.Popen(arguments, stdout=log, stderr=log))
    for process in warming:
        process.wait()
    print(f"peers compiled after {time.perf_counter() - began:.1f} s")
    device = Device.open()
    print(device.device, "cublasLt", cublaslt.version(), "cudnn", cudnn.version())
    results: dict[str, Any] = {}
    for name in names:
        for batch in batches:
            start = time.perf_counter()
            try:
                own = run_own(device, name, batch, options.fusions)
            except Exception as err:  # the other networks' figures are worth having
                import traceback

                traceback.print_exc()
                print(f"== {name} b{batch} FAILED: {err}")
                continue
            other = run_peer(name, batch) if options.peers else None
            results[f"{name}-{batch}"] = {"own": own, "torch": other}
            show(name, batch, own, other)
            print(f"   took {time.perf_counter() - start:.1f} s", flush=True)
            torch.cuda.empty_cache()
    results["errors"], results["worst"] = device.errors, device.worst
    (options.out / "blocks.json").write_text(json.dumps(results, indent=1))
    print("worst error of a block family:", {k: f"{v:.1e}" for k, v in device.worst.items()})
    shown = list(device.errors.items())
    print(len(shown), "refusals and errors")
    for key, text in shown[:25]:
        print("  ", key[:150], "->", text[:200].replace("\n", " "))


if __name__ == "__main__":
    main()
