"""Which layer loses precision: every layer judged on its own, in one run.

An Observable runner is watched. Each tensor that it stores is compared three ways, with a layer
oracle that evaluates the same slice of the original model:

* own: against the oracle fed with the *engine's* inputs of the slice: what this layer alone did;
* total: against the reference, which carries on from the reference's own values;
* inherited: the oracle fed with the engine's inputs against the reference.

The slice of a tensor reaches back to the nearest tensors that were seen before it. Values are
dropped when no later slice needs them, so memory is that of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds, LayerOracle, Observable, Tap
from polytool.collection import paused_collection
from polytool.comparators.findings import BROKEN, EXPECTED, SUSPICIOUS, Finding, Location
from polytool.comparators.judge import NOTHING_FINITE, Judgement, judge, relative_l2
from polytool.comparators.pictures import MOST_OUTPUTS
from polytool.comparators.pictures import draw as picture_of
from polytool.comparators.races import find_race, find_unsteady, same_bits
from polytool.comparators.rows import RowOracle
from polytool.comparators.second_opinion import with_second_opinion
from polytool.comparators.slices import Slice, plan_slices
from polytool.errors import UsageError

Progress = Callable[[str], None]
SecondOracle = Callable[[], tuple[LayerOracle, tuple[str, str]] | None]
_CONTRIBUTIONS = 3


def locate(
    runner: Observable,
    oracle: LayerOracle,
    feeds: Iterable[Feeds],
    *,
    reference: Mapping[str, Any] | None = None,
    contributions: int = _CONTRIBUTIONS,
    everywhere: bool = False,
    second: SecondOracle | None = None,
    draw: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Location:
    """Judge every layer of `runner` against `oracle`.

    Args:
        runner: what is suspected; it is activated here.
        oracle: evaluates slices of the original model; also the reference for total errors.
        feeds: one mapping a sample; every layer is judged by its worst sample.
        reference: output name to array, to compare the outputs with in place of the oracle's.
        contributions: for how many layers to measure what they do to the outputs.
        everywhere: measure that of the layers with the largest own errors, sound ones too, and
            not of the broken and suspicious ones only.
        second: makes another layer oracle, which is asked about layers that are blamed, and says
            what both oracles are called; it may return None.
        draw: keep pictures of the errors of the outputs.
        seed: of the noise that conditions are measured with.
        progress: called with a line of text now and then.

    Raises:
        UsageError: there is no sample, or the runner shows no tensor.
    """
    with runner, paused_collection():
        walk = _Walk(runner, oracle, seed, draw=draw)
        for number, feed in enumerate(feeds):
            if progress is not None:
                progress(f"sample {number}")
            walk.sample(number, dict(feed))
        if not walk.samples:
            raise UsageError("locate needs at least one sample of inputs")
        findings = walk.findings()
        chosen = _to_measure(findings, contributions, everywhere)
        measured = _with_contributions(walk, findings, chosen)
        if second is not None and any(f.verdict != EXPECTED for f in measured):
            asked = second()
            if asked is not None:
                other, names = asked
                measured = with_second_opinion(
                    measured, runner, walk.samples, walk.oracle, other, names
                )
        outputs = walk.output_errors(reference)
    return Location(
        _verdict(walk, measured),
        tuple(measured),
        outputs,
        walk.not_checked(),
        runner.settings,
        pictures=walk.pictures,
    )


def _verdict(walk: _Walk, findings: Sequence[Finding]) -> str:
    if walk.moved or walk.race is not None:
        return "race"
    found = {f.verdict for f in findings}
    return next((v for v in (BROKEN, SUSPICIOUS) if v in found), EXPECTED)


class _Walk:
    """The samples, one after the other; keeps the worst judgement of every tap."""

    def __init__(
        self, runner: Observable, oracle: LayerOracle, seed: int, *, draw: bool = False
    ) -> None:
        self.runner, self.seed = runner, seed
        self.inputs = [spec.name for spec in runner.inputs]
        self.taps = runner.taps()
        if not self.taps:
            raise UsageError(f"{runner.name} shows no tensor to compare")
        self.oracle = RowOracle(oracle, self.taps)
        self.slices, self.skipped = plan_slices(self.taps, self.inputs, oracle)
        self.index = {tap.tensor: i for i, tap in enumerate(self.taps)}
        self.worst: dict[int, Judgement] = {}
        self.sums: dict[int, tuple[float, int]] = {}
        self.samples: list[Feeds] = []
        self.moved: list[str] = []
        self.race: int | None = None
        self.errors: dict[str, float | None] = {}
        self.outputs: list[dict[str, Any]] = []
        self.draw = draw
        self.pictures: dict[str, Any] = {}

    def sample(self, number: int, feed: Feeds) -> None:
        """Run once unobserved and once observed, judging every tap as it comes."""
        self.samples.append(feed)
        plain = self.runner.infer(feed)
        state = _Sample(self, number, feed)
        observed = self.runner.infer(feed, observe=state.see)
        for name, value in plain.items():
            if not same_bits(value, observed[name]):
                self.moved.append(f"output {name!r} of sample {number} changes between runs")
        if self.race is None:
            self.race = find_race(self.runner, self.taps, self.slices, feed)
        if self.race is None and self.moved:
            self.race = find_unsteady(self.runner, self.taps, self.slices, feed)
        self.outputs.append(observed)
        for name, value in observed.items():
            if name in state.exact and isinstance(value, np.ndarray):
                error = relative_l2(value, state.exact[name])
                before = self.errors.get(name, 0.0)
                self.errors[name] = _worse(before, error)
                if self.draw and (name not in self.pictures or self.errors[name] != before):
                    self._picture(name, value, state.exact[name])

    def _picture(self, name: str, value: Any, exact: Any) -> None:
        comparable = value.shape == np.shape(exact) and value.size and value.dtype != object
        if comparable and (name in self.pictures or len(self.pictures) < MOST_OUTPUTS):
            self.pictures[name] = picture_of(value, exact)

    def record(self, index: int, judgement: Judgement) -> None:
        """Keep the worst judgement and the sum of own errors of tap `index`."""
        kept = self.worst.get(index)
        if kept is None or judgement.worse_than(kept):
            self.worst[index] = judgement
        if judgement.own is not None:
            total, count = self.sums.get(index, (0.0, 0))
            self.sums[index] = total + judgement.own, count + 1

    def findings(self) -> list[Finding]:
        """One row a judged tap, in execution order."""
        rows = []
        for index in sorted(self.worst):
            tap, found = self.taps[index], self.worst[index]
            total, count = self.sums.get(index, (0.0, 0))
            mean = total / count if count else None
            row = found.finding(tap, index, mean, self.slices[index])
            rows.append(row.racing() if index == self.race else row)
        return rows

    def error_of(self, finding: Finding, feed: Feeds) -> tuple[Any, Any]:
        """The exact value of a layer's tensor, and the error that the layer adds to it."""
        found = self.worst[finding.position]
        if found.own_delta is not None and found.exact is not None:
            return found.exact, found.own_delta
        (tensor,) = finding.tensors
        oracle = self.oracle.of_sample(_sample_of(finding))
        exact = oracle.evaluate(feed, [tensor])[tensor]
        noise = np.random.default_rng((self.seed, finding.position)).standard_normal(exact.shape)
        scale = np.linalg.norm(exact) / max(float(np.linalg.norm(noise)), 1e-300)
        return exact, noise * scale * (finding.own_error or 0.0)

    def output_errors(self, reference: Mapping[str, Any] | None) -> dict[str, float | None]:
        """Relative L2 of the outputs, worst sample."""
        if reference is None:
            return self.errors
        errors: dict[str, float | None] = {}
        for name, value in self.outputs[0].items():
            if name in reference and isinstance(value, np.ndarray):
                errors[name] = relative_l2(value, np.asarray(reference[name]))
        return errors

    def not_checked(self) -> tuple[str, ...]:
        """What was planned and never seen, or could not be compared."""
        unseen = [
            f"{tap.tensor}: never computed for these inputs"
            for i, tap in enumerate(self.taps)
            if tap.nodes and i in self.slices and i not in self.worst
        ]
        drowned = [
            f"{self.taps[i].tensor}: its inputs leave no finite value"
            for i, found in sorted(self.worst.items())
            if found.reason == NOTHING_FINITE
        ]
        return (*self.moved, *self.skipped, *unseen, *drowned)


