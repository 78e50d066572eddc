"""Lint at run time: does onnxruntime load the model, and every node of it, and run it?"""

from __future__ import annotations

import re
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

# How onnxruntime says that it lacks an operator, for a type or at all. Unknown operators of the
# standard domain are faults, and have been found before.
_NO_KERNEL = (
    "NOT_IMPLEMENTED",
    "is not currently registered or supported",
    "is not a registered function/op",
)


class Run:
    """The model in onnxruntime.

    Attributes:
        loads: whether onnxruntime loads the model.
    """

    def __init__(self, workspace: Workspace, found: Lint, providers: Sequence[str]) -> None:
        """Load the model.

        Args:
            workspace: the model, sorted, with types inferred.
            found: receives findings.
            providers: onnxruntime's execution providers.
        """
        self.workspace, self.found = workspace, found
        self.loads = False
        self.session: Any = None
        self.runner: _Runner | None = None
        self.reason = ""  # why nothing can be run
        try:
            import onnxruntime as ort
        except ImportError:
            self.reason = "onnxruntime is not installed"
            return
        if not all(map(workspace.model.has_content, tensors(workspace.model.proto))):
            self.reason = "weights have no content"
            return
        self.runner = _Runner(ort, providers)
        try:
            self.session = self.runner.session(workspace.model.session_source())
            self.loads = True
        except Exception as err:  # onnxruntime raises types of its own, none of them documented
            level = "warning" if _lacks_kernel(err) else "exception"
            message = f"onnxruntime does not load the model: {first_line(err)}"
            found.add(level, "onnxruntime", message)

    def check(self, paths: Mapping[Graph, str], feeds: Mapping[str, Any] | None) -> None:
        """Run the model; where it does not load, those of its nodes that seem sound, one by one."""
        if self.runner is None:
            _give_up(self.found, self.reason)
        elif self.session is None:
            _run_nodes(self.workspace, paths, self.found, feeds, self.runner)
        else:
            self._run(feeds)

    def _run(self, feeds: Mapping[str, Any] | None) -> None:
        found, reason = self.found, "there are no inputs"
        for feed in [feeds] if feeds is not None else made_feeds(self.workspace.model):
            try:
                self.session.run(None, feed)
                return
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


def first_line(err: Exception) -> str:
    """The first line of a message that may be a page long, without what says nothing."""
    line = (str(err).strip().splitlines() or [type(err).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)


def _lacks_kernel(err: Exception) -> bool:
    """Whether the model is sound, as far as can be seen, and only onnxruntime cannot run it."""
    return any(text in str(err) for text in _NO_KERNEL)


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
    from polytool.surgeon.linting import NO_VALUE

    table = _first_values(workspace, feeds)
    failing = set(found.failing)
    inside = _holders(workspace, paths, failing)
    for node in workspace.main.nodes:
        name = node.label
        if name in failing:
            continue
        if name in inside:
            found.unchecked[name] = "a node inside of it is broken"
            continue
        values = list(dict.fromkeys(node.reads()))
        missing = [v.name for v in values if _lookup(workspace, v, table) is None]
        if missing:
            found.unchecked[name] = f"{NO_VALUE} {missing[0]!r}"
            continue
        arrays = {v.name: _lookup(workspace, v, table) for v in values}
        try:
            session = runner.session(_alone(workspace, node, values, arrays))
        except Exception as err:  # as above
            if _lacks_kernel(err):
                found.add("warning", "onnxruntime", first_line(err), [name])
                found.unchecked[name] = "onnxruntime has no kernel for it"
            else:
                found.add("exception", "onnxruntime", first_line(err), [name])
            continue
        foreign = _not_numpys(node)
        if foreign is not None:
            found.unchecked[name] = f"onnxruntime takes and gives no {foreign} through NumPy"
            continue
        try:
            results = session.run(None, arrays)
        except Exception as err:  # as above
            reason = f"it does not run on {'made' if feeds is None else 'these'} inputs: "
            if feeds is None:
                found.unchecked[name] = reason + first_line(err)
            else:
                found.add("exception", "onnxruntime", reason + first_line(err), [name])
            continue
        table.update(zip([v for v in node.outputs if v is not None], results, strict=True))
    for graph, path in paths.items():
        if path:
            reason = "nodes inside of bodies and functions are not run by themselves"
            found.unchecked.update({path + n.label: reason for n in graph.nodes})


def _holders(workspace: Workspace, paths: Mapping[Graph, str], failing: set[str]) -> set[str]:
    """Nodes of the main graph with a broken node in a body, or in a function that they call."""
    bad = [path for graph, path in paths.items() if any(path + n.label in failing
                                                       for n in graph.nodes)]  # fmt: skip
    broken = {(f.proto.domain, f.name) for f in workspace.functions
              if any(p.startswith(f"{f.proto.domain}.{f.name}/") for p in bad)}  # fmt: skip
    return {
        node.label
        for node in workspace.main.nodes
        if (node.proto.domain, node.op) in broken
        or (node.bodies and any(p.startswith(f"{node.label}/") for p in bad))
    }


def _not_numpys(node: Node) -> str | None:
    """An element type of the node's tensors that NumPy has not."""
    for value in (*node.reads(), *(v for v in node.outputs if v is not None)):
        dtype = value.dtype
        if dtype is not None and dtype.numpy.type.__module__ != "numpy":
            return dtype.label
    return None


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
