"""`check lint`: every fault of a model, also past the first, and what could become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytool.errors import ModelError
from polytool.model import Source
from polytool.surgeon.graph import Node, Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.infer import infer, infer_one_by_one
from polytool.surgeon.order import named_graphs
from polytool.surgeon.report import Report

NO_VALUE = "there is no value for"
EXCEPTION, WARNING, INFO = _LEVELS = ("exception", "warning", "info")


@dataclass(frozen=True)
class Entry:
    """One finding, with the field names of Polygraphy's report.

    Attributes:
        level: `exception` (the model is broken), `warning` or `info`.
        source: who found it: `onnx_checker`, `onnxruntime` or `polytool`.
        message: what is wrong, and where it is not evident, what to do.
        nodes: the nodes concerned, by the names that messages use.
    """

    level: str
    source: str
    message: str
    nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{', '.join(self.nodes[:5])}{' ...' if self.nodes[5:] else ''}: "
        return f"{self.level}: {where if self.nodes else ''}{self.message}"


@dataclass
class Lint:
    """What lint found.

    Attributes:
        entries: all findings, in the order in which they were looked for.
        labels: every node, bodies and functions included.
        unchecked: node to why it was not run.
    """

    entries: list[Entry] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)

    def add(self, level: str, source: str, message: str, nodes: Iterable[str] = ()) -> None:
        """Record a finding."""
        self.entries.append(Entry(level, source, message, tuple(nodes)))

    @property
    def failing(self) -> list[str]:
        """The nodes that are broken."""
        broken = {n for e in self.entries if e.level == EXCEPTION for n in e.nodes}
        return [label for label in self.labels if label in broken]

    @property
    def passing(self) -> list[str]:
        """The nodes that were run, or whose whole graph was, without a fault."""
        failing = set(self.failing)
        return [x for x in self.labels if x not in failing and x not in self.unchecked]

    @property
    def is_valid(self) -> bool:
        """Whether nothing is broken."""
        return not any(e.level == EXCEPTION for e in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Polygraphy's fields, and `not_checked` beside them."""
        return {
            "summary": {"passing": self.passing, "failing": self.failing},
            "lint_entries": [
                {"level": e.level, "source": e.source, "message": e.message}
                | ({"nodes": list(e.nodes)} if e.nodes else {})
                for e in self.entries
            ],
            "not_checked": self.unchecked,
        }

    def summary(self) -> str:
        """What was found, for people."""
        counts = [
            f"{sum(e.level == level for e in self.entries)} {word}"
            for level, word in ((EXCEPTION, "errors"), (WARNING, "warnings"), (INFO, "notes"))
        ]
        lines = [str(e) for level in _LEVELS for e in self.entries if e.level == level]
        reasons: dict[str, list[str]] = {}
        for node, why in self.unchecked.items():
            behind = "a node that they depend on is broken, or was not run"
            reasons.setdefault(behind if why.startswith(NO_VALUE) else why, []).append(node)
        for why, nodes in reasons.items():
            shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if nodes[3:] else "")
            lines.append(f"not run: {shown}: {why}")
        lines.append(
            f"{len(self.labels)} nodes: {len(self.passing)} passing, {len(self.failing)} failing, "
            f"{len(self.unchecked)} not run; {', '.join(counts)}"
        )
        return "\n".join(lines)


def lint(
    source: Source,
    *,
    feeds: Mapping[str, Any] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Lint:
    """Look for faults.

    Args:
        source: what `polytool.model.load` takes.
        feeds: inputs to run the model on; made ones by default, and then a failure to run is no
            fault of the model.
        providers: onnxruntime's execution providers.

    Raises:
        ModelError: the file cannot be read as a model.
    """
    from polytool.surgeon.lint_calls import check_calls
    from polytool.surgeon.lint_graph import check_graphs
    from polytool.surgeon.lint_nodes import check_nodes
    from polytool.surgeon.lint_run import Run

    model = open_model(source)
    found = Lint()
    workspace = Workspace(model, strict=False)
    paths = dict(named_graphs(workspace))
    found.labels = [label(node, path) for graph, path in paths.items() for node in graph.nodes]
    for where, what in workspace.problems:
        nodes = [_with_path(where[6:-1], found.labels)] if where.startswith("node ") else []
        found.add(EXCEPTION, "polytool", what if nodes else f"{where}: {what}", nodes)
    check_graphs(workspace, paths, found)
    try:
        workspace.sort()
    except ModelError as err:
        found.add(EXCEPTION, "polytool", str(err))
        found.unchecked = dict.fromkeys(found.labels, "the graph has a cycle")
        return found
    if workspace.problems:  # on names that nothing defines, inference of the whole may crash
        infer_one_by_one(workspace.main)
    else:
        infer(workspace, Report())
    run = Run(workspace, found, providers)
    check_nodes(workspace, paths, found, loads=run.loads)
    if not run.loads:
        check_calls(workspace, found)
    run.check(paths, feeds)
    failing = set(found.failing)
    found.unchecked = {x: why for x, why in found.unchecked.items() if x not in failing}
    return found


def label(node: Node, prefix: str) -> str:
    """How the report calls a node."""
    return f"{prefix}{node.label}"


def _with_path(name: str, labels: Sequence[str]) -> str:
    """The label of the node `name`, which may stand in a body or function."""
    fitting = (x for x in labels if x == name or x.endswith(f"/{name}"))
    return next(fitting, name)
