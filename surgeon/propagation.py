"""Shapes that ONNX's inference loses, carried on through the commonest operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from polytool.arrays import MAX_SIZE
from polytool.surgeon.graph import Node
from polytool.surgeon.shape_values import Entry, Reader, dim, slice_bounds
from polytool.surgeon.types import Type, type_proto

_POINTWISE = frozenset(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast Ceil Celu Clip Cos
    Cosh CumSum Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity
    InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Log LogSoftmax
    LpNormalization LRN Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
    Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Trilu
    """.split()  # noqa: SIM905  # a list of so many strings is a page long
)
_BROADCASTING = frozenset(
    """
    Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu Sub
    Sum Where Xor
    """.split()  # noqa: SIM905  # a list of so many strings is a page long
)


def propagate(node: Node, read: Reader) -> None:
    """Carry symbols on where ONNX's inference loses them, so that one round sees them all."""
    known = node.output
    if known.type is not None and known.type.kind != "tensor":
        return
    shape = _shape_of(node, read)
    if shape is None or (known.shape is not None and len(known.shape) != len(shape)):
        return
    pairs = zip(shape, known.shape or shape, strict=True)
    refine(node, [b if isinstance(b, int) or a is None else a for a, b in pairs])


def _shape_of(node: Node, read: Reader) -> Sequence[Entry] | None:
    value = node.input(0)
    if value is None or value.shape is None or node.has_references:
        return None
    if node.domain:
        rule = _MICROSOFT.get(node.op) if node.domain == "com.microsoft" else None
        return rule(node, list(value.shape), read) if rule is not None else None
    if node.op in _POINTWISE:
        return value.shape
    if node.op in _BROADCASTING and node.version >= 7:
        return _broadcast([v.shape for v in node.inputs if v is not None])
    rule = _RULES.get(node.op)
    return rule(node, list(value.shape), read) if rule is not None else None


def refine(node: Node, shape: Sequence[Entry]) -> None:
    """Note what is known of the shape of a node's first output."""
    value, workspace = node.output, node.where.workspace
    shape = [None if isinstance(d, int) and not 0 <= d <= MAX_SIZE else d for d in shape]
    dtype = value.dtype
    if dtype is None and node.domain == "com.microsoft" and node.inputs[0] is not None:
        dtype = node.inputs[0].dtype  # true of all that have a rule
    if dtype is None or (value.dtype is not None and value.shape == tuple(shape)):
        return
    value.type = Type("tensor", dtype, tuple(shape), type_proto(dtype, tuple(shape)))
    if value not in workspace.refined:
        workspace.refined[value] = None
        workspace.refinements += 1


