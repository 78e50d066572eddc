"""Deciding which candidate does each operation of an engine on one device.

In this order: saved tactics that are to be replayed, the engine file's section for the device, the
timing cache, and, for the shapes that the engine is built for, running all candidates. Other shapes
take what was decided at the same place of the same layer.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import polytool
from polytool.backends.native.config import TACTIC_SOURCES, BuilderConfig
from polytool.backends.native.cuda.library import ask_libraries, library_versions
from polytool.backends.native.cuda.recorder import Step
from polytool.backends.native.cuda.timing import time_candidates
from polytool.backends.native.device_section import DeviceSection
from polytool.backends.native.kernels import compiler, driver
from polytool.backends.native.kernels.source import Candidate, Kernel, LibraryPlan
from polytool.backends.native.tactic_replay import TacticChoice
from polytool.backends.native.timing_cache import TimingCache
from polytool.errors import RunnerError

_PER_LEVEL = (1, 4, 12)
"""How many generated candidates an operation has at the lower levels; all of them above."""
_LIBRARIES_FROM = 2
"""The level from which on libraries are asked for candidates."""

_measuring = threading.Lock()
"""Two contexts that time at once would disturb each other."""


class Tuning:
    """The decisions of an engine on one device; shared by its contexts.

    Args:
        config: what may be chosen from.
        device: where it runs.
        section: what the engine file holds for this device.
        kernels: whether its machine code may be used.
        retune: whether operations that nothing decides may be timed.

    Attributes:
        chosen: every decision so far, by layer and signature; those of the section included.
    """

    def __init__(
        self,
        config: BuilderConfig,
        device: driver.Device,
        section: DeviceSection | None = None,
        kernels: bool = True,
        retune: bool = True,
    ) -> None:
        self.config, self.device, self.retune = config, device, retune
        self.cache = config.timing_cache or TimingCache()
        self.chosen: dict[tuple[str, str], TacticChoice] = {}
        self._code: dict[str, bytes] = {}
        if section is not None:
            self.chosen = {(c.layer, c.signature): c for c in section.choices}
            if kernels:
                self._code.update(section.kernels())
                compiler.adopt(self._code)
        self.has_section = section is not None
        self._kernels: dict[str, Kernel] = {}
        self._places: dict[tuple[str, int], str] = {}
        self._stamp: str | None = None

    @property
    def stamp(self) -> str:
        """Everything that times depend on besides the operation, as text."""
        if self._stamp is None:
            facts = {**self.device.stamp, "polytool": polytool.__version__}
            facts |= library_versions(self._sources())
            self._stamp = json.dumps(facts, sort_keys=True)
        return self._stamp

    def use(self, kernels: Iterable[Kernel]) -> None:
        """These are launched: the engine's file is to hold them."""
        self._kernels.update({compiler.key(k, self.device.arch): k for k in kernels})

    def section(self) -> DeviceSection | None:
        """What an engine file holds for this device; None before anything was recorded."""
        if not self._kernels and not self.chosen:
            return None
        arch = self.device.arch
        self._code |= {d: compiler.compile_kernel(k, arch) for d, k in self._kernels.items()}
        code = dict(sorted(self._code.items()))
        choices = tuple(c for _, c in sorted(self.chosen.items()))
        taken = {c.tactic.split()[0] for c in choices}.intersection(self._sources())
        versions = library_versions(sorted(taken))
        return DeviceSection(self.device.stamp, versions, choices, lambda: code)

    def _sources(self) -> list[str]:
        if self.config.builder_optimization_level < _LIBRARIES_FROM:
            return ["nvrtc"]
        return ["nvrtc", *(s for s in self.config.tactic_sources if s != "nvrtc")]

    def decide(self, steps: Sequence[Step], *, tune: bool) -> list[Step]:
        """The steps with the candidates that are left: one where nothing has to be timed.

        Args:
            steps: as recorded.
            tune: whether candidates may be timed for these shapes.

        Raises:
            ModelError: tactics that are to be replayed do not fit.
            RunnerError: something would have to be timed, and must not.
        """
        tune = tune and self.config.builder_optimization_level > 0
        places: Counter[str] = Counter()
        wishes: list[str | None] = []
        complete = []
        for step in steps:
            wish = None
            if step.signature is not None:
                place = places[step.layer.name]
                places[step.layer.name] += 1
                wish = self._wish(step, place, tune)
            wishes.append(wish)
            asks = step.signature is not None and wish not in _names(step.plans)
            complete.append(self._asking(step) if asks else dataclasses.replace(step, libraries=()))
        places.clear()
        left = []
        for step, wish in zip(ask_libraries(complete), wishes, strict=True):
            if step.signature is not None:
                step = self._left(step, wish, places[step.layer.name], tune)
                places[step.layer.name] += 1
            left.append(step)
        return left

    def _asking(self, step: Step) -> Step:
        """The step with questions only for the libraries that may be used."""
        allowed = self._sources()
        found = tuple(r for r in step.libraries if r.source in allowed)
        return dataclasses.replace(step, libraries=found)

    def _wish(self, step: Step, place: int, tune: bool) -> str | None:
        """The name of the candidate to take; None where times decide that are not known yet."""
        assert step.signature is not None
        layer = step.layer.name
        if self.config.tactics is not None:
            return self.config.tactics.wanted(layer, step.signature, place)
        if (layer, step.signature) in self.chosen:
            return self.chosen[layer, step.signature].tactic
        asked = {r.source for r in step.libraries}.intersection(self._sources())
        return self._fastest_known(step, asked) or (
            None if tune else self._places.get((layer, place), "")
        )

    def _fastest_known(self, step: Step, asked: Iterable[str]) -> str | None:
        """The winner by the timing cache, where that knows all candidates."""
        assert step.signature is not None
        times = self.cache.find(self.stamp, step.signature)
        allowed = _names(self._admitted(step.plans))
        if times is None or not times.covers(allowed, {"nvrtc", *asked}):
            return None
        refused = set(_names(step.plans)).difference(allowed)
        fit = {n: t for n, t in times.milliseconds.items() if n not in refused}
        return min(fit, key=fit.__getitem__)

    def _left(self, step: Step, wish: str | None, place: int, tune: bool) -> Step:
        """The step with the candidate of that name, or with all that may be timed."""
        assert step.signature is not None
        by_name = {p.name: p for p in step.plans}
        replay, layer = self.config.tactics, step.layer.name
        if wish is not None and wish not in by_name and replay is not None:
            raise replay.misfit(layer, wish, by_name)
        admitted = self._admitted(step.plans)
        plans = admitted if tune else admitted[:1]
        if wish in by_name:
            plans = [by_name[wish]]
        if len(plans) > 1 and not self.retune:
            raise RunnerError(
                f"the engine has no tactic for layer {layer!r} on {self.device.name} and must not "
                "choose one: build it for this device, or load it without --no-retune"
            )
        if len(plans) == 1:
            self._keep(step, place, plans[0].name, tune)
        return dataclasses.replace(step, plans=tuple(plans))

    def _keep(self, step: Step, place: int, name: str, tune: bool) -> None:
        assert step.signature is not None
        layer = step.layer.name
        known = self.chosen.get((layer, step.signature))
        if known is None or known.tactic != name:
            times = self.cache.find(self.stamp, step.signature)
            timed = times.milliseconds if times is not None else ()
            candidates = tuple(dict.fromkeys((*_names(step.plans), *timed)))
            self.chosen[layer, step.signature] = TacticChoice(
                layer, name, step.signature, candidates
            )
        if tune or (layer, place) not in self._places:
            self._places[layer, place] = name

    def _admitted(self, plans: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that the configuration allows; the first one where it allows none."""
        config = self.config
        found = [
            p
            for p in plans
            if p.source in config.tactic_sources
            and (config.workspace_limit is None or p.workspace <= config.workspace_limit)
            and (config.allow_nondeterministic or p.deterministic)
        ]
        generated: list[Candidate] = [p for p in found if not isinstance(p, LibraryPlan)]
        level = config.builder_optimization_level
        if level < len(_PER_LEVEL):
            generated = _spread(generated, _PER_LEVEL[level])
        libraries = [p for p in found if isinstance(p, LibraryPlan)]
        return [*generated, *libraries] or list(plans[:1])

    def fastest(self, step: Step, addresses: Sequence[int], stream: int, place: int) -> Candidate:
        """The fastest of the candidates that are left; all are timed and kept in the cache."""
        if len(step.plans) > 1:
            assert step.signature is not None
            with _measuring:
                times = self._timed(step)  # by another context, while this one waited
                if times is None:
                    times = time_candidates(step, addresses, self.device, stream)
                    self.cache.keep(self.stamp, step.signature, times, self._sources())
            best = min(step.plans, key=lambda p: times[p.name])
            self._keep(step, place, best.name, tune=True)
            return best
        return step.plans[0]

    def _timed(self, step: Step) -> Mapping[str, float] | None:
        """The times of the candidates that are left, where all are known by now."""
        assert step.signature is not None
        times = self.cache.find(self.stamp, step.signature)
        known = times is not None and times.covers(_names(step.plans), ())
        return times.milliseconds if times is not None and known else None


def section_for(device: driver.Device, sections: Sequence[DeviceSection]) -> DeviceSection | None:
    """The section that was made on such a device with the same driver and libraries."""
    for section in sections:
        if dict(section.stamp) == device.stamp:
            here = library_versions([s for s in section.versions if s in TACTIC_SOURCES])
            if here == dict(section.versions):
                return section
    return None


def _names(plans: Iterable[Candidate]) -> tuple[str, ...]:
    return tuple(p.name for p in plans)


def _spread(plans: list[Candidate], most: int) -> list[Candidate]:
    """At most so many, evenly from the list, the first one included."""
    if len(plans) <= most:
        return plans
    return [plans[i * len(plans) // most] for i in range(most)]
