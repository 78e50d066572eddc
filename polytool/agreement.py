"""The main job: run a model on several runners and say whether they agree.

    session = perform(Request("model.onnx", runners=("native", "onnxrt")))
    comparison = session.compare()
    print(comparison.verdict)

This is what `polytool run` calls.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polytool.backends import registry
from polytool.backends.base import Observable, Runner
from polytool.comparators.compare import compare_all
from polytool.comparators.comparison import Comparison, Finding, OutputResult, Pair
from polytool.comparators.response import Response
from polytool.comparators.tolerances import Criteria
from polytool.comparators.verdicts import AGREE, DIFFER, Judgement
from polytool.errors import ModelError, PolytoolError, UsageError
from polytool.files import is_engine_file
from polytool.model import Model, load
from polytool.output_grains import declared_precisions, output_grains
from polytool.patterns import lookup
from polytool.postprocess import Step, call, load_function, postprocessed
from polytool.results import Iteration, Run, RunResults
from polytool.results import run as run_all
from polytool.selection import (
    ObservedRunner,
    common_types,
    select_tensors,
    visible,
    with_input_shapes,
    with_outputs,
)

if TYPE_CHECKING:
    from polytool.bounds import BoundCheck
    from polytool.feeds import Feeds as InputData
    from polytool.noise import NoiseMeter

_LOG = logging.getLogger(__name__)

# What the native runner takes beside an engine that is loaded.
ENGINE_OPTIONS = ("device", "cuda_graph", "kernels", "retune", "optimization_profile")
"""What a native runner takes of an engine that is built already."""

OnIteration = Callable[[str, int, Iteration], None]


@dataclass(frozen=True)
class Request:
    """What to run, and on which data.

    Attributes:
        model: path of an ONNX model or an engine.
        runners: names of backends and scripts, in the order in which they run.
        options: backend name to what its runner takes.
        engine: path of an engine that the native runner loads instead of building one.
        save_engine: where to save the native runner's engine.
        save_timing_cache, save_tactics: where its times and decisions go, once all has run.
        external_data_dir: where the model's external data lies, if not beside it.
        ignore_external_data: whether weights outside of the model file are not read.
        shapes, ranges, seed, iterations, files, script: see `polytool.feeds.make_feeds`.
        save_inputs: where to save the inputs.
        outputs, exclude_outputs, output_types: see `polytool.selection.select_tensors`.
        load_outputs: files of results to compare with.
        save_outputs: where to save the results.
        warm_up: how often to run before the first measured inference.
    """

    model: str
    runners: Sequence[str]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    engine: str | None = None
    save_engine: str | None = None
    save_timing_cache: str | None = None
    save_tactics: str | None = None
    external_data_dir: str | None = None
    ignore_external_data: bool = False
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seed: int = 0
    iterations: int | None = None
    files: Sequence[str] = ()
    script: str | None = None
    save_inputs: str | None = None
    outputs: Sequence[str] = ()
    exclude_outputs: Sequence[str] = ()
    output_types: Sequence[str] = ()
    load_outputs: Sequence[str] = ()
    save_outputs: str | None = None
    warm_up: int = 0


@dataclass(frozen=True)
class Session:
    """What a request came to.

    Attributes:
        results: of the runners, then those loaded.
        model: the model as it was run; None for an engine.
        feeds: the inputs; None where nothing was run.
        notes: what the user should know: the data that were chosen, options that did nothing.
        changed: where there are several inputs, the outputs that came out otherwise when the first
            inputs were run again: runner, output, largest difference (None where it is no number).
        shapes: those of inputs that were asked for, or that an optimization profile calls usual.
        bounds: what the inputs did to bounds that surgery has set, where that was asked.
    """

    results: RunResults
    model: Model | None
    feeds: InputData | None
    notes: tuple[str, ...]
    bounds: tuple[BoundCheck, ...] | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    changed: tuple[tuple[str, str, float | None], ...] = ()

    @property
    def reference(self) -> str:
        """The run that the others are compared with: the oracle, else the first."""
        return "oracle" if "oracle" in self.results else next(iter(self.results))

    def compare(
        self,
        criteria: Criteria | None = None,
        *,
        steps: Sequence[Step] = (),
        script: str | None = None,
    ) -> Comparison:
        """Compare every run with the reference.

        Args:
            criteria: what agreement means; by default, no more than rounding does in this model.
            steps: what outputs go through first; see `polytool.postprocess`.
            script: `my_script.py:compare_outputs`, which compares instead.

        Raises:
            UsageError: there is only one run, or `criteria` names no output.
            RunnerError: the script failed.
        """
        results = self.results
        for step in steps:
            results = postprocessed(results, step)
        if script is not None:
            return compare_by_script(results, self.reference, script)
        if steps or self.model is None or self.feeds is None:
            return compare_all(results, reference=self.reference, criteria=criteria)
        return compare_all(
            results,
            reference=self.reference,
            criteria=criteria,
            response=self._measure,
            grains=output_grains(self._shown_model()),
            precisions=declared_precisions(self.model),
        )

    def _shown_model(self) -> Model:
        """The model whose outputs are those that are compared."""
        assert self.model is not None
        own = [o.name for o in self.model.proto.graph.output]
        made = {n for node in self.model.proto.graph.node for n in node.output} | set(own)
        shown = dict.fromkeys(n for run in self.results.values() for i in run[:1] for n in i)
        names = [name for name in shown if name in made]
        return self.model if set(names) <= set(own) else with_outputs(self.model, names)

    @cached_property
    def _meter(self) -> NoiseMeter:
        from polytool.noise import NoiseMeter  # only a comparison that is in doubt needs it

        assert self.feeds is not None
        return NoiseMeter(self._shown_model(), self.feeds)

    def _measure(self, times: float) -> Response:
        """The model's own response to noise; empty where it cannot be measured."""
        try:
            return self._meter.measure(times)
        except PolytoolError as err:
            _LOG.warning("the model's response to noise could not be measured: %s", err)
            return Response("", [], [])


