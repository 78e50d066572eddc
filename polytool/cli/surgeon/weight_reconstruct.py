"""Give a model without weights random ones, so that it runs."""

from __future__ import annotations

from polytool.cli import _surgeon, options
from polytool.cli.output import note, result


@options.command()
@options.model
@options.output(required=True, help="Where the model with weights goes.")
@options.seed
@options.saving
@options.json
def weight_reconstruct(
    model: str,
    output: str,
    seed: int,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
) -> None:
    """Give a model that weight-strip has made random weights, sparse where they were.

    \b
    Example: polytool surgeon weight-reconstruct weightless.onnx -o runs.onnx
    """
    from polytool.surgeon import reconstruct_weights

    made = reconstruct_weights(model, seed=seed)
    _surgeon.save(made.model, output, save_external_data, external_data_size_threshold)
    if not made.weights:
        note(f"{model} has no stripped weights: nothing was made up")
    result(
        as_json,
        f"{output}: {len(made.weights)} weights of {made.nbytes} bytes made up",
        {"output": output, "reconstructed": made.weights, "bytes": made.nbytes},
    )
