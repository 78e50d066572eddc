"""Write reduced precisions into a graph: which type each node computes in, with Casts between.

`x(float32) -> Op -> y(float32)  =>  x -> Cast -> Op -> y(float16) [-> Cast(float32)]`

An input or output of a node changes its type where ONNX lets it, at the node's own opset. Weights
are stored in the types that are read; a value is cast at most once to each type, and never to one
type and back. Inputs and outputs of bodies keep their types, and those of the model too unless
told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx

from polytool.arrays import Array, overflows, saturated, to_tensor
from polytool.model import Model
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.surgeon.types import Type, type_proto
from polytool.tensors import DType

MOVERS = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
    }
)
"""Operators that only move elements, so that they may run in the type in which these come."""

# onnxruntime's definitions of these mix their operands with float32 constants.
_FLOAT_ONLY = frozenset({"MeanVarianceNormalization", "TreeEnsemble"})
_TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "output_dtype"})

# Whatever type they read, they give the same; they never need a cast.
_ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
_FIRST_CAST = {DType.BFLOAT16: 13}  # the opset from which Cast knows a type
_OPSET = 13  # for a model that imports none
_CAST_BY_NUMBER = 6  # before that opset, `to` is a name
_EXACT_SOURCES = frozenset({DType.BOOL, *(d for d in DType if d.is_integer)})


def parameters(node: Node, dtype: DType) -> tuple[frozenset[int], frozenset[int]]:
    """The inputs and outputs of `node` that ONNX lets be of type `dtype` in place of float32.

    All of them where ONNX has no schema of the operator; none where it has one without the type,
    and where an attribute says the type.
    """
    count = len(node.inputs), len(node.outputs)
    found = _allowed(node.domain, node.op, node.version, dtype)
    if found is None:
        return frozenset(range(count[0])), frozenset(range(count[1]))

    def positions(allowed: tuple[bool, ...], n: int) -> frozenset[int]:
        return frozenset(i for i in range(n) if allowed and allowed[min(i, len(allowed) - 1)])

    return positions(found[0], count[0]), positions(found[1], count[1])


@cache
def _allowed(
    domain: str, op: str, version: int, dtype: DType
) -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return None
    if not _TYPE_ATTRIBUTES.isdisjoint(schema.attributes):
        return (), ()
    # A variable that allows bfloat16 and not float16 is no operand: the statistics of a norm.
    wanted = {DType.FLOAT: "float", DType.DOUBLE: "double"}.get(dtype, dtype.label)
    needed = {f"tensor({wanted})", "tensor(float16)", "tensor(float)"}
    allowed = {
        c.type_param_str for c in schema.type_constraints if needed <= set(c.allowed_type_strs)
    }
    return (
        tuple(p.type_str in allowed for p in schema.inputs),
        tuple(p.type_str in allowed for p in schema.outputs),
    )


def first_version(node: Node, dtype: DType) -> int | None:
    """The first opset after the model's at which the operator of `node` takes `dtype`."""
    if node.domain:
        return None
    later = range(node.version + 1, onnx.defs.onnx_opset_version() + 1)
    return next((v for v in later if any(map(any, _allowed("", node.op, v, dtype) or ()))), None)


def fails_in_onnxruntime(node: Node) -> bool:
    """Whether onnxruntime 1.32 cannot run in float16 what ONNX lets be float16."""
    if node.op in ("ScatterElements", "ScatterND"):
        return bool(node.attribute("reduction", "none") != "none")
    if node.op == "Transpose" and not node.domain:
        # It crashes when it joins this with a product: the first dimension moves to the right.
        perm = node.attribute("perm", [])
        moved = len(perm) > 2 and perm[0] == 1 and 0 in perm[-2:]
        return moved and any(user.op == "MatMul" for user in node.output.used_by())
    return node.op in _FLOAT_ONLY


def first_opset(dtype: DType) -> int:
    """The first opset of ONNX whose Cast knows `dtype`."""
    return _FIRST_CAST.get(dtype, 1)


