"""A script to start one's own graph surgery from."""

from __future__ import annotations

import click

from polytool.cli import options
from polytool.cli.output import result


@options.command()
@options.model
@options.output(required=True, help="Where the script goes.")
@options.external_data
@options.json
def onnx_gs(
    model: str,
    output: str,
    external_data_dir: str | None,
    ignore_external_data: bool,
    as_json: bool,
) -> None:
    """Write a script that changes MODEL with onnx-graphsurgeon.

    \b
    Example: polytool template onnx-gs model.onnx -o surgery.py
    """
    from polytool.conversion import check_writable
    from polytool.model import load
    from polytool.surgeon.template import write_script

    check_writable(output)
    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    write_script(source, model, output)
    text = f"{output}: edit it, then run it with {click.style('python', bold=True)} {output}"
    result(as_json, text, {"output": output, "model": model})