def perform(request: Request, on_iteration: OnIteration | None = None) -> Session:
    """Run what is to be run and load what is to be loaded; nothing is compared yet.

    Raises:
        UsageError: no runner is chosen, or options contradict each other.
        ModelError: the model, an engine or a file cannot be read or written.
        RunnerError: a runner failed.
    """
    check(request)
    notes: list[str] = []
    shapes = request.shapes
    loaded = [RunResults.load(path) for path in request.load_outputs]
    model = open_model(request, notes)
    feeds, runners = None, []
    if request.runners:
        runners = make_runners(request, model, notes)
        shapes = shapes_of(request, runners)
        feeds = make_data(request, model, runners, notes)
        notes += feeds.notes
    own, changed = RunResults(), list[tuple[str, str, float | None]]()
    saves = {"timing_cache": request.save_timing_cache, "tactics": request.save_tactics}
    engine = _native(runners) if any(saves.values()) else None
    if feeds is not None:
        own = run_all(
            None,
            (runners.pop(0) for _ in range(len(runners))),  # each is freed once it has run
            feeds,
            save=request.save_outputs,
            warm_up=request.warm_up,
            on_iteration=on_iteration,
            on_change=lambda *change: changed.append(change),
        )
    if engine is not None:
        from polytool.tactic_files import save_decisions

        notes += save_decisions(engine, **saves)
    return Session(
        joined([own, *loaded]), model, feeds, tuple(notes), shapes=shapes, changed=tuple(changed)
    )


def check_engine(path: str) -> None:
    """Refuse what is no engine: a model would be built with other options than those given.

    Raises:
        ModelError: there is no file, or it is something else.
    """
    if not os.path.exists(path):
        raise ModelError(f"{path!r} does not exist")
    if not is_engine_file(path):
        raise ModelError(f"{path!r} is not a polytool engine; build one with polytool convert")


