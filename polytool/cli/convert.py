"""Build an engine from an ONNX model."""

from __future__ import annotations

from polytool.cli import _runners, _tactics, options
from polytool.cli.output import note, result


@options.command()
@options.model
@options.output(required=True, help="Where the engine goes, as model.engine.")
@_runners.builder
@_tactics.tactics
@options.external_data_dir
@options.json
def convert(
    model: str,
    output: str,
    builder: _runners.Builder,
    tactics: _tactics.Tactics,
    external_data_dir: str | None,
    as_json: bool,
) -> None:
    """Build an engine from an ONNX model.

    \b
    Example: polytool convert model.onnx -o model.engine --fp16
    """
    import polytool.conversion

    made = polytool.conversion.convert(
        model,
        output,
        external_data_dir=external_data_dir,
        save_timing_cache=tactics.save_timing_cache,
        save_tactics=tactics.save_tactics,
        **builder.to_options(),
        **tactics.to_options(),
    )
    for text in made.notes:
        note(text)
    result(as_json, str(made), made.to_json())
