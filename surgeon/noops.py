"""Operations that give back their input.

    Identity, Cast to its own type, Reshape to its own shape, Transpose by the identity, Slice of
    everything, Pad by nothing, Dropout at inference, Concat, Sum, Max, Min, Mean of one input,
    Split into one part, Expand and Tile by ones, x * 1, x / 1, x - 0 => x
    Transpose of Transpose => one Transpose
    Cast of a widening Cast => one Cast
    Reshape of what only changes the shape => one Reshape

`x + 0` is none of them: it turns -0 into +0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polytool.arrays import Array
from polytool.surgeon.graph import Graph, Node, Value, Workspace
from polytool.surgeon.report import Report
from polytool.tensors import DType

Rule = Callable[[Node], "Value | str | None"]
_RULES: dict[str, list[Rule]] = {}
_LARGEST_OPERAND = 1 << 16  # bytes of a constant that is looked at


def remove_noops(workspace: Workspace, report: Report) -> None:
    """Replace every node that gives back one of its inputs by that input. Sorted before."""
    for graph in workspace.graphs:
        for node in graph.nodes:
            rules = _RULES.get(node.op) if not node.domain else None
            if rules is None or node.has_references:
                continue
            for apply in rules:
                if node.graph is None or node.outputs[0] is None:
                    break
                found = apply(node)
                if isinstance(found, str):
                    report.did(found)
                elif found is not None:
                    _bypass(graph, node, found, report)
        graph.compact()


def _bypass(graph: Graph, node: Node, value: Value, report: Report) -> None:
    output = node.output
    if output in graph.pinned or any(v is not None and v.users for v in node.outputs[1:]):
        return
    used = bool(output.users)
    if graph.redirect(output, value):
        graph.remove(node)
        if used:
            report.did(f"{node.op} without effect removed")


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function that returns the value which the node's first output equals.

    A function that only shortens what is before the node changes it and returns what it did.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            _RULES.setdefault(op, []).append(function)
        return function

    return register


def constant(value: Value | None) -> Array | None:
    """The content of a small constant."""
    if value is None or value.constant is None or value.graph is None:
        return None
    model = value.graph.workspace.model
    if model.nbytes(value.constant) > _LARGEST_OPERAND:
        return None
    return model.array(value.constant)


def integers(value: Value | None) -> list[int] | None:
    """The content of a small constant of integers, flattened."""
    array = constant(value)
    if array is None or array.dtype.kind not in "iu":  # a broken model has other types there
        return None
    return [int(i) for i in array.reshape(-1)]


def same_shape(a: Value | None, b: Value | None) -> bool:
    """Whether both shapes are known to be equal, by sizes and symbols."""
    if a is None or b is None or a.shape is None or b.shape is None:
        return False
    return a.shape == b.shape and None not in a.shape


@rule("Identity")
def identity(node: Node) -> Value | None:
    return node.input(0)


@rule("Cast", "CastLike")
def cast_to_own_type(node: Node) -> Value | None:
    value = node.input(0)
    return value if value is not None and value.dtype and value.dtype == target(node) else None


def target(node: Node) -> DType | None:
    """The element type that a Cast or CastLike gives."""
    if node.op == "CastLike":
        like = node.input(1)
        return like.dtype if like is not None else None
    to = node.attribute("to")
    if isinstance(to, str):  # Cast-1 says it by name
        return DType.of(to)
    return None if to is None else DType(to)


@rule("Cast")
def cast_of_widening_cast(node: Node) -> str | None:
    inner = node.input(0)
    if inner is None or inner.producer is None or inner.producer.op != "Cast":
        return None
    source, last = inner.producer.input(0), target(node)
    if source is None or source.dtype is None or last is None or inner.producer.domain:
        return None
    middle = target(inner.producer) if not inner.producer.has_references else None
    if middle is None or not _keeps_value(source.dtype, middle) or not _same_result(source, last):
        return None
    node.set_input(0, source)
    return "Cast of a widening Cast made one"


_INT_BITS = {DType.INT8: 7, DType.INT16: 15, DType.INT32: 31, DType.INT64: 63, DType.BOOL: 1}
_INT_BITS |= {DType.UINT8: 8, DType.UINT16: 16, DType.UINT32: 32, DType.UINT64: 64}
_MANTISSA = {DType.BFLOAT16: 8, DType.FLOAT16: 11, DType.FLOAT: 24, DType.DOUBLE: 53}


def _keeps_value(source: DType, wide: DType) -> bool:
    """Whether `wide` holds every value of `source`."""
    if source == wide:
        return True
    if source in _INT_BITS and wide in _INT_BITS and wide is not DType.BOOL:
        signed = not source.name.startswith("U") and source is not DType.BOOL
        return _INT_BITS[source] <= _INT_BITS[wide] and not (signed and wide.name[0] == "U")
    if source in _INT_BITS and wide in _MANTISSA:
        return _INT_BITS[source] <= _MANTISSA[wide] and wide is not DType.FLOAT16
    pairs = {(DType.FLOAT16, DType.FLOAT), (DType.BFLOAT16, DType.FLOAT)}
    return (source, wide) in pairs or (source in _MANTISSA and wide is DType.DOUBLE)


def _same_result(source: Value, last: DType) -> bool:
    """Whether the conversion does not depend on the type that the value arrives in.

    Out of range, conversions to integers are whatever the hardware does.
    """
    if source.dtype == last or last in (DType.FLOAT, DType.DOUBLE):
        return True
    return source.dtype in _INT_BITS and last in (DType.INT64, DType.INT32, *_MANTISSA)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand")
def shape_stays(node: Node) -> Value | None:
    value = node.input(0)
    return value if same_shape(value, node.output) else None


@rule("Reshape")
def reshape_to_own_shape(node: Node) -> Value | None:
    """Every entry copies its dimension, but for one that is computed from the rest."""
    value, wanted = node.input(0), integers(node.input(1))
    if value is None or value.shape is None or wanted is None or len(wanted) != len(value.shape):
        return None
    zero_copies = not node.attribute("allowzero", 0)
    computed = 0
    for size, have in zip(wanted, value.shape, strict=True):
        if (size == 0 and zero_copies) or size == have:
            continue
        if size != -1:
            return None
        computed += 1
    return value if computed <= 1 else None


@rule("Reshape")
def reshape_of_reshape(node: Node) -> str | None:
    inner, wanted = node.input(0), integers(node.input(1))
    if inner is None or wanted is None or inner.producer is None or inner.producer.domain:
        return None
    if inner.producer.op not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return None
    if 0 in wanted:  # it means a dimension of the tensor in between, or an empty one
        return None
    source = inner.producer.input(0)
    if source is None:
        return None
    node.set_input(0, source)
    return "Reshape of a reshaped tensor made one"


@rule("Transpose")
def transpose_by_identity(node: Node) -> Value | None:
    value, perm = node.input(0), node.attribute("perm")
    if value is None:
        return None
    if perm is None:
        return value if value.shape is not None and len(value.shape) <= 1 else None
    return value if perm == list(range(len(perm))) else None


@rule("Transpose")
def transpose_of_transpose(node: Node) -> str | None:
    inner = node.input(0)
    if inner is None or inner.producer is None:
        return None
    first = inner.producer
    source = first.input(0)
    if first.op != "Transpose" or first.domain or first.has_references or source is None:
        return None
    rank = len(source.shape) if source.shape is not None else 0
    one = first.attribute("perm") or list(reversed(range(rank)))
    two = node.attribute("perm") or list(reversed(range(rank)))
    if not one or len(one) != len(two):
        return None
    perm = [one[i] for i in two]
    node.set_input(0, source)
    node.set_attributes(perm=perm)
    return "Transpose of a Transpose made one"


@rule("Slice")
def slice_of_everything(node: Node) -> Value | None:
    value = node.input(0)
    if value is None:
        return None
    if node.version >= 10:
        starts, ends = integers(node.input(1)), integers(node.input(2))
        steps = integers(node.input(4)) if node.input(4) is not None else [1]
        axes = integers(node.input(3))
    else:
        starts, ends, steps = node.attribute("starts"), node.attribute("ends"), [1]
        axes = node.attribute("axes")
    if not steps or any(s != 1 for s in steps):
        return None
    if same_shape(value, node.output):
        return value
    if starts is None or ends is None or any(starts) or len(axes or ends) != len(ends):
        return None
    for i, end in enumerate(ends):
        if end < 1 << 31 and not _reaches_end(value, axes[i] if axes else i, end):
            return None
    return value if len(ends) == len(starts) else None


def _reaches_end(value: Value, axis: int, end: int) -> bool:
    if end == (1 << 31) - 1:
        return True
    shape = value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return False
    size = shape[axis]
    return isinstance(size, int) and end >= size


@rule("Pad")
def pad_by_nothing(node: Node) -> Value | None:
    pads = integers(node.input(1)) if node.version >= 11 else _old_pads(node)
    return node.input(0) if pads is not None and not any(pads) else None


def _old_pads(node: Node) -> list[int] | None:
    pads: list[int] | None = node.attribute("pads") or node.attribute("paddings")
    return pads


@rule("Dropout")
def dropout_at_inference(node: Node) -> Value | None:
    if node.version >= 12:
        training = node.input(2)
        if training is not None:
            flag = constant(training)
            if flag is None or flag.any():
                return None
    elif node.version < 7 and not node.attribute("is_test", 0):
        return None
    return node.input(0)


@rule("Concat", "Sum", "Max", "Min", "Mean")
def only_one_input(node: Node) -> Value | None:
    return node.input(0) if len(node.inputs) == 1 else None


@rule("Split")
def only_one_part(node: Node) -> Value | None:
    whole = len(node.outputs) == 1 and same_shape(node.input(0), node.output)
    return node.input(0) if whole else None


@rule("Expand")
def expand_by_ones(node: Node) -> Value | None:
    value, sizes = node.input(0), integers(node.input(1))
    if value is None or value.shape is None or sizes is None or len(sizes) > len(value.shape):
        return None
    return value if all(s == 1 for s in sizes) else None


@rule("Tile")
def tile_by_ones(node: Node) -> Value | None:
    repeats = integers(node.input(1)) if node.version >= 6 else None
    return node.input(0) if repeats is not None and all(r == 1 for r in repeats) else None


@rule("Mul", "Div", "Sub", "Add", "And", "Or")
def neutral_operand(node: Node) -> Value | None:
    """Operands that change nothing, not even the sign of a zero, and do not broadcast."""
    if node.version < 7:  # broadcasting is an attribute there
        return None
    for index, value in enumerate(node.inputs):
        other = node.input(1 - index)
        if (index == 1 or node.op not in ("Div", "Sub")) and _is_neutral(node.op, value):
            return other if _broadcasts_into(value, other, node.output) else None
    return None


def _is_neutral(op: str, value: Value | None) -> bool:
    array = constant(value)
    if array is None or not array.size or array.dtype == np.object_:
        return False
    if op in ("And", "Or"):
        return bool((array == (op == "And")).all())
    if op in ("Mul", "Div"):
        return bool((array == 1).all())
    if not bool((array == 0).all()):
        return False
    if value is None or value.dtype is None or value.dtype.is_integer:
        return value is not None and value.dtype is not None
    if not value.dtype.is_float:
        return False
    negative = bool(np.signbit(array.astype(np.float32)).all())
    positive = not bool(np.signbit(array.astype(np.float32)).any())
    return negative if op == "Add" else positive


def _broadcasts_into(value: Value | None, other: Value | None, output: Value) -> bool:
    if value is None or other is None or other.shape is None or value.shape is None:
        return False
    if len(value.shape) <= len(other.shape) and all(d == 1 for d in value.shape):
        return True
    return same_shape(other, output)
