"""The conformance suite's single nodes with every element type that their schemas allow.

A case's inputs that share a type variable are converted to each other type of its constraint; the
outputs that share it follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import defs

from polytool.tensors import DType
from scripts.conformance import Case, cases
from scripts.version_cases import has_body, type_texts

PER_OPERATOR = 2
_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class TypeCase:
    """One model with one type exchanged."""

    name: str
    op: str
    dtype: DType
    model: onnx.ModelProto
    feeds: dict[str, Any]
    rtol: float
    atol: float


def retyped() -> Iterator[TypeCase]:
    """The first few cases of each operator of ai.onnx, in each type."""
    seen: Counter[str] = Counter()
    for case in cases(["node"]):
        model, _ = case.load()
        node = model.graph.node[0]
        if len(model.graph.node) == 1 and not node.domain and not has_body(node):
            seen[node.op_type] += 1
            if seen[node.op_type] <= PER_OPERATOR:
                yield from _exchanged(case, model, node)


def _exchanged(case: Case, model: onnx.ModelProto, node: onnx.NodeProto) -> Iterator[TypeCase]:
    opset = next(o.version for o in model.opset_import if not o.domain)
    schema = defs.get_schema(node.op_type, opset, "")
    constraints = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    of_inputs = _variables(node.input, schema.inputs)
    given = type_texts(model.graph)
    for variable in sorted(set(of_inputs.values()) & set(constraints)):
        texts = {given[name] for name, v in of_inputs.items() if v == variable}
        for text in constraints[variable]:
            if len(texts) == 1 and text not in texts and text.startswith("tensor("):
                label = text[len("tensor(") : -1]
                changed = _with_type(
                    case, model, node, variable, DType.of(_NAMES.get(label, label))
                )
                if changed is not None:
                    yield changed


def _variables(names: Any, formals: Any) -> dict[str, str]:
    """Tensor name -> the type variable of its place."""
    places = ((name, formals[min(i, len(formals) - 1)].type_str) for i, name in enumerate(names))
    return {name: variable for name, variable in places if name}


def _with_type(
    case: Case, model: onnx.ModelProto, node: onnx.NodeProto, variable: str, dtype: DType
) -> TypeCase | None:
    _, data_sets = case.load()
    opset = next(o.version for o in model.opset_import if not o.domain)
    schema = defs.get_schema(node.op_type, opset, "")
    variables = _variables(node.input, schema.inputs) | _variables(node.output, schema.outputs)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(model.ir_version, 11)
    feeds: dict[str, Any] = {}
    for info, value in zip(copy.graph.input, data_sets[0][0], strict=True):
        feeds[info.name] = value
        if variables.get(info.name) == variable:
            array = np.asarray(value)
            if array.dtype == object or isinstance(value, list):
                return None
            feeds[info.name] = converted(array, dtype)
            info.type.tensor_type.elem_type = int(dtype)
    for info in copy.graph.output:
        if variables.get(info.name) == variable:
            info.type.tensor_type.elem_type = int(dtype)
    name = f"{case.name}-{variable}-{dtype.label}"
    return TypeCase(name, node.op_type, dtype, copy, feeds, case.rtol, max(case.atol, 1e-6))


def converted(array: Any, dtype: DType) -> Any:
    """The values in another type; unsigned types get absolute values."""
    if dtype is DType.STRING:
        texts = np.empty(array.size, object)
        texts[:] = [str(v) for v in array.reshape(-1).tolist()]
        return texts.reshape(array.shape)
    values = array if array.dtype.kind == "c" else array.astype(np.float64)
    if dtype.name.startswith("U") or dtype is DType.FLOAT8E8M0:
        values = np.abs(values)
    with np.errstate(all="ignore"):
        return values.astype(dtype.numpy)
