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
    if model.endswith(".engine"):
        from pathlib import Path

        from polytool.backends.native.engine_file import verify as check
        from polytool.engine_inspection import inspect_engine

        engine = inspect_engine(model)
        text, facts = _described.engine_text(engine, show), _described.engine_facts(engine, show)
        if verify:
            facts["sound_parts"] = sum(1 for _ in check(Path(model)))
            text += f"\n\n{facts['sound_parts']} parts checked: sound"
        result(as_json, text, facts)
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
