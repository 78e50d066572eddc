"""Sound models, and faults planted in the engine that runs them: in the model, in a layer's tactic,
in what its memory or its types can hold."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from polytool import NativeRunner
from polytool.backends.native.oracle import NativeOracle
from polytool.backends.native.program import Step
from polytool.comparators.budget import unit_roundoff
from polytool.comparators.findings import Finding, Location
from polytool.comparators.judge import relative_l2
from polytool.comparators.locate import locate
from scripts import made_models
from scripts.models import get, with_random_weights
from tests.accuracy.planted import model_faults, tactic_faults

Feeds = dict[str, Any]

# Thresholds were chosen on the first half; marks are taken on the second.
CALIBRATION = frozenset({
    "ppocr-cls", "ddddocr", "silero-sequence", "minimol", "t5-encoder", "squeezenet",
    "made-transformer",
})  # fmt: skip
_TRIES = 40
_VISIBLE = 2.0  # times the error that the sound engine has already


@dataclass(frozen=True)
class Case:
    """One fault; the seed chooses the place."""

    fault: str
    model: str
    precision: str = "fp32"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.fault}-{self.model}-{self.precision}-{self.seed}"


@dataclass(frozen=True)
class Answer:
    """What `locate` said of a planted fault.

    Attributes:
        culprits: for each planted fault the names that point at it: ONNX nodes, or one layer.
        what: the fault in words.
    """

    culprits: tuple[frozenset[str], ...]
    what: str
    found: Location

    @property
    def places(self) -> list[int]:
        """At which place of the ranking each culprit stands; a large number if not at all."""
        return [
            next((i for i, f in enumerate(self.found.ranking) if _names(f) & names), 1 << 30)
            for names in self.culprits
        ]


def _names(finding: Finding) -> frozenset[str]:
    return frozenset({finding.layer, *finding.nodes})


@functools.cache
def sound(name: str) -> tuple[onnx.ModelProto, Feeds]:
    """A model and inputs that make sense for it."""
    if name == "made-transformer":
        proto = made_models.transformer(layers=3, width=64, heads=4, vocabulary=500)
        rng = np.random.default_rng(0)
        return proto, {"ids": rng.integers(0, 500, (2, 12)), "mask": np.ones((2, 12), np.int64)}
    if name == "made-deep":
        rng = np.random.default_rng(0)
        return made_models.deep(blocks=12), {"x": rng.standard_normal((4, 16), np.float32)}
    if name.startswith("made-overflow"):
        return model_faults.overflowing_norm(int(name.removeprefix("made-overflow-")))
    model = get(name)
    proto = onnx.load(model.path)
    proto = with_random_weights(proto) if model.package == "onnx" else proto
    return proto, model.feeds()


@functools.lru_cache(maxsize=4)
def oracle(name: str) -> NativeOracle:
    return NativeOracle(sound(name)[0])


@functools.cache
def answer(case: Case) -> Answer:
    """Plant the fault and locate it."""
    if case.fault in model_faults.FAULTS:
        return _in_model(case)
    if case.fault.startswith("overflow"):
        proto, feeds = sound(case.model)
        runner = NativeRunner(proto, precision=case.precision, optimize=False, device="cpu")
        found = locate(runner, oracle(case.model), [feeds], contributions=0)
        return Answer((model_faults.overflowing(proto),), "a norm that overflows", found)
    return _in_tactic(case)


def _in_model(case: Case) -> Answer:
    """The faulty model runs, and is judged by the sound one.

    The seed moves on until the fault does more to the outputs than the engine's precision does.
    """
    proto, feeds = sound(case.model)
    judge = oracle(case.model)
    names = [o.name for o in proto.graph.output]
    exact = judge.evaluate(feeds, names)
    usual = NativeRunner(proto, precision=case.precision, device="cpu").infer(feeds)
    least = max(_difference(usual, exact), 1e-7) * _VISIBLE
    for attempt in range(_TRIES):
        faulty = onnx.ModelProto()
        faulty.CopyFrom(proto)
        rng = np.random.default_rng([case.seed, attempt])
        what = model_faults.FAULTS[case.fault](faulty, rng)
        if what is None:
            break
        if _difference(NativeOracle(faulty).evaluate(feeds, names), exact) > least:
            runner = NativeRunner(faulty, precision=case.precision, device="cpu")
            found = locate(runner, judge, [feeds], contributions=0)
            return Answer((model_faults.changed_nodes(proto, faulty),), what, found)
    raise LookupError(f"{case}: no such fault shows in the outputs")


def _difference(values: Feeds, reference: Feeds) -> float:
    errors = [relative_l2(values[n], reference[n]) for n in reference]
    return max(1.0 if e is None else e for e in errors)


def _in_tactic(case: Case) -> Answer:
    proto, feeds = sound(case.model)
    kinds = case.fault.split("+")
    runner = NativeRunner(proto, precision=case.precision, device="cpu")
    steps = runner.engine.program._steps
    rng = np.random.default_rng(case.seed)
    culprits: list[Step] = []
    for at in rng.permutation(len(steps)):
        kind = kinds[len(culprits)]
        if not _tapped(runner, steps[at]) or not _spoil(runner, steps[at], kind, feeds, rng):
            continue
        culprits.append(steps[at])
        if len(culprits) == len(kinds):
            break
    else:
        raise LookupError(f"{case}: no layer in which such a fault shows")
    found = locate(runner, oracle(case.model), [feeds], contributions=0)
    layers = tuple(frozenset({step.layer.name}) for step in culprits)
    return Answer(layers, ", ".join(s.layer.name for s in culprits), found)


def _tapped(runner: NativeRunner, step: Step) -> bool:
    layers = {tap.layer for tap in runner.taps() if not tap.depth and tap.spec.dtype.is_float}
    return len(step.layer.outputs) == 1 and step.layer.name in layers


def _spoil(
    runner: NativeRunner, step: Step, kind: str, feeds: Feeds, rng: np.random.Generator
) -> bool:
    """Spoil a layer's launch; undone, and False, where that changes little of what it stores."""
    fault = tactic_faults.FAULTS[kind]
    launch = step.launch
    if not fault.fits(step.layer):
        return False
    changes: list[float] = []
    seed = int(rng.integers(1 << 30))

    def spoiled(*arguments: Any) -> Sequence[Any]:
        (value,) = launch(*arguments)
        bad = fault.spoil(np.array(value), launch, arguments, np.random.default_rng(seed))
        error = relative_l2(bad, value)
        changes.append(float("inf") if error is None else error)
        return (bad,)

    step.launch = spoiled
    runner.infer(feeds)
    dtype = step.layer.outputs[0].dtype
    if changes and min(changes) > tactic_faults.VISIBLE * unit_roundoff(dtype):
        return True
    step.launch = launch
    return False
