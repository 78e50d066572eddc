"""Take the weights out of a model, so that it can be shared."""

from __future__ import annotations

from polytool.cli import _surgeon, options
from polytool.cli.output import note, result


@options.command()
@options.model
@options.output(required=True, help="Where the model without weights goes.")
@_surgeon.exclude_list
@options.external_data_dir
@options.json
def weight_strip(
    model: str,
    output: str,
    exclude_list: str | None,
    external_data_dir: str | None,
    as_json: bool,
) -> None:
    """Take the content of large weights out of MODEL; their types and shapes stay.

    \b
    Example: polytool surgeon weight-strip model.onnx -o weightless.onnx
    """
    from polytool.model import load
    from polytool.surgeon import strip_weights

    source = load(model, external_data_dir=external_data_dir)
    made = strip_weights(source, exclude=_surgeon.read_list(exclude_list))
    made.model.save(output, external_data=False)
    if not made.weights:
        note(f"{model} has no weights to strip: all are small, integers, or stripped already")
    result(
        as_json,
        f"{output}: {len(made.weights)} weights of {made.nbytes} bytes stripped",
        {"output": output, "stripped": made.weights, "bytes": made.nbytes},
    )
