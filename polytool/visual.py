"""A model as one page to look at: no network, no installation, any browser."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from polytool.files import StrPath, replacing, write_all
from polytool.inspection import Description, LayerInfo
from polytool.tensors import TensorSpec, format_shape

_MOST_TEXT = 200  # characters of an attribute


def save_visual(found: Description, path: StrPath) -> None:
    """Write the page, whole or not at all.

    Raises:
        ModelError: the file cannot be written.
    """
    with replacing(path) as file:
        write_all(file, render(found).encode())


def render(found: Description) -> str:
    """The page."""
    title = found.path or found.graph or "model"
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in found.opsets.items())
    summary = f"{len(found.layers)} nodes, {found.parameters:,} parameters"
    summary += f", opset {opsets}" if opsets else ""
    parts = {
        "title": html.escape(title),
        "summary": html.escape(summary),
        "style": _template("visual.css"),
        "model": _as_script(facts(found)),
        "script": _template("visual.js"),
    }
    pieces = _template("visual.html").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:  # in one pass: what is filled in is never looked at again
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def facts(found: Description) -> dict[str, Any]:
    """What the page's script draws: graphs of nodes, and the values that they read and write."""
    paths = list(dict.fromkeys(["", *(layer.graph for layer in found.layers)]))
    index = {path: i for i, path in enumerate(paths)}
    values = _Values(found)
    graphs: list[dict[str, Any]] = [
        {"path": path, "parent": _parent(path, index), "nodes": []} for path in paths
    ]
    for layer in found.layers:
        graphs[index[layer.graph]]["nodes"].append(_node(layer, values, index))
    for side, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
        graphs[0][side] = [values.find("", spec.name) for spec in specs]
    return {"graphs": graphs, "values": values.rows}


def _parent(path: str, index: Mapping[str, int]) -> int:
    """The graph around a body: the longest known path before its own."""
    around = [p for p in index if p and p != path and path.startswith(f"{p}/")]
    return index[max(around, key=len)] if around else 0


class _Values:
    """Tensors by graph and name; a body sees those of the graphs around it."""

    def __init__(self, found: Description) -> None:
        self.rows: list[tuple[str, str, bool]] = []
        self.known: dict[tuple[str, str], int] = {}
        for spec in found.inputs:
            self.add("", spec.name, _type(spec), False)
        for weight in found.weights:
            text = f"{weight.dtype}{format_shape(weight.shape)}, {weight.nbytes:,} bytes"
            if (s := weight.statistics) is not None:
                text += f", {s.minimum:.4g} to {s.maximum:.4g}, mean {s.mean:.4g}, std {s.std:.4g}"
                text += f", {s.zeros:,} zeros" if s.zeros else ""
                text += f", {s.not_finite:,} not finite" if s.not_finite else ""
            self.add(weight.graph, weight.name, text, True)
        for layer in found.layers:
            for spec in layer.outputs:
                self.add(layer.graph, spec.name, _type(spec), False)

    def add(self, graph: str, name: str, kind: str, weight: bool) -> int:
        """The index of a value, new or known."""
        key = graph, name
        if key not in self.known:
            self.known[key] = len(self.rows)
            self.rows.append((name, kind, weight))
        return self.known[key]

    def find(self, graph: str, name: str) -> int:
        """The index of the value that `name` means in `graph`."""
        around = graph
        while (around, name) not in self.known and around:
            around = around.rpartition("/")[0]
        if (around, name) in self.known:
            return self.known[around, name]
        return self.add(graph, name, "", False)


def _type(spec: TensorSpec) -> str:
    return str(spec).removeprefix(f"{spec.name}: ")


def _node(layer: LayerInfo, values: _Values, index: Mapping[str, int]) -> list[Any]:
    prefix = f"{layer.graph}/{layer.name}/" if layer.graph else f"{layer.name}/"
    bodies = {
        path.removeprefix(prefix): i
        for path, i in index.items()
        if path.startswith(prefix) and "/" not in path.removeprefix(prefix)
    }
    attributes = {k: str(v)[:_MOST_TEXT] for k, v in layer.attributes.items() if k not in bodies}
    return [
        layer.name,
        f"{layer.domain}.{layer.op}" if layer.domain else layer.op,
        [values.find(layer.graph, name) if name else -1 for name in layer.inputs],
        [values.find(layer.graph, spec.name) for spec in layer.outputs],
        attributes,
        bodies,
        layer.flops or 0,
        layer.bytes_moved or 0,
    ]


def _as_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _template(name: str) -> str:
    return (resources.files("polytool") / "templates" / name).read_text(encoding="utf-8")
