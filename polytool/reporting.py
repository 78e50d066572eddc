"""`--report` of `run` and `debug locate`: what was found, as one HTML file, or as a PNG.

location = locate("model.onnx", feeds, precision="fp16")
save_report("out.html", location, model="model.onnx")
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polytool.comparators.comparison import Comparison
from polytool.comparators.figures import to_png
from polytool.comparators.findings import Location
from polytool.comparators.pictures import pictures
from polytool.comparators.report import page_data, render
from polytool.conversion import check_writable
from polytool.errors import MissingDependencyError
from polytool.files import StrPath, replacing, write_all
from polytool.model import Model, graphs, load

if TYPE_CHECKING:
    import onnx

    from polytool.model import Source


def save_report(
    path: StrPath,
    found: Comparison | Location,
    *,
    model: Source,
    facts: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    external_data_dir: str | None = None,
) -> None:
    """Write one self-contained HTML file, or, where `path` ends in `.png`, its plots as a PNG.

    Args:
        path: where it goes.
        found: what `compare` or `locate` returned.
        model: what was looked at; for a `Location`, the model whose layers those are.
        facts: the facts with more than `found.to_json()`, such as those that `run --json` prints.
        results: the runs by name, as they were compared: their errors are then drawn.
        external_data_dir: where the model's external data lies, if not beside it.

    Raises:
        ModelError: the file cannot be written, or the model cannot be read.
        MissingDependencyError: a PNG needs matplotlib.
    """
    check_report(path)
    facts = found.to_json() if facts is None else facts
    drawing: dict[str, Any] = {}
    if isinstance(found, Location):
        source = load(model, external_data_dir=external_data_dir)
        kind, drawing = "locate", {**neighbours(source, found), "pictures": found.pictures}
    else:
        kind = "run"
        drawing["pictures"] = pictures(results, found) if results is not None else []
    title = str(model) if not isinstance(model, Model) else (model.proto.graph.name or "model")
    if _is_png(path):
        content = to_png(page_data(kind, facts, title=title, drawing=drawing))
    else:
        content = render(kind, facts, title=title, drawing=drawing).encode()
    with replacing(path) as file:
        write_all(file, content)


def check_report(path: StrPath) -> None:
    """Find out before long work that a report cannot be written.

    Raises:
        ModelError: `path` cannot be written.
        MissingDependencyError: it is a PNG, which needs matplotlib.
    """
    check_writable(path)
    if _is_png(path) and importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "report", "a report as PNG")


def _is_png(path: StrPath) -> bool:
    return os.fspath(path).lower().endswith(".png")


def neighbours(model: Model, found: Location) -> dict[str, Any]:
    """Which layers feed which: `edges` by position, and the `operators` that each computes.

    Tensors that are not stored are passed through. Layers in bodies and functions have no edges.
    """
    stored = {t: f.position for f in found.findings for t in f.tensors}
    graph = model.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    # What reaches a tensor since the last stored one: layers (None stands for an input of the
    # model, so that nothing at all means a constant), and the operators on the way.
    feeding: dict[str, frozenset[int | None]] = {
        value.name: frozenset({None}) for value in graph.input if value.name not in constants
    }
    passed: dict[str, list[str]] = {}
    edges: dict[int, set[int]] = {}
    operators: dict[int, list[str]] = {}
    for node in _in_order(graph):
        read = [name for name in (*node.input, *_captured(node)) if name]
        sources = frozenset[int | None]().union(*(feeding.get(name, frozenset()) for name in read))
        path = [op for name in read for op in passed.get(name, ())] if sources else []
        path = list(dict.fromkeys([*path, node.op_type])) if sources else []
        for name in filter(None, node.output):
            position = stored.get(name)
            if position is None:
                feeding[name], passed[name] = sources, path
                continue
            edges.setdefault(position, set()).update(p for p in sources if p is not None)
            operators[position] = path
            feeding[name] = frozenset({position})
    return {
        "edges": {str(p): sorted(e - {p}) for p, e in sorted(edges.items())},
        "operators": {str(p): names for p, names in sorted(operators.items())},
    }


def _captured(node: onnx.NodeProto) -> list[str]:
    """What the bodies of a node read that they do not make."""
    found: list[str] = []
    for graph in graphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(name for inner in graph.node for name in inner.output)
        read = [n for inner in graph.node for n in (*inner.input, *_captured(inner))]
        read += [value.name for value in graph.output]
        found += [name for name in read if name not in own]
    return found


def _in_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes so that each comes after what it reads, as most files have them already."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    read = [[*node.input, *_captured(node)] for node in graph.node]
    order: list[onnx.NodeProto] = []
    entered: set[int] = set()
    for start in range(len(graph.node)):
        stack = [] if start in entered else [(start, False)]
        while stack:
            index, ready = stack.pop()
            if ready:
                order.append(graph.node[index])
            elif index not in entered:
                entered.add(index)
                stack.append((index, True))
                needed = {makers[name] for name in read[index] if name in makers} - entered
                stack += [(other, False) for other in sorted(needed, reverse=True)]
    return order
