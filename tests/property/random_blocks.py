"""Several nodes at once: patterns that passes look for, as exporters write them, and bodies."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper

from tests.property.growing import BOOL, FLOAT, INT, Growing, Skip, Value
from tests.property.random_nodes import (
    Maker,
    batch_normalization,
    convolution,
    gemm,
    layer_normalization,
    product,
    unary,
)

BLOCKS: list[Maker] = []


def block(function: Maker) -> Maker:
    """Register a function that appends several nodes."""
    BLOCKS.append(function)
    return function


def last(g: Growing) -> Value:
    return g.pool[-1]


def pointwise(g: Growing, op: str, *inputs: Value, **attributes: object) -> Value:
    """An inexact node of the broadcast shape."""
    shape = np.broadcast_shapes(*(v.shape for v in inputs))
    g.add(op, inputs, [(FLOAT, shape)], exact=False, **attributes)
    return last(g)


def scalar(g: Growing, value: float) -> Value:
    return g.constant(np.float32(value))


@block
def convolution_normalized_activated(g: Growing) -> None:
    convolution(g)
    source = g.pool[-1]
    if g.number(0, 1):
        batch_normalization(g)
    if g.number(0, 1) and last(g).shape == source.shape:
        pointwise(g, "Add", last(g), source)
    activated(g)


@block
def activated(g: Growing) -> None:
    """An activation, whole or written out."""
    form = g.number(0, 4)
    x = g.pick()
    if form == 0:
        pointwise(g, "Mul", x, pointwise(g, "Sigmoid", x))
    elif form == 1:
        inner = pointwise(g, "Erf", pointwise(g, "Div", x, scalar(g, math.sqrt(2))))
        outer = pointwise(g, "Mul", x, pointwise(g, "Add", inner, scalar(g, 1.0)))
        pointwise(g, "Mul", outer, scalar(g, 0.5))
    elif form == 2:
        clipped = pointwise(g, "Add", x, scalar(g, 3.0))
        g.add("Clip", [clipped, scalar(g, 0), scalar(g, 6)], [(FLOAT, x.shape)], exact=False)
        pointwise(g, "Div", pointwise(g, "Mul", x, last(g)), scalar(g, 6.0))
    elif form == 3:
        pointwise(g, "Mul", x, pointwise(g, "HardSigmoid", x, alpha=1 / 6, beta=0.5))
    else:
        unary(g)


@block
def biased_product(g: Growing) -> None:
    product(g)
    y = last(g)
    if not y.rank:
        raise Skip
    pointwise(g, "Add", *g.one([(y, bias := g.constant(g.values(FLOAT, y.shape[-1:]))), (bias, y)]))
    activated(g)


@block
def gemm_activated(g: Growing) -> None:
    gemm(g)
    activated(g)


@block
def normalization_written_out(g: Growing) -> None:
    x = g.pick(least=1, filled=True)
    if x.shape[-1] < 2:
        raise Skip
    dims = (*x.shape[:-1], 1)
    g.add("ReduceMean", [x], [(FLOAT, dims)], axes=[-1], exact=False)
    centred = pointwise(g, "Sub", x, last(g))
    squared = pointwise(g, "Pow", centred, scalar(g, 2.0))
    g.add("ReduceMean", [squared], [(FLOAT, dims)], axes=[-1], exact=False)
    deviation = pointwise(g, "Sqrt", pointwise(g, "Add", last(g), scalar(g, 0.1)))
    y = pointwise(g, "Div", centred, deviation)
    y = pointwise(g, "Mul", y, g.constant(g.values(FLOAT, x.shape[-1:])))
    pointwise(g, "Add", y, g.constant(g.values(FLOAT, x.shape[-1:])))


@block
def residual_normalized(g: Growing) -> None:
    x = g.pick(least=1, filled=True)
    pointwise(g, "Add", x, g.constant(g.values(FLOAT, x.shape)))
    layer_normalization(g)


@block
def attention(g: Growing) -> None:
    """Scores, a scale, perhaps a mask, probabilities, values: with heads of their own or shared."""
    batch, heads, queries, keys, size = (g.number(1, 3) for _ in range(5))
    q = g.input(FLOAT, (batch, heads, queries, size))
    k = g.input(FLOAT, (batch, g.one([heads, 1]), size, keys))
    v = g.input(FLOAT, (batch, g.one([heads, 1]), keys, g.number(1, 3)))
    g.add("MatMul", [q, k], [(FLOAT, (batch, heads, queries, keys))], exact=False)
    scores = last(g)
    if g.number(0, 1):
        scores = pointwise(g, g.one(["Mul", "Div"]), scores, scalar(g, 0.5))
    if g.number(0, 1):
        mask = g.one(
            [(keys,), (1,), (), (queries, keys), (1, 1, 1, keys), (batch, 1, queries, keys)]
        )
        scores = pointwise(g, "Add", scores, g.input(FLOAT, mask))
    g.add("Softmax", [scores], [(FLOAT, scores.shape)], exact=False, axis=-1)
    g.add("MatMul", [last(g), v], [(FLOAT, (batch, heads, queries, v.shape[-1]))], exact=False)


@block
def one_row_selected(g: Growing) -> None:
    """What works row by row, mostly, and then one row of it."""
    x = g.pick(least=2, filled=True)
    axis = g.number(0, x.rank - 2)
    for _ in range(g.number(1, 5)):
        form = g.number(0, 5)
        if form == 0:
            shape = (*x.shape[:-1], g.number(1, 4))
            weights = g.constant(g.values(FLOAT, (x.shape[-1], shape[-1])))
            g.add("MatMul", [x, weights], [(FLOAT, shape)], exact=False)
        elif form == 1:
            dims = tuple(d if g.number(0, 1) else 1 for d in x.shape)[g.number(0, x.rank) :]
            other = x
            if kind := g.number(0, 2):
                other = g.constant(g.values(FLOAT, dims)) if kind == 1 else g.input(FLOAT, dims)
            pointwise(g, "Add", *g.one([(x, other), (other, x)]))
        elif form == 2:
            g.add("Softmax", [x], [(FLOAT, x.shape)], exact=False, axis=g.number(0, x.rank - 1))
        elif form == 3:
            perm = [*np.random.default_rng(g.number(0, 9)).permutation(x.rank - 1), x.rank - 1]
            shape = tuple(x.shape[i] for i in perm)
            g.add("Transpose", [x], [(FLOAT, shape)], exact=False, perm=list(map(int, perm)))
            axis = perm.index(axis)
        elif form == 4:
            shape = (*x.shape[:-1], 1, x.shape[-1]) if x.rank < 4 else x.shape
            open_ = [-1 if i == g.number(0, 5) else d for i, d in enumerate(shape)]
            target = g.constant(np.int64(open_ if open_.count(-1) < 2 else shape))
            g.add("Reshape", [x, target], [(FLOAT, shape)], exact=False)
        elif x.rank > 2:
            swapped = (*x.shape[:-2], x.shape[-1], x.shape[-2])
            perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
            g.add("Transpose", [x], [(FLOAT, swapped)], exact=False, perm=perm)
            shape = (*x.shape[:-1], x.shape[-2])
            g.add("MatMul", [x, last(g)], [(FLOAT, shape)], exact=False)
        else:
            continue
        x = last(g)
    index = g.one([0, 0, -1, -1, x.shape[axis] - 1])
    left = (*x.shape[:axis], *x.shape[axis + 1 :])
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    form = g.number(0, 2)
    if form < 2:
        at = g.constant(np.int64([index] if form else index))
        g.add("Gather", [x, at], [(FLOAT, one if form else left)], exact=False, axis=axis)
    else:
        end = np.iinfo(np.int64).max if index else 1
        bounds = [g.constant(np.int64([n])) for n in (-1 if index else 0, end, axis)]
        g.add("Slice", [x, *bounds], [(FLOAT, one)], exact=False)


@block
def branched(g: Growing) -> None:
    """An If whose branches read tensors from outside."""
    x = g.pick()
    y = g.one([v for v in g.pool if v.kind == FLOAT and v.shape == x.shape])
    fits = [v for v in g.pool if v.kind == BOOL and v.size == 1 and v.exact]
    told = g.one([*fits, g.constant(np.bool_(g.number(0, 1)))])
    branches = {}
    for name, op, other in (("then_branch", "Add", x), ("else_branch", "Mul", y)):
        result = f"{name}{len(g.nodes)}"
        node = helper.make_node(op, [x.name, other.name], [result])
        info = helper.make_tensor_value_info(result, FLOAT, x.shape)
        branches[name] = helper.make_graph([node], name, [], [info])
    g.add("If", [told], [(FLOAT, x.shape)], exact=False, **branches)


@block
def looped(g: Growing) -> None:
    """A Loop that carries one tensor, reads another from outside and stacks what it sees."""
    x = g.pick()
    y = g.constant(g.values(FLOAT, x.shape[-1:]))
    trips = g.number(0, 3)
    tag = len(g.nodes)
    names = {n: f"loop{tag}_{n}" for n in ("i", "c", "v", "d", "w", "s")}
    body = helper.make_graph(
        [
            helper.make_node("Identity", [names["c"]], [names["d"]]),
            helper.make_node("Add", [names["v"], y.name], [names["w"]]),
            helper.make_node("Tanh", [names["w"]], [names["s"]]),
        ],
        "body",
        [
            helper.make_tensor_value_info(names["i"], INT, ()),
            helper.make_tensor_value_info(names["c"], BOOL, ()),
            helper.make_tensor_value_info(names["v"], FLOAT, x.shape),
        ],
        [
            helper.make_tensor_value_info(names["d"], BOOL, ()),
            helper.make_tensor_value_info(names["w"], FLOAT, x.shape),
            helper.make_tensor_value_info(names["s"], FLOAT, x.shape),
        ],
    )
    count, go = g.constant(np.int64(trips)), g.constant(np.bool_(True))
    results = [(FLOAT, x.shape), (FLOAT, (trips, *x.shape))]
    g.add("Loop", [count, go, x], results, exact=False, body=body)


@block
def scanned(g: Growing) -> None:
    """A Scan that adds up the rows of one tensor and gives every sum."""
    x = g.pick(least=1)
    if not x.shape[0]:
        raise Skip
    rest, tag = x.shape[1:], len(g.nodes)
    start = g.constant(g.values(FLOAT, rest))
    names = [f"scan{tag}_{n}" for n in ("s", "r", "t", "y")]
    infos = [helper.make_tensor_value_info(n, FLOAT, rest) for n in names]
    nodes = [
        helper.make_node("Add", names[:2], [names[2]]),
        helper.make_node("Identity", [names[2]], [names[3]]),
    ]
    body = helper.make_graph(nodes, "body", infos[:2], infos[2:])
    g.add(
        "Scan",
        [start, x],
        [(FLOAT, rest), (FLOAT, x.shape)],
        exact=False,
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[g.number(0, 1)],
        scan_output_directions=[g.number(0, 1)],
    )
