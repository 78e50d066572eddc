"""Make weights 2:4 sparse, to see how fast a model would be with them."""

from __future__ import annotations

from polytool.cli import _surgeon, options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the pruned model goes.")
@_surgeon.exclude_list
@options.external_data_dir
@options.saving
@options.json
def prune(
    model: str,
    output: str,
    exclude_list: str | None,
    external_data_dir: str | None,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
) -> None:
    """Make the weights of Conv, MatMul and Gemm 2:4 sparse. Results become worse.

    \b
    Example: polytool surgeon prune model.onnx -o sparse.onnx
    """
    from polytool.model import load
    from polytool.surgeon import prune as make_sparse

    source = load(model, external_data_dir=external_data_dir)
    made = make_sparse(source, exclude=_surgeon.read_list(exclude_list))
    _surgeon.save(made.model, output, save_external_data, external_data_size_threshold)
    result(as_json, made.summary(), {"output": output, **made.to_json()})
