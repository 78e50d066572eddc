"""Local functions expanded where they are called: their bodies have no types of their own.

What a call makes is named as the engine names it, `output/function/name`, so that reports and
layer precisions mean the same nodes before and after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from polytool.model import Model, graphs, nodes

Key = tuple[str, str]


def expand_functions(model: Model, ops: Collection[str] | None = None) -> Model:
    """The model with its functions expanded.

    Those that import another version of a domain than the model does stay.

    Args:
        model: stays as it is; the result refers to its weights.
        ops: expand only functions that hold, or call one that holds, such a standard operator.
    """
    functions = {(f.domain, f.name): f for f in model.proto.functions}
    chosen = _chosen(functions, ops)
    opsets = _opsets(model.proto.opset_import)
    for function in functions.values():
        for domain, version in _opsets(function.opset_import).items():
            if opsets.setdefault(domain, version) != version:
                chosen.discard((function.domain, function.name))
    if not chosen:
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    del proto.functions[:]
    proto.functions.extend(f for key, f in functions.items() if key not in chosen)
    known = _opsets(proto.opset_import)
    for domain, version in opsets.items():
        if domain not in known:
            proto.opset_import.add(domain=domain, version=version)
    table = {key: functions[key] for key in chosen}
    for holder in (proto.graph, *proto.functions):
        _expand(holder, table)
    return model.derive(proto)


def _opsets(entries: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in entries}


def _chosen(functions: Mapping[Key, FunctionProto], ops: Collection[str] | None) -> set[Key]:
    if ops is None:
        return set(functions)
    chosen = {
        key
        for key, f in functions.items()
        if any(n.op_type in ops and n.domain in ("", "ai.onnx") for n in nodes(f.node))
    }
    while True:
        calling = {
            key
            for key, f in functions.items()
            if any((n.domain, n.op_type) in chosen for n in nodes(f.node))
        }
        if calling <= chosen:
            return chosen
        chosen |= calling


def _expand(holder: GraphProto | FunctionProto, table: Mapping[Key, FunctionProto]) -> None:
    """Replace the calls in a graph or function, and in the bodies inside."""
    expanded = [n for node in holder.node for n in _bodies_of(node, table)]
    del holder.node[:]
    holder.node.extend(expanded)


def _bodies_of(node: NodeProto, table: Mapping[Key, FunctionProto]) -> Iterator[NodeProto]:
    """What stands in place of `node`: itself, or what the function that it calls computes."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for body in graphs(copy):
        _expand(body, table)
    function = table.get((node.domain, node.op_type))
    if function is None:
        yield copy
        return
    shown = next((o for o in node.output if o), node.op_type)
    prefix = f"{shown}/{function.name}/"
    names = dict(zip(function.input, [*node.input, *[""] * len(function.input)], strict=False))
    given = {a.name: a for a in (*function.attribute_proto, *copy.attribute)}
    returned = {f: a for f, a in zip(function.output, node.output, strict=False) if a}
    for formal, actual in returned.items():
        if formal in names:  # it is handed through
            yield onnx.helper.make_node("Identity", [names[formal]], [actual])
        else:
            names[formal] = actual
    for inner in function.node:
        made = NodeProto()
        made.CopyFrom(inner)
        first = next((o for o in inner.output if o), "")
        made.name = prefix + (inner.name or f"{inner.op_type}:{first}")
        resolve_attributes([made], given)
        _rename([made], names, prefix)
        yield from _bodies_of(made, table)


def _rename(some: Iterable[NodeProto], names: dict[str, str], prefix: str) -> None:
    """Give what is defined inside of a function, at any depth, names of its own."""
    for node in some:
        first = next((o for o in node.output if o), "")
        node.name = node.name or f"{node.op_type}:{first}"  # outputs are renamed, labels are not
        node.input[:] = [names.get(n, prefix + n) if n else "" for n in node.input]
        for body in graphs(node):
            inner = dict(names)
            for name in (*(i.name for i in body.input), *(t.name for t in body.initializer)):
                inner[name] = prefix + name
            for value in (*body.input, *body.initializer):
                value.name = inner[value.name]
            _rename(body.node, inner, prefix)
            for info in (*body.output, *body.value_info):
                info.name = inner.get(info.name, prefix + info.name)
        node.output[:] = [names.setdefault(n, prefix + n) if n else "" for n in node.output]


def resolve_attributes(some: Iterable[NodeProto], given: Mapping[str, AttributeProto]) -> None:
    """Put the attributes of a call where nodes of the function refer to them, in place."""
    for node in some:
        kept = []
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                if attribute.ref_attr_name in given:
                    copy = AttributeProto()
                    copy.CopyFrom(given[attribute.ref_attr_name])
                    copy.name = attribute.name
                    kept.append(copy)
                continue
            kept.append(attribute)
        if any(a.ref_attr_name for a in node.attribute):
            copies = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del node.attribute[:]
            node.attribute.extend(copies)
        for body in graphs(node):
            resolve_attributes(body.node, given)
