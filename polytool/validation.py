"""Do the nodes of a model have the inputs, outputs, attributes and bodies that ONNX says they have?

What reads a node afterwards relies on it: an attribute is there, and of its type; a branch returns
as much as its If. Types and shapes of tensors are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto

from polytool.errors import ModelError
from polytool.tensors import DType

_SHOWN = 10
_INT32 = 2**31 - 1
_BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_TYPES = frozenset(int(t) for t in DType)
_TYPE_NAMES = frozenset(t.name for t in DType)
# Attributes that hold an element type; 0 stands for "not given" in two of them.
ELEMENT_TYPES = dict.fromkeys(("to", "dtype", "output_datatype", "stash_type"), _TYPES)
ELEMENT_TYPES |= dict.fromkeys(("output_dtype", "precision"), _TYPES | {0})
_EQUATION = re.compile(rb"(?:[A-Za-z,\s]|\.\.\.|->)*")
Opsets = Mapping[str, int]
Functions = frozenset[tuple[str, str]]


def validate(proto: onnx.ModelProto) -> None:
    """Check every node that ONNX defines, in bodies and functions too.

    Raises:
        ModelError: some nodes are not as the standard says; up to ten are named.
    """
    functions = frozenset((f.domain, f.name) for f in proto.functions)
    faults = list(_faults_of(proto.graph.node, _opsets(proto.opset_import), functions))
    for function in proto.functions:
        opsets = {**_opsets(proto.opset_import), **_opsets(function.opset_import)}
        faults += _faults_of(function.node, opsets, functions, inside=True)
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelError(
            f"the model is broken: {'; '.join(faults[:_SHOWN])}{more}; check lint shows all"
        )


def node_faults(node: NodeProto, version: int) -> Iterator[str]:
    """What is wrong with a node of an operator that ONNX defines, at this version of its domain.

    Of one that came later only the outputs are looked at, as everybody takes the first for given.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    rules = _rules(node.op_type, domain, version)
    if rules is not None:
        return rules.faults(node)
    if node.op_type in ("If", "Loop", "Scan") and not domain:
        return iter([f"is no operator of opset {version}"])  # else nobody looks at its bodies
    later = _first_rules(node.op_type, domain)
    return iter(()) if later is None else later.output_faults(node)


def has_attribute(op: str, domain: str, version: int, attribute: AttributeProto) -> bool:
    """Whether the operator has such an attribute, or is none that ONNX defines.

    One that came later than `version` has the attributes of its first: nobody checked their types.
    """
    rules = _rules(op, domain, version)
    if rules is None:
        rules = _first_rules(op, domain)
    return rules is None or rules.types.get(attribute.name) == attribute.type


def _opsets(entries: Any) -> dict[str, int]:
    found = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in entries}
    return found or {"": 1}


def _faults_of(
    nodes: Sequence[NodeProto], opsets: Opsets, functions: Functions, inside: bool = False
) -> Iterator[str]:
    """Of nodes and those in their bodies; `inside` a function they may refer to its attributes."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in _BODIES:
                for graph in (attribute.g, *attribute.graphs):
                    yield from _faults_of(graph.node, opsets, functions, inside)
            if attribute.ref_attr_name and not inside:
                name, meant = attribute.name, attribute.ref_attr_name
                yield (
                    f"node {_shown(node)} takes its attribute {name!r} from a function's "
                    f"{meant!r}, but is in no function"
                )
        domain = "" if node.domain == "ai.onnx" else node.domain
        own = functions and (node.domain, node.op_type) in functions
        if own and (node.op_type, domain) not in _first_versions():
            continue  # else passes take it for the operator that it is called like
        if not domain and domain not in opsets:
            yield "it imports no opset for domain 'ai.onnx', of which it has nodes"
            return
        for fault in node_faults(node, opsets.get(domain, 0)):
            yield f"node {_shown(node)} {fault}"


def _shown(node: NodeProto) -> str:
    shown = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
    return f"{shown!r} ({node.op_type})"


class _Rules:
    """What a schema asks of a node, in a form that is quick to check."""

    def __init__(self, schema: onnx.defs.OpSchema) -> None:
        self.op = schema.name
        self.since = schema.since_version
        self.inputs = (schema.min_input, schema.max_input)
        self.outputs = (schema.min_output, schema.max_output)
        single = onnx.defs.OpSchema.FormalParameterOption.Single
        count = 1 if schema.name == "Resize" else None  # Resize-11 is written without roi or scales
        self.needed = [i for i, x in enumerate(schema.inputs[:count]) if x.option == single]
        self.types = {name: _number(a.type) for name, a in schema.attributes.items()}
        self.required = [
            name
            for name, a in schema.attributes.items()
            if a.required and name != "consumed_inputs"  # a hint of opset 1 that nothing reads
        ]
        self.has_bodies = AttributeProto.GRAPH in self.types.values()

    def faults(self, node: NodeProto) -> Iterator[str]:
        n_inputs = len(node.input)
        if not self.inputs[0] <= n_inputs <= self.inputs[1]:
            yield f"has {n_inputs} inputs, not {_range(self.inputs)}"
        elif not all(node.input[i] for i in self.needed if i < n_inputs):
            yield "leaves out an input that it needs"
        yield from self.output_faults(node)
        if node.attribute or self.required:
            yield from self._attributes(node)
        elif self.op == "Constant":
            yield "has no value"
        elif self.op == "Optional":
            yield from _optional_faults(node, {})

    def output_faults(self, node: NodeProto) -> Iterator[str]:
        n_outputs = len(node.output)
        if not self.outputs[0] <= n_outputs <= self.outputs[1]:
            yield f"has {n_outputs} outputs, not {_range(self.outputs)}"
        elif self.outputs[0] and not any(node.output):
            yield "names none of its outputs"

    def _attributes(self, node: NodeProto) -> Iterator[str]:
        given = {a.name: a for a in node.attribute}
        if len(given) < len(node.attribute):
            yield "has an attribute twice"
        for name in self.required:
            if name not in given:
                yield f"lacks the attribute {name!r}"
        for name, attribute in given.items():
            expected = self.types.get(name, attribute.type)
            if attribute.type != expected and (attribute.type or attribute.ref_attr_name == ""):
                kind = AttributeProto.AttributeType.Name(expected)
                yield f"has an attribute {name!r} that is no {kind}"
            elif attribute.ref_attr_name:  # the function's caller says it
                continue
            elif (
                attribute.type == AttributeProto.INT  # Cast-1 writes the type's name
                and attribute.i not in ELEMENT_TYPES.get(name, (attribute.i,))
            ):
                yield f"has {name}={attribute.i}, which is no element type"
            elif attribute.type == AttributeProto.STRING and name in ELEMENT_TYPES:
                text = attribute.s.decode("utf-8", "replace")
                if text not in _TYPE_NAMES:
                    yield f"has {name}={text!r}, which is no element type"
        if self.op == "Constant" and len(given) != 1:
            yield f"has {len(given)} values, not one"
        if self.has_bodies:
            yield from _body_faults(node, given, self.since)
        yield from _value_faults(node, given)
        if self.op == "Optional":
            yield from _optional_faults(node, given)


def _number(kind: Any) -> int:
    """onnx's stub does not say that its enumerations are numbers."""
    return int(kind)


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    if high >= _INT32:
        return f"{low} or more"
    return f"{low}" if low == high else f"{low} to {high}"


