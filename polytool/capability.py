"""`inspect capability`: what the native engine cannot run in a model, and the parts that it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polytool.backends.native.network import Network
from polytool.backends.native.parser import read_network
from polytool.backends.native.unsupported import Unsupported
from polytool.errors import UsageError
from polytool.files import StrPath
from polytool.model import Source, load
from polytool.surgeon.extraction import Port, extract
from polytool.surgeon.graph import Node, Value, Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.tensors import DType


@dataclass(frozen=True)
class Subgraph:
    """Nodes of the main graph that are all supported, or all not, and need no others in between.

    Attributes:
        supported: whether the engine can run it.
        nodes: as messages call them, in the order of execution.
        inputs: tensors that it takes from the model's inputs and from other subgraphs.
        outputs: tensors that others need, or that the model returns.
        path: where it was saved; None where it was not, and then `reason` says why.
    """

    supported: bool
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    path: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Capability:
    """What the engine cannot run.

    Attributes:
        nodes: how many nodes the main graph has.
        unsupported: every node that cannot run, those in bodies and functions included.
        subgraphs: the parts of the model, where they were asked for.
    """

    nodes: int
    unsupported: tuple[Unsupported, ...]
    subgraphs: tuple[Subgraph, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether the engine can run the whole model."""
        return not self.unsupported

    def to_json(self) -> dict[str, Any]:
        """See docs/json.md."""
        fields = ("node", "op", "version", "graph", "reason")
        return {
            "supported": self.supported,
            "nodes": self.nodes,
            "unsupported": [{f: getattr(u, f) for f in fields} for u in self.unsupported],
            "subgraphs": [vars(s) for s in self.subgraphs],
        }


def capability(source: Source, *, partitions: StrPath | None = None) -> Capability:
    """Find every node that the native engine cannot run.

    Args:
        source: what `polytool.model.load` takes.
        partitions: a folder for the supported and the unsupported subgraphs, as models of their
            own; nothing is written where the whole model is supported.

    Raises:
        ModelError: the model is broken.
    """
    model = load(source)
    network, found = read_network(model)
    nodes = len(model.proto.graph.node)
    if partitions is None or not found:
        return Capability(nodes, tuple(found))
    folder = Path(partitions)
    folder.mkdir(parents=True, exist_ok=True)
    refused = {name for u in found for name in u.top}
    types = _types(network)
    parts = []
    for index, part in enumerate(_parts(model, refused)):
        word = "supported" if part.supported else "unsupported"
        parts.append(_saved(model, part, types, folder / f"{index:02d}_{word}.onnx"))
    return Capability(nodes, tuple(found), tuple(parts))


def _parts(source: Source, refused: set[str]) -> list[Subgraph]:
    """The subgraphs, each after those that it needs.

    The number of a node's subgraph is how often the way to it changes between supported and
    unsupported; so none needs itself through another.
    """
    workspace = Workspace(open_model(source))
    workspace.sort()
    levels: dict[Node, int] = {}
    members: dict[int, list[Node]] = {}
    for node in workspace.main.nodes:
        if node.op == "Constant" and not node.domain:
            continue  # goes with whatever reads it
        odd = int(any(v is not None and v.name in refused for v in node.outputs))
        before = [levels[p] for v in node.reads() if (p := v.producer) in levels]
        level = max((b + (b % 2 != odd) for b in before), default=odd)
        levels[node] = level
        members.setdefault(level, []).append(node)
    readers: dict[Value, set[int]] = {}
    for node, level in levels.items():
        for value in node.reads():
            readers.setdefault(value, set()).add(level)
    parts = []
    for level, nodes in sorted(members.items()):
        read = dict.fromkeys(
            v
            for n in nodes
            for v in n.reads()
            if _variable(v) and (v.producer is None or levels[v.producer] != level)
        )
        made = (v for n in nodes for v in n.outputs if v is not None)
        outputs = [v.name for v in made if v.is_output or readers.get(v, set()) - {level}]
        names = tuple(n.label for n in nodes)
        inputs = tuple(v.name for v in read)
        parts.append(Subgraph(level % 2 == 0, names, inputs, tuple(outputs)))
    return parts


def _variable(value: Value) -> bool:
    """Whether a value is no constant."""
    if value.producer is not None:
        return value.producer.op != "Constant" or bool(value.producer.domain)
    return value.tensor is None and value.graph is not None and value not in value.graph.sparse


def _types(network: Network) -> dict[str, DType]:
    """Element types of the tensors of the main graph, also behind operators that nobody knows."""
    tensors = [t for layer in network.layers for t in layer.outputs if t.container == "tensor"]
    return {t.value_of.tensor: t.dtype for t in tensors if t.value_of and t.dtype is not None}


def _saved(source: Source, part: Subgraph, types: dict[str, DType], path: Path) -> Subgraph:
    if not part.outputs:
        return replace(part, reason="not saved: nothing needs what it computes")
    ports = [[Port(n, None, types.get(n)) for n in names] for names in (part.inputs, part.outputs)]
    try:
        extract(source, *ports).save(path)
    except UsageError as err:
        return replace(part, reason=f"not saved: {err}")
    return replace(part, path=str(path))


def text(found: Capability, shown: Sequence[str] = ("node", "operator", "graph", "reason")) -> str:
    """What was found, for people."""
    from polytool.text import table

    if found.supported:
        return f"the native engine runs all {found.nodes} nodes"
    rows = [(u.node, f"{u.op}-{u.version}", u.graph, u.reason) for u in found.unsupported]
    lines = [table(rows, shown)]
    if found.subgraphs:
        parts = [
            ("yes" if s.supported else "no", len(s.nodes), s.path or s.reason)
            for s in found.subgraphs
        ]
        lines.append(table(parts, ("supported", "nodes", "subgraph"), align="lrl"))
    lines.append(f"the native engine cannot run {len(found.unsupported)} nodes")
    return "\n\n".join(lines)
