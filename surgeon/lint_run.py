"""Lint at run time: does onnxruntime load the model, and every node of it, and run it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from polytool.model import tensors
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.types import type_proto
from polytool.surgeon.verify import made_feeds
from polytool.surgeon.writing import write_node
from polytool.tensors import DType

if TYPE_CHECKING:
    from polytool.surgeon.linting import Lint


def check_run(
    workspace: Workspace,
    paths: Mapping[Graph, str],
    found: Lint,
    feeds: Mapping[str, Any] | None,
    providers: Sequence[str],
) -> bool:
    """Run the model; where it does not load, load its nodes one by one.

    Returns:
        Whether onnxruntime loads the model.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        _give_up(found, "onnxruntime is not installed")
        return False
    if not all(map(workspace.model.has_content, tensors(workspace.model.proto))):
        _give_up(found, "weights have no content")
        return False
    runner = _Runner(ort, providers)
    try:
        session = runner.session(workspace.model.session_source())
    except Exception as err:  # onnxruntime raises types of its own, none of them documented
        message = f"onnxruntime does not load the model: {first_line(err)}"
        found.add("exception", "onnxruntime", message)
        _run_nodes(workspace, paths, found, feeds, runner)
        return False
    reason = "there are no inputs"
    for feed in [feeds] if feeds is not None else made_feeds(workspace.model):
        try:
            session.run(None, feed)
            return True
        except Exception as err:  # as above
            reason = first_line(err)
    if feeds is not None:
        found.add("exception", "onnxruntime", f"the model does not run: {reason}")
    else:
        found.add(
            "info",
            "onnxruntime",
            f"the model loads, but does not run on made inputs: {reason}; give real ones with "
            "--load-inputs, or shapes with --input-shapes",
        )
    _give_up(found, "the model was loaded, but not run")
    return True


def first_line(err: Exception) -> str:
    """The first line of a message that may be a page long."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0]


def _give_up(found: Lint, reason: str) -> None:
    failing = set(found.failing)
    found.unchecked = {x: reason for x in found.labels if x not in failing}
    if not reason.startswith("the model"):
        found.add("info", "polytool", f"nothing was run: {reason}")


class _Runner:
    def __init__(self, ort: Any, providers: Sequence[str]) -> None:
        self.ort, self.providers = ort, list(providers)

    def session(self, source: str | bytes) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self.ort.InferenceSession(source, options, providers=self.providers)


def _run_nodes(
    workspace: Workspace,
    paths: Mapping[Graph, str],
    found: Lint,
    feeds: Mapping[str, Any] | None,
    runner: _Runner,
) -> None:
    """Every node of the main graph alone, on what the nodes before it gave."""
    table = _first_values(workspace, feeds)
    failing = set(found.failing)
    checked: set[str] = set()
    for node in workspace.main.nodes:
        name = node.label
        if name in failing:
            continue
        values = list(dict.fromkeys(node.reads()))
        missing = [v.name for v in values if _lookup(workspace, v, table) is None]
        if missing:
            found.unchecked[name] = f"there is no value for {missing[0]!r}"
            continue
        arrays = {v.name: _lookup(workspace, v, table) for v in values}
        try:
            session = runner.session(_alone(workspace, node, values, arrays))
        except Exception as err:  # as above
            found.add("exception", "onnxruntime", first_line(err), [name])
            continue
        checked.add(name)
        try:
            results = session.run(None, arrays)
        except Exception as err:  # as above
            level = "info" if feeds is None else "exception"
            what = f"it does not run on {'made' if feeds is None else 'these'} inputs: "
            found.add(level, "onnxruntime", what + first_line(err), [name])
            continue
        table.update(zip([v for v in node.outputs if v is not None], results, strict=True))
    for graph, path in paths.items():
        if path:
            reason = "nodes inside of bodies and functions are not run by themselves"
            found.unchecked.update({path + n.label: reason for n in graph.nodes})


def _first_values(workspace: Workspace, feeds: Mapping[str, Any] | None) -> dict[Value, Any]:
    inputs = {v.name: v for v in workspace.main.inputs}
    given = feeds if feeds is not None else next(iter(made_feeds(workspace.model)), {})
    return {inputs[name]: array for name, array in given.items() if name in inputs}


def _lookup(workspace: Workspace, value: Value, table: Mapping[Value, Any]) -> Any:
    if value in table:
        return table[value]
    return workspace.model.array(value.tensor) if value.tensor is not None else None


def _alone(
    workspace: Workspace, node: Node, values: Sequence[Value], arrays: Mapping[str, Any]
) -> bytes:
    """A model of one node, whose inputs are everything that it reads."""
    source = workspace.model.proto
    graph = onnx.GraphProto(name="lint", node=[write_node(node)])
    for value in values:
        proto = _type_of(arrays[value.name], value)
        graph.input.add(name=value.name, type=proto)
    for output in node.outputs:
        if output is not None:
            graph.output.add(name=output.name, type=output.type.proto if output.type else None)
    model = onnx.ModelProto(ir_version=max(source.ir_version, 4), graph=graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    data: bytes = workspace.model.derive(model).serialize()
    return data


def _type_of(array: Any, value: Value) -> onnx.TypeProto:
    if isinstance(array, np.ndarray):
        return type_proto(DType.of(array), tuple([None] * array.ndim))
    if value.type is not None:
        return value.type.proto
    return onnx.TypeProto()