def _optional_faults(node: NodeProto, given: Mapping[str, AttributeProto]) -> Iterator[str]:
    if not any(node.input) and "type" not in given:
        yield "has neither an input nor a type"


def _value_faults(node: NodeProto, given: Mapping[str, AttributeProto]) -> Iterator[str]:
    """What no tensor fits, and on which onnx's shape inference crashes, or never ends."""
    if node.op_type == "Transpose" and "perm" in given and not given["perm"].ref_attr_name:
        perm = list(given["perm"].ints)
        if sorted(perm) != list(range(len(perm))):
            yield f"has perm={perm[:_SHOWN]}, which is no order of axes"
    equation = given["equation"].s if node.op_type == "Einsum" and "equation" in given else b""
    if not _EQUATION.fullmatch(equation):
        yield f"has an equation {equation[:40]!r} of more than letters, commas, ... and ->"
    numbers = {n: a.i for n, a in given.items() if a.type == AttributeProto.INT}
    if abs(axis := numbers.get("axis", 0)) > _INT32:
        yield f"has axis={axis}, which no tensor has"
    if node.op_type == "GatherND" and (batch := numbers.get("batch_dims", 0)) < 0:
        yield f"has batch_dims={batch}, which is negative"
    if node.op_type == "Split" and numbers.get("num_outputs", len(node.output)) != len(node.output):
        yield f"has num_outputs={numbers['num_outputs']}, but {len(node.output)} outputs"


def _body_faults(node: NodeProto, given: Mapping[str, AttributeProto], since: int) -> Iterator[str]:
    """Do the bodies of If, Loop and Scan take and return what the node hands over?"""
    bodies = {name: a.g for name, a in given.items() if a.type == AttributeProto.GRAPH}
    if node.op_type == "If":
        for name, body in bodies.items():
            yield from _counted(name, body, 0, len(node.output))
    elif node.op_type == "Loop":
        carried = max(0, len(node.input) - 2)
        for name, body in bodies.items():
            yield from _counted(name, body, carried + 2, len(node.output) + 1)
    elif node.op_type == "Scan" and "num_scan_inputs" in given:
        scanned = given["num_scan_inputs"].i
        if not given["num_scan_inputs"].ref_attr_name and not 1 <= scanned <= len(node.input):
            yield f"has num_scan_inputs={scanned}, but {len(node.input)} inputs"
        carried = len(node.input) - (since < 9)  # Scan-8 has lengths of sequences before them
        for name, body in bodies.items():
            yield from _counted(name, body, carried, len(node.output))


def _counted(name: str, body: GraphProto, inputs: int, outputs: int) -> Iterator[str]:
    constant = {t.name for t in body.initializer}
    given = sum(i.name not in constant for i in body.input)
    if given != inputs:
        yield f"has a body {name!r} with {given} inputs, not {inputs}"
    if len(body.output) != outputs:
        yield f"has a body {name!r} with {len(body.output)} outputs, not {outputs}"


@cache
def _first_versions() -> dict[tuple[str, str], int]:
    """Operator and domain to the version that it came with."""
    found: dict[tuple[str, str], int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        key = (schema.name, schema.domain)
        found[key] = min(found.get(key, schema.since_version), schema.since_version)
    return found


@cache
def _rules(op: str, domain: str, version: int) -> _Rules | None:
    if not version:
        return None
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=version, domain=domain)
        if schema.deprecated:  # engines go on running the last form that there was
            schema = onnx.defs.get_schema(
                op, max_inclusive_version=schema.since_version - 1, domain=domain
            )
    except onnx.defs.SchemaError:
        return None
    return _Rules(schema)


def _first_rules(op: str, domain: str) -> _Rules | None:
    """The rules of the version that an operator came with."""
    return _rules(op, domain, _first_versions().get((op, domain), 0))
