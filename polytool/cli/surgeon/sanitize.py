"""Clean a model up: fold, drop what has no effect, sort, bound data-dependent shapes."""

from __future__ import annotations

from typing import Any

from polytool.cli import _runners, _surgeon, options
from polytool.cli._onnx_precision import OnnxPrecision, onnx_precision
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the cleaned model goes.")
@options.option("--fold-constants", is_flag=True, help="Only compute what depends on constants.")
@options.option("--cleanup", is_flag=True, help="Only remove what is dead or without effect.")
@options.option("--toposort", is_flag=True, help="Only sort nodes.")
@options.option("--no-fold-shapes", is_flag=True, help="Do not fold what follows from shapes.")
@options.option("--no-fold-weights", is_flag=True, help="Do not fold arithmetic into weights.")
@options.option("--num-passes", type=int, default=10, help="Rounds at most.")
@options.size(
    "--fold-size-threshold",
    default="16M",
    help="Bytes by which one folded node may make the file grow.",
)
@options.shapes("--override-input-shapes", help="Declare these input shapes, as x:[1,3,224,224].")
@options.option(
    "--set-unbounded-dds-upper-bound",
    "bounds",
    several=True,
    metavar="[TENSOR:]N",
    callback=options.named(int, "a size such as 1000"),
    help="Bound the sizes that data decides, as 1000 or boxes*:300.",
)
@options.option("--auto-bound", is_flag=True, help="Set the bounds that the graph implies, too.")
@_surgeon.outputs
@options.option(
    "--verify/--no-verify",
    default=None,
    help="Compare with the original on made inputs.  [default: below 200 MB of weights]",
)
@onnx_precision
@_runners.layer_precisions
@options.external_data
@options.saving
@options.json
def sanitize(
    model: str,
    output: str,
    override_input_shapes: dict[str, tuple[int, ...]],
    outputs: _surgeon.Outputs,
    fold_size_threshold: int,
    bounds: dict[str, int],
    auto_bound: bool,
    verify: bool | None,
    onnx_precision: OnnxPrecision,
    layer_precisions: dict[str, str] | None,
    external_data_dir: str | None,
    ignore_external_data: bool,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Clean a model up. Without flags everything that is safe is done; flags narrow it.

    \b
    Example: polytool surgeon sanitize model.onnx -o clean.onnx
    """
    from polytool.model import load
    from polytool.surgeon import sanitize as clean

    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    cleaned = clean(
        source,
        choice=_surgeon.choice(**flags),
        outputs=outputs.select(source),
        input_shapes=override_input_shapes,
        fold_limit=fold_size_threshold,
        bounds=bounds,
        auto_bound=auto_bound,
        verify=verify,
    )
    made, text, facts = onnx_precision.after(cleaned, layer_precisions)
    _surgeon.save(made, output, save_external_data, external_data_size_threshold)
    result(as_json, text, {"output": output, **facts})
