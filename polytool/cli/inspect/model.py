"""Show what an ONNX model or an engine consists of."""

from __future__ import annotations

import click

from polytool.cli import _described, options
from polytool.cli.output import result


@options.command()
@options.model
@options.option(
    "--show",
    several=True,
    type=click.Choice(["layers", "attrs", "weights", "stats"]),
    help="Show nodes, nodes with attributes, weights, or weights with statistics as well.",
)
@options.option(
    "--list-unbounded-dds",
    is_flag=True,
    help="List the sizes that data decides, with their causes and the bounds that are implied.",
)
@options.option(
    "--save-visual", metavar="PATH", help="Write one page to look at the graph in a browser."
)
@options.option("--verify", is_flag=True, help="Check every part of an engine file.")
@options.input_shapes
@options.external_data
@options.json
def model(
    model: str,
    show: tuple[str, ...],
    list_unbounded_dds: bool,
    save_visual: str | None,
    verify: bool,
    input_shapes: dict[str, tuple[int, ...]],
    external_data_dir: str | None,
    ignore_external_data: bool,
    as_json: bool,
) -> None:
    """Show what MODEL consists of: inputs, outputs, operators, weights, and what it costs.

    \b
    Example: polytool inspect model model.onnx --show layers weights --input-shapes x:1x3x32x32
    """
    from polytool.files import is_engine_file

    if is_engine_file(model):
        if list_unbounded_dds:
            raise click.UsageError("--list-unbounded-dds is for ONNX models, not for engines")
        result(as_json, *_described.engine(model, show, input_shapes, save_visual, verify))
        return
    from polytool.inspection import inspect_model
    from polytool.model import load

    source = load(
        model, external_data_dir=external_data_dir, ignore_external_data=ignore_external_data
    )
    found = inspect_model(source, input_shapes=input_shapes, statistics="stats" in show)
    text, facts = _described.model_text(found, show), _described.model_facts(found, show)
    if save_visual is not None:
        import polytool.visual

        polytool.visual.save_visual(found, save_visual)
        text += f"\n\n{save_visual}: open it in a browser"
        facts["visual"] = save_visual
    if list_unbounded_dds:
        from polytool.surgeon import list_dds

        facts["dds"] = list_dds(source)
        text += "\n\n" + ("\n".join(map(str, facts["dds"])) or "no size is decided by data")
    result(as_json, text, facts)
