"""Layers with several ways to run them: time every way on the device, keep the best, capture.

A layer is timed as a chain in one CUDA graph, each link with its own copy of the weights, after the
L2 cache has been flushed: so a launch's gap and its overlap with the predecessor count as they do
in an engine, and weights come from memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from polytool.backends.native.kernels import compiler, driver, launch
from polytool.backends.native.kernels.source import Plan
from polytool.backends.native.tactics import cublaslt, cudnn
from polytool.errors import PolytoolError

Launches = Sequence[Callable[[int], None]]
Make = Callable[[Sequence[int]], Launches]


@dataclass
class Choice:
    """One way to run a layer: `make` binds it to the addresses of the layer's buffers."""

    label: str
    make: Make
    time: float = float("nan")


@dataclass
class Layer:
    """A step of a network.

    Attributes:
        buffers: its tensors in the order that the choices expect.
        weights: which of them are weights: each link of a timed chain gets its own copy.
        key: layers with equal keys share their times.
        output: which of the buffers is the result.
        reference: the result in float32, from what the buffers hold.
    """

    name: str
    key: tuple[Any, ...]
    buffers: list[torch.Tensor]
    weights: tuple[int, ...]
    choices: list[Choice]
    output: int
    reference: Callable[[], torch.Tensor]
    best: Choice | None = None

    def addresses(self) -> list[int]:
        return [t.data_ptr() for t in self.buffers]


@dataclass
class Device:
    """The device, its stream, scratch memory for flushing and for libraries."""

    device: driver.Device
    stream: int
    flush_bytes: int = 192 << 20
    flush: int = 0
    workspace: int = 0
    handle: cudnn.Handle = field(default_factory=cudnn.Handle)
    table: dict[tuple[Any, ...], dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    overlap: bool = True

    @classmethod
    def open(cls) -> Device:
        opened = cls(driver.device(), driver.create_stream())
        opened.flush = driver.allocate(opened.flush_bytes)
        opened.workspace = driver.allocate(256 << 20)
        return opened

    def kernel(self, label: str, plan: Plan, extra: Sequence[int] = ()) -> Choice:
        """A choice of generated kernels; a workspace, if any, is shared."""

        def make(addresses: Sequence[int]) -> Launches:
            held = [*addresses, *extra]
            if plan.workspace:
                held.append(self.workspace)
            return launch.prepare_plan(plan, self.device, held, overlap=self.overlap)

        return Choice(label, make)

    def capture(self, launches: Sequence[Callable[[int], None]]) -> driver.Graph:
        with driver.Graph.capture(self.stream) as graph:
            for run in launches:
                run(self.stream)
        return graph

    def time_graph(self, graph: driver.Graph, repeats: int, flush: bool) -> float:
        """Median milliseconds of one replay."""
        start, end = driver.create_event(), driver.create_event()
        times = []
        for _ in range(repeats):
            if flush:
                driver.fill(self.flush, self.flush_bytes, 1, self.stream)
            driver.record(start, self.stream)
            graph.launch(self.stream)
            driver.record(end, self.stream)
            driver.synchronize(self.stream)
            times.append(driver.elapsed(start, end))
        return statistics.median(times)

    def tune(self, layers: Sequence[Layer], links: int = 12, repeats: int = 5) -> None:
        """Time every choice of every layer, once a key, and set each layer's best."""
        for layer in layers:
            if layer.key not in self.table:
                self.table[layer.key] = self._tune_one(layer, links, repeats)
            times = self.table[layer.key]
            for choice in layer.choices:
                choice.time = times.get(choice.label, float("inf"))
            layer.best = min(layer.choices, key=lambda c: c.time)
            if layer.best.time == float("inf"):
                raise RuntimeError(f"{layer.name}: no way to run it works: {self.errors}")

    def _tune_one(self, layer: Layer, links: int, repeats: int) -> dict[str, float]:
        copies = [
            {i: layer.buffers[i].clone() for i in layer.weights} if link else {}
            for link in range(links)
        ]
        torch.cuda.synchronize()
        own = layer.addresses()
        chains = [[c[i].data_ptr() if i in c else a for i, a in enumerate(own)] for c in copies]
        times: dict[str, float] = {}
        expected = layer.reference()
        result = layer.buffers[layer.output]
        torch.cuda.synchronize()
        for choice in layer.choices:
            try:
                result.fill_(float("nan"))
                torch.cuda.synchronize()
                for run in choice.make(chains[0]):
                    run(self.stream)
                driver.synchronize(self.stream)
                error = relative(result, expected)
                family = f"{layer.name.split('.')[-1]}/{choice.label.split('#')[0].split(' ')[0]}"
                self.worst[family] = max(self.worst.get(family, 0.0), error)
                if not error < 2e-3:
                    self.errors[f"{layer.name}/{choice.label}"] = f"WRONG: error {error}"
                    continue
                # a quick look first: what is far from the best is not timed well
                probe = self.capture([r for c in chains[:3] for r in choice.make(c)])
                quick = self.time_graph(probe, 2, True) / 3
                probe.close()
                if times and quick > 2.0 * min(times.values()) + 0.004:
                    times[choice.label] = quick
                    continue
                graph = self.capture([r for c in chains for r in choice.make(c)])
                times[choice.label] = self.time_graph(graph, repeats, True) / links
                graph.close()
            except PolytoolError as err:
                self.errors[f"{layer.name}/{choice.label}"] = str(err)[:300]
        return times


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error; NaN counts as infinite."""
    difference = (value.float().reshape(-1) - expected.float().reshape(-1)).norm()
    error = float(difference / expected.float().norm())
    return error if error == error else float("inf")


def compile_layers(device: Device, plans: Sequence[Plan]) -> float:
    """Compile all kernels of some plans on all cores; returns seconds."""
    start = time.perf_counter()
    compiler.compile_all((c.kernel for p in plans for c in p.calls), device.device.arch, 16)
    return time.perf_counter() - start


def cudnn_choices(
    device: Device, description: cudnn.Description, most: int, label: str = "cudnn"
) -> list[Choice]:
    """The first plans of a cuDNN graph that can be built."""
    try:
        graph = cudnn.Graph.of(description, device.handle)
    except PolytoolError as err:
        device.errors[f"{label} {description}"] = str(err)[:300]
        return []
    found = []
    for plan in range(graph.plans):
        if len(found) == most:
            break
        if not graph.build(plan) or graph.workspace(plan) > 256 << 20:
            continue

        def make(addresses: Sequence[int], plan: int = plan) -> Launches:
            return [graph.launch(plan, addresses, device.workspace, device.handle)]

        found.append(Choice(f"{label}#{plan}", make))
    return found


def cublas_choices(device: Device, product: cublaslt.Product, most: int = 12) -> list[Choice]:
    """cuBLASLt's heuristics as choices."""
    found = []
    for number, algorithm in enumerate(cublaslt.algorithms(product, most=most)):

        def make(addresses: Sequence[int], algorithm: cublaslt.Algorithm = algorithm) -> Launches:
            return [cublaslt.Launch(product, algorithm, addresses, device.workspace)]

        found.append(Choice(f"cublaslt#{number}", make))
    return found


def parallel(work: Sequence[Callable[[], Any]], threads: int = 12) -> list[Any]:
    """Run host work on several threads."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda f: f(), work))