class _Sample:
    """The values of one sample that later slices still need."""

    def __init__(self, walk: _Walk, number: int, feed: Feeds) -> None:
        self.walk, self.number = walk, number
        self.oracle = walk.oracle.of_sample(number)
        self.engine: dict[str, Any] = dict(feed)
        self.exact: dict[str, Any] = dict(feed)
        self.seen: dict[int, int] = {}
        self.outputs = {spec.name for spec in walk.runner.outputs}

    def see(self, tap: Tap, value: Any) -> None:
        """Called by the runner, in execution order."""
        walk = self.walk
        index = walk.index[tap.tensor]
        if not walk.runner.keeps_taps:
            value = np.array(value) if isinstance(value, np.ndarray) else value
        self.engine[tap.tensor] = value
        slice_ = walk.slices.get(index)
        if slice_ is None or not tap.nodes:
            return
        times = self.seen.get(index, 0)
        self.seen[index] = times + 1
        where = f"{self.number}.{times}" if tap.depth else str(self.number)
        exact = None if tap.depth else self._reference(slice_, tap.tensor)
        given = {name: self.engine[name] for name in slice_.inputs}
        seed = walk.seed + 1000 * index
        found = judge(self.oracle, slice_, tap, value, given, exact, seed, where)
        walk.record(index, found)
        if found.flips and not tap.depth:
            self.exact[tap.tensor] = value  # go on from the engine's decision
        for name in slice_.done:
            self.engine.pop(name, None)
            if name not in self.outputs:
                self.exact.pop(name, None)

    def _reference(self, slice_: Slice, tensor: str) -> Any:
        given = {name: self.exact[name] for name in slice_.inputs if name in self.exact}
        if len(given) < len(slice_.inputs):
            return None
        value = self.oracle.evaluate(given, [tensor])[tensor]
        self.exact[tensor] = value
        return value


