"""All the rewrites that are always right, until there is nothing left to do."""

from __future__ import annotations

from polytool.model import Model, Source, load
from polytool.surgeon.branches import inline_decided_branches
from polytool.surgeon.constants import lift_constants, merge_constants
from polytool.surgeon.cse import merge_equal_nodes
from polytool.surgeon.dead import remove_dead
from polytool.surgeon.fold import DEFAULT_LIMIT, fold_constants
from polytool.surgeon.graph import Workspace
from polytool.surgeon.infer import infer
from polytool.surgeon.merges import merge_chains
from polytool.surgeon.names import rename_duplicates
from polytool.surgeon.noops import remove_noops
from polytool.surgeon.report import Report
from polytool.surgeon.shapes import fold_shapes
from polytool.surgeon.weights import fold_weights

_MOST_ROUNDS = 10


def simplify(
    source: Source,
    *,
    fold: bool = True,
    weights: bool = True,
    fold_limit: int = DEFAULT_LIMIT,
    report: Report | None = None,
) -> Model:
    """Fold constants and remove everything without effect; results stay the same.

    Args:
        source: a model, or what `polytool.model.load` takes.
        fold: compute what depends on constants only.
        weights: fold arithmetic into the weights of convolutions and matrix products, which
            changes results by rounding.
        fold_limit: bytes by which one folded node may make the file grow.
        report: receives what was done and what was refused.

    Returns:
        The simplified model; its weights stay where they are.

    Raises:
        ModelError: the model is broken (a cycle, an undefined tensor).
    """
    workspace = Workspace(load(source))
    report = report if report is not None else Report()
    simplify_workspace(workspace, report, fold=fold, weights=weights, fold_limit=fold_limit)
    return workspace.to_model()


def simplify_workspace(
    workspace: Workspace,
    report: Report,
    *,
    fold: bool = True,
    weights: bool = True,
    fold_limit: int = DEFAULT_LIMIT,
    rounds: int = _MOST_ROUNDS,
) -> None:
    """The same on a working graph, which ends up sorted and with types inferred."""
    report.did("graphs sorted", workspace.sort())
    lift_constants(workspace, report)
    remove_dead(workspace, report)
    inferred_at = -1
    for _ in range(rounds):
        if report.total != inferred_at:
            infer(workspace, report)
        before = report.total
        if fold:
            inline_decided_branches(workspace, report)
            fold_shapes(workspace, report)
            workspace.sort()
            fold_constants(workspace, report, limit=fold_limit)
        if weights:
            fold_weights(workspace, report)
        remove_noops(workspace, report)
        merge_chains(workspace, report)
        merge_constants(workspace, report)
        merge_equal_nodes(workspace, report)
        remove_dead(workspace, report)
        workspace.sort()
        inferred_at = before
        if report.total == before:
            break
    rename_duplicates(workspace, report)
