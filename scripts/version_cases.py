"""Cases for old versions of operators, which the conformance suite has only for the newest.

Two sources: every single-node case of the suite, run at each older version that accepts its node
as it is (`downgraded`), and cases written by hand where attributes, inputs or meaning changed
(`handmade`). Both are checked against ONNX Runtime where it has the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import defs

from polytool.validation import node_faults
from scripts.conformance import cases
from scripts.version_table import made

DOMAINS = ("", "ai.onnx.ml")
Feeds = dict[str, Any]


@dataclass(frozen=True)
class VersionCase:
    """One model at one opset version.

    Attributes:
        expected: outputs by name, from the specification; used where ONNX Runtime cannot run it.
    """

    name: str
    op: str
    version: int
    model: onnx.ModelProto
    feeds: Feeds
    expected: Mapping[str, Any] | None = None
    rtol: float = 1e-3
    atol: float = 1e-6


@cache
def versions() -> dict[tuple[str, str], tuple[int, ...]]:
    """Domain and operator -> its versions, oldest first."""
    found: dict[tuple[str, str], list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain in DOMAINS:
            found.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    return {key: tuple(sorted(values)) for key, values in found.items()}


# --- the suite at older versions


def downgraded() -> Iterator[VersionCase]:
    """Every single-node case at each older version whose schema accepts it."""
    for case in cases(["node"]):
        model, data_sets = case.load()
        node = model.graph.node[0]
        if len(model.graph.node) != 1 or node.domain not in DOMAINS or has_body(node):
            continue
        opset = next(o.version for o in model.opset_import if o.domain == node.domain)
        current = max(v for v in versions()[node.domain, node.op_type] if v <= opset)
        inputs, outputs = data_sets[0]
        feeds = dict(zip((i.name for i in model.graph.input), inputs, strict=True))
        expected = dict(zip((o.name for o in model.graph.output), outputs, strict=True))
        for version in versions()[node.domain, node.op_type]:
            schema = defs.get_schema(node.op_type, version, node.domain)
            if version < current and _accepts(schema, node, type_texts(model.graph)):
                older = _at(model, node.domain, version)
                _retype(older.graph.node[0], schema)
                if any(node_faults(older.graph.node[0], version)):
                    continue  # an input was needed then
                yield VersionCase(
                    f"{case.name}-{version}",
                    node.op_type,
                    version,
                    older,
                    feeds,
                    expected,
                    case.rtol,
                    max(case.atol, 1e-6),
                )


def suite_versions() -> set[tuple[str, int]]:
    """The operators and versions of which the suite has a case of its own."""
    found = set()
    for case in cases(["node"]):
        model, _ = case.load()
        opsets = {o.domain: o.version for o in model.opset_import}
        for node in model.graph.node:
            if known := versions().get((node.domain, node.op_type)):
                current = max(v for v in known if v <= opsets[node.domain])
                found.add((node.op_type, current))
    return found


def has_body(node: onnx.NodeProto) -> bool:
    """Whether the node holds a graph."""
    return any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)


def _at(model: onnx.ModelProto, domain: str, version: int) -> onnx.ModelProto:
    older = onnx.ModelProto()
    older.CopyFrom(model)
    del older.opset_import[:]
    older.opset_import.append(onnx.helper.make_opsetid(domain, version))
    if domain:
        older.opset_import.append(onnx.helper.make_opsetid("", 9))
    older.ir_version = min(model.ir_version, 10)
    return older


def type_texts(graph: onnx.GraphProto) -> dict[str, str]:
    """The types of inputs and outputs as schemas write them."""
    return {v.name: _type_text(v.type) for v in (*graph.input, *graph.output)}


def _type_text(type_: onnx.TypeProto) -> str:
    """As schemas write it: `tensor(float)`, `seq(tensor(int64))`."""
    kind = type_.WhichOneof("value")
    if kind == "sequence_type":
        return f"seq({_type_text(type_.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({_type_text(type_.optional_type.elem_type)})"
    return f"tensor({onnx.TensorProto.DataType.Name(type_.tensor_type.elem_type).lower()})"


def _retype(node: onnx.NodeProto, schema: Any) -> None:
    """Give attributes the types that they had: Cast-1 names its type, LpPool-1 has a real `p`."""
    for attribute in node.attribute:
        wanted = int(schema.attributes[attribute.name].type.value)
        if attribute.type == wanted or attribute.type != onnx.AttributeProto.INT:
            continue
        number = attribute.i
        if wanted == onnx.AttributeProto.STRING:
            value: Any = onnx.TensorProto.DataType.Name(number)
        else:
            value = float(number)
        attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, value))


def _accepts(schema: Any, node: onnx.NodeProto, types: Mapping[str, str]) -> bool:
    given = {a.name for a in node.attribute}
    required = {name for name, a in schema.attributes.items() if a.required}
    if given - set(schema.attributes) or required - given:
        return False
    if not schema.min_input <= len(node.input) <= schema.max_input:
        return False
    if not schema.min_output <= len(node.output) <= schema.max_output:
        return False
    constraints = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for i, name in enumerate(names):
            text = formals[min(i, len(formals) - 1)].type_str
            if name and types.get(name) not in constraints.get(text, [text]):
                return False
    return True


# --- written by hand


def handmade() -> Iterator[VersionCase]:
    """Cases for versions that no case of the suite fits."""
    for index, row in enumerate(made()):
        opset = f'"{row.domain}": {row.version}' + (', "": 9' if row.domain else "")
        text = f"<ir_version: 8, opset_import: [{opset}]>"
        text += f"g ({row.inputs}) => ({row.outputs}) {{ {row.nodes} }}"
        model = onnx.parser.parse_model(text)
        node = next(n for n in model.graph.node if n.op_type != "Constant")
        feeds = _feeds(model.graph, index) | row.feeds
        expected = None
        if row.want is not None:
            results = row.want(*feeds.values())
            results = results if isinstance(results, tuple) else (results,)
            expected = {
                o.name: np.asarray(r, onnx.helper.tensor_dtype_to_np_dtype(_elem_type(o)))
                for o, r in zip(model.graph.output, results, strict=True)
            }
        yield VersionCase(
            f"{node.op_type}-{row.version}-{index}",
            node.op_type,
            row.version,
            model,
            feeds,
            expected,
        )


def _elem_type(info: onnx.ValueInfoProto) -> int:
    return int(info.type.tensor_type.elem_type)


def _feeds(graph: onnx.GraphProto, seed: int) -> Feeds:
    """Normal floats, small integers, coin flips."""
    generator = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in graph.input:
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_elem_type(info)))
        if kind.kind == "f":
            feeds[info.name] = generator.standard_normal(dims).astype(kind)
        elif kind.kind == "b":
            feeds[info.name] = generator.integers(0, 2, dims).astype(bool)
        else:
            feeds[info.name] = generator.integers(0, 5, dims).astype(kind)
    return feeds
