"""Operators that compute each row of their result from one row of each operand, or from the whole.

A row is what is left of a tensor where one axis is cut down to one element. `rows_read` says along
which axis of each input the same row is enough.

Covered: pointwise operators, (Skip)LayerNormalization and RMSNormalization behind the axis, MatMul,
FusedMatMul, Gemm, MatMulNBits, Softmax, Concat, Split, Slice and Gather along another axis,
Transpose, Reshape, Squeeze and Unsqueeze that keep the axis apart, quantisation with one scale, and
the queries of Attention and MultiHeadAttention. Refused: everything whose operands have unknown
ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from polytool.backends.native.network import Node, Tensor
from polytool.tensors import Shape

Axes = list[int | None]
"""For each input the axis along which one row is read; None where all of it is."""

PRODUCTS = frozenset({
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Attention", "MultiHeadAttention",
})  # fmt: skip
_LIKE_SUM = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})


def rows_read(node: Node, axis: int) -> Axes | None:
    """Which axis of each input has to be cut down for a result that is cut down along `axis`.

    Args:
        node: an operator; all its results that are used are cut down alike.
        axis: of its first result, from 0.

    Returns:
        None where a row depends on more than that, or ranks are not known.
    """
    if node.bodies or node.outputs[0] is None:
        return None
    operator, rule = node.operator, _RULES.get(node.op)
    if rule is None and operator is not None and operator.pointwise:
        rule = _pointwise
    used = node.inputs[:1] if node.op in _SHAPED else node.inputs
    tensors = [t for t in (node.outputs[0], *used) if t is not None]
    if rule is None or any(shape_of(t) is None or t.container != "tensor" for t in tensors):
        return None
    if axis >= _rank(node) or not len(_shapes(node)[0]):  # what a broken model says of its ranks
        return None
    axes = rule(node, axis)
    fits = axes is not None and all(
        own is None or 0 <= own < len(shape) for own, shape in zip(axes, _shapes(node), strict=True)
    )
    return axes if fits else None


def same_rows(node: Node, tensor: Tensor) -> bool:
    """Whether an output has the rows of the first one."""
    if tensor is node.outputs[0] or node.op == "Split":
        return True
    return node.op in _LIKE_SUM and len(node.outputs) > 3 and tensor is node.outputs[3]


def shape_of(tensor: Tensor | None) -> Shape | None:
    """The dimensions as far as they are known; None for an unknown rank."""
    if tensor is None:
        return None
    return tensor.constant.shape if tensor.constant is not None else tensor.shape


def integers(tensor: Tensor | None) -> list[int] | None:
    """The elements of a constant of integers, else None."""
    if tensor is None or tensor.constant is None:
        return None
    array = np.asarray(tensor.constant.array())
    return [int(n) for n in array.reshape(-1)] if array.dtype.kind in "iu" else None


def row_of_reshape(node: Node, axis: int, own: int) -> list[int] | None:
    """The shape to which a Reshape takes the one row; None where that is not known.

    Args:
        node: the Reshape.
        axis: of its result.
        own: the same axis of its operand.
    """
    target, given = _shape(node.outputs[0]), integers(node.inputs[1])
    if given is not None and len(given) == len(target):
        copied = 0 in [n for i, n in enumerate(given) if i == own != axis]
        return None if copied else [*given[:axis], 1, *given[axis + 1 :]]
    dims = [d if isinstance(d, int) else -1 for d in target]
    dims[axis] = 1
    return dims if dims.count(-1) <= 1 else None


def _shape(tensor: Tensor | None) -> Shape:
    shape = shape_of(tensor)
    assert shape is not None
    return shape


def _shapes(node: Node) -> list[Shape]:
    return [shape_of(t) or () for t in node.inputs]


def _rank(node: Node) -> int:
    return len(_shape(node.outputs[0]))


def _along(tensor: Tensor | None, rank: int, axis: int) -> int | None:
    """The axis of an operand that broadcasts to `rank` dimensions; None where it has none there.

    The first and the last row of an operand of one row are that row: what models say of sizes need
    not be believed.
    """
    if tensor is None:
        return None
    shape = _shape(tensor)
    own = axis - (rank - len(shape))
    single = tensor.constant is not None and own >= 0 and shape[own] == 1
    return own if own >= 0 and not single else None


def _pointwise(node: Node, axis: int) -> Axes | None:
    rank = _rank(node)
    return [_along(t, rank, axis) for t in node.inputs]


def _product(node: Node, axis: int) -> Axes | None:
    if any(node.attrs.get(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        return None
    (a, b), rank = _shapes(node), _rank(node)
    if min(len(a), len(b)) < 2 or axis == rank - 1:
        return None
    if axis == rank - 2:
        return [len(a) - 2, None]
    return [_along(t, rank, axis) for t in node.inputs]


def _gemm(node: Node, axis: int) -> Axes | None:
    if axis != 0 or node.attrs.get("transA", 0):
        return None
    return [0, None, *(_along(t, 2, 0) for t in node.inputs[2:])]


def _quantised_weights(node: Node, axis: int) -> Axes | None:
    return [axis, *(None for _ in node.inputs[1:])] if axis != _rank(node) - 1 else None


def _normalization(node: Node, axis: int) -> Axes | None:
    rank = _rank(node)
    if axis >= int(node.attrs.get("axis", -1)) % rank:
        return None
    return _pointwise(node, axis)


def _skip_normalization(node: Node, axis: int) -> Axes | None:
    return _pointwise(node, axis) if axis != _rank(node) - 1 else None


def _softmax(node: Node, axis: int) -> Axes | None:
    other = int(node.attrs.get("axis", -1)) % _rank(node)
    return [axis] if node.version >= 13 and axis != other else None


def _concat(node: Node, axis: int) -> Axes | None:
    joined = int(node.attrs["axis"]) % _rank(node)
    return [axis] * len(node.inputs) if axis != joined else None


def _split(node: Node, axis: int) -> Axes | None:
    if axis == int(node.attrs.get("axis", 0)) % _rank(node):
        return None
    return [axis, *(None for _ in node.inputs[1:])]


def _slice(node: Node, axis: int) -> Axes | None:
    axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or axis in [a % _rank(node) for a in axes]:
        return None
    return [axis, *(None for _ in node.inputs[1:])]


def _gather(node: Node, axis: int) -> Axes | None:
    source, index = _shapes(node)
    where = int(node.attrs.get("axis", 0)) % len(source)
    if where <= axis < where + len(index):
        return None
    return [axis if axis < where else axis - len(index) + 1, None]


def _transpose(node: Node, axis: int) -> Axes | None:
    perm = node.attrs.get("perm") or list(range(_rank(node)))[::-1]
    return [int(perm[axis])] if axis < len(perm) else None


def _squeeze(node: Node, axis: int) -> Axes | None:
    axes, rank = integers(node.inputs[1]) if len(node.inputs) > 1 else None, len(_shapes(node)[0])
    if axes is None:
        return None
    gone = {a % rank for a in axes}
    kept = [i for i in range(rank) if i not in gone]
    return [kept[axis], None] if axis < len(kept) else None


def _unsqueeze(node: Node, axis: int) -> Axes | None:
    axes = integers(node.inputs[1])
    if axes is None:
        return None
    new = {a % _rank(node) for a in axes}
    return [axis - sum(a < axis for a in new), None] if axis not in new else None


def _reshape(node: Node, axis: int) -> Axes | None:
    """The number of elements is one, so that of three parts two that are equal are enough."""
    source, target = _shape(node.inputs[0]), _shape(node.outputs[0])
    for own in range(len(source)):
        before = _equal(source[:own], target[:axis])
        behind = _equal(source[own + 1 :], target[axis + 1 :])
        here = source[own] is not None and source[own] == target[axis]
        if before + behind + here >= 2 and row_of_reshape(node, axis, own) is not None:
            return [own, None]
    return None


def _equal(a: Sequence[int | str | None], b: Sequence[int | str | None]) -> bool:
    """Whether two products of dimensions are surely equal."""
    if None in a or None in b:
        return False
    sizes = [int(np.prod([d for d in dims if isinstance(d, int)], dtype=object)) for dims in (a, b)]
    symbols = [Counter(d for d in dims if isinstance(d, str)) for dims in (a, b)]
    return sizes[0] == sizes[1] and symbols[0] == symbols[1]


def _quantisation(node: Node, axis: int) -> Axes | None:
    one = all(shape_of(t) in ((), (1,)) for t in node.inputs[1:] if t is not None)
    return [axis, *(None for _ in node.inputs[1:])] if one else None


def _attention(node: Node, axis: int) -> Axes | None:
    """Other queries, other rows of the mask; keys and values stay."""
    rank, attrs = _rank(node), node.attrs
    windows = [attrs.get(f"{side}_window_size", -1) for side in ("left", "right")]
    if node.domain != "" or attrs.get("is_causal", 0) or windows != [-1, -1]:
        return None
    if axis != rank - 2 or any(t is not None for t in node.inputs[4:]):
        return None
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    return [axis, None, None, *([_along(mask, 4, 2)] if len(node.inputs) > 3 else [])]


def _multi_head_attention(node: Node, axis: int) -> Axes | None:
    """On (batch, length, width), without a cache."""
    query, key, value, _, padding, added, *caches = (*node.inputs, *[None] * 6)[:10]
    if axis != 1 or key is None or value is None or any(t is not None for t in caches):
        return None
    if node.attrs.get("unidirectional", 0) or len(_shape(query)) != 3:
        return None
    if padding is not None and len(_shape(padding)) > 2:
        return None
    axes = [1, None, None, None, None, _along(added, 4, 2)]
    return axes[: len(node.inputs)] + [None] * (len(node.inputs) - 6)


_SHAPED = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Slice", "Split"})  # by what is on the host
_RULES: dict[str, Callable[[Node, int], Axes | None]] = {
    **dict.fromkeys(("MatMul", "FusedMatMul"), _product),
    **dict.fromkeys(("Gemm", "FusedGemm"), _gemm),
    "MatMulNBits": _quantised_weights,
    "LayerNormalization": _normalization,
    "RMSNormalization": _normalization,
    "SimplifiedLayerNormalization": _normalization,
    **dict.fromkeys(_LIKE_SUM, _skip_normalization),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantisation),
    "Identity": lambda _, axis: [axis],
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}
