"""Compute one node on constant inputs: by our operators, by onnxruntime where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from polytool.arrays import to_tensor
from polytool.backends.native.ops import registry
from polytool.backends.native.ops.cast import narrow
from polytool.errors import PolytoolError
from polytool.surgeon.graph import Node, Value
from polytool.tensors import DType

_REDUCED = (DType.FLOAT16, DType.BFLOAT16)


class CannotEvaluateError(PolytoolError):
    """A node that nothing here can compute; the message is the reason."""


def evaluate(node: Node, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of `node`; None for those that it leaves out.

    Args:
        node: has no bodies, and refers to no parameter of a function.
        inputs: arrays in the types that the model declares, lists for sequences, None for absent.

    Raises:
        CannotEvaluateError: there is no implementation, or it fails on these inputs.
    """
    if _is_local_function(node):
        raise CannotEvaluateError(f"{node.op} is a function of the model")
    wanted, table = _as_engine_node(node, inputs)
    try:
        steps = registry.raise_node(wanted)
        if any(_operator(step) is None for step in steps):
            return _with_onnxruntime(node, inputs)
        with np.errstate(all="ignore"):
            for step in steps:
                _run(step, table)
    except CannotEvaluateError:
        raise
    except Exception as err:  # whatever an operator raises on a broken model is a reason
        raise CannotEvaluateError(f"{node.op} fails on its constant inputs: {err}") from err
    return [table.get(name) if name else None for name in wanted.outputs]


def _as_engine_node(node: Node, inputs: Sequence[Any]) -> tuple[registry.Node, dict[str, Any]]:
    """The node as the engine's operators know it, and what it reads by name."""
    names: list[str | np.ndarray | None] = [
        f"input{i}" if v is not None else None for i, v in enumerate(inputs)
    ]
    outputs = [f"output{i}" if v is not None else "" for i, v in enumerate(node.outputs)]
    wanted = registry.Node(
        node.op, node.domain, node.version, names, outputs, attributes_of(node), node.proto.name
    )
    return wanted, {f"input{i}": v for i, v in enumerate(inputs)}


def result_shapes(node: Node, inputs: Sequence[np.ndarray]) -> list[tuple[int, ...]] | None:
    """The shapes that `evaluate` would give arrays of; None where no operator tells.

    Raises:
        Exception: the operator does not take these inputs.
    """
    wanted, table = _as_engine_node(node, inputs)
    step, *more = registry.raise_node(wanted)
    function = registry.shape_function(step.domain, step.op)
    if more or function is None:
        return None
    values = [_value(name, table) for name in step.inputs]
    arguments = [None if v is None else registry.Arg(v.shape, _dtype(v), v) for v in values]
    options = dict(step.attrs)
    if "n_outputs" in (function.__kwdefaults__ or {}):
        options["n_outputs"] = len(step.outputs)
    found = function(*arguments, **options)
    return found if isinstance(found, list) else [found]


def attributes_of(node: Node) -> dict[str, Any]:
    """The attributes as operators take them: tensors as arrays."""
    return {name: _attribute(node, attribute) for name, attribute in node.attributes.items()}


def _is_local_function(node: Node) -> bool:
    functions = node.where.workspace.functions
    return any(f.proto.domain == node.proto.domain and f.name == node.op for f in functions)


def _operator(step: registry.Node) -> registry.Operator | None:
    operator = registry.find(step.domain, step.op, step.version)
    if operator is None or set(step.attrs) - operator.attributes:
        return None
    limits = registry.limits_function(step.domain, step.op)
    given = [x is not None for x in step.inputs]
    return operator if limits is None or limits(given, **step.attrs) is None else None


def _attribute(node: Node, attribute: onnx.AttributeProto) -> Any:
    if attribute.type == AttributeProto.TENSOR:
        return node.where.workspace.model.array(attribute.t)
    return node.attribute(attribute.name)


def _run(step: registry.Node, table: dict[str, Any]) -> None:
    from polytool.backends.native.types import misfit, output_dtypes

    values = [_value(name, table) for name in step.inputs]
    while values and values[-1] is None:
        values.pop()
    dtypes = output_dtypes(
        step.domain,
        step.op,
        step.version,
        [_dtype(v) for v in values],
        len(step.outputs),
        step.attrs,
    )
    for index, value in enumerate(values):
        kind = "sequence" if isinstance(value, list) else "tensor"
        if value is not None and (why := misfit(step, index, kind, _dtype(value))):
            raise CannotEvaluateError(f"{step.op} {why.format(f'its input {index}')}")
    operator = _operator(step)
    assert operator is not None
    options = dict(step.attrs)
    if "n_outputs" in operator.wants:
        options["n_outputs"] = len(step.outputs)
    if "out_dtypes" in operator.wants:
        options["out_dtypes"] = tuple(dtypes)
    if "in_dtypes" in operator.wants:
        options["in_dtypes"] = tuple(_dtype(v) for v in values)
    results = operator.function(np, *map(_upcast, values), **options)
    results = results if isinstance(results, tuple) else (results,)
    for name, value, dtype in zip(step.outputs, results, dtypes, strict=False):
        if name:
            table[name] = _stored(value, dtype)


