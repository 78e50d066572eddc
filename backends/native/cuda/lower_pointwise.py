"""Trees of pointwise operators, and what they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels.expr import Step, Tree, supported
from polytool.backends.native.kernels.pointwise import Pointwise
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType


@lowering("pointwise")
def pointwise(rec: Recorder, layer: Layer) -> None:
    """One generated kernel; the result lies like an input of its shape."""
    tree, operands = tree_of(rec, layer.nodes, {})
    (output,) = layer.outputs
    views = [rec.view(t) for t in operands]
    shape = rec.shape(output)
    like = next((v for v in views if v.shape == shape and v.is_packed), None)
    result = rec.output(output, like.order if like is not None else None)
    kernel = Pointwise(tree)
    where = [v.operand for v in views]
    pattern = kernel.pattern(shape, where, [result.operand])
    plan = kernel.plan(shape, where, [result.operand], pattern)
    rec.launch([plan], [*(v.whole for v in views), result])


@lowering("CastLike")
def cast_like(rec: Recorder, layer: Layer) -> None:
    """A Cast: only the type of the second input matters."""
    (node,) = layer.nodes
    cast = dataclasses.replace(node, op="Cast", version=25, inputs=node.inputs[:1])
    pointwise(rec, Layer.single(cast))


def tree_of(
    rec: Recorder, nodes: Sequence[Node], given: dict[Tensor, DType]
) -> tuple[Tree, list[Tensor]]:
    """The expression of `nodes`.

    Args:
        given: values that exist already, as the first inputs of the tree.

    Returns:
        The tree, and the tensors of its further inputs, in order.

    Raises:
        UnsupportedError: an operator or a type cannot stand in a kernel.
    """
    inside = {t for n in nodes for t in n.writes()}
    scalars: dict[Tensor, Any] = {}
    operands: list[Tensor] = []
    for node in nodes:
        for tensor in node.inputs:
            if tensor is None or tensor in inside or tensor in given:
                continue
            if tensor in scalars or tensor in operands:
                continue
            constant = tensor.constant
            if constant is not None and constant.size == 1 and constant.dtype.is_float:
                scalars[tensor] = constant.array().reshape(-1)[0]
            else:
                operands.append(tensor)
    inputs = [*given.values(), *(_dtype(t) for t in operands)]
    numbers = {t: i for i, t in enumerate([*given, *operands])}
    steps: list[Step] = []
    for tensor, value in scalars.items():
        numbers[tensor] = len(inputs) + len(steps)
        steps.append(Step.of("Constant", dtype=_dtype(tensor), value=_number(value)))
    for node in nodes:
        (result,) = node.writes()
        dtypes = [None if t is None else t.dtype for t in node.inputs]
        if not supported(node.op, [*dtypes, result.dtype]):
            raise UnsupportedError(f"{node.op} cannot stand in a pointwise kernel")
        args = [None if t is None else numbers[t] for t in node.inputs]
        numbers[result] = len(inputs) + len(steps)
        steps.append(Step.of(node.op, *args, dtype=_dtype(result), **_attrs(node)))
    return Tree(tuple(inputs), tuple(steps)), operands


def _attrs(node: Node) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.attrs.items()}


def _dtype(tensor: Tensor) -> DType:
    if tensor.dtype is None:
        raise UnsupportedError(f"the type of {tensor.name!r} is not known")
    return tensor.dtype


def _number(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else float(value)


def epilogue_operands(
    rec: Recorder, operands: Sequence[Tensor], shape: tuple[int, ...], channel: int,
    lay: Callable[[View], View],
) -> tuple[list[str], list[View]]:  # fmt: skip
    """How the further operands of an epilogue lie beside an output of `shape`.

    Args:
        channel: the dimension that is the columns of the product.
        lay: copies a full operand to lie like the output, where it does not.

    Raises:
        UnsupportedError: an operand is broadcast in another way.
    """
    kinds, views = [], []
    for tensor in operands:
        view = rec.view(tensor)
        padded = (1,) * (len(shape) - len(view.shape)) + view.shape
        if view.count == 1:
            kind = "scalar"
        elif padded == shape:
            kind, view = "full", lay(view)
        elif view.count == shape[channel] == padded[channel]:
            kind, view = "column", rec.dense(view)
        else:
            raise UnsupportedError(f"an epilogue cannot broadcast {list(view.shape)} there")
        kinds.append(kind)
        views.append(view)
    return kinds, views
