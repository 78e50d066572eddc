"""The main job: run a model on several runners and say whether they agree.

    request = Request("model.onnx", runners=("native", "onnxrt"))
    report = examine(request)
    print(report.verdict)

This is what `polytool run` calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polytool.backends import registry
from polytool.backends.base import Observable, Runner
from polytool.errors import UsageError
from polytool.model import Model, load
from polytool.results import Iteration, Run, RunResults
from polytool.results import run as run_all
from polytool.selection import (
    ObservedRunner,
    select_tensors,
    visible,
    with_input_shapes,
    with_outputs,
)

if TYPE_CHECKING:
    from polytool.feeds import Feeds as InputData

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
        feeds: the inputs.
        notes: what the user should know: the data that were chosen, options that did nothing.
    """

    results: RunResults
    model: Model | None
    feeds: InputData | None
    notes: tuple[str, ...]


def perform(request: Request, on_iteration: OnIteration | None = None) -> Session:
    """Run what is to be run and load what is to be loaded; nothing is compared yet.

    Raises:
        UsageError: no runner is chosen, or options contradict each other.
        ModelError: the model, an engine or a file cannot be read or written.
        RunnerError: a runner failed.
    """
    check(request)
    notes: list[str] = []
    loaded = [RunResults.load(path) for path in request.load_outputs]
    model = open_model(request, notes)
    feeds, runners = None, []
    if request.runners:
        runners = make_runners(request, model, notes)
        feeds = make_data(request, model, runners, notes)
        notes += feeds.notes
    own = RunResults()
    if feeds is not None:
        own = run_all(
            None,
            runners,
            feeds,
            save=request.save_outputs,
            warm_up=request.warm_up,
            on_iteration=on_iteration,
        )
    return Session(joined([own, *loaded]), model, feeds, tuple(notes))


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
    for flag, used in (("--load-engine", request.engine), ("--save-engine", request.save_engine)):
        if used and "native" not in request.runners:
            raise UsageError(f"{flag} needs the native runner: add --native")
    for path in (request.save_engine, request.save_inputs, request.save_outputs):
        if path is not None:
            check_writable(path)


def open_model(request: Request, notes: list[str]) -> Model | None:
    """The model with the input sizes that the user wants; None for an engine."""
    if _is_engine(request.model):
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


def _is_engine(path: str) -> bool:
    from polytool.backends.native.builder import is_engine

    return is_engine(path)


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
    if shown and exact and model is not None:
        model = with_outputs(model, shown)
    runners = [
        make_runner(request, name, model, notes, bulk=bool(shown) and not exact)
        for name in request.runners
    ]
    if request.save_engine:
        _native(runners).engine.save(request.save_engine)
    for runner in runners:
        notes += getattr(getattr(runner, "engine", None), "notes", ())
    if not shown or exact:
        return runners
    return observed(runners, shown, notes)


def make_runner(
    request: Request, name: str, model: Model | None, notes: list[str], *, bulk: bool
) -> Runner:
    """The runner of that name."""
    options = dict(request.options.get(name, {}))
    if name == "native" and (request.engine or model is None):
        options = {"device": options.get("device", "auto")}
        return registry.runner(name, request.engine or request.model, **options)
    if name == "onnxrt" and bulk and not options.get("graph_optimization_level"):
        options["graph_optimization_level"] = "disable"
        notes.append("onnxrt runs without rewriting (level disable), so that it stores all tensors")
    built_in = name in ("native", "onnxrt", "oracle")
    return registry.runner(name, model if built_in else request.model, **options)


def _native(runners: Iterable[Runner]) -> Any:
    return next(r for r in runners if r.name == "native")


def observed(runners: Sequence[Runner], shown: Sequence[str], notes: list[str]) -> list[Runner]:
    """The runners, returning those of the tensors `shown` that all of them store."""
    known = [names for r in runners if (names := visible(r))]
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
    return [ObservedRunner(r, names) if isinstance(r, Observable) else r for r in runners]


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
        shapes=request.shapes,
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