def write_precisions(
    workspace: Workspace,
    types: Mapping[Node, DType],
    report: Report,
    *,
    keep_io_types: bool = True,
    io_type: DType = DType.FLOAT16,
) -> list[str]:
    """Let nodes compute in other types than float32.

    Args:
        workspace: sorted, without functions, Constant nodes lifted, types inferred.
        types: what each node computes in; float32 where it is not named.
        report: receives counts of nodes and Casts, and nodes that are left alone.
        keep_io_types: leave the types of the model's inputs and outputs; else those that are
            float32 become `io_type`.
        io_type: see there.

    Returns:
        What the user should hear: constants that do not fit their type.
    """
    chosen = {node: dtype for node, dtype in types.items() if _is_typed(node, dtype, report)}
    if "" not in workspace.main.opsets:  # only other domains, and Cast is none of theirs
        workspace.extra_opsets[""] = _OPSET
    _leave_movers(workspace, chosen)
    _retarget_casts(workspace, chosen)
    writer = _Writer(workspace, chosen, report)
    if not keep_io_types:
        writer.retype_inputs(io_type)
    writer.graph(workspace.main, DType.FLOAT if keep_io_types else io_type)
    workspace.sort()
    return writer.notes


def _is_typed(node: Node, dtype: DType, report: Report) -> bool:
    """Whether enough is known of a node to change its type."""
    inputs, _ = parameters(node, dtype)
    unknown = [
        v.name
        for i, v in enumerate(node.inputs)
        if i in inputs and v is not None and v.dtype is None
    ]
    if unknown:
        report.refuse(node.label, f"the type of its input {unknown[0]!r} is not known")
    return not unknown


def _moved(node: Node) -> list[Value]:
    """The values that an operator of `MOVERS` moves, without those that say where to."""
    every = node.inputs if node.op == "Concat" else node.inputs[:1]
    return [v for v in every if v is not None]


def _leave_movers(workspace: Workspace, chosen: dict[Node, DType]) -> None:
    """Leave in float32 what moves float32 values to where float32 is read: two Casts less."""
    nodes = list(_in_order(workspace.main))
    movers = [n for n in nodes if n.op in MOVERS and not n.domain]
    before: dict[Node, set[DType]] = {}  # the types of what moves through, where it is computed
    for node in movers:
        before[node] = set().union(*(_begin(v, before, chosen) for v in _moved(node)))
    after: dict[Node, set[DType]] = {}  # the types in which it is read in the end
    for node in reversed(movers):
        outputs = [v for v in node.outputs if v is not None]
        after[node] = set().union(*(_end(u, after, chosen) for v in outputs for u in v.users))
    for node in movers:
        if before[node] == {DType.FLOAT} and after[node] <= {DType.FLOAT}:
            chosen[node] = DType.FLOAT


