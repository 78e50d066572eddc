"""What registry.py promises of every operator, held on the conformance suite's single nodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from polytool.backends.native.network import Node
from polytool.backends.native.ops import registry
from polytool.backends.native.parser import parse
from polytool.backends.native.shapes import ShapePass
from polytool.errors import UnsupportedError
from polytool.model import Model
from scripts.conformance import cases

# Their result depends on more than the shapes of tensors.
CONTAINERS = ("sequence", "optional", "map")
Sample = tuple[str, Node, dict[str, Any], list[Any]]


@cache
def single_nodes() -> tuple[Sample, ...]:
    """Every node case that is one operator after parsing, with its inputs and outputs."""
    return tuple(_single_nodes())


def _single_nodes() -> Iterator[Sample]:
    for case in cases(["node"]):
        model, data_sets = case.load()
        if len(model.graph.node) != 1 or any(
            a.type == onnx.AttributeProto.GRAPH for a in model.graph.node[0].attribute
        ):
            continue
        try:
            network = parse(Model(model))
        except UnsupportedError:
            continue
        if len(network.layers) == 1:
            names = [i.name for i in model.graph.input]
            inputs, outputs = data_sets[0]
            (node,) = network.layers[0].nodes
            yield case.name, node, dict(zip(names, inputs, strict=True)), list(outputs)


def tensors_only(node: Node) -> bool:
    return not any(t.container in CONTAINERS for t in (*node.reads(), *node.writes()))


def test_shape_functions_tell_the_shapes_of_the_results() -> None:
    wrong, told = [], 0
    for name, node, inputs, outputs in single_nodes():
        if not tensors_only(node):
            continue
        known = {t: np.shape(inputs[t.name]) for t in node.inputs if t and t.name in inputs}
        host = node.operator.host if node.operator else ()
        values = {
            t: inputs[t.name]
            for i, t in enumerate(node.inputs)
            if t and i in host and t.name in inputs
        }
        walker = ShapePass(known, values)
        walker.node(node)
        if walker.failures:
            wrong.append(f"{name}: {walker.failures}")
        for tensor, expected in zip(node.writes(), outputs, strict=False):
            found = walker.shapes.get(tensor)
            told += found is not None
            if found is not None and found != np.shape(expected):
                wrong.append(f"{name}: {tensor.name} is {np.shape(expected)}, not {found}")
    assert not wrong, "\n".join(wrong)
    assert told > 1000


DATA_DECIDES = {
    *("NonZero", "Compress", "Unique", "NonMaxSuppression", "StringSplit", "StringNormalizer"),
    *("ImageDecoder", "OptionalGetElement"),
}


def test_only_data_dependent_operators_leave_shapes_open() -> None:
    unknown = set()
    for _, node, inputs, _ in single_nodes():
        if not tensors_only(node) or node.op in DATA_DECIDES:
            continue
        known = {t: np.shape(inputs[t.name]) for t in node.inputs if t and t.name in inputs}
        walker = ShapePass(known, {t: inputs[t.name] for t in known})
        walker.node(node)
        if any(t not in walker.shapes for t in node.writes()):
            unknown.add(node.op)
    assert unknown == set()


def test_output_types_are_those_of_the_results() -> None:
    wrong = []
    for name, node, _, outputs in single_nodes():
        for tensor, expected in zip(node.writes(), outputs, strict=False):
            if tensors_only(node) and isinstance(expected, np.ndarray):
                kind = np.dtype(object) if expected.dtype.kind in "OUS" else expected.dtype
                if tensor.dtype is None or tensor.dtype.numpy != kind:
                    wrong.append(f"{name}: {tensor.name} is {kind}, not {tensor.dtype}")
    assert not wrong, "\n".join(wrong)


FLOAT_POINTWISE = [
    o
    for o in registry.all_operators()
    if o.pointwise and o.domain == "" and o.name not in ("Cast", "CastLike", "StringConcat")
]


def arguments(operator: registry.Operator, kind: Any) -> tuple[list[Any], dict[str, Any]]:
    schema = onnx.defs.get_schema(operator.name, operator.since, operator.domain)
    constraints = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    values = []
    for parameter in schema.inputs:
        allowed = constraints[parameter.type_str]
        if "tensor(float)" in allowed:
            values.append(np.array(0.5, kind))
        elif "tensor(bool)" in allowed:
            values.append(np.array(True))
        else:
            values.append(np.array(3, np.uint8))
    attributes = {"direction": "LEFT"} if operator.name == "BitShift" else {}
    return values, attributes


@pytest.mark.parametrize("operator", FLOAT_POINTWISE, ids=lambda o: f"{o.name}-{o.since}")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_scalars_stay_arrays_of_their_type(operator: registry.Operator, kind: Any) -> None:
    values, attributes = arguments(operator, kind)
    if "out_dtypes" in operator.wants:
        pytest.skip("its result has the type that the node declares")
    with np.errstate(all="ignore"):
        result = operator.function(np, *values, **attributes)
    assert isinstance(result, np.ndarray)
    assert result.shape == ()
    assert result.dtype in (np.dtype(kind), np.dtype(bool), np.dtype(np.uint8))


def test_every_operator_says_what_it_does() -> None:
    silent = [o.name for o in registry.all_operators() if not o.function.__doc__]
    assert silent == []


CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}


def test_every_version_of_every_standard_operator_has_a_form() -> None:
    registry.load_all()
    missing = []
    for schema in onnx.defs.get_all_schemas_with_history():
        key, version = (schema.domain, schema.name), schema.since_version
        if key[0] or key[1] in CONTROL_FLOW:
            continue
        steps = {*registry._operators.get(key, {}), *registry._upgrades.get(key, {})}
        if not any(step <= version for step in steps) and not schema.has_function:
            missing.append(f"{key[1]}-{version}")
    assert missing == []
