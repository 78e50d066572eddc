"""`fold_constants` for scripts: only that, and what becomes dead by it."""

from __future__ import annotations

from polytool.collection import paused_collection
from polytool.model import Model, Source
from polytool.surgeon.fold import DEFAULT_LIMIT
from polytool.surgeon.graph import Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.pipeline import Choice, simplify_workspace
from polytool.surgeon.report import Report


def fold_constants(
    source: Source,
    *,
    shapes: bool = True,
    fold_limit: int = DEFAULT_LIMIT,
    report: Report | None = None,
) -> Model:
    """Compute everything in a model that depends on constants only.

    Args:
        source: what `polytool.model.load` takes, or a GraphSurgeon graph.
        shapes: also what follows from known shapes.
        fold_limit: bytes by which one folded node may make the file grow.
        report: receives what was folded, and what was refused and why.

    Returns:
        The new model; its weights stay where they are.

    Raises:
        ModelError: the model is broken (a cycle, an undefined tensor).
    """
    with paused_collection():
        workspace = Workspace(open_model(source))
        choice = Choice(shapes=shapes, weights=False, cleanup=False)
        simplify_workspace(
            workspace,
            report if report is not None else Report(),
            choice=choice,
            fold_limit=fold_limit,
        )
        return workspace.to_model()
