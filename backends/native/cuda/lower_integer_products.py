"""Products of 8-bit integers on tensor cores."""

from __future__ import annotations

import math

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.gemm import Matrix, candidates
from polytool.backends.native.network import Constant, Layer, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_INT = DType.INT32
# what an unsigned number minus 128 is as a signed one
_SHIFT = {DType.UINT8: 128, DType.INT8: 0}
_CORRECTED = Epilogue(
    Tree((_INT, _INT, _INT), (Step.of("Mul", 1, 2, dtype=_INT), Step.of("Sub", 0, 3, dtype=_INT))),
    ("column", "scalar"),
)
"""The sum, minus the column's sum of weights times the zero point of the rows."""


@lowering("MatMulInteger")
def matmul_integer(rec: Recorder, layer: Layer) -> None:
    """Constant weights whose zero point is the middle of their type; rows with one zero point."""
    node, (output,) = layer.nodes[0], layer.outputs
    a, w = rec.view(given(node, 0)), given(node, 1)
    zero_a, zero_w = [*node.inputs[2:], None, None][:2]
    if len(layer.nodes) > 1 or len(a.shape) < 2 or a.dtype not in _SHIFT:
        raise UnsupportedError("an integer product with an epilogue, or of a vector")
    weights = _centred_weights(w, zero_w)
    k, n = weights.shape
    problem = Matrix(math.prod(a.shape[:-1]), n, k)
    found = candidates(DType.INT8, _CORRECTED, problem)
    plans = [gemm.plan(problem, split) for gemm, split in found if split == 1]
    if not plans or (zero_a is not None and rec.view(zero_a).count != 1):
        raise UnsupportedError("no tile shape fits the integer product")
    shift = _SHIFT[weights.dtype]

    def columns() -> np.ndarray:
        return np.ascontiguousarray((weights.array().astype(np.int16) - shift).astype(np.int8).T)

    def sums() -> np.ndarray:
        centred = weights.array().astype(np.int32) - shift
        return np.asarray(centred.sum(axis=0, dtype=np.int32))

    views = [
        _signed_rows(rec, a),
        rec.constant(columns, (n, k), DType.INT8, (weights, "int8 columns")),
        rec.constant(sums, (n,), _INT, (weights, "column sums")),
        _zero_point(rec, zero_a, _SHIFT[a.dtype]),
        rec.output(output),
    ]
    rec.launch(plans, views, signature=f"integer gemm {problem!r}")


def _centred_weights(w: Tensor, zero: Tensor | None) -> Constant:
    constant = w.constant
    if constant is None or len(constant.shape) != 2 or constant.dtype not in _SHIFT:
        raise UnsupportedError("integer weights that are computed")
    if zero is not None and zero.constant is None:
        raise UnsupportedError("weights whose zero point is computed")
    middle = 0 if zero is None or zero.constant is None else zero.constant.array().astype(np.int64)
    if np.any(middle != _SHIFT[constant.dtype]):
        raise UnsupportedError("weights whose zero point is not the middle of their type")
    return constant


def _signed_rows(rec: Recorder, a: View) -> View:
    if a.dtype is DType.INT8:
        return rec.dense(a)
    rows = View.new(DType.INT8, a.shape)
    compute(
        rec, "signed_rows", (a.count,), {"x": rec.dense(a).reshaped((a.count,)) or a},
        {"y": rows}, "y[unit] = (signed char)((int)x[unit] - 128);",
    )  # fmt: skip
    return rows


def _zero_point(rec: Recorder, zero: Tensor | None, shift: int) -> View:
    result = View.new(_INT, ())
    views = {} if zero is None else {"zero": rec.view(zero)}
    value = "0" if zero is None else "(int)zero[0]"
    compute(rec, "zero_point", (), views, {"y": result}, f"y[unit] = {value} - {shift};")
    return result
