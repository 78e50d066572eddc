"""What the surgeon's commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytool.cli import options
from polytool.cli.options import F

if TYPE_CHECKING:
    from polytool.feeds import Feeds
    from polytool.model import Model
    from polytool.surgeon.pipeline import Choice


@dataclass(frozen=True)
class Outputs:
    """Which tensors the user wants a model to return."""

    outputs: tuple[str, ...]
    exclude_outputs: tuple[str, ...]
    outputs_by_type: tuple[str, ...]

    def select(self, model: Model) -> tuple[str, ...]:
        """Their names; `()` for the model's own outputs."""
        if not (self.outputs or self.exclude_outputs or self.outputs_by_type):
            return ()
        from polytool.selection import select_tensors

        return select_tensors(model, self.outputs, self.exclude_outputs, self.outputs_by_type)


def outputs(function: F) -> F:
    """--outputs, --exclude-outputs and --outputs-by-type, passed as `outputs: Outputs`."""
    kinds = {
        "--outputs": "Return these tensors instead; names or patterns, or all.",
        "--exclude-outputs": "Return all but these.",
        "--outputs-by-type": "Return what operators of these types give.",
    }
    decorators = [options.option(k, several=True, help=text) for k, text in kinds.items()]
    return options.bundle(function, "outputs", Outputs, decorators)


def exclude_list(function: F) -> F:
    """--exclude-list."""
    text = "A text file that names initializers to leave as they are, one a line."
    return options.option("--exclude-list", metavar="PATH", help=text)(function)


def read_list(path: str | None) -> tuple[str, ...]:
    """The lines of a text file; nothing for no file."""
    if path is None:
        return ()
    with open(path, encoding="utf-8") as file:
        return tuple(line.strip() for line in file if line.strip())


def facts(model: Model) -> dict[str, Any]:
    """What a summary says of a model that was made."""
    graph = model.proto.graph
    known = {t.name for t in graph.initializer}
    return {
        "nodes": len(graph.node),
        "inputs": [i.name for i in graph.input if i.name not in known],
        "outputs": [o.name for o in graph.output],
    }


def choice(
    *,
    fold_constants: bool,
    cleanup: bool,
    toposort: bool,
    no_fold_shapes: bool,
    no_fold_weights: bool,
    num_passes: int,
) -> Choice:
    """Everything, or what the flags narrow it to."""
    from polytool.surgeon.pipeline import Choice

    everything = not (fold_constants or cleanup or toposort)
    return Choice(
        fold=everything or fold_constants,
        shapes=not no_fold_shapes,
        weights=everything and not no_fold_weights,
        cleanup=everything or cleanup,
        rounds=num_passes,
    )


def save(model: Model, path: str, external_data: str | None, threshold: int) -> None:
    """Write `model` as --save-external-data says: None, "" for the default name, or a name."""
    wanted = None if external_data is None else (external_data or True)
    model.save(path, external_data=wanted, size_threshold=threshold)


def given_feed(feeds: options.FeedOptions, model: Model) -> dict[str, Any] | None:
    """The first inputs that the user's options describe; None where there are no such options."""
    data = given_feeds(feeds, model)
    return None if data is None else dict(next(iter(data)))


def given_feeds(feeds: options.FeedOptions, model: Model) -> Feeds | None:
    """The inputs that the user's options describe; None where there are no such options."""
    given = feeds.input_shapes or feeds.val_range or feeds.load_inputs or feeds.data_loader_script
    if not (given or feeds.iterations):
        return None
    from polytool.feeds import save_feeds

    data = feeds.make(model)
    if feeds.save_inputs:
        save_feeds(data, feeds.save_inputs)
    return data
