"""Put a node into a model, in place of what computed its outputs."""

from __future__ import annotations

from polytool.cli import _surgeon, options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the changed model goes.")
@options.option("--inputs", several=True, required=True, help="Tensors that the node reads.")
@options.option("--outputs", several=True, required=True, help="Tensors that it computes now.")
@options.option("--op", required=True, help="Its operator.")
@options.option("--name", default="", help="Its name.")
@options.option("--domain", default="", help="The domain of its operator.")
@options.option(
    "--attrs",
    several=True,
    metavar="NAME=VALUE",
    help="Its attributes, as axis=1 alpha=0.5 mode=linear axes=[0,1].",
)
@options.external_data
@options.saving
@options.json
def insert(
    model: str,
    output: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    op: str,
    name: str,
    domain: str,
    attrs: tuple[str, ...],
    external_data_dir: str | None,
    ignore_external_data: bool,
    save_external_data: str | None,
    external_data_size_threshold: int,
    as_json: bool,
) -> None:
    """Put a node into MODEL; what computed its outputs before, goes.

    \b
    Example: polytool surgeon insert model.onnx -o new.onnx --op Relu --inputs x --outputs x
    """
    from polytool.model import load
    from polytool.surgeon import insert as put
    from polytool.surgeon.extraction import parse_attributes

    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    changed = put(
        source,
        op=op,
        inputs=inputs,
        outputs=outputs,
        name=name,
        domain=domain,
        attributes=parse_attributes(attrs),
    )
    _surgeon.save(changed, output, save_external_data, external_data_size_threshold)
    facts = _surgeon.facts(changed)
    result(as_json, f"{output}: {facts['nodes']} nodes", {"output": output, **facts})
