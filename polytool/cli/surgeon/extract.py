"""Cut a model out of a model, by the names of tensors."""

from __future__ import annotations

from polytool.cli import _surgeon, options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the cut-out model goes.")
@options.option(
    "--inputs",
    several=True,
    metavar="NAME[:SHAPE][:DTYPE]",
    help="Tensors that become inputs, as x:[1,3,N]:float32; auto for what the model says.",
)
@options.option(
    "--outputs",
    several=True,
    metavar="NAME[:DTYPE]",
    help="Tensors that it returns, as y or y:float32.",
)
@options.external_data
@options.saving
@options.json
def extract(
    model: str,
    output: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    external_data_dir: str | None,
    ignore_external_data: bool,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
) -> None:
    """Cut a model out of MODEL. Without --inputs or --outputs, its own are used.

    \b
    Example: polytool surgeon extract model.onnx -o part.onnx --inputs x:[1,3,32,32] --outputs y
    """
    from polytool.model import load
    from polytool.surgeon import extract as cut

    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    part = cut(source, inputs, outputs)
    _surgeon.save(part, output, save_external_data, external_data_size_threshold)
    facts = _surgeon.facts(part)
    text = f"{output}: {facts['nodes']} nodes, inputs {', '.join(facts['inputs']) or 'none'}"
    result(as_json, f"{text}, outputs {', '.join(facts['outputs'])}", {"output": output, **facts})
