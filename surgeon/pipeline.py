"""All the rewrites that are always right, until there is nothing left to do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polytool.collection import paused_collection
from polytool.model import Model, Source
from polytool.surgeon.branches import inline_decided_branches
from polytool.surgeon.constants import lift_constants, merge_constants
from polytool.surgeon.cse import merge_equal_nodes
from polytool.surgeon.dead import remove_dead
from polytool.surgeon.fold import DEFAULT_LIMIT, fold_constants
from polytool.surgeon.graph import Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.infer import infer
from polytool.surgeon.loops import simplify_loops
from polytool.surgeon.merges import merge_chains
from polytool.surgeon.names import rename_duplicates
from polytool.surgeon.noops import remove_noops
from polytool.surgeon.report import Report
from polytool.surgeon.shapes import fold_shapes
from polytool.surgeon.states import drop_zero_states
from polytool.surgeon.unread import drop_unread_results
from polytool.surgeon.weights import fold_weights
from polytool.validation import validate

_MOST_ROUNDS = 10


@dataclass(frozen=True)
class Choice:
    """Which rewrites to do.

    Attributes:
        fold: compute what depends on constants only.
        shapes: compute what follows from known shapes; only with `fold`.
        weights: fold arithmetic into the weights of convolutions and matrix products, which
            changes results by rounding.
        cleanup: remove what is dead, without effect, or there twice.
        unroll: write out loops of few iterations; only with `fold`.
        rounds: how often to go through all of them at most.
    """

    fold: bool = True
    shapes: bool = True
    weights: bool = True
    cleanup: bool = True
    unroll: bool = True
    rounds: int = _MOST_ROUNDS

    def but(self, **changes: bool | int) -> Choice:
        """The same with some changes."""
        return replace(self, **changes)  # type: ignore[arg-type]  # checked by the dataclass


def simplify(
    source: Source,
    *,
    fold: bool = True,
    weights: bool = True,
    unroll: bool = True,
    fold_limit: int = DEFAULT_LIMIT,
    report: Report | None = None,
) -> Model:
    """Fold constants and remove everything without effect; results stay the same.

    Args:
        source: a model, or what `polytool.model.load` takes.
        fold: compute what depends on constants only.
        weights: fold arithmetic into the weights of convolutions and matrix products, which
            changes results by rounding.
        unroll: write out loops of few iterations; what is inside gets names of its own then.
        fold_limit: bytes by which one folded node may make the file grow.
        report: receives what was done and what was refused.

    Returns:
        The simplified model; its weights stay where they are.

    Raises:
        ModelError: the model is broken (a cycle, an undefined tensor).
    """
    with paused_collection():
        workspace = Workspace(open_model(source))
        simplify_workspace(
            workspace,
            report if report is not None else Report(),
            choice=Choice(fold=fold, weights=weights, unroll=unroll),
            fold_limit=fold_limit,
        )
        return workspace.to_model()


def simplify_workspace(
    workspace: Workspace,
    report: Report,
    *,
    choice: Choice | None = None,
    fold_limit: int = DEFAULT_LIMIT,
) -> None:
    """The same on a working graph, which ends up sorted and with types inferred."""
    choice = choice or Choice()
    validate(workspace.model.proto)
    with report.counted("toposort"):
        report.did("graphs sorted", workspace.sort())
    if not (choice.fold or choice.weights or choice.cleanup):
        rename_duplicates(workspace, report)
        return
    lift_constants(workspace, report)
    if choice.cleanup:
        with report.counted("cleanup"):
            remove_dead(workspace, report)
    for _ in range(choice.rounds):
        infer(workspace, report)
        before = report.total, workspace.refinements
        _round(workspace, report, choice, fold_limit)
        if (report.total, workspace.refinements) == before:
            break
    rename_duplicates(workspace, report)


def _round(workspace: Workspace, report: Report, choice: Choice, fold_limit: int) -> None:
    if choice.fold:
        with report.counted("fold constants"):
            inline_decided_branches(workspace, report)
            simplify_loops(workspace, report, unroll=choice.unroll)
            workspace.sort()
        if choice.shapes:
            with report.counted("fold shapes"):
                fold_shapes(workspace, report)
        with report.counted("fold constants"):
            fold_constants(workspace, report, limit=fold_limit)
    if choice.weights:
        with report.counted("fold weights"):
            fold_weights(workspace, report)
    if choice.cleanup:
        with report.counted("cleanup"):
            remove_noops(workspace, report)
            drop_zero_states(workspace, report)
            merge_chains(workspace, report)
            merge_constants(workspace, report)
            merge_equal_nodes(workspace, report)
            drop_unread_results(workspace, report)
    remove_dead(workspace, report)
    workspace.sort()