def check(request: Request) -> None:
    """Refuse what has no meaning, before anything takes time."""
    from polytool.conversion import check_writable

    if not request.runners and not request.load_outputs:
        raise UsageError(
            "no runner was chosen: give --native, --onnxrt, --oracle or --runner "
            f"(installed: {', '.join(registry.available())})"
        )
    if not request.runners and len(request.load_outputs) < 2:
        raise UsageError("one file of results has nothing to be compared with: choose a runner")
    for flag, used in (
        ("--load-engine", request.engine),
        ("--save-engine", request.save_engine),
        ("--save-timing-cache", request.save_timing_cache),
        ("--save-tactics", request.save_tactics),
    ):
        if used and "native" not in request.runners:
            raise UsageError(f"{flag} needs the native runner: add --native")
    if request.engine is not None:
        check_engine(request.engine)
    for path in (
        request.save_engine,
        request.save_timing_cache,
        request.save_tactics,
        request.save_inputs,
        request.save_outputs,
    ):
        if path is not None:
            check_writable(path)


def open_model(request: Request, notes: list[str]) -> Model | None:
    """The model with the input sizes that the user wants; None for an engine."""
    if is_engine_file(request.model):
        other = [name for name in request.runners if name != "native"]
        if other:
            raise UsageError(
                f"{request.model!r} is an engine, which only the native runner takes, not "
                f"{', '.join(other)}: give the ONNX model, and the engine with --load-engine"
            )
        return None
    model = load(
        request.model,
        external_data_dir=request.external_data_dir,
        ignore_external_data=request.ignore_external_data,
    )
    changed = with_input_shapes(model, request.shapes)
    if changed is not model:
        notes.append("sizes that the model declares are overridden by --input-shapes")
    return changed


def make_runners(request: Request, model: Model | None, notes: list[str]) -> list[Runner]:
    """The runners, with the outputs that are to be shown."""
    shown: tuple[str, ...] = ()
    exact = False
    selected = (request.outputs, request.exclude_outputs, request.output_types)
    if any(selected):
        if model is None:
            raise UsageError("outputs are chosen by the ONNX model: give it instead of the engine")
        shown = select_tensors(model, *selected)
        exact = set(shown) <= set(request.outputs) or not (request.outputs or request.output_types)
        exact = exact and request.engine is None  # an engine is as it was built
    if shown and exact and model is not None:
        model = with_outputs(model, shown)
    runners = [
        make_runner(request, name, model, notes, bulk=bool(shown) and not exact)
        for name in request.runners
    ]
    if request.save_engine:
        _native(runners).save(request.save_engine)
    for runner in runners:
        notes += getattr(_engine(runner), "notes", ())
    if not shown or exact:
        return runners
    return observed(runners, shown, notes)


def make_runner(
    request: Request, name: str, model: Model | None, notes: list[str], *, bulk: bool
) -> Runner:
    """The runner of that name."""
    options = dict(request.options.get(name, {}))
    if name == "native" and (request.engine or model is None):
        options = {k: v for k, v in options.items() if k in ENGINE_OPTIONS}
        return registry.runner(name, request.engine or request.model, **options)
    if name == "onnxrt" and bulk and not options.get("graph_optimization_level"):
        options["graph_optimization_level"] = "disable"
        notes.append("onnxrt runs without rewriting (level disable), so that it stores all tensors")
    built_in = name in ("native", "onnxrt", "oracle")
    return registry.runner(name, model if built_in else request.model, **options)


def _native(runners: Iterable[Runner]) -> Any:
    """The engine of the native runner."""
    return next(_engine(r) for r in runners if r.name == "native")


def _engine(runner: Runner) -> Any:
    """The native engine of a runner; None where it has none."""
    return getattr(getattr(runner, "observed", runner), "engine", None)


