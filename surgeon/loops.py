"""Loops of which something is known.

    Loop that gives a state back unchanged => its body reads the state from outside
    Loop of no iterations, of one, or of few small ones => the iterations one after the other

Left alone: what is random inside (iterations draw on), and ends that data decides.
"""

from __future__ import annotations

import math

import numpy as np

from polytool.arrays import MAX_RANK, MAX_SIZE
from polytool.surgeon.branches import adopt
from polytool.surgeon.cloning import copy_nodes
from polytool.surgeon.fold import RANDOM
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.surgeon.types import read_type

MOST_NODES = 64  # of all iterations together


def simplify_loops(workspace: Workspace, report: Report, *, unroll: bool = True) -> None:
    """Shorten every Loop of the workspace, which has to be sorted afterwards.

    Args:
        workspace: sorted.
        report: what was done and refused.
        unroll: write iterations out, whose tensors then have names that the source lacks.
    """
    for graph in list(workspace.graphs):
        for node in list(graph.nodes):
            if node.op != "Loop" or node.domain or node.graph is None:
                continue
            report.did("unchanged states taken out of loops", _take_out_states(node))
            if not any(v is not None for v in node.outputs):  # there were only such states
                graph.remove(node)
            elif unroll:
                _unroll(node, report)
        graph.compact()


def _source(value: Value, body: Graph) -> Value:
    """What `value` is a copy of, inside of `body`."""
    while value.graph is body and value.producer is not None and value.producer.op == "Identity":
        inner = value.producer.input(0)
        if inner is None or value.producer.domain:
            break
        value = inner
    return value


def _take_out_states(node: Node) -> int:
    body = node.bodies["body"]
    done = 0
    for index in reversed(range(len(body.inputs) - 2)):
        state, initial = body.inputs[index + 2], node.input(index + 2)
        if initial is None or _source(body.outputs[index + 1], body) is not state:
            continue
        returned = sum(c for user, c in state.users.items() if isinstance(user, Graph))
        if returned > (body.outputs[index + 1] is state):
            continue
        drop_state(node, index)
        body.redirect(state, initial)
        done += 1
    return done


def drop_state(node: Node, index: int) -> None:
    """Take one state out of a Loop; where its result is read, the initial value takes its place."""
    body, graph = node.bodies["body"], node.where
    initial, result = node.input(index + 2), node.outputs[index]
    body.outputs.pop(index + 1).drop_user(body)
    body.output_infos.pop(index + 1)
    state = body.inputs.pop(index + 2)
    state.is_input = False
    del body.infos[state]
    del node.outputs[index]
    if index + 2 < len(node.inputs):
        del node.inputs[index + 2]
    if initial is not None:
        initial.drop_user(node)
    if result is not None and result.users:
        assert initial is not None
        result.producer = None
        graph.substitute(result, initial)


def _unroll(node: Node, report: Report) -> None:
    trips = _trips(node)
    if trips is None:
        return
    body = node.bodies["body"]
    inside = [n for graph in body.walk() for n in graph.nodes if n.op != "Identity"]
    reason = None
    if trips * len(inside) > MOST_NODES and trips > 1:
        reason = f"{trips} iterations would be {trips * len(inside)} nodes"
    elif trips > 1 and any(n.op in RANDOM for n in inside):
        reason = "it is random inside"
    elif any(graph.sparse or graph.pinned for graph in body.walk()):
        reason = "its body has sparse or annotated tensors"
    elif any(_rank(body, i) > 1 for i in range(2)):
        reason = "its count or condition is no scalar"
    elif not trips and any(_empty(body, v) is None for v in body.outputs[_states(node) + 1 :]):
        reason = "it never runs, and the shape of what it collects is not known"
    if reason is not None:
        report.refuse(node.label, f"not unrolled: {reason}")
        return
    results = _iterations(node, trips)
    outputs, graph = node.outputs, node.where
    node.outputs = [None] * len(outputs)
    graph.remove(node)
    for old, new in zip(outputs, results, strict=True):
        if old is not None:
            old.producer = None
            graph.substitute(old, new)
    report.did("loops with a constant number of iterations unrolled")