def _broadcast(shapes: Sequence[Sequence[Entry] | None]) -> Sequence[Entry] | None:
    """The shape of an elementwise result, where one operand is as large as it."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes) or not known:
        return None
    largest = max(known, key=len)
    if all(s == largest or not any(d != 1 for d in s) for s in known):
        return largest
    result: list[Entry] = []
    for axis in range(-len(largest), 0):
        sizes = {s[axis] for s in known if len(s) >= -axis} - {1}
        if len(sizes) > 1:
            # min(n, k) stretches to n, and n never to it: where n is 1, both are.
            sizes -= {m for m in sizes if any(str(m).startswith(f"min({n}, ") for n in sizes)}
        result.append(sizes.pop() if len(sizes) == 1 else None if sizes else 1)
    return result


def _reshape(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    found = read(node.input(1))
    if found is None:
        return None
    shape = list(found.entries)
    if not node.attribute("allowzero", 0):
        shape = [(have[i] if i < len(have) else None) if e == 0 else e for i, e in enumerate(shape)]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = remaining(list(have), [e for e in shape if e != -1])
    return shape


def _slice(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    """Sizes after slicing from the front up to a symbol."""
    bounds = slice_bounds(node, read)
    if bounds is None:
        return None
    for axis, start, end, step in bounds:
        if not -len(have) <= axis < len(have):
            return None
        size = have[axis]
        if start == 0 and step == 1 and isinstance(end, str):
            have[axis] = end if size == end else f"min({end}, {size})" if size else None
        else:
            have[axis] = dim(node.output, axis)
    return have


def _transpose(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    perm = node.attribute("perm") or list(range(len(have)))[::-1]
    return [have[i] for i in perm] if sorted(perm) == list(range(len(have))) else None


def _gemm(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    other = node.input(1)
    if other is None or other.shape is None or len(have) != 2 or len(other.shape) != 2:
        return None
    rows = have[1 if node.attribute("transA", 0) else 0]
    return [rows, other.shape[0 if node.attribute("transB", 0) else 1]]


def _matmul(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    other = node.input(1)
    if other is None or other.shape is None or len(have) < 2 or len(other.shape) < 2:
        return None
    batch = _broadcast([have[:-2], other.shape[:-2]])
    return None if batch is None else [*batch, have[-2], other.shape[-1]]


def _recurrent(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    shape = node.output.shape
    if shape is None or len(shape) != 4 or len(have) != 3 or node.attribute("layout", 0):
        return None
    return [have[0], shape[1], have[1], shape[3]]


def _axes(node: Node, read: Reader, rank: int) -> set[int] | None:
    axes = read.numbers(node.input(1)) if node.version >= 13 else node.attribute("axes")
    return {a % rank for a in axes} if axes and all(-rank <= a < rank for a in axes) else None


def _unsqueeze(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    shape = node.output.shape
    axes = _axes(node, read, len(shape)) if shape else None
    if not shape or axes is None or len(axes) + len(have) != len(shape):
        return None
    rest = iter(have)
    return [1 if i in axes else next(rest) for i in range(len(shape))]


def _squeeze(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    axes = _axes(node, read, len(have)) if have else None
    return None if axes is None else [d for i, d in enumerate(have) if i not in axes]


def _gather(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    indices, axis = node.input(1), node.attribute("axis", 0)
    if indices is None or indices.shape is None or not -len(have) <= axis < len(have):
        return None
    axis %= len(have)
    return [*have[:axis], *indices.shape, *have[axis + 1 :]]


def _concat(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    axis = node.attribute("axis", 0)
    if not -len(have) <= axis < len(have):
        return None
    have[axis] = dim(node.output, axis)
    return have


def _expand(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    found = read(node.input(1))
    return None if found is None else _broadcast([have, found.entries])


def _conv(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    shape = node.output.shape
    return None if shape is None or not have else [have[0], *shape[1:]]


def remaining(have: list[Entry], taken: list[Entry]) -> Entry:
    """What -1 stands for: the quotient, after symbols on both sides have cancelled."""
    for symbol in [e for e in taken if isinstance(e, str)]:
        if symbol in have:  # as often as both have it
            have.remove(symbol)
            taken.remove(symbol)
    sizes = [e for e in taken if isinstance(e, int)]
    if None in have or len(sizes) < len(taken):
        return None
    symbols = [e for e in have if isinstance(e, str)]
    total = math.prod(e for e in have if isinstance(e, int))
    if not symbols:
        size = total // math.prod(sizes) if math.prod(sizes) else None
        return size if size is None or 0 <= size <= MAX_SIZE else None
    return symbols[0] if len(symbols) == 1 and total == math.prod(sizes) else None


def _unchanged(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    return have


def _quantized_lstm(node: Node, have: list[Entry], read: Reader) -> Sequence[Entry] | None:
    weights = node.input(2)
    if weights is None or weights.shape is None or len(weights.shape) != 3 or len(have) != 3:
        return None
    return [have[0], weights.shape[0], have[1], weights.shape[1]]


Rule: TypeAlias = Callable[[Node, list[Entry], Reader], "Sequence[Entry] | None"]
_MICROSOFT: dict[str, Rule] = {
    "BiasGelu": _unchanged,
    "DynamicQuantizeLSTM": _quantized_lstm,
    "FastGelu": _unchanged,
    "Gelu": _unchanged,
    "QuickGelu": _unchanged,
    "SimplifiedLayerNormalization": _unchanged,
    "SkipLayerNormalization": _unchanged,
    "SkipSimplifiedLayerNormalization": _unchanged,
}
_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Conv": _conv,
    "ConvInteger": _conv,
    "DequantizeLinear": _unchanged,
    "DynamicQuantizeLinear": _unchanged,
    "Expand": _expand,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QuantizeLinear": _unchanged,
    "RNN": _recurrent,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
