"""Time a model or an engine, on one runner or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from polytool.cli import _benching, _request, _runners, _tactics, options
from polytool.cli.output import note, result


@options.command()
@_benching.source
@_runners.chosen
@_runners.builder
@_tactics.tactics
@_tactics.loading
@_runners.optimization_profile
@_runners.onnxrt
@options.timed_feeds
@_benching.timing
@_benching.files
@options.json
def bench(
    source: _benching.Source,
    runners: Sequence[str],
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    loading: dict[str, bool],
    optimization_profile: int | None,
    onnxrt: _runners.Onnxrt,
    feeds: options.FeedOptions,
    timing: _benching.Timing,
    files: _benching.Files,
    as_json: bool,
) -> None:
    """Time a model or an engine, on one runner or several side by side.

    Without a runner the native engine is timed. Each runner has a process of its own, and they take
    turns. A latency is the wall-clock time of one inference, from inputs to outputs on the host.

    \b
    Example: polytool bench model.onnx --native --onnxrt --input-shapes x:[1,3,48,320]
    """
    from polytool.bench_text import describe
    from polytool.benchmarking import benchmark

    _benching.check(files)
    context = {**loading, "optimization_profile": optimization_profile}
    request = _benching.request_of(runners, source, builder, tactics, context, onnxrt, feeds)
    with _benching.progress() as say:
        found = benchmark(request, _benching.schedule_of(timing, files), say)
    for text in (*found.notes, *_request.unused(request, builder, tactics, onnxrt)):
        note(text)
    _benching.save(found, files)
    result(as_json, describe(found, profile=files.dump_profile), found.to_json())
