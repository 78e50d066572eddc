"""Faults planted in the GPU program of a runner: in kernels, in the memory plan, in the capture."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from polytool.backends.native.cuda.buffers import Storage, View
from polytool.backends.native.cuda.recorder import Step, storages
from polytool.backends.native.cuda.stretch import Stretch
from polytool.backends.native.kernels import driver
from polytool.backends.native.kernels.launch import Launch, Launchable, prepare_plan
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
    item_size,
)
from polytool.tensors import DType

Chosen = list[tuple[Step, tuple[Launchable, ...]]]
Plant = Callable[["Site"], bool]

_SPOIL = """
DEVICE void put(float& to, float v) { to = v; }
DEVICE void put(half_t& to, float v) { to = to_half(v); }
DEVICE void put(bfloat_t& to, float v) { to = to_bfloat(v); }
GLOBAL(KERNEL, 32)(T* data, i64 n) {
    wait_predecessor();
    if (threadIdx.x == 0) { BODY }
}
"""
SPOILS = {
    "nan": "put(data[n / 3], NAN);",
    "tile": "for (i64 i = 0; i < n / 8; ++i) { T old = data[i]; data[i] = data[n - 1 - i]; "
    "data[n - 1 - i] = old; }",
    "few-bits": "for (i64 i = 0; i < n; ++i) put(data[i], __uint_as_float("
    "(__float_as_uint(to_float(data[i])) + 0x00080000u) & 0xfff00000u));",
    "corner": "for (i64 i = n - n / 6; i < n; ++i) put(data[i], 0.0f);",
    "scale": "for (i64 i = n / 2; i < n; ++i) put(data[i], 1.05f * to_float(data[i]));",
    "shift": "for (i64 i = n / 2; i + 1 < n; ++i) data[i] = data[i + 1];",
    "twice": "for (i64 i = 0; i < n / 4; ++i) put(data[i], 2.0f * to_float(data[i]));",
    "leak": "for (i64 i = n / 2; i < n; ++i) "
    "put(data[i], to_float(data[i]) + 0.2f * to_float(data[i - 1]));",
}  # fmt: skip


@dataclasses.dataclass
class Site:
    """One step of a stretch, in which a fault is planted.

    Attributes:
        capturing: whether launches are being recorded into a graph.
        culprits: layers that the fault may be put down to; filled by a plant.
    """

    stretch: Stretch
    chosen: Chosen
    at: int
    capturing: Callable[[], bool]
    culprits: set[str] = dataclasses.field(default_factory=set)

    @property
    def step(self) -> Step:
        return self.chosen[self.at][0]

    @property
    def launches(self) -> tuple[Launchable, ...]:
        return self.chosen[self.at][1]

    def replace(self, *launches: Launchable) -> bool:
        """Other launches for the step, whose layer is then the culprit."""
        self.chosen[self.at] = self.step, launches
        self.culprits.add(self.step.layer.name)
        return True

    @property
    def output(self) -> View:
        """What the step's layer stores, once this step has run."""
        return self.stretch._views[self.step.layer.outputs[0]]

    def fits(self) -> bool:
        """The step is the last of its layer, and stores its one output alone, in floats."""
        layer = self.step.layer
        later = any(other.layer is layer for other, _ in self.chosen[self.at + 1 :])
        if later or len(layer.outputs) != 1 or layer.outputs[0] not in self.stretch._views:
            return False
        view = self.output
        alone = view.storage.size == view.count * item_size(view.dtype)
        inside = view.storage in {v.storage for v in self.step.views[-self.step.writes :]}
        named = layer.outputs[0].value_of is not None and not layer.outputs[0].value_of.map
        return alone and inside and view.dtype.is_float and view.count >= 64 and named


def spoiling(kind: str, dtype: DType) -> Kernel:
    """A kernel that changes the array it is given."""
    defines = {"T": C_TYPES[dtype], "BODY": SPOILS[kind]}
    return assemble("spoil", defines=defines, code=_SPOIL, threads=32)


def waiting(kernel: Kernel, wait: str) -> Kernel:
    """The kernel with something else in the place where it waits for its predecessor."""
    return dataclasses.replace(kernel, source=kernel.source.replace("wait_predecessor();", wait))


def spoil(kind: str) -> Plant:
    """The kernel stores something else."""

    def plant(site: Site) -> bool:
        view = site.output
        kernel = spoiling(kind, view.dtype)
        call = Call(kernel, (1, 1, 1), (32, 1, 1), (Buffer(0), ctypes.c_longlong(view.count)))
        address = site.stretch._address(view.whole)
        return site.replace(
            *site.launches, *prepare_plan(Plan((call,)), site.stretch.device, [address])
        )

    return plant


