"""`sanitize`: everything that is safe, checked before anybody gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytool.collection import paused_collection
from polytool.errors import ModelError
from polytool.files import StrPath
from polytool.model import Model, Source, nodes
from polytool.surgeon.dead import remove_dead
from polytool.surgeon.fold import DEFAULT_LIMIT
from polytool.surgeon.graph import Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.infer import infer
from polytool.surgeon.known import custom_operators
from polytool.surgeon.outputs import override_input_shapes, set_outputs
from polytool.surgeon.pipeline import Choice, simplify_workspace
from polytool.surgeon.report import Report
from polytool.surgeon.verify import (
    Reference,
    Verdict,
    check_structure,
    compare_models,
    total_weight,
)

if TYPE_CHECKING:
    from polytool.surgeon.bounding import Bounded

COMPARED_UP_TO = 200_000_000  # bytes of weights up to which models are compared unasked


@dataclass(frozen=True)
class Sanitized:
    """A sanitized model, and what happened to it.

    Attributes:
        model: the result.
        report: what was done, and what was refused and why.
        nodes: how many nodes, bodies and functions included, there were and are.
        verdict: of the comparison with the original.
        custom: operators that were kept although nothing is known of them, with counts.
        bounds: what was bounded, what is bounded anyway, and what could not be.
    """

    model: Model
    report: Report
    nodes: tuple[int, int]
    verdict: Verdict
    custom: Mapping[str, int]
    bounds: Bounded | None = None

    def save(self, path: StrPath, **options: Any) -> None:
        """Write the model; options as for `Model.save`."""
        self.model.save(path, **options)

    def summary(self) -> str:
        """What was done, for people."""
        before, after = self.nodes
        lines = [f"{before} nodes before, {after} after"]
        lines += [f"  {count:6d}  {what}" for what, count in sorted(self.report.done.items())]
        idle = [name for name, count in self.report.passes.items() if not count]
        if not self.report.done:
            lines.append("  there was nothing to do")
        elif idle:
            lines.append(f"  nothing to do for: {', '.join(idle)}")
        reasons: dict[str, list[str]] = {}
        for refusal in self.report.refused:
            reasons.setdefault(refusal.reason, []).append(refusal.node)
        for reason, labels in reasons.items():
            shown = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if labels[3:] else "")
            lines.append(f"  refused: {shown}: {reason}")
        if self.custom:
            shown = ", ".join(f"{name} ({count})" for name, count in self.custom.items())
            lines.append(f"kept as they are, because nothing is known of them: {shown}")
        if self.bounds is not None:
            lines += self.bounds.lines()
        if self.verdict.agree:
            lines.append("compared with the original on made inputs: equal")
        else:
            lines.append(f"not compared with the original: {self.verdict.reason}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        return {
            "nodes": {"before": self.nodes[0], "after": self.nodes[1]},
            "done": dict(sorted(self.report.done.items())),
            "passes": dict(self.report.passes),
            "refused": [{"node": r.node, "reason": r.reason} for r in self.report.refused],
            "custom_operators": dict(self.custom),
            "verdict": self.verdict.label,
            "reason": self.verdict.reason,
            **(self.bounds.to_json() if self.bounds is not None else {}),
        }


def sanitize(
    source: Source,
    *,
    choice: Choice | None = None,
    outputs: Sequence[str] | None = None,
    input_shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    fold_limit: int = DEFAULT_LIMIT,
    bounds: Mapping[str, int] | None = None,
    auto_bound: bool = False,
    verify: bool | None = None,
) -> Sanitized:
    """Clean a model up.

    Args:
        source: what `polytool.model.load` takes.
        choice: which rewrites; by default all that are safe.
        outputs: tensors that the model returns from now on, instead of its own outputs.
        input_shapes: shapes to declare for inputs; names may be patterns.
        fold_limit: bytes by which one folded node may make the file grow.
        bounds: upper bounds for dimensions that data decides, see `bound_shapes`; set after
            the comparison, as they change what exceeds them.
        auto_bound: set the bounds that the graph implies, too.
        verify: compare the result with the original on made inputs; by default when the weights
            have less than 200 MB.

    Returns:
        The result; nothing is written.

    Raises:
        ModelError: the model is broken, or the result would be.
        UsageError: an output or input does not exist.
    """
    report = Report()
    with paused_collection():
        original = _prepared(open_model(source), outputs, input_shapes, report)
        workspace = Workspace(original)
        custom = custom_operators(workspace)
        heavy = verify is None and total_weight(original) >= COMPARED_UP_TO
        reference = None if heavy or verify is False else Reference(original)
        simplify_workspace(workspace, report, choice=choice, fold_limit=fold_limit)
        model = workspace.to_model()
    del workspace
    _check(original, model)
    if reference is not None:
        verdict = compare_models(reference, model)
        if verdict.agree is False and (choice or Choice()).weights:
            model = _without_rounding(original, choice, fold_limit, report, verdict)
            verdict = compare_models(reference, model)
    elif heavy:
        verdict = Verdict(None, "its weights have 200 MB or more; --verify compares all the same")
    else:
        verdict = Verdict(None, "not asked for")
    if verdict.agree is False:
        raise ModelError(
            f"the result is not the model any more ({verdict.reason}), so nothing is returned; "
            "that is a defect: please report it with the model"
        )
    bounded = None
    if bounds or auto_bound:
        from polytool.surgeon.bounding import bound_shapes

        bounded = bound_shapes(model, bounds, auto=auto_bound)
        model = bounded.model
        _check(original, model)
    counts = (_count(original), _count(model))
    return Sanitized(model, report, counts, verdict, custom, bounded)


def _prepared(
    model: Model,
    outputs: Sequence[str] | None,
    shapes: Mapping[str, Sequence[int | str | None]] | None,
    report: Report,
) -> Model:
    """The model with another interface; that is what results are compared with."""
    if not outputs and not shapes:
        return model
    workspace = Workspace(model)
    if shapes:
        override_input_shapes(workspace, shapes)
        report.did("input shapes set", len(shapes))
    workspace.sort()
    infer(workspace, report)
    if outputs:
        set_outputs(workspace, outputs)
        remove_dead(workspace, report)
    return workspace.to_model()


def _without_rounding(
    original: Model, choice: Choice | None, fold_limit: int, report: Report, first: Verdict
) -> Model:
    """Again without what rounds: quantised models are so discontinuous that it shows."""
    for record in (report.done, report.refused, report.passes):
        record.clear()
    workspace = Workspace(original)
    narrower = (choice or Choice()).but(weights=False)
    simplify_workspace(workspace, report, choice=narrower, fold_limit=fold_limit)
    report.refuse("all weights", f"not folded: {first.reason}")
    return workspace.to_model()


def _check(original: Model, result: Model) -> None:
    complaint = check_structure(result)
    if complaint and not check_structure(original):
        raise ModelError(
            f"the result is not valid ({complaint}), so nothing is returned; that is a defect: "
            "please report it with the model"
        )


def _count(model: Model) -> int:
    inside = (n for f in model.proto.functions for n in nodes(f.node))
    return sum(1 for _ in nodes(model.proto.graph.node)) + sum(1 for _ in inside)