def _to_measure(findings: Sequence[Finding], count: int, everywhere: bool) -> list[Finding]:
    """The layers whose contribution is worth a run of the oracle, none inside bodies."""
    flat = [f for f in findings if f.total_error is not None and f.own_error]
    if everywhere:
        return sorted(flat, key=lambda f: -(f.own_error or 0.0))[:count]
    return [f for f in sorted(flat, key=lambda f: f.rank)[:count] if f.verdict != EXPECTED]


def _sample_of(finding: Finding) -> int:
    return int(finding.iteration.split(".")[0])


def _with_contributions(
    walk: _Walk, findings: list[Finding], chosen: Sequence[Finding]
) -> list[Finding]:
    """What the own error of each chosen layer, alone, does to the outputs.

    The error is the layer's own where that was kept, else noise of its size.
    """
    names = [spec.name for spec in walk.runner.outputs]
    exact: dict[int, Mapping[str, Any]] = {}
    results = {}
    for finding in chosen:
        number = _sample_of(finding)
        feed, oracle = walk.samples[number], walk.oracle.of_sample(number)
        (tensor,) = finding.tensors
        if number not in exact:
            exact[number] = oracle.evaluate(feed, names)
        right, delta = walk.error_of(finding, feed)
        moved = oracle.evaluate({**feed, tensor: right + delta}, names)
        pairs = [(moved[n], exact[number][n]) for n in names if _is_float(exact[number][n])]
        errors = [relative_l2(a, r) for a, r in pairs]
        if errors:
            results[finding.position] = max(float("inf") if e is None else e for e in errors)
    return [f.with_contribution(results.get(f.position)) for f in findings]


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _worse(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)
