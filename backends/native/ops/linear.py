"""Matrix products, Einstein sums and determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, Node, flops, op, shape, upgrade

Dims = tuple[int, ...]


@op("MatMul", since=1)
def mat_mul(xp: Any, a: Array, b: Array) -> Array:
    """The matrix product of the last two axes, as `numpy.matmul`; integers wrap around."""
    return xp.asarray(xp.matmul(a, b))


@shape("MatMul")
def mat_mul_shape(a: Arg, b: Arg) -> Dims:
    """Broadcast batch dimensions, rows of `a`, columns of `b`."""
    return product_shape(a.shape, b.shape)


@flops("MatMul")
def mat_mul_flops(a: Arg, b: Arg, *, outputs: Sequence[Dims]) -> int:
    """Two for each element of the output and of the contracted axis."""
    return 2 * math.prod(outputs[0]) * a.shape[-1]


def product_shape(a: Dims, b: Dims) -> Dims:
    """The shape of `matmul` for operands of these shapes."""
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return np.broadcast_shapes(a[:-2], b[:-2]) + rows + columns


@op("Gemm", since=7)
def gemm(
    xp: Any,
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """`alpha * a' b' + beta * c`, where `a'` and `b'` may be transposed."""
    y = xp.matmul(a.T if transA else a, b.T if transB else b)
    if alpha != 1:
        y = (y * alpha).astype(a.dtype, copy=False)
    if c is None or beta == 0:
        return y
    if beta != 1:
        c = (c * beta).astype(c.dtype, copy=False)
    y += c
    return y


@shape("Gemm")
def gemm_shape(
    a: Arg,
    b: Arg,
    c: Arg | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Dims:
    """Rows of `a'`, columns of `b'`."""
    return a.shape[1 if transA else 0], b.shape[0 if transB else 1]


@flops("Gemm")
def gemm_flops(
    a: Arg, b: Arg, c: Arg | None = None, *, transA: int = 0, outputs: Sequence[Dims], **_: Any
) -> int:
    """Two for each element of the output and of the contracted axis."""
    return 2 * math.prod(outputs[0]) * a.shape[0 if transA else 1]


@upgrade("Gemm", since=1)
def gemm_always_broadcasts(node: Node) -> Node:
    """Before version 7 an attribute allowed `c` to broadcast."""
    return node.raised(attrs=node.without("broadcast"))


@op("Det", since=11)
def det(xp: Any, x: Array) -> Array:
    """The determinant of the matrices in the last two axes."""
    return xp.asarray(xp.linalg.det(x))


@shape("Det")
def det_shape(x: Arg) -> Dims:
    """The batch dimensions."""
    return x.shape[:-2]


@op("Einsum", since=12)
def einsum(xp: Any, *inputs: Array, equation: str) -> Array:
    """The Einstein sum; two operands become one batched matrix product."""
    operands, result = labels(equation, tuple(x.ndim for x in inputs))
    if len(inputs) != 2:
        spelled = f"{','.join(operands)}->{result}"
        return xp.asarray(xp.einsum(spelled, *inputs, optimize=len(inputs) > 2))
    plan = contraction(*operands, result)
    a = _reduced(xp, inputs[0], operands[0], plan.left)
    b = _reduced(xp, inputs[1], operands[1], plan.right)
    return _contract(xp, a, b, plan)


@shape("Einsum")
def einsum_shape(*inputs: Arg, equation: str) -> Dims:
    """One dimension a label of the result."""
    operands, result = labels(equation, tuple(len(x.shape) for x in inputs))
    sizes = _sizes(operands, [x.shape for x in inputs])
    return tuple(sizes[c] for c in result)


@flops("Einsum")
def einsum_flops(*inputs: Arg, equation: str, outputs: Sequence[Dims]) -> int:
    """As many as the direct sum over all labels takes: one product an operand and one sum."""
    operands, _ = labels(equation, tuple(len(x.shape) for x in inputs))
    sizes = _sizes(operands, [x.shape for x in inputs])
    return len(inputs) * math.prod(sizes.values())


def _sizes(operands: Sequence[str], dims: Sequence[Dims]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for labels, lengths in zip(operands, dims, strict=True):
        for label, length in zip(labels, lengths, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = length
    return sizes


@lru_cache(maxsize=256)
def labels(equation: str, ranks: tuple[int, ...]) -> tuple[tuple[str, ...], str]:
    """One label an axis for each operand and the result, with ellipses spelled out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [chr(c) for c in range(0x61, 0x7B)] + [chr(c) for c in range(0x41, 0x5B)]
    spare = [c for c in spare if c not in equation]
    longest = max(
        (rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)), default=0
    )
    dots = "".join(spare[:longest])
    operands = []
    for term, rank in zip(terms, ranks, strict=True):
        covered = rank - len(term.replace("...", ""))
        operands.append(term.replace("...", dots[len(dots) - covered :]))
    if not arrow:
        named = left.replace(",", "").replace("...", "")
        right = "..." if "..." in left else ""
        right += "".join(sorted(c for c in set(named) if named.count(c) == 1))
    return tuple(operands), right.replace("...", dots)


@dataclass(frozen=True)
class Contraction:
    """A sum over two operands as a batched matrix product.

    Attributes:
        left, right: each operand's labels in the order in which it enters the product, without
            repeated ones and those that only it has and that are summed.
        batch, rows, inner, columns: how many labels of each kind; `left` is batch, rows, inner,
            `right` is batch, inner, columns.
        order: the permutation from batch, rows, columns to the result.
    """

    left: str
    right: str
    batch: int
    rows: int
    inner: int
    columns: int
    order: tuple[int, ...]


@lru_cache(maxsize=256)
def contraction(a: str, b: str, result: str) -> Contraction:
    batch = "".join(c for c in result if c in a and c in b)
    rows = "".join(c for c in result if c in a and c not in b)
    columns = "".join(c for c in result if c in b and c not in a)
    inner = "".join(dict.fromkeys(c for c in a if c in b and c not in result))
    product = batch + rows + columns
    return Contraction(
        batch + rows + inner,
        batch + inner + columns,
        *(len(batch), len(rows), len(inner), len(columns)),
        tuple(product.index(c) for c in result),
    )


def _reduced(xp: Any, x: Array, labels: str, wanted: str) -> Array:
    """`x` with diagonals taken, private labels summed and axes in the order `wanted`."""
    if len(labels) == len(wanted):
        return x.transpose([labels.index(c) for c in wanted])
    return xp.einsum(f"{labels}->{wanted}", x)


def _contract(xp: Any, a: Array, b: Array, plan: Contraction) -> Array:
    n, rows = plan.batch, plan.rows
    inner_a, inner_b = a.shape[n + rows :], b.shape[n : n + plan.inner]
    if inner_a != inner_b:  # a length of one broadcasts
        inner = np.broadcast_shapes(inner_a, inner_b)
        a = xp.broadcast_to(a, a.shape[: n + rows] + inner)
        b = xp.broadcast_to(b, b.shape[:n] + inner + b.shape[n + plan.inner :])
        inner_a = inner
    left, right = a.shape[n : n + rows], b.shape[n + plan.inner :]
    width = math.prod(inner_a)
    product = xp.matmul(
        a.reshape((*a.shape[:n], math.prod(left), width)),
        b.reshape((*b.shape[:n], width, math.prod(right))),
    )
    result = product.reshape((*product.shape[:n], *left, *right))
    return result if plan.order == tuple(range(result.ndim)) else result.transpose(plan.order)