def shapes_of(request: Request, runners: Sequence[Runner]) -> dict[str, Sequence[int]]:
    """The shapes that are asked for, and for other inputs the usual ones of a profile.

    It is the chosen profile of the native engine, else its first.
    """
    found: dict[str, Sequence[int]] = {}
    if not (request.files or request.script):
        index = request.options.get("native", {}).get("optimization_profile") or 0
        for profile in (p for r in runners if (p := _profile(_engine(r), index)) is not None):
            found |= {n: opt for n, (_, opt, _) in profile.shapes.items()}
    found = {n: s for n, s in found.items() if lookup(request.shapes, n) is None}
    return {**found, **request.shapes}


def _profile(engine: Any, index: int) -> Any:
    profiles = () if engine is None else engine.config.profiles
    return profiles[index] if index < len(profiles) else None


def observed(runners: Sequence[Runner], shown: Sequence[str], notes: list[str]) -> list[Runner]:
    """The runners, returning those of the tensors `shown` that all of them store."""
    known = [stored for r in runners if (stored := visible(r))]
    common = set(shown).intersection(*known)
    names = [name for name in shown if name in common]
    if not names:
        raise UsageError("the runners store none of the chosen tensors; name single ones exactly")
    hidden = len(shown) - len(names)
    if hidden:
        notes.append(
            f"{hidden} of {len(shown)} tensors exist only inside of kernels and are not shown; "
            "name one exactly to make it an output"
        )
    dtypes = common_types(runners)
    return [ObservedRunner(r, names, dtypes) if isinstance(r, Observable) else r for r in runners]


def make_data(
    request: Request, model: Model | None, runners: Sequence[Runner], notes: list[str]
) -> InputData:
    """The inputs; saved where the user wants them."""
    from polytool.feeds import make_feeds, save_feeds

    if request.iterations is not None and (request.files or request.script):
        notes.append("--iterations has no effect on inputs that are loaded: all of them are run")
    feeds = make_feeds(
        model,
        inputs=next((r.inputs for r in runners if r.inputs), None) if model is None else None,
        shapes=shapes_of(request, runners),
        seed=request.seed,
        ranges=request.ranges,
        iterations=1 if request.iterations is None else request.iterations,
        files=request.files,
        script=request.script,
    )
    if request.save_inputs:
        save_feeds(feeds, request.save_inputs)
    return feeds


def joined(several: Iterable[RunResults]) -> RunResults:
    """All runs together; a name that is taken already gets a number."""
    runs: dict[str, Run] = {}
    for run in itertools.chain.from_iterable(results.values() for results in several):
        name, count = run.name, 2
        while name in runs:
            name, count = f"{run.name}#{count}", count + 1
        runs[name] = run if name == run.name else Run(name, run, run.settings)
    return RunResults(runs.values())


def compare_by_script(results: RunResults, reference: str, script: str) -> Comparison:
    """Compare by what `my_script.py:compare_outputs` says of each pair of iterations.

    The function gets the outputs of two runners as dicts and returns a dict from output name to
    whether it agrees; `compare_outputs` is its name where only the script is given.
    """
    function, name = load_function(script, "compare_outputs")
    base = results[reference]
    pairs = []
    for run in results.values():
        if run.name == reference:
            continue
        if len(run) != len(base):
            raise UsageError(
                f"{run.name} has {len(run)} iterations and {reference} {len(base)}: "
                "they cannot be compared one by one"
            )
        findings: dict[str, list[Finding]] = {}
        for one, other in zip(run, base, strict=True):
            verdicts = call(function, name, dict(one), dict(other))
            if not isinstance(verdicts, Mapping):
                raise UsageError(
                    f"{name} must return a dict from output name to True or False, "
                    f"not {type(verdicts).__name__}"
                )
            for output, agrees in verdicts.items():
                judgement = Judgement(AGREE if agrees else DIFFER, f"says {name}")
                findings.setdefault(str(output), []).append(Finding(judgement))
        outputs = {n: OutputResult(n, tuple(f)) for n, f in findings.items()}
        pairs.append(Pair(run.name, reference, outputs))
    return Comparison(tuple(pairs), {n: dict(run.settings) for n, run in results.items()})
