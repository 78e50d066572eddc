"""A normalisation and the product that reads it, in one kernel.

With d the deviation of a row of x, and the mean of the rows of `scale * W` taken off beforehand,
`LayerNormalization(x) W = x (scale W - mean) / d + shift W`: of x only d is needed besides.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from polytool.backends.native.cuda.epilogues import epilogue_of
from polytool.backends.native.cuda.normalized import moments_of, normalized_product
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.gemm import Matrix
from polytool.backends.native.kernels.row_moments import PART, RowNorm
from polytool.backends.native.network import Constant, Layer, Node
from polytool.errors import UnsupportedError
from polytool.tensors import DType

Array = np.ndarray[Any, Any]
_CHOICE, _FEW = 192, 48  # elements of a row of weights that may be rounded the other way, and are


@lowering("norm_gemm")
def norm_gemm(rec: Recorder, layer: Layer) -> None:
    """One kernel where the matrix is large, else the two layers that it was."""
    try:
        with rec.attempt():
            _together(rec, layer)
    except UnsupportedError:
        _apart(rec, layer)


def _apart(rec: Recorder, layer: Layer) -> None:
    norm, product, *rest = layer.nodes
    (normalized,) = norm.writes()
    rec.shapes.node(norm)
    between = rec.temporary(normalized.dtype, rec.shape(normalized), normalized.name)
    rec.lower(Layer.single(dataclasses.replace(norm, outputs=[between])))
    product = dataclasses.replace(product, inputs=[between, *product.inputs[1:]])
    rec.lower(Layer("gemm", [product, *rest], layer.outputs))


def _together(rec: Recorder, layer: Layer) -> None:
    norm, product, *rest = layer.nodes
    x, (output,) = given(norm, 0), layer.outputs
    rows = rec.dense(rec.view(x))
    weights = _Weights.of(norm, product)
    n, k = weights.shape
    if rows.shape[-1] != k or k % PART:
        raise UnsupportedError("rows that are not measured in parts")
    bias = product.inputs[2].constant if len(product.inputs) > 2 and product.inputs[2] else None
    if bias is None and (bias := _bias(rest, n)) is not None:
        rest = [_replaced(node, rest[0], product) for node in rest[1:]]
        if not rest:
            product = dataclasses.replace(product, outputs=[output])
    if bias is not None and bias.size not in (1, n):
        raise UnsupportedError("something else than a vector is added to the product")
    key = (weights, bias)
    added = rec.temporary(DType.FLOAT, (n,), f"{output.name}:shift")
    rec.define(added, rec.constant(lambda: weights.shift(bias), (n,), DType.FLOAT, ("shift", key)))
    epilogue, views = epilogue_of(
        rec, Layer("gemm", [product, *rest], [output]), added, len(rec.shape(output)) - 1, None
    )
    packed = rec.constant(weights.packed, (n, k), rows.dtype, ("normalized", weights))
    factor = rec.constant(weights.factor, (1,), DType.FLOAT, ("factor", weights))
    operation = RowNorm.of(k, float(norm.attrs.get("epsilon", 1e-5)), weights.centred)
    problem = Matrix(rows.count // k, n, k)
    operands = [rows, packed, *views, moments_of(rec, x), factor, rec.output(output)]
    normalized_product(rec, epilogue, problem, operation, operands)


def _bias(nodes: list[Node], columns: int) -> Constant | None:
    """The constant vector that the first of the nodes adds."""
    if not nodes or nodes[0].op != "Add":
        return None
    found = [t.constant for t in nodes[0].inputs if t is not None and t.constant is not None]
    vector = len(found) == 1 and found[0].size == columns == found[0].shape[-1]
    return found[0] if vector else None


def _replaced(node: Node, gone: Node, product: Node) -> Node:
    """`node` reading the product where it read what `gone` made of it."""
    (old,), (new,) = gone.writes(), product.writes()
    return dataclasses.replace(node, inputs=[new if t is old else t for t in node.inputs])


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The constants of a normalisation and of the product behind it.

    Attributes:
        product: the matrix [k, n], or [n, k] where it is `turned`.
        scale, offset: of the normalisation, k elements each.
        centred: whether it takes off the mean.
    """

    product: Constant
    scale: Constant
    offset: Constant | None
    centred: bool
    turned: bool

    @classmethod
    def of(cls, norm: Node, product: Node) -> _Weights:
        """Those of the two nodes.

        Raises:
            UnsupportedError: they are computed, or are no matrix and vectors.
        """
        _, scale, offset, *_ = [*norm.inputs, None]
        found = [None if t is None else t.constant for t in (product.inputs[1], scale, offset)]
        matrix, factors, shifts = found
        centred = norm.op == "LayerNormalization"
        if matrix is None or factors is None or (shifts is None and offset is not None):
            raise UnsupportedError("a normalisation or a product with computed weights")
        vectors = [c for c in (factors, shifts) if c is not None]
        turned = bool(product.attrs.get("transB", 0))
        if len(matrix.shape) != 2 or any(c.size != matrix.shape[turned] for c in vectors):
            raise UnsupportedError("a normalisation of other axes than the product's")
        return cls(matrix, factors, shifts, centred, turned)

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and depth of the product."""
        rows, columns = self.product.shape
        return (rows, columns) if self.turned else (columns, rows)

    def packed(self) -> Array:
        """[n, k] in the type of the product's weights, times a power of two."""
        exact = self._exact() / self._power()
        rounded = exact.astype(self.product.dtype.numpy)
        return _balanced(exact, rounded) if self.centred else rounded

    def factor(self) -> Array:
        """What the products of `packed` are to be multiplied with."""
        return np.array([self._power()], np.float32)

    def shift(self, bias: Constant | None) -> Array:
        """What the product of the normalised rows adds, [n]."""
        total = np.zeros(self.shape[0], np.float32)
        if self.offset is not None:
            total += self._matrix() @ _wide(self.offset).reshape(-1)
        if bias is not None:
            total += _wide(bias).reshape(-1)
        return total

    def _matrix(self) -> Array:
        wide = _wide(self.product)
        return wide if self.turned else wide.T

    def _exact(self) -> Array:
        weights = self._matrix() * _wide(self.scale).reshape(-1)
        if self.centred:
            weights -= weights.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        return weights

    def _power(self) -> float:
        """Of two: the largest element becomes at most one, so that few are subnormal."""
        largest = float(np.abs(self._exact()).max(initial=0.0))
        return 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0


