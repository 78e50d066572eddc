"""Local functions expanded where they are called: their bodies have no types of their own."""

from __future__ import annotations

from collections.abc import Collection

from onnx import inliner

from polytool.model import Model, nodes


def expand_functions(model: Model, ops: Collection[str] | None = None) -> Model:
    """The model with its functions expanded.

    Args:
        model: stays as it is; the result refers to its weights.
        ops: expand only functions that hold, or call one that holds, such a standard operator.
    """
    functions = {(f.domain, f.name): f for f in model.proto.functions}
    if ops is None:
        chosen = set(functions)
    else:
        chosen = {
            key
            for key, f in functions.items()
            if any(n.op_type in ops and n.domain in ("", "ai.onnx") for n in nodes(f.node))
        }
    while True:
        calling = {
            key
            for key, f in functions.items()
            if any((n.domain, n.op_type) in chosen for n in nodes(f.node))
        }
        if calling <= chosen:
            break
        chosen |= calling
    if not chosen:
        return model
    return model.derive(inliner.inline_selected_functions(model.proto, sorted(chosen)))
