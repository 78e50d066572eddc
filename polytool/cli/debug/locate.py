"""Find the layer that loses precision, why, and what to keep in higher precision."""

from __future__ import annotations

from polytool.cli import _runners, _tactics, options
from polytool.cli.output import result


@options.command()
@options.model
@_runners.builder
@_tactics.deciding
@_tactics.loading
@options.feeds
@options.option(
    "--against",
    default="oracle",
    metavar="oracle|onnxrt|FILE|MODEL",
    help="What is right: the model in float64, ONNX Runtime, saved results, or another model.",
)
@options.option("--load-engine", metavar="PATH", help="Look at this engine instead of building.")
@options.option("--native", is_flag=True, help="The native engine is suspected (the default).")
@options.option(
    "--target",
    "targets",
    several=True,
    metavar="TARGET",
    help="What outputs must reach, as snr>=40, cosine>=0.999@logits, top-1 or my.py:accept; the "
    "smallest set of layers to keep in higher precision is then searched.",
)
@options.option(
    "--fix", metavar="JSON", help="Write that set for --layer-precisions.  [target: snr>=40]"
)
@options.option(
    "--reproducer",
    metavar="DIR",
    help="Save the first broken layer there, as a small model with its inputs.",
)
@options.report
@options.option("--top", default=5, metavar="N", help="How many layers to show.")
@options.external_data_dir
@options.json
def locate(
    model: str,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    loading: dict[str, bool],
    feeds: options.FeedOptions,
    against: str,
    load_engine: str | None,
    native: bool,
    targets: tuple[str, ...],
    fix: str | None,
    reproducer: str | None,
    report: str | None,
    top: int,
    external_data_dir: str | None,
    as_json: bool,
) -> int:
    """Find the layer that loses precision, why, and what to keep in higher precision.

    \b
    Example: polytool debug locate model.onnx --fp16 --fix fix.json --target 'snr>=40'
    """
    from polytool.cli._locating import run_locate
    from polytool.diagnosis import show

    options_ = {**builder.to_options(), **tactics.to_options(), **loading}
    found = run_locate(
        model,
        options_,
        feeds,
        against,
        load_engine,
        targets,
        fix,
        reproducer,
        external_data_dir,
        report,
    )
    if report is not None:
        from polytool.reporting import save_report

        save_report(report, found, model=model, external_data_dir=external_data_dir)
    result(as_json, show(found, top), found.to_json())
    return int(found.verdict in ("broken", "race"))