def fewer_blocks(site: Site) -> bool:
    """The last blocks are not launched: what they should store stays unwritten."""
    launch = site.launches[-1]
    if not isinstance(launch, Launch) or launch._config.grid[0] < 2:
        return False
    kernels = [k for p in site.stretch._steps[site.at].plans for k in p.kernels()]
    if any(re.search(r"\+=? gridDim", k.source) for k in kernels if k.name == launch.name):
        return False  # its blocks share out what there is, however few they are
    launch._config.grid[0] -= max(1, launch._config.grid[0] // 4)
    return site.replace(*site.launches)


def moved(which: int, elements: int) -> Plant:
    """An address in the launch is off by some elements: of an input, or of the output (-1)."""

    def plant(site: Site) -> bool:
        views = site.step.views
        view = views[which] if which >= 0 or site.step.writes == 1 else None
        if view is None or view.storage.make is not None or not view.dtype.is_float:
            return False
        address = site.stretch._address(view)
        found = [
            value
            for launch in site.launches
            if isinstance(launch, Launch)
            for value in launch._values
            if isinstance(value, ctypes.c_void_p) and value.value == address
        ]
        for value in found:
            value.value = address + elements * item_size(view.dtype)
        return bool(found) and site.replace(*site.launches)

    return plant


def skipped(site: Site) -> bool:
    """The graph lacks the launches."""

    def unless_captured(launch: Launchable) -> Launchable:
        return lambda stream: None if site.capturing() else launch(stream)

    return site.replace(*map(unless_captured, site.launches))


def late(site: Site) -> bool:
    """The graph runs the step only after the next one, which reads what it stores."""
    if site.at + 1 >= len(site.chosen):
        return False
    after, launches = site.chosen[site.at + 1]
    reads = {v.storage for v in after.views[: -after.writes]}
    if site.output.storage not in reads:
        return False

    def run_if(captured: bool, launch: Launchable) -> Launchable:
        return lambda stream: launch(stream) if site.capturing() == captured else None

    own = site.launches
    first = [run_if(False, launch) for launch in own]
    site.chosen[site.at] = site.step, tuple(first)
    site.chosen[site.at + 1] = after, (*launches, *(run_if(True, launch) for launch in own))
    site.culprits.update({site.step.layer.name, after.layer.name})
    return True


SPIN = (
    "wait_predecessor(); release_successor(); "
    "{ long long spin = clock64(); while (clock64() - spin < 400000) { } }"
)


def reads_early(site: Site) -> bool:
    """The next step does not wait for this one, which takes its time."""
    if site.at + 1 >= len(site.chosen):
        return False
    after, _ = site.chosen[site.at + 1]
    reads = {v.storage for v in after.views[: -after.writes]}
    if site.output.storage not in reads or after.layer is site.step.layer:
        return False
    slow = _rewritten(site, site.at, SPIN)
    eager = _rewritten(site, site.at + 1, ";")
    if slow is None or eager is None:
        return False
    site.chosen[site.at] = site.step, slow
    site.chosen[site.at + 1] = after, eager
    site.culprits.add(after.layer.name)
    return True


def _rewritten(site: Site, at: int, wait: str) -> tuple[Launchable, ...] | None:
    """The generated launches of a step with something else where they wait."""
    step, launches = site.chosen[at]
    names = [launch.name if isinstance(launch, Launch) else "" for launch in launches]
    plan = next(
        (
            p
            for p in site.stretch._steps[at].plans
            if isinstance(p, Plan) and _names(p) == names and p.workspace == 0
        ),
        None,
    )
    if plan is None or len(plan.calls) != 1:
        return None
    (call,) = plan.calls
    kernel = waiting(call.kernel, wait)
    addresses = [site.stretch._address(v) for v in step.views]
    changed = Plan((dataclasses.replace(call, kernel=kernel),))
    return prepare_plan(changed, site.stretch.device, addresses)


def _names(plan: Plan) -> list[str]:
    return [call.kernel.name for call in plan.calls]


def overlapping(stretch: Stretch, rng: np.random.Generator) -> set[str]:
    """Let one storage lie where another is still needed; the layers that read the latter after."""
    steps = stretch._steps
    lives = storages(steps)
    made = {v.storage for step in steps for v in step.views[-step.writes :] if v.dtype.is_float}
    placed = [s for s in lives if s in stretch._addresses and s in made]
    pairs = [(a, b) for a in placed for b in placed if a is not b and 64 < b.size <= a.size]
    for number in rng.permutation(len(pairs)):
        a, b = pairs[number]
        begins = lives[b][0]
        readers = [i for i, step in enumerate(steps) if i > begins and _reads(step, a)]
        if not lives[a][0] < begins < lives[a][1] or not readers or _reads(steps[begins], a):
            continue
        if any(_writes(step, a) for step in steps[begins:]):
            continue
        stretch._addresses[b] = stretch._addresses[a]
        later = stretch._layers[stretch._layers.index(steps[begins].layer) :]
        views = (
            layer.name
            for layer in later
            if any(t in stretch._views and stretch._views[t].storage is a for t in layer.outputs)
        )
        return {steps[readers[0]].layer.name, *views}  # some layers only look at it differently
    return set()


def _reads(step: Step, storage: Storage) -> bool:
    return any(v.storage is storage for v in step.views[: -step.writes])


def _writes(step: Step, storage: Storage) -> bool:
    return any(v.storage is storage for v in step.views[-step.writes :])


@contextmanager
def planted(plant: Plant | str, seed: int) -> Iterator[set[str]]:
    """Engines that are recorded in the block have one fault; yields the culprits' names."""
    culprits: set[str] = set()
    capturing = [False]
    place, choose = Stretch._place, Stretch._choose
    capture = driver.Graph.capture

    def placing(stretch: Stretch, *views: Any) -> None:
        place(stretch, *views)
        if plant == "overlap":  # again whenever it is placed anew: only the last time counts
            culprits.clear()
            culprits.update(overlapping(stretch, np.random.default_rng(seed)))

    def choosing(stretch: Stretch, timings: Any) -> Chosen:
        chosen: Chosen = list(choose(stretch, timings))
        if callable(plant):
            culprits.clear()
            for at in np.random.default_rng(seed).permutation(len(chosen)):
                site = Site(stretch, chosen, int(at), lambda: capturing[0])
                if site.fits() and plant(site):
                    culprits.update(site.culprits)
                    break
        return chosen

    @contextmanager
    def recording(stream: int) -> Iterator[driver.Graph]:
        capturing[0] = True
        try:
            with capture(stream) as graph:
                yield graph
        finally:
            capturing[0] = False

    with (
        mock.patch.object(Stretch, "_place", placing),
        mock.patch.object(Stretch, "_choose", choosing),
        mock.patch.object(driver.Graph, "capture", recording),
    ):
        yield culprits
