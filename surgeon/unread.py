"""Results of If, Loop and Scan that nobody reads.

If, Loop, Scan with several results => without those that nothing outside reads
Loop with a state that only itself needs => without it
"""

from __future__ import annotations

from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.loops import drop_state
from polytool.surgeon.report import Report


def drop_unread_results(workspace: Workspace, report: Report) -> None:
    """Drop them everywhere; what computed them is dead then."""
    count = 0
    for graph in list(workspace.graphs):
        for node in graph.nodes:
            rule = _RULES.get(node.op) if not node.domain else None
            if rule is not None and any(map(_is_read, node.outputs)):
                count += rule(node)
    report.did("unread results of If, Loop and Scan dropped", count)


def _is_read(value: Value | None) -> bool:
    return value is not None and bool(value.users or value in _pinned(value))


def _pinned(value: Value) -> set[Value]:
    return value.graph.pinned if value.graph is not None else set()


def _if(node: Node) -> int:
    unread = [i for i, v in enumerate(node.outputs) if not _is_read(v)]
    for index in reversed(unread):
        del node.outputs[index]
        for body in node.bodies.values():
            _drop_output(body, index)
    return len(unread)


def _drop_output(body: Graph, index: int) -> None:
    body.outputs.pop(index).drop_user(body)
    body.output_infos.pop(index)


def _loop(node: Node) -> int:
    body = node.bodies["body"]
    states = len(body.inputs) - 2
    unread = [i for i in range(states, len(node.outputs)) if not _is_read(node.outputs[i])]
    for index in reversed(unread):
        del node.outputs[index]
        _drop_output(body, index + 1)
    read = [i for i, v in enumerate(node.outputs) if _is_read(v)]
    needed = _needed_states(body, [0, *(i + 1 for i in read)])
    dead = [i for i in range(states) if i not in needed]
    for index in reversed(dead):
        drop_state(node, index)
    return len(unread) + len(dead)


def _needed_states(body: Graph, outputs: list[int]) -> set[int]:
    """The states of a Loop that its body's `outputs` depend on, also by way of other states."""
    state_of = {value: i for i, value in enumerate(body.inputs[2:])}
    seen: set[Value] = set()
    needed: set[int] = set()
    work = [body.outputs[i] for i in outputs]
    needed.update(i - 1 for i in outputs if 0 < i <= len(state_of))
    while work:
        value = work.pop()
        if value in seen or value.graph is None:
            continue
        seen.add(value)
        if value in state_of and state_of[value] not in needed:
            needed.add(state_of[value])
            work.append(body.outputs[state_of[value] + 1])
        if value.producer is not None and value.graph is body:
            work.extend(value.producer.reads())
    return needed


def _scan(node: Node) -> int:
    """What is collected and not read; states stay."""
    if node.version < 9 or node.has_references:
        return 0
    body = node.bodies["body"]
    states = len(body.inputs) - node.attribute("num_scan_inputs", 0)
    unread = [i for i in range(states, len(node.outputs)) if not _is_read(node.outputs[i])]
    for name in ("scan_output_axes", "scan_output_directions") if unread else ():
        given = node.attribute(name)
        if given is not None:
            kept = [a for i, a in enumerate(given) if i + states not in unread]
            node.set_attributes(**{name: kept or None})
    for index in reversed(unread):
        del node.outputs[index]
        _drop_output(body, index)
    return len(unread)


_RULES = {"If": _if, "Loop": _loop, "Scan": _scan}
