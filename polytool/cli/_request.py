"""From the options of a command to what `polytool.agreement` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from polytool.cli import _comparing, _runners, _tactics, options, output

if TYPE_CHECKING:
    from polytool.agreement import Request, Session
    from polytool.comparators.comparison import Comparison
    from polytool.postprocess import Step


def request_of(
    model: str,
    runners: Sequence[str],
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    loading: dict[str, bool],
    onnxrt: _runners.Onnxrt,
    files: _runners.Files,
    feeds: options.FeedOptions,
    optimization_profile: int | None,
    external_data_dir: str | None,
    ignore_external_data: bool,
) -> Request:
    """What the user asked for."""
    from polytool.agreement import Request

    return Request(
        model=model,
        runners=runners,
        options={
            "native": builder.to_options()
            | tactics.to_options()
            | loading
            | {"optimization_profile": optimization_profile},
            "onnxrt": onnxrt.to_options(),
        },
        engine=files.load_engine,
        save_engine=files.save_engine,
        save_timing_cache=tactics.save_timing_cache,
        save_tactics=tactics.save_tactics,
        external_data_dir=external_data_dir,
        ignore_external_data=ignore_external_data,
        shapes=feeds.input_shapes,
        ranges=feeds.val_range,
        seed=feeds.seed,
        iterations=feeds.iterations,
        files=feeds.load_inputs,
        script=feeds.data_loader_script,
        save_inputs=feeds.save_inputs,
        outputs=files.onnx_outputs,
        exclude_outputs=files.onnx_exclude_outputs,
        output_types=files.onnx_outputs_by_type,
        load_outputs=files.load_outputs,
        save_outputs=files.save_outputs,
        warm_up=files.warm_up,
    )


def compare(session: Session, comparing: _comparing.Comparing) -> Comparison:
    """Compare as the user asked for, and save the comparison where they want it."""
    steps = steps_of(comparing)
    found = session.compare(comparing.criteria, steps=steps, script=comparing.compare_script)
    if comparing.save is not None:
        found.save(comparing.save)
    return found


def steps_of(comparing: _comparing.Comparing) -> list[Step]:
    """What outputs go through before they are compared."""
    from polytool.postprocess import script_step, top_step

    steps = []
    if comparing.postprocess:
        steps.append(top_step(comparing.postprocess))
    if comparing.postprocess_script is not None:
        steps.append(script_step(comparing.postprocess_script))
    return steps


@contextmanager
def progress(request: Request) -> Iterator[Callable[..., None]]:
    """A callback for each inference, which moves a bar where there are many."""
    total = len(request.runners) * (request.iterations or 1)
    if total <= len(request.runners):
        yield lambda *_: None
        return
    with output.progress(range(total), "running", length=total) as items:
        steps = iter(items)

        def advance(*_: Any) -> None:
            next(steps, None)

        yield advance


def unused(
    request: Request,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    onnxrt: _runners.Onnxrt,
) -> Iterator[str]:
    """Options for a runner that was not chosen: they do nothing."""
    profile = request.options["native"]["optimization_profile"]
    said = builder != _runners.Builder() or tactics != _tactics.Tactics() or profile is not None
    if "native" not in request.runners and said:
        yield "options of the native engine have no effect without --native"
    elif options.is_given("cuda_graph"):
        from polytool.backends.native.builder import choose_device

        if choose_device(builder.device) == "cpu":
            flag = "--use-cuda-graph" if tactics.cuda_graph else "--no-cuda-graph"
            yield f"{flag} has no effect on the CPU"
    if "onnxrt" not in request.runners and onnxrt != _runners.Onnxrt():
        yield "options of ONNX Runtime have no effect without --onnxrt"
    if request.engine and (builder != _runners.Builder(device=builder.device) or tactics.decides):
        yield "--load-engine takes an engine as it was built: other builder options have no effect"
