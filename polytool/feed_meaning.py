"""What an input means, read from what the model does with it.

An integer input is followed forward through nodes that only move values (Cast, Reshape, Slice ...)
to those that say what its values are: the indices of a Gather are token ids of that table, the
operand of an Equal with a constant is one of those numbers. Bodies of If, Loop and Scan and local
functions are followed too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytool.errors import ModelError

if TYPE_CHECKING:
    import onnx

    from polytool.model import Model

Key = tuple[str, str]  # (function, tensor); the function is "" in the graph and its bodies

# Operators whose outputs hold values of these inputs, unchanged.
_MOVES: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(
        ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Transpose", "Slice"),
        (0,),
    ),
    **dict.fromkeys(("Expand", "Tile", "Gather", "Split", "Dropout", "Concat"), (0,)),
    "Where": (1, 2),
}
# Operators whose input `index` points into input `data`.
_INDEXES: Mapping[str, tuple[int, int]] = {
    "Gather": (1, 0),
    "GatherElements": (1, 0),
    "GatherND": (1, 0),
    "ScatterElements": (1, 0),
    "ScatterND": (1, 0),
    "Scatter": (1, 0),
}
_CONSTANT_THROUGH = ("Identity", "Cast", "Reshape", "Expand", "Unsqueeze", "Squeeze")
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # functions of others may have the same names
_MOST_STEPS = 5000


@dataclass(frozen=True)
class Use:
    """One thing that the model does with an input's values.

    Attributes:
        bound: the values are indices below this; None where the size is not known.
        table: what they index, or are compared with.
        values: the constants that they are compared with.
        weight: whether the table is a constant: an embedding.
    """

    table: str
    bound: int | None = None
    values: tuple[int, ...] = ()
    weight: bool = False


class Meanings:
    """Follows inputs through one model."""

    def __init__(self, model: Model, shapes: Mapping[str, Sequence[int]]) -> None:
        self._model = model
        self._shapes = shapes
        self._readers: dict[Key, list[tuple[str, onnx.NodeProto, int]]] = {}
        self._makers: dict[Key, onnx.NodeProto] = {}
        self._constants: dict[Key, onnx.TensorProto] = {}
        self._same: dict[Key, list[Key]] = {}
        self._origin: dict[Key, Key] = {}  # what Loop, Scan and functions call otherwise inside
        self._inferred: dict[str, tuple[int | None, ...]] | None = None
        self._functions = {(f.domain, f.name): f for f in model.proto.functions}
        self._index_graph(model.proto.graph, "")
        for function in model.proto.functions:
            self._index_nodes(function.node, _scope(function))

    def uses(self, name: str) -> list[Use]:
        """Everything that bounds the values of input `name`, in the order of the model."""
        found: list[Use] = []
        seen: set[Key] = {("", name)}
        queue: list[Key] = [("", name)]
        for key in queue:
            for reached in self._same.get(key, []):
                _enqueue(reached, seen, queue)
            for scope, node, position in self._readers.get(key, []):
                found.extend(self._use(scope, node, position))
                for output in _moved(node, position):
                    _enqueue((scope, output), seen, queue)
            if len(seen) > _MOST_STEPS:
                break
        return found

    def _use(self, scope: str, node: onnx.NodeProto, position: int) -> Iterator[Use]:
        op = node.op_type if node.domain in _DOMAINS else ""
        if op in _INDEXES and position == _INDEXES[op][0]:
            data = (scope, node.input[_INDEXES[op][1]])
            found = self._find_constant(data)
            table = data[1] if found is None else found[1]
            yield Use(table, self._rows(data, node), weight=found is not None)
        elif op == "EmbedLayerNormalization" and position < 2 and len(node.input) > 4:
            table = (scope, node.input[2 if position == 0 else 4])
            yield Use(table[1], self._rows(table, node), weight=True)
        elif op == "OneHot" and position == 0:
            depth = self._integers((scope, node.input[1]))
            yield Use(node.output[0], depth[0] if depth else None)
        elif op == "Equal":
            other = self._integers((scope, node.input[1 - position]))
            if other:
                yield Use(node.output[0], values=tuple(sorted(set(other))))

    def _rows(self, data: Key, node: onnx.NodeProto) -> int | None:
        """How many indices the node's axis of `data` has."""
        shape = self._shape(data)
        if not shape:
            return None
        if node.op_type in ("GatherND", "ScatterND"):
            batch = _int_attribute(node, "batch_dims", 0)
            return shape[batch] if 0 <= batch < len(shape) else None
        axis = _int_attribute(node, "axis", 0)
        return shape[axis] if -len(shape) <= axis < len(shape) else None

    def _shape(self, key: Key) -> tuple[int | None, ...] | None:
        constant = self._find_constant(key)
        if constant is not None:
            return tuple(self._constants[constant].dims)
        scope, name = self._origin.get(key, key)
        if scope or not name:
            return None
        if name in self._shapes:
            return tuple(self._shapes[name])
        if self._inferred is None:
            self._inferred = infer_shapes(self._model.proto, self._shapes)
        return self._inferred.get(name)

    def _find_constant(self, key: Key) -> Key | None:
        """The constant that `key` is, possibly after operators that keep its first dimension."""
        seen: set[Key] = set()
        while key not in self._constants:
            node = self._makers.get(key)
            if key in seen:
                return None
            seen.add(key)
            if key in self._origin:
                key = self._origin[key]
            elif node is not None and node.op_type in ("Identity", "Cast", "DequantizeLinear"):
                key = (key[0], node.input[0])
            else:
                return None
        return key

    def _integers(self, key: Key) -> list[int]:
        """The whole numbers in a constant; none where it is unknown."""
        values = self._constant(key)
        if values is None or values.dtype.kind not in "iuf":
            return []
        return [int(v) for v in values.reshape(-1) if float(v).is_integer()]

    def _constant(self, key: Key) -> Any:
        """The values of a constant, through operators that repeat or cast them; else None."""
        for _ in range(8):
            if key in self._constants:
                try:
                    return self._model.array(self._constants[key])
                except ModelError:
                    return None
            node = self._makers.get(key)
            if node is None or node.op_type not in _CONSTANT_THROUGH:
                return None
            key = (key[0], node.input[0])
        return None

    def _index_graph(self, graph: onnx.GraphProto, scope: str) -> None:
        for tensor in graph.initializer:
            self._constants[scope, tensor.name] = tensor
        self._index_nodes(graph.node, scope)

    def _index_nodes(self, nodes: Any, scope: str) -> None:
        for node in nodes:
            for position, name in enumerate(node.input):
                if name:
                    self._readers.setdefault((scope, name), []).append((scope, node, position))
            for name in node.output:
                self._makers[scope, name] = node
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    self._constants[scope, node.output[0]] = attribute.t
                if attribute.HasField("g"):
                    self._enter(node, attribute.g, scope)
            function = self._functions.get((node.domain, node.op_type))
            if function is not None:
                for actual, formal in zip(node.input, function.input, strict=False):
                    self._alias((scope, actual), (_scope(function), formal))

    def _enter(self, node: onnx.NodeProto, body: onnx.GraphProto, scope: str) -> None:
        """Bodies see outer names by themselves; what Loop and Scan pass in has another name."""
        self._index_graph(body, scope)
        skipped = 1 if node.op_type == "Loop" else 0  # the trip count; then come condition, state
        for actual, formal in zip(node.input[skipped:], body.input[skipped:], strict=False):
            if node.op_type in ("Loop", "Scan"):
                self._alias((scope, actual), (scope, formal.name))

    def _alias(self, outer: Key, inner: Key) -> None:
        if outer[1] and outer != inner:
            self._same.setdefault(outer, []).append(inner)
            # A function that is called twice is two: nothing is known of what it is given.
            self._origin[inner] = outer if self._origin.get(inner, outer) == outer else ("?", "")


def infer_shapes(
    proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int | None, ...]]:
    """Shapes of the tensors of the main graph when the inputs have `shapes`; {} where ONNX's own
    shape inference does not get through the model."""
    import onnx

    from polytool.backends.native import inference

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            dims.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in shapes[value.name])
    try:
        inferred = inference.infer_shapes(copy)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    return {
        v.name: tuple(
            d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim
        )
        for v in (*inferred.graph.value_info, *inferred.graph.output)
        if v.type.tensor_type.HasField("shape")
    }


def _moved(node: onnx.NodeProto, position: int) -> Sequence[str]:
    if node.op_type == "Concat" or position in _MOVES.get(node.op_type, ()):
        return [o for o in node.output if o]
    return ()


def _enqueue(key: Key, seen: set[Key], queue: list[Key]) -> None:
    if key not in seen:
        seen.add(key)
        queue.append(key)


def _scope(function: onnx.FunctionProto) -> str:
    return f"{function.domain}:{function.name}"


def _int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
