"""MatMul, Gemm and FusedMatMul with a constant right operand and their epilogue, on float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.epilogue import Epilogue
from polytool.backends.native.tactics.gemm_plans import ConstantMatrix
from polytool.backends.native.tactics.lowering import FLOAT, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant

Array = np.ndarray[Any, Any]


class Gemm(Tactic):
    """A matrix of activations times a matrix of weights."""

    name = "numpy.gemm"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        node = layer.nodes[0]
        if mode.wide or node.precision == "tf32" or len(layer.outputs) != 1:
            return False
        if (node.domain, node.op) not in (
            ("", "MatMul"),
            ("", "Gemm"),
            ("com.microsoft", "FusedMatMul"),
        ):
            return False
        a, b, *rest = node.inputs
        if a is None or b is None or a.constant is not None or b.constant is None:
            return False
        if stored_as(a) != FLOAT or stored_as(b) != FLOAT or len(b.constant.shape) != 2:
            return False
        if node.attrs.get("transA") or node.attrs.get("transBatchA", 0):
            return False
        if node.attrs.get("transBatchB", 0) or float(node.attrs.get("alpha", 1.0)) != 1.0:
            return False
        c = rest[0] if rest else None
        return c is None or _is_row(c, node, b)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        a, b, *rest = node.inputs
        assert a is not None and b is not None
        matrix = stored_constant(b, mode)
        if node.attrs.get("transB"):
            matrix = matrix.T
        bias = stored_constant(rest[0], mode).reshape(-1) if rest and rest[0] is not None else None
        return launch_gemm(layer, mode, ConstantMatrix(matrix), bias)


def _is_row(c: Tensor, node: Node, b: Tensor) -> bool:
    """Whether Gemm's third operand is one constant number a column."""
    if c.constant is None or float(node.attrs.get("beta", 1.0)) != 1.0 or stored_as(c) != FLOAT:
        return False
    assert b.constant is not None
    columns = b.constant.shape[0 if node.attrs.get("transB") else 1]
    return c.constant.shape in ((columns,), (1, columns))


def launch_gemm(layer: Layer, mode: Mode, matrix: ConstantMatrix, bias: Array | None) -> Launch:
    """The layer with `matrix` as the right operand of its first node."""
    (a, *_) = layer.nodes[0].inputs
    assert a is not None
    epilogue = Epilogue(layer, mode, bias, axis=2)
    source = layer.inputs.index(a)
    depth, columns = matrix.shape
    fallback = Generic().compile(layer, mode)

    def launch(*args: Any) -> Sequence[Any]:
        x = args[source]
        if x.ndim < 2 or x.shape[-1] != depth or x.size == 0 or columns == 0:
            return fallback(*args)
        shape = (*x.shape[:-1], columns)
        rows = math.prod(x.shape[:-1])
        out = np.empty((rows, columns), np.float32)
        matrix.multiply(x.reshape(rows, depth), out, epilogue.bind(shape, args))
        return epilogue.complete(out.reshape(shape), args)

    return launch
