"""What the lowerings of products and convolutions share: epilogues, candidates, packed weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.library import product_requests
from polytool.backends.native.cuda.lower_pointwise import epilogue_operands, pointwise, tree_of
from polytool.backends.native.cuda.recorder import Recorder
from polytool.backends.native.kernels import gemm_wide
from polytool.backends.native.kernels.epilogue import Epilogue
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.gemm import (
    Matrix,
    Problem,
    candidates,
)
from polytool.backends.native.kernels.source import Candidate
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

Array = np.ndarray[Any, Any]

_TENSOR_CORE = (DType.FLOAT16, DType.BFLOAT16)


def on_tensor_cores(node: Node, dtype: DType) -> bool:
    return dtype in _TENSOR_CORE or (dtype is DType.FLOAT and node.precision == "tf32")


def epilogue_of(
    rec: Recorder, layer: Layer, bias: Tensor | None, channel: int, order: Sequence[int] | None,
    factor: float = 1.0,
) -> tuple[Epilogue, list[View]]:  # fmt: skip
    """The nodes after the product, with its bias, over the accumulator.

    Args:
        channel: the output dimension that is the columns of the product.
        order: how the output lies.
        factor: what the product is multiplied with first.
    """
    node = layer.nodes[0]
    (product,) = node.writes()
    (output,) = layer.outputs
    shape = rec.shape(output)
    if rec.shapes.shape(product) not in (None, shape):
        raise UnsupportedError("an epilogue that enlarges the product")
    tree, operands = tree_of(rec, layer.nodes[1:], {product: DType.FLOAT})
    kinds, views = epilogue_operands(rec, operands, shape, channel, lambda v: rec.dense(v, order))
    return _scaled(rec, tree, kinds, views, bias, factor, output)


def _scaled(
    rec: Recorder, tree: Tree, kinds: list[str], views: list[View], bias: Tensor | None,
    factor: float, output: Tensor,
) -> tuple[Epilogue, list[View]]:  # fmt: skip
    """Put the factor and the bias before the tree's steps."""
    first: list[Step] = []
    inputs = list(tree.inputs)
    if bias is not None:
        view = rec.dense(rec.view(bias))
        inputs.insert(1, view.dtype)
        kinds, views = ["column" if view.count > 1 else "scalar", *kinds], [view, *views]
    count, current = len(inputs), 0
    if factor != 1.0:
        first.append(Step.of("Constant", dtype=DType.FLOAT, value=factor))
        first.append(Step.of("Mul", current, count, dtype=DType.FLOAT))
        current = count + 1
    if bias is not None:
        first.append(Step.of("Add", current, 1, dtype=DType.FLOAT))
        current = count + len(first) - 1
    moved = renumbered(tree, current, len(inputs), len(first), 1 if bias is not None else 0)
    steps = (*first, *moved)
    assert output.dtype is not None
    whole = Tree(tuple(inputs), steps)
    sums = bool(steps) and steps[-1].op in ("Add", "Mul") and steps[-1].dtype is DType.FLOAT
    if sums and output.dtype in _TENSOR_CORE:  # one that is rounded when it is stored
        rounded = dataclasses.replace(steps[-1], dtype=output.dtype)
        whole = Tree(tuple(inputs), (*steps[:-1], rounded))
    elif not steps or whole.output_dtypes[0] is not output.dtype:
        last = len(inputs) + len(steps) - 1 if steps else 0
        whole = Tree(tuple(inputs), (*steps, Step.of("Cast", last, dtype=output.dtype)))
    return Epilogue(whole, tuple(kinds)), views


def renumbered(tree: Tree, current: int, count: int, before: int, inserted: int) -> list[Step]:
    """The tree's steps after `inserted` inputs and `before` steps were put in front of them."""
    old = len(tree.inputs)

    def number(value: int | None) -> int | None:
        if value is None:
            return None
        if value == 0:
            return current
        return value + inserted if value < old else value - old + count + before

    return [Step(s.op, tuple(number(a) for a in s.args), s.dtype, s.attrs) for s in tree.steps]


def _in_two(rec: Recorder, layer: Layer, lower: Callable[[Recorder, Layer], None]) -> None:
    """The product alone, stored in float32, then what follows as a pointwise kernel."""
    anchor = layer.nodes[0]
    (product,) = anchor.writes()
    wide = Tensor(f"{product.name}:sums", DType.FLOAT, product.shape)
    rec.shapes.shapes[wide] = rec.shape(product)
    lower(rec, Layer(layer.kind, [dataclasses.replace(anchor, outputs=[wide])], [wide]))
    rest = [
        dataclasses.replace(n, inputs=[wide if t is product else t for t in n.inputs])
        for n in layer.nodes[1:]
    ]
    pointwise(rec, Layer("pointwise", rest, layer.outputs))


def with_epilogue(rec: Recorder, layer: Layer, lower: Callable[[Recorder, Layer], None]) -> None:
    """`layer` in one kernel, or in two where its epilogue does not fit the product's."""
    try:
        with rec.attempt():
            lower(rec, layer)
    except UnsupportedError:
        if len(layer.nodes) == 1:
            raise
        _in_two(rec, layer, lower)


def is_constant(epilogue: Epilogue, views: Sequence[View]) -> bool:
    """Whether B and the columns of the epilogue were there before the inference.

    They may be read then before the launches in front have finished.
    """
    columns = (v for v, k in zip(views[2:], epilogue.operands, strict=False) if k == "column")
    return all(v.storage.make is not None for v in (views[1], *columns))


def multiply(
    rec: Recorder, dtype: DType, epilogue: Epilogue, problem: Problem, views: Sequence[View]
) -> None:
    """Record every tile shape worth timing."""
    constant = is_constant(epilogue, views)
    found = candidates(dtype, epilogue, problem, constant=constant)
    if not found:
        raise UnsupportedError("no tile shape fits the product")
    plans: list[Candidate] = [gemm.plan(problem, split) for gemm, split in found]
    if isinstance(problem, Matrix):
        wide = gemm_wide.candidates(dtype, epilogue, problem, constant=constant)
        plans += [tile.plan(problem) for tile in wide]
    signature = f"gemm {dtype.label} {problem!r} {epilogue!r} {constant}"
    libraries = product_requests(dtype, epilogue, problem)
    rec.launch(plans, views, signature=signature, libraries=libraries)


def packed_constant(
    rec: Recorder, w: Tensor, shape: tuple[int, ...], name: str, change: Callable[[Array], Array]
) -> View:
    """A constant in another layout; `name` tells the layout."""
    constant = w.constant
    assert constant is not None

    def make() -> Array:
        return np.ascontiguousarray(change(constant.array()))

    return rec.constant(make, shape, constant.dtype, (constant, name))
