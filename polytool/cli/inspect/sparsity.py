"""Show which weights are 2:4 sparse, or could be."""

from __future__ import annotations

from collections import Counter

from polytool.cli import options
from polytool.cli.output import result, table


@options.command()
@options.model
@options.external_data_dir
@options.json
def sparsity(model: str, external_data_dir: str | None, as_json: bool) -> None:
    """Show which weights of Conv, MatMul and Gemm have two zeros among every four neighbours.

    \b
    Example: polytool inspect sparsity model.onnx
    """
    from polytool.model import load
    from polytool.surgeon import inspect_sparsity

    found = inspect_sparsity(load(model, external_data_dir=external_data_dir))
    counts = Counter(found.values())
    text = f"{counts['2:4']} of {len(found)} weights are 2:4 sparse"
    shown = f"{text}\n\n{table(found.items(), ('weight', '2:4 sparsity'))}" if found else text
    result(as_json, shown, {"sparse": counts["2:4"], "weights": found})
