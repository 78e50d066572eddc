"""Build an engine from an ONNX model, or write the model in reduced precision."""

from __future__ import annotations

from polytool.cli import _runners, _tactics, options
from polytool.cli._onnx_precision import OnnxPrecision, onnx_precision
from polytool.cli.output import note, result


@options.command()
@options.model
@options.output(required=True, help="Where the result goes: model.engine, or model.onnx.")
@onnx_precision
@_runners.builder
@_tactics.tactics
@options.feeds
@options.external_data_dir
@options.saving
@options.json
def convert(
    model: str,
    output: str,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    onnx_precision: OnnxPrecision,
    feeds: options.FeedOptions,
    external_data_dir: str | None,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
) -> None:
    """Build an engine from an ONNX model, or with --fp-to-fp16 an ONNX model in float16.

    \b
    Example: polytool convert model.onnx -o model.engine --fp16
    """
    from polytool.cli import _converting

    saving = _converting.Saving(output, save_external_data, external_data_size_threshold)
    if onnx_precision.precision is None:
        made = _converting.to_engine(model, saving, builder, tactics, feeds, external_data_dir)
    else:
        made = _converting.to_onnx(
            model, saving, builder, tactics, onnx_precision, feeds, external_data_dir
        )
    for text in made.notes:
        note(text)
    result(as_json, made.text, made.facts)
