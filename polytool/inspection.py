"""What a model consists of: interface, layers, weights, cost. Reads no weight unasked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from polytool.arrays import Array, decode_raw, dtype_of, shape_of
from polytool.cost import Cost, measure
from polytool.model import Model, Source
from polytool.surgeon.graph import Graph, Node, Value, Workspace, value_of
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.infer import infer
from polytool.surgeon.report import Report
from polytool.tensors import DType, TensorSpec

_BLOCK = 4 << 20  # bytes of a weight that are looked at together


@dataclass(frozen=True)
class Statistics:
    """Of one weight; values that are not finite are counted and left out."""

    minimum: float
    maximum: float
    mean: float
    std: float
    zeros: int
    not_finite: int


@dataclass(frozen=True)
class WeightInfo:
    """An initializer or Constant."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    location: str
    graph: str
    statistics: Statistics | None = None


@dataclass(frozen=True)
class LayerInfo:
    """A node, and what it costs once; None where shapes are open."""

    name: str
    op: str
    domain: str
    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: Mapping[str, Any]
    flops: int | None
    bytes_moved: int | None


@dataclass(frozen=True)
class Description:
    """Everything that `inspect model` says of an ONNX model."""

    path: str | None
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    graph: str
    doc: str
    metadata: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[LayerInfo, ...]
    weights: tuple[WeightInfo, ...]
    functions: tuple[str, ...]
    cost: Cost
    operators: Mapping[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Elements of all floating-point weights and of quantised ones (8 bits and fewer)."""
        return parameters_of(self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(w.nbytes for w in self.weights)


def parameters_of(weights: Iterable[WeightInfo]) -> int:
    """Elements of all floating-point weights and of quantised ones (8 bits and fewer)."""
    return sum(int(np.prod(w.shape, dtype=np.int64)) for w in weights if _is_parameter(w.dtype))


def _is_parameter(label: str) -> bool:
    dtype = DType.of(label)
    return dtype.is_float or (dtype.is_integer and dtype.bits <= 8)


def inspect_model(
    source: Source,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    statistics: bool = False,
) -> Description:
    """Describe an ONNX model.

    Args:
        source: what `polytool.model.load` takes.
        input_shapes: shapes of inputs, for what the layers cost; names may be patterns.
        statistics: read the weights and describe their values.

    Raises:
        ModelError: the model is broken.
        UsageError: an input shape does not fit.
    """
    model = open_model(source)
    workspace = Workspace(model)
    workspace.sort()
    infer(workspace, Report())
    cost = measure(model, input_shapes)
    proto = model.proto
    paths = dict(_paths(workspace))
    layers = [
        _layer(node, path, cost)
        for graph, path in paths.items()
        for node in graph.nodes
        if node.op != "Constant" or node.domain
    ]
    weights = [
        _weight_info(model, name, tensor, path, statistics)
        for graph, path in paths.items()
        for name, tensor in _tensors(graph)
    ]
    main = workspace.main
    return Description(
        path=model.path,
        ir_version=proto.ir_version,
        opsets=model.opsets,
        producer=" ".join(filter(None, [proto.producer_name, proto.producer_version])),
        graph=proto.graph.name,
        doc=proto.doc_string,
        metadata={p.key: p.value for p in proto.metadata_props},
        inputs=tuple(_spec(v) for v in main.inputs if v.tensor is None),
        outputs=tuple(_spec(v) for v in main.outputs),
        layers=tuple(layers),
        weights=tuple(weights),
        functions=tuple(f"{f.proto.domain}.{f.name}" for f in workspace.functions),
        cost=cost,
        operators=dict(Counter(_operator(layer) for layer in layers).most_common()),
    )


def _operator(layer: LayerInfo) -> str:
    return f"{layer.domain}.{layer.op}" if layer.domain else layer.op


def _paths(workspace: Workspace) -> Iterator[tuple[Graph, str]]:
    """Every graph, and the way to it; empty for the main graph."""
    yield from _bodies(workspace.main, "")
    for function in workspace.functions:
        yield from _bodies(function, f"{function.proto.domain}.{function.name}")


def _bodies(graph: Graph, path: str) -> Iterator[tuple[Graph, str]]:
    yield graph, path
    for node in graph.nodes:
        for name, body in node.bodies.items():
            yield from _bodies(body, f"{path}/{node.label}/{name}".lstrip("/"))


def _spec(value: Value) -> TensorSpec:
    kind = value.type.kind if value.type is not None else "tensor"
    shape = value.shape
    if shape is not None:  # names that inference makes up say nothing
        shape = tuple(None if str(d).startswith("unk__") else d for d in shape)
    return TensorSpec(value.name, value.dtype, shape, kind)


def _layer(node: Node, path: str, cost: Cost) -> LayerInfo:
    outputs = tuple(_spec(v) for v in node.outputs if v is not None)
    key = outputs[-1].name if outputs else ""
    if not path:  # what input shapes decide
        outputs = tuple(replace(s, shape=cost.shapes.get(s.name, s.shape)) for s in outputs)
    return LayerInfo(
        name=node.label,
        op=node.op,
        domain=node.domain,
        graph=path,
        inputs=tuple(v.name if v is not None else "" for v in node.inputs),
        outputs=outputs,
        attributes={name: _readable(node, name) for name in node.attributes}
        | {name: f"graph of {len(body.nodes)} nodes" for name, body in node.bodies.items()},
        flops=cost.flops.get(key) if not path else None,
        bytes_moved=cost.bytes_moved.get(key) if not path else None,
    )


def _readable(node: Node, name: str) -> Any:
    attribute = node.attributes[name]
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    if attribute.type == onnx.AttributeProto.TENSOR:
        tensor = attribute.t
        if sum(tensor.dims) <= 16 and tensor.data_location != tensor.EXTERNAL:
            return node.where.workspace.model.array(tensor).tolist()
        return f"{dtype_of(tensor).label}{list(tensor.dims)}"
    value = value_of(attribute) if attribute.type else None
    return value if isinstance(value, (int, float, str, list)) else type(value).__name__


def _tensors(graph: Graph) -> Iterator[tuple[str, onnx.TensorProto]]:
    for value in graph.constants:
        if value.tensor is not None:
            yield value.name, value.tensor
    for node in graph.nodes:
        if node.op != "Constant" or node.domain or not any(node.outputs[:1]):
            continue
        if "value" in node.attributes:
            yield node.output.name, node.attributes["value"].t


def _weight_info(
    model: Model, name: str, tensor: onnx.TensorProto, path: str, statistics: bool
) -> WeightInfo:
    found = None
    if statistics and model.has_content(tensor) and dtype_of(tensor) is not DType.STRING:
        found = statistics_of(_blocks(model, tensor))
    entries = {e.key: e.value for e in tensor.external_data}
    inside = tensor.data_location != tensor.EXTERNAL or model.is_own(entries.get("location", ""))
    return WeightInfo(
        name=name,
        dtype=dtype_of(tensor).label,
        shape=shape_of(tensor),
        nbytes=model.nbytes(tensor),
        location="" if inside else entries.get("location", ""),
        graph=path,
        statistics=found,
    )


def statistics_of(blocks: Iterable[Array]) -> Statistics | None:
    """Of the elements of all blocks; None where none is finite."""
    count = zeros = not_finite = 0
    total = squares = 0.0
    low, high = np.inf, -np.inf
    for block in blocks:
        values = np.abs(block) if block.dtype.kind == "c" else block
        values = values.astype(np.float64)
        finite = values[np.isfinite(values)]
        not_finite += values.size - finite.size
        zeros += int((finite == 0).sum())
        count += finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            total += float(finite.sum())
            squares += float((finite * finite).sum())
    if not count:
        return None
    mean = total / count
    deviation = max(squares / count - mean * mean, 0) ** 0.5  # not **: that raises on overflow
    return Statistics(low, high, mean, deviation, zeros, not_finite)


def _blocks(model: Model, tensor: onnx.TensorProto) -> Iterator[Array]:
    """The elements in order, some at a time; what lies on disk is not kept in memory."""
    where, dtype = model.locate(tensor), dtype_of(tensor)
    if where is None or dtype.bits < 8:
        yield model.array(tensor).reshape(-1)
        return
    file = model.file(where.location)
    for start in range(0, where.length, _BLOCK):
        size = min(_BLOCK, where.length - start)
        raw = file.read(where.offset + start, size)
        yield decode_raw(raw, dtype, (size // dtype.numpy.itemsize,), tensor.name)