def _states(node: Node) -> int:
    return len(node.bodies["body"].inputs) - 2


def _trips(node: Node) -> int | None:
    """How often the body runs, if that is constant."""
    body = node.bodies["body"]
    most, start = _scalar(node.input(0)), _scalar(node.input(1))
    if node.input(0) is not None and most is None:
        return None
    if node.input(1) is not None and start is None:
        return None
    if any(node.input(i + 2) is None for i in range(_states(node))):
        return None
    if start == 0:
        return 0
    again = _source(body.outputs[0], body)
    if again is body.inputs[1]:
        return max(most, 0) if most is not None else None
    go_on = _scalar(again)
    if go_on is None:
        return None
    if not go_on:
        return min(max(most, 0), 1) if most is not None else 1
    return max(most, 0) if most is not None else None


def _scalar(value: Value | None) -> int | None:
    if value is None or value.constant is None or value.graph is None:
        return None
    array = value.graph.workspace.model.array(value.constant)
    whole = array.size == 1 and array.dtype.kind in "iub"  # a broken model has other types there
    return int(array.reshape(-1)[0]) if whole else None


def _empty(body: Graph, value: Value) -> np.ndarray | None:
    """What a Loop collects of `value` in no iterations."""
    shape, dtype = value.shape, value.dtype
    if shape is None or dtype is None:
        return None
    sizes = [d for d in shape if isinstance(d, int)]
    if len(sizes) < len(shape) or len(sizes) >= MAX_RANK:
        return None
    if math.prod(max(size, 1) for size in sizes) > MAX_SIZE:
        return None
    return np.zeros((0, *sizes), dtype.numpy)


def _iterations(node: Node, trips: int) -> list[Value]:
    """Copies of the body in the node's graph; returns what its outputs are."""
    graph, body, count = node.where, node.bodies["body"], _states(node)
    for value in body.constants:
        adopt(value, graph)
    graph.constants.update(body.constants)
    body.constants = {}
    states = [v for v in node.inputs[2 : count + 2] if v is not None]
    collected: list[list[Value]] = [[] for _ in body.outputs[count + 1 :]]
    for trip in range(trips):
        number = _like(body, 0, np.asarray(trip, np.int64), graph)
        condition = _like(body, 1, np.asarray(True), graph)
        found = dict(zip(body.inputs, [number, condition, *states], strict=True))
        copy_nodes(body, graph, found)
        returned = [found.get(v, v) for v in body.outputs]
        states = returned[1 : count + 1]
        for values, value in zip(collected, returned[count + 1 :], strict=True):
            values.append(value)
    scans = body.outputs[count + 1 :]
    joined = [_joined(graph, values, body, v) for values, v in zip(collected, scans, strict=True)]
    return [*states, *joined]


def _like(body: Graph, index: int, array: np.ndarray, graph: Graph) -> Value:
    """`array` in the rank that the body declares for that input."""
    return graph.add_array(array.reshape((1,) * _rank(body, index)), body.inputs[index].name)


def _rank(body: Graph, index: int) -> int:
    declared = read_type(body.infos[body.inputs[index]].type)
    return len(declared.shape) if declared is not None and declared.shape is not None else 0


def _joined(graph: Graph, values: list[Value], body: Graph, scan: Value) -> Value:
    if not values:
        array = _empty(body, scan)
        assert array is not None
        return graph.add_array(array, scan.name, scan.dtype)
    rows = [_unsqueezed(graph, value) for value in values]
    return rows[0] if len(rows) == 1 else graph.add_node("Concat", rows, axis=0).output


def _unsqueezed(graph: Graph, value: Value) -> Value:
    if graph.opsets.get("", 1) < 13:
        return graph.add_node("Unsqueeze", [value], axes=[0]).output
    axes = graph.add_array(np.array([0], np.int64), f"{value.name}_axes")
    return graph.add_node("Unsqueeze", [value, axes]).output