def _in_order(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        for body in node.bodies.values():
            yield from _in_order(body)
        yield node


def _begin(
    value: Value, before: Mapping[Node, set[DType]], chosen: Mapping[Node, DType]
) -> set[DType]:
    if value.producer is None:
        return {DType.FLOAT} if value.constant is None else set()
    if value.producer in before:
        return before[value.producer]
    return {chosen.get(value.producer, DType.FLOAT)}


def _end(
    user: Node | Graph, after: Mapping[Node, set[DType]], chosen: Mapping[Node, DType]
) -> set[DType]:
    if isinstance(user, Graph):
        return {DType.FLOAT}
    if user in after:
        return after[user]
    return set() if user.op in _ANY_TYPE else {chosen.get(user, DType.FLOAT)}


def _retarget_casts(workspace: Workspace, chosen: dict[Node, DType]) -> None:
    """Cast integers to the type that is wanted, not to float32 and from there."""
    for graph in workspace.graphs:
        for node in graph.nodes:
            if node.op != "Cast" or node.domain or node.version < _CAST_BY_NUMBER:
                continue
            source, result = node.inputs[0], node.output
            if source is None or source.dtype not in _EXACT_SOURCES:
                continue
            wanted = {
                t
                for user in result.users
                for t in [DType.FLOAT if isinstance(user, Graph) else chosen.get(user, DType.FLOAT)]
            }
            if result.dtype is DType.FLOAT and len(wanted) == 1:
                (target,) = wanted
                if target is not DType.FLOAT and all(
                    _reads_as(user, result, target) for user in result.used_by()
                ):
                    chosen[node] = target


def _reads_as(node: Node, value: Value, dtype: DType) -> bool:
    allowed, _ = parameters(node, dtype)
    return all(i in allowed for i, v in enumerate(node.inputs) if v is value) and not node.bodies


class _Writer:
    """Walks the nodes in order; a value that was float32 may have a version in each type."""

    def __init__(self, workspace: Workspace, chosen: Mapping[Node, DType], report: Report) -> None:
        self.workspace, self.chosen, self.report = workspace, chosen, report
        self.versions: dict[Value, dict[DType, Value]] = {}
        self.notes: list[str] = []
        self.native: dict[Value, Value] = {}  # what is computed in place of a value

    def retype_inputs(self, dtype: DType) -> None:
        main = self.workspace.main
        for value in main.inputs:
            if value.dtype is DType.FLOAT and value.is_tensor and value.tensor is None:
                self._retype(value, dtype)
                info = onnx.ValueInfoProto()
                info.CopyFrom(main.infos[value])
                info.type.tensor_type.elem_type = int(dtype)
                main.infos[value] = info
                self.report.did(f"inputs that are {dtype.label} now")

    def graph(self, graph: Graph, output_type: DType = DType.FLOAT) -> None:
        for node in list(graph.nodes):
            for body in node.bodies.values():
                self.graph(body)
            self.node(node)
        for index, value in enumerate(graph.outputs):
            if not self._was_float(value):
                continue
            wanted = self.version(value, output_type)
            if wanted is not value and (wanted.producer is None or wanted.is_output):
                wanted = self._cast(value, value, output_type)  # a name of its own
            if wanted is not value:
                graph.set_output(index, wanted)
            if output_type is not DType.FLOAT:
                self._retype_output(graph, index, value, output_type)

    def _retype_output(self, graph: Graph, index: int, value: Value, dtype: DType) -> None:
        info = onnx.ValueInfoProto()
        info.CopyFrom(graph.output_infos[index])
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.elem_type = int(dtype)
        graph.output_infos[index] = info
        wanted = graph.outputs[index]
        if wanted is not value and not value.is_output:  # the output keeps its name
            wanted.name, value.name = value.name, wanted.name
        self.report.did(f"outputs that are {dtype.label} now")

    def node(self, node: Node) -> None:
        dtype = self.chosen.get(node, DType.FLOAT)
        if node.op in _ANY_TYPE and not node.domain:
            self._any_type(node, dtype)
            return
        inputs, outputs = (
            parameters(node, dtype) if dtype is not DType.FLOAT else (frozenset(), frozenset())
        )
        for index, value in enumerate(node.inputs):
            if value is not None and self._was_float(value):
                wanted = self.version(value, dtype if index in inputs else DType.FLOAT)
                if wanted is not value:
                    node.set_input(index, wanted)
        if dtype is DType.FLOAT:
            return
        if node.op == "ConstantOfShape":
            self._fill(node, dtype)
        for index, value in enumerate(node.outputs):
            if value is not None and index in outputs and value.dtype is DType.FLOAT:
                self._compute(node, index, value, dtype)
        self.report.did(f"nodes in {dtype.label}")

    def _any_type(self, node: Node, dtype: DType) -> None:
        value = node.inputs[0]
        if value is not None and value in self.native:
            node.set_input(0, self.native[value])
        if node.op != "Cast":
            return
        if dtype is not DType.FLOAT:
            node.set_attributes(to=int(dtype))
            self._retype(node.output, dtype)
        elif value is not None and node.output.dtype is DType.FLOAT and value.dtype is not None:
            self.versions[node.output] = {DType.FLOAT: node.output}
            if value.dtype in (DType.FLOAT16, DType.BFLOAT16) and value not in self.versions:
                self.versions[node.output][value.dtype] = value  # a cast back is not needed

    def _was_float(self, value: Value) -> bool:
        return value in self.versions or (value.is_tensor and value.dtype is DType.FLOAT)

    def _retype(self, value: Value, dtype: DType) -> None:
        """`value` itself is of another type from now on."""
        self.versions[value] = {dtype: value}
        self.native[value] = value
        _set_type(value, dtype)

    def _compute(self, node: Node, index: int, value: Value, dtype: DType) -> None:
        """Let an output have another type; what a graph returns keeps its own, by a Cast."""
        if not value.is_output:
            self._retype(value, dtype)
            return
        graph = node.where
        low = Value(self.workspace.fresh(f"{value.name}_{dtype.label}"), graph, node)
        low.type = value.type
        _set_type(low, dtype)
        node.outputs[index] = low
        cast = self._cast_node(graph, low, DType.FLOAT, value)
        value.producer = cast
        self.versions[value] = {dtype: low, DType.FLOAT: value}
        self.native[value] = low

    def version(self, value: Value, dtype: DType) -> Value:
        """`value` in type `dtype`."""
        known = self.versions.setdefault(value, {DType.FLOAT: value})
        if dtype not in known:
            known[dtype] = self._cast(value, self.native.get(value, value), dtype)
        return known[dtype]

    def _cast(self, value: Value, source: Value, dtype: DType) -> Value:
        graph = source.graph
        assert graph is not None
        name = f"{value.name}_{dtype.label}"
        tensor = source.constant
        if tensor is not None:
            array = read(self.workspace.model, tensor)
            if overflows(array, dtype):
                self.notes.append(
                    f"constant {value.name!r} has values beyond {dtype.label}, which become its "
                    "largest number"
                )
            self.report.did(f"weights stored in {dtype.label}")
            return graph.add_array(saturated(array, dtype), name, dtype)
        result = Value(self.workspace.fresh(name), graph)
        result.type = source.type
        _set_type(result, dtype)
        result.producer = self._cast_node(graph, source, dtype, result)
        return result

    def _cast_node(self, graph: Graph, source: Value, dtype: DType, result: Value) -> Node:
        numbered = graph.opsets.get("", _OPSET) >= _CAST_BY_NUMBER
        to: Any = int(dtype) if numbered else onnx.TensorProto.DataType.Name(int(dtype))
        node = graph.add_node("Cast", [source], (), name=f"Cast_{result.name}", to=to)
        node.outputs.append(result)
        self.report.did("Casts added")
        return node

    def _fill(self, node: Node, dtype: DType) -> None:
        """ConstantOfShape has its type from its attribute."""
        given = node.attribute("value")
        tensor = given if given is not None else onnx.helper.make_tensor("", 1, [1], [0.0])
        array = self.workspace.model.array(tensor)
        node.set_attributes(value=to_tensor(saturated(array, dtype), "", dtype))


def read(model: Model, tensor: onnx.TensorProto) -> Array:
    """The value of a tensor, read and not mapped: once it is let go of, it takes no memory."""
    dtype = DType(tensor.data_type)
    if model.locate(tensor) is None or dtype.bits < 8 or dtype is DType.STRING:
        return model.array(tensor)
    return np.frombuffer(model.raw(tensor), dtype.numpy).reshape(tuple(tensor.dims))


def _set_type(value: Value, dtype: DType) -> None:
    shape = value.type.shape if value.type is not None else None
    value.type = Type("tensor", dtype, shape, type_proto(dtype, shape))