def _value(name: str | np.ndarray | None, table: dict[str, Any]) -> Any:
    return table[name] if isinstance(name, str) else name


def _dtype(value: Any) -> DType | None:
    if isinstance(value, list):
        return _dtype(value[0]) if value else None
    return DType.of(value) if value is not None else None


def _upcast(value: Any) -> Any:
    """Operators see float16 and bfloat16 as float32, and aligned arrays only."""
    if isinstance(value, list):
        return [_upcast(v) for v in value]
    if value is None:
        return None
    if DType.of(value) in _REDUCED:
        return value.astype(np.float32)
    return value if value.flags.aligned else value.copy()


def _stored(value: Any, dtype: DType | None) -> Any:
    if isinstance(value, list):
        return [_stored(v, dtype) for v in value]
    if value is None:
        return None
    value = np.asarray(value)
    if dtype is None or value.dtype == dtype.numpy:
        return value
    return (narrow(value) if dtype in _REDUCED else value).astype(dtype.numpy)


def evaluate_bodies(node: Node, values: Mapping[Value, Any]) -> list[Any]:
    """The outputs of an If, Loop or Scan.

    Args:
        node: reads nothing but `values`, its bodies included.
        values: the constants that it reads.

    Raises:
        CannotEvaluateError: onnxruntime is not there, or fails on these values.
    """
    from polytool.surgeon.writing import write_node

    if any(not isinstance(v, np.ndarray) for v in values.values()):
        raise CannotEvaluateError(f"{node.op} reads sequences")
    model = node.where.workspace.model
    graph = onnx.GraphProto(name="fold", node=[write_node(node)])
    graph.initializer.extend(to_tensor(a, v.name, v.dtype) for v, a in values.items())
    graph.output.extend(
        onnx.ValueInfoProto(name=v.name, type=v.type.proto if v.type else None)
        for v in node.outputs
        if v is not None
    )
    source = model.proto
    proto = onnx.ModelProto(ir_version=max(8, source.ir_version), graph=graph)
    proto.opset_import.extend(source.opset_import)
    proto.functions.extend(source.functions)
    return _run_model(node, model.derive(proto).serialize())


def _with_onnxruntime(node: Node, inputs: Sequence[Any]) -> list[Any]:
    if any(isinstance(v, list) for v in inputs):
        raise CannotEvaluateError(f"there is no {node.op}-{node.version} for sequences here")
    return _run_model(node, _single_node_model(node, inputs))


def _run_model(node: Node, model: bytes) -> list[Any]:
    """The outputs of a model of one node that has no inputs."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise CannotEvaluateError(
            f"there is no {node.op}-{node.version} here, and onnxruntime is not installed"
        ) from None
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        results = iter(session.run(None, {}))
    except Exception as err:  # onnxruntime raises types of its own, none of them documented
        raise CannotEvaluateError(
            f"there is no {node.op}-{node.version} here, and onnxruntime cannot run it: "
            f"{str(err).strip().splitlines()[0]}"
        ) from err
    found = [next(results) if v is not None else None for v in node.outputs]
    return [
        v.astype(o.dtype.numpy) if isinstance(v, np.ndarray) and o is not None and o.dtype else v
        for v, o in zip(found, node.outputs, strict=True)
    ]


def _single_node_model(node: Node, inputs: Sequence[Any]) -> bytes:
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.ClearField("input")
    proto.ClearField("output")
    proto.ClearField("attribute")
    model = node.where.workspace.model
    for attribute in node.attributes.values():
        copy = proto.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.type == AttributeProto.TENSOR:
            copy.t.CopyFrom(to_tensor(model.array(attribute.t)))
    proto.input.extend(f"input{i}" if v is not None else "" for i, v in enumerate(inputs))
    proto.output.extend(f"output{i}" if v is not None else "" for i, v in enumerate(node.outputs))
    graph = onnx.GraphProto(name="fold", node=[proto])
    graph.initializer.extend(
        to_tensor(v, f"input{i}") for i, v in enumerate(inputs) if v is not None
    )
    graph.output.extend(
        onnx.ValueInfoProto(name=f"output{i}", type=v.type.proto if v.type else None)
        for i, v in enumerate(node.outputs)
        if v is not None
    )
    opsets = [onnx.helper.make_opsetid(node.domain, node.version)]
    if node.domain:
        opsets.append(onnx.helper.make_opsetid("", node.where.opsets.get("", 1)))
    ir_version = max(8, model.proto.ir_version)
    whole = onnx.ModelProto(ir_version=ir_version, graph=graph, opset_import=opsets)
    data: bytes = whole.SerializeToString()
    return data
