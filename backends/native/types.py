"""Element types of a node's outputs, from the ONNX schema's type variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import onnx

from polytool.backends.native.network import Node
from polytool.backends.native.ops.registry import dtypes_function, find
from polytool.tensors import DType

_CONTAINERS = {
    "SequenceConstruct": "sequence",
    "SequenceEmpty": "sequence",
    "SequenceInsert": "sequence",
    "SequenceErase": "sequence",
    "SequenceMap": "sequence",
    "SplitToSequence": "sequence",
    "Optional": "optional",
    "ZipMap": "sequence",
}
_BY_TYPE_NAME = {"float": DType.FLOAT, "double": DType.DOUBLE}


@cache
def _schema(domain: str, op: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(op, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return None


def _fixed(type_str: str) -> DType | None:
    inner = type_str.split("(")[-1].rstrip(")")
    return _BY_TYPE_NAME.get(inner) or (
        DType.of(inner) if inner in {d.label for d in DType} else None
    )


@cache
def _rule(domain: str, op: str, version: int) -> tuple[list[Any], list[Any], bool] | None:
    """For each input its type variable, for each output a variable or a DType."""
    schema = _schema(domain, op, version)
    if schema is None:
        return None
    constraints = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    inputs = [p.type_str for p in schema.inputs]
    outputs: list[Any] = []
    for parameter in schema.outputs:
        allowed = constraints.get(parameter.type_str)
        if allowed is None:
            outputs.append(_fixed(parameter.type_str))
        elif len(allowed) == 1 and parameter.type_str not in inputs:
            outputs.append(_fixed(next(iter(allowed))))
        else:
            outputs.append(parameter.type_str)
    variadic = bool(schema.inputs) and (
        schema.inputs[-1].option is onnx.defs.OpSchema.FormalParameterOption.Variadic
    )
    return inputs, outputs, variadic


def output_dtypes(
    domain: str,
    op: str,
    version: int,
    inputs: Sequence[DType | None],
    n_outputs: int,
    attrs: Mapping[str, Any],
) -> list[DType | None]:
    """The element types of a node's outputs; None where they cannot be told before running."""
    special = dtypes_function(domain, op)
    if special is not None:
        found: list[DType | None] = list(special(list(inputs), **attrs))
        return (found + [None] * n_outputs)[:n_outputs]
    first = next((d for d in inputs if d is not None), None)
    rule = _rule(domain, op, version)
    if rule is None:
        return [first] * n_outputs
    variables, results, variadic = rule
    bound: dict[str, DType] = {}
    for index, dtype in enumerate(inputs):
        slot = index if index < len(variables) else (len(variables) - 1 if variadic else None)
        if dtype is not None and slot is not None:
            bound.setdefault(variables[slot], dtype)
    found = []
    for index in range(n_outputs):
        result = results[min(index, len(results) - 1)] if results else None
        found.append(bound.get(result, first) if isinstance(result, str) else result)
    return found


@cache
def most_outputs(domain: str, op: str, version: int) -> int | None:
    """How many outputs ONNX allows; None where it says nothing."""
    schema = _schema(domain, op, version)
    return None if schema is None else int(schema.max_output)


@cache
def _allowed(domain: str, op: str, version: int, index: int) -> tuple[str, ...]:
    """The types that ONNX allows for an input, as `tensor(float)`; none where it says nothing."""
    schema = _schema(domain, op, version)
    if schema is None or not schema.inputs:
        return ()
    formal = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
    constraints = {c.type_param_str: tuple(c.allowed_type_strs) for c in schema.type_constraints}
    return constraints.get(formal, (formal,))


def misfit(node: Any, index: int, container: str, dtype: DType | None) -> str | None:
    """How an input differs in kind from what its operator takes, as far as ONNX says.

    Kinds are tensors of numbers, tensors of text, sequences, optionals and maps. Which numbers
    does not matter here: engines take more of them than ONNX allows.

    Args:
        node: a registry.Node.
        index: of the input.
        container: `tensor`, `sequence`, `optional` or `map`.
        dtype: its element type, if known.

    Returns:
        What goes on after the name of the node, or None.
    """
    allowed = _allowed(node.domain, node.op, node.version, index)
    tensors = [t for t in allowed if t.startswith("tensor(")]
    if container == "sequence":
        wrong = find(node.domain, node.op, node.version) is not None  # one of our own
        if allowed:
            wrong = not any("seq(" in t for t in allowed)
        return "takes no sequence, but {} is one" if wrong else None
    if not allowed or (container == "tensor" and dtype is None):
        return None
    if container != "tensor":
        fits = any(t.startswith(f"{container}(") for t in allowed)
        return None if fits else f"takes no {container}, but {{}} is one"
    if all(t.startswith("map(") for t in allowed):
        return "takes a map, but {} is a tensor"
    if dtype is DType.STRING and tensors and "tensor(string)" not in tensors:
        return "takes numbers, but {} holds text"
    if dtype is not DType.STRING and tensors == ["tensor(string)"]:
        return "takes text, but {} holds numbers"
    return None


def output_container(op: str, inputs: Sequence[str]) -> str:
    """`tensor`, `sequence` or `optional`: what a node's outputs are."""
    if op == "Identity" and inputs:
        return inputs[0]
    return _CONTAINERS.get(op, "tensor")


_SPECIAL_QUANTISED = ("Q", "Dynamic", "MatMulInteger", "MatMulNBits")


def lowerable(node: Node) -> tuple[frozenset[int], frozenset[int]] | None:
    """Which inputs and outputs of a node may become float16 or bfloat16; None if it cannot.

    They are those whose ONNX type variable allows float16; operators without a schema are
    lowered as a whole unless they quantise.
    """
    every = frozenset(range(len(node.inputs))), frozenset(range(len(node.outputs)))
    schema = _schema(node.domain, node.op, node.version)
    if schema is None:
        quantises = node.op.startswith(_SPECIAL_QUANTISED)
        return None if quantises or node.domain == "ai.onnx.ml" else every
    allowed = {
        c.type_param_str
        for c in schema.type_constraints
        if "tensor(float16)" in c.allowed_type_strs
    }

    def positions(parameters: Any, count: int) -> frozenset[int]:
        last = len(parameters) - 1
        return frozenset(i for i in range(count) if parameters[min(i, last)].type_str in allowed)

    inputs = positions(schema.inputs, len(node.inputs))
    outputs = positions(schema.outputs, len(node.outputs))
    return (inputs, outputs) if inputs or outputs else None