def _wide(constant: Constant) -> Array:
    return np.asarray(constant.array()).astype(np.float32)


def _balanced(exact: Array, rounded: Array) -> Array:
    """`rounded` with a few elements rounded the other way, so that its rows sum to nothing again.

    A row of equal values has to give zero, which its small deviation would make large otherwise.
    """
    some = np.s_[:, :: max(1, exact.shape[1] // _CHOICE)]
    total = rounded.sum(1, keepdims=True, dtype=np.float32)
    here = rounded[some]
    error = here.astype(np.float32) - exact[some]
    other = np.nextafter(here, np.where(error > 0, -np.inf, np.inf).astype(here.dtype))
    step = other.astype(np.float32) - here.astype(np.float32)
    helps = step * total < 0
    nearness = np.divide(error, -step, out=np.zeros_like(error), where=helps)
    few = min(_FEW, here.shape[1])
    chosen = np.argpartition(-nearness, few - 1, axis=1)[:, :few]
    steps = np.take_along_axis(np.where(helps, step, 0), chosen, 1)
    chosen = np.take_along_axis(chosen, np.argsort(-np.abs(steps), axis=1), 1)
    steps = np.take_along_axis(np.where(helps, step, 0), chosen, 1)
    taken = np.zeros(steps.shape, bool)
    for i in range(few):  # the largest first
        taken[:, i] = np.abs(steps[:, i]) <= np.abs(total[:, 0])
        total[:, 0] += np.where(taken[:, i], steps[:, i], 0)
    both = (np.take_along_axis(values, chosen, 1) for values in (other, here))
    np.put_along_axis(here, chosen, np.where(taken, *both), 1)
    return rounded
