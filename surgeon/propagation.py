"""Shapes that ONNX's inference loses, carried on through the commonest operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

from polytool.surgeon.graph import Node
from polytool.surgeon.shape_values import Entry, Reader, dim
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
    shape: Sequence[Entry] | None = None
    if node.op in _POINTWISE:
        value = node.input(0)
        shape = value.shape if value is not None else None
    elif node.op in _BROADCASTING and node.version >= 7:
        shape = _broadcast([v.shape for v in node.inputs if v is not None])
    elif node.op == "Reshape":
        shape = _reshaped(node, read)
    known = node.output
    if shape is None or known.dtype is None or (known.type and known.type.kind != "tensor"):
        return
    if known.shape is None or (len(known.shape) == len(shape) and known.shape != tuple(shape)):
        best = tuple(
            b if isinstance(b, int) or a is None else a
            for a, b in zip(shape, known.shape or shape, strict=True)
        )
        known.type = Type("tensor", known.dtype, best, type_proto(known.dtype, best))


def _broadcast(shapes: Sequence[Sequence[Entry] | None]) -> Sequence[Entry] | None:
    """The shape of an elementwise result, where one operand is as large as it."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes) or not known:
        return None
    rank = max(map(len, known))
    result: list[Entry] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in known if len(s) >= -axis} - {1}
        result.append(sizes.pop() if len(sizes) == 1 else None if sizes else 1)
    return result


def _reshaped(node: Node, read: Reader) -> Sequence[Entry] | None:
    value, found = node.input(0), read(node.input(1))
    if value is None or value.shape is None or found is None or node.attribute("allowzero", 0):
        return None
    shape = [dim(value, i) if e == 0 else e for i, e in enumerate(found.entries)]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = _rest(list(value.shape), [e for e in shape if e != -1])
    return shape


def _rest(have: list[Entry], taken: list[Entry]) -> Entry:
    """What -1 stands for: the quotient, after symbols on both sides have cancelled."""
    for symbol in [e for e in taken if isinstance(e, str) and e in have]:
        have.remove(symbol)
        taken.remove(symbol)
    sizes = [e for e in taken if isinstance(e, int)]
    if None in have or len(sizes) < len(taken):
        return None
    symbols = [e for e in have if isinstance(e, str)]
    total = math.prod(e for e in have if isinstance(e, int))
    if not symbols:
        return total // math.prod(sizes) if math.prod(sizes) else None
    return symbols[0] if len(symbols) == 1 and total == math.prod(sizes) else None
