"""What `bench` does between its options and its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polytool.cli import _runners, _tactics, options
from polytool.cli.output import shown_level

if TYPE_CHECKING:
    from polytool.agreement import Request
    from polytool.benchmarking import Schedule
    from polytool.timings import Benchmark

F = TypeVar("F", bound=Callable[..., Any])
_TIMELINE_LAYERS, _PROFILED = 5, 10  # inferences in which layers are timed


@dataclass(frozen=True)
class Source:
    """What is timed: a model or an engine, by trtexec's names for them too."""

    model: str | None
    onnx: str | None
    load_engine: str | None
    save_engine: str | None
    external_data_dir: str | None

    def to_request(self) -> dict[str, Any]:
        """Keyword arguments of `polytool.agreement.Request`."""
        if self.model is not None and self.onnx is not None:
            raise click.UsageError(f"{self.model!r} and --onnx {self.onnx!r} both name the model")
        model, engine = self.model or self.onnx, self.load_engine
        if model is None and engine is not None:
            from polytool.agreement import check_engine

            check_engine(engine)
            model, engine = engine, None
        if model is None:
            raise click.UsageError("Missing argument 'MODEL'.")
        return {
            "model": model,
            "engine": engine,
            "save_engine": self.save_engine,
            "external_data_dir": self.external_data_dir,
        }


@dataclass(frozen=True)
class Timing:
    """How long and how often, as the user said it."""

    iterations: int
    warm_up: float
    duration: float
    batch: int | None
    streams: int
    no_data_transfers: bool
    percentile: tuple[float, ...]


@dataclass(frozen=True)
class Files:
    """What is shown and written beside the table."""

    dump_profile: bool
    export_profile: str | None
    export_times: str | None
    export_timeline: str | None

    @property
    def profiled(self) -> int:
        """Inferences in which layers are timed."""
        if self.dump_profile or self.export_profile is not None:
            return _PROFILED
        return _TIMELINE_LAYERS if self.export_timeline is not None else 0


def source(function: F) -> F:
    """MODEL and engines, passed as one `source: Source`."""
    argument = click.argument(
        "model",
        metavar="MODEL",
        cls=options.Argument,
        unless=("--onnx", "--load-engine", "--loadEngine"),
        type=click.Path(path_type=str),
    )
    engines = (
        options.option("--onnx", metavar="PATH", help="MODEL by trtexec's name."),
        options.option(
            "--load-engine",
            "--loadEngine",
            type=click.Path(),
            metavar="PATH",
            help="Let the native runner load this engine instead of building one.",
        ),
        options.option(
            "--save-engine",
            "--saveEngine",
            type=click.Path(),
            metavar="PATH",
            help="Save the engine of the native runner.",
        ),
    )
    decorators = (argument, *engines, options.external_data_dir)
    return options.bundle(function, "source", Source, decorators)


def timing(function: F) -> F:
    """How long and how often, passed as one `timing: Timing`."""
    decorators = (
        options.option(
            "--iterations", type=click.IntRange(1), default=10, help="Inferences, at least."
        ),
        options.option(
            "--warm-up",
            "--warmUp",
            type=click.FloatRange(0),
            default=200.0,
            help="Milliseconds of inferences that do not count.",
        ),
        options.option(
            "--duration",
            type=click.FloatRange(0),
            default=3.0,
            help="Seconds of inferences, at least, of each runner.",
        ),
        options.option(
            "--batch",
            type=click.IntRange(1),
            help="Size of the batch where the model leaves it open.",
        ),
        options.option(
            "--streams",
            "--infStreams",
            type=click.IntRange(1),
            default=1,
            help="Inferences at the same time, each on a context and in a thread of its own.",
        ),
        options.option(
            "--no-data-transfers",
            "--noDataTransfers",
            is_flag=True,
            help="Keep inputs and outputs on the GPU.",
        ),
        options.option(
            "--percentile",
            several=True,
            callback=_read_percentiles,
            metavar="P",
            help="Percentiles of the latency.  [90 95 99]",
        ),
    )
    return options.bundle(function, "timing", Timing, decorators)


def files(function: F) -> F:
    """What is shown and written beside the table, passed as one `files: Files`."""
    decorators = (
        options.option(
            "--dump-profile",
            "--dumpProfile",
            is_flag=True,
            help="Show how long each layer takes, with its kernels and ONNX nodes.",
        ),
        options.option(
            "--export-profile",
            "--exportProfile",
            metavar="JSON",
            type=click.Path(),
            help="Write the same of all layers.",
        ),
        options.option(
            "--export-times",
            "--exportTimes",
            metavar="JSON",
            type=click.Path(),
            help="Write the time of every inference.",
        ),
        options.option(
            "--export-timeline",
            metavar="JSON",
            type=click.Path(),
            help="Write inferences and layers as chrome://tracing and Perfetto open them.",
        ),
    )
    return options.bundle(function, "files", Files, decorators)


def _read_percentiles(
    ctx: click.Context, param: click.Parameter, texts: Sequence[str]
) -> tuple[float, ...]:
    try:
        return tuple(float(part) for text in texts for part in text.split(","))
    except ValueError:
        raise click.BadParameter("give numbers such as 90 99.9", ctx, param) from None


def request_of(
    runners: Sequence[str],
    source: Source,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    context: Mapping[str, Any],
    onnxrt: _runners.Onnxrt,
    feeds: options.FeedOptions,
) -> Request:
    """What the user asked for; the native engine where no runner was chosen."""
    from polytool.agreement import Request

    return Request(
        **source.to_request(),
        runners=tuple(runners) or ("native",),
        options={
            "native": {**builder.to_options(), **tactics.to_options(), **context},
            "onnxrt": onnxrt.to_options(),
        },
        save_timing_cache=tactics.save_timing_cache,
        save_tactics=tactics.save_tactics,
        shapes=feeds.input_shapes,
        ranges=feeds.val_range,
        seed=feeds.seed,
        files=feeds.load_inputs,
        script=feeds.data_loader_script,
    )


def schedule_of(timing: Timing, files: Files) -> Schedule:
    """How long and how often."""
    from polytool.benchmarking import Schedule
    from polytool.timings import PERCENTILES

    return Schedule(
        seconds=timing.duration,
        iterations=timing.iterations,
        warm_up=timing.warm_up / 1e3,
        streams=timing.streams,
        batch=timing.batch,
        resident=timing.no_data_transfers,
        profile=files.profiled,
        percentiles=timing.percentile or PERCENTILES,
    )


def check(files: Files) -> None:
    """Refuse paths that cannot be written before anything takes time."""
    from polytool.conversion import check_writable

    for path in (files.export_profile, files.export_times, files.export_timeline):
        if path is not None:
            check_writable(path)


def save(found: Benchmark, files: Files) -> None:
    """Write what the user wants."""
    from polytool import bench_files

    if files.export_profile is not None:
        bench_files.save_profile(found, files.export_profile)
    if files.export_times is not None:
        bench_files.save_times(found, files.export_times)
    if files.export_timeline is not None:
        bench_files.save_timeline(found, files.export_timeline)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is being done, and goes at the end."""
    import logging
    import sys

    shown = sys.stderr.isatty() and shown_level() <= logging.WARNING
    try:
        yield lambda text: click.echo(f"\r\033[K{text} ...", err=True, nl=False) if shown else None
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)
