"""Show which tactics an engine was built with."""

from __future__ import annotations

from polytool.cli import options
from polytool.cli.output import result, table


@options.command()
@options.model
@options.option(
    "--show-candidates", is_flag=True, help="Show what there was to choose from as well."
)
@options.json
def tactics(model: str, show_candidates: bool, as_json: bool) -> None:
    """Show which tactics an engine, or a file of --save-tactics, holds: one row a decision.

    \b
    Example: polytool inspect tactics model.engine
    """
    from polytool.tactic_files import load_decisions

    found = load_decisions(model)
    lines = []
    for replay in found:
        rows = [
            (c.layer, c.tactic, ", ".join(c.candidates) if show_candidates else len(c.candidates))
            for c in replay.choices
        ]
        lines.append(f"{model}: {len(rows)} tactics for {replay.device}")
        lines += [table(rows, ("layer", "tactic", "candidates")), ""] if rows else [""]
    facts = {"path": model, "devices": [r.to_json() for r in found]}
    result(as_json, "\n".join(lines).rstrip(), facts)
