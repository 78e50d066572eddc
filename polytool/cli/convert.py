"""Build an engine from an ONNX model."""

from __future__ import annotations

from polytool.cli import _runners, options
from polytool.cli.output import note, result


@options.command()
@options.model
@options.output(required=True, help="Where the engine goes, as model.engine.")
@_runners.builder
@options.external_data_dir
@options.json
def convert(
    model: str,
    output: str,
    builder: _runners.Builder,
    external_data_dir: str | None,
    as_json: bool,
) -> None:
    """Build an engine from an ONNX model.

    \b
    Example: polytool convert model.onnx -o model.engine --fp16
    """
    import polytool.conversion

    made = polytool.conversion.convert(
        model, output, external_data_dir=external_data_dir, **builder.to_options()
    )
    for text in made.notes:
        note(text)
    result(as_json, str(made), made.to_json())
