"""How a random graph grows: one function an operator family, each appends one node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from tests.property.growing import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT,
    INT32,
    NUMPY,
    UINT8,
    WHOLE,
    Dims,
    Growing,
    Skip,
    Value,
    draw_shape,
)

Maker = Callable[[Growing], None]
MAKERS: list[Maker] = []


def maker(function: Maker) -> Maker:
    """Register a function that appends one node."""
    MAKERS.append(function)
    return function


def _broadcast(a: Dims, b: Dims) -> Dims:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise Skip from None


def _partner(g: Growing, value: Value) -> Value:
    """A tensor that broadcasts with `value`: from the pool, or a new initializer."""
    if g.number(0, 2) == 0:
        fits = []
        for other in g.pool:
            if other.kind == value.kind:
                try:
                    np.broadcast_shapes(value.shape, other.shape)
                except ValueError:
                    continue
                fits.append(other)
        return g.one(fits)
    keep = g.number(0, value.rank)
    shape = [d if g.number(0, 3) else 1 for d in value.shape[value.rank - keep :]]
    return g.constant(g.values(value.kind, shape))


# --- elementwise

_UNARY = (
    *("Relu", "Neg", "Abs", "Identity", "Sigmoid", "Tanh", "Erf", "Exp", "Softplus", "Softsign"),
    *("HardSwish", "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Sqrt", "Log"),
)


@maker
def unary(g: Growing) -> None:
    op = g.one(_UNARY)
    keeps = op in ("Relu", "Neg", "Abs", "Identity")
    x = g.pick(DOUBLE if keeps and g.number(0, 5) == 0 else FLOAT)
    g.add(op, [x], [(x.kind, x.shape)], exact=x.exact and keeps)


@maker
def rounding(g: Growing) -> None:
    x = g.pick(exact=True)
    g.add(g.one(["Floor", "Ceil", "Round", "Sign"]), [x], [(FLOAT, x.shape)])


@maker
def binary(g: Growing) -> None:
    x = g.pick(g.one([FLOAT, FLOAT, FLOAT, INT, INT32, DOUBLE, UINT8]))
    y = _partner(g, x)
    op = g.one(["Add", "Sub", "Mul", "Max", "Min"] if x.kind != UINT8 else ["Max", "Min"])
    pair = [x, y] if g.number(0, 1) else [y, x]
    g.add(
        op,
        pair,
        [(x.kind, _broadcast(x.shape, y.shape))],
        exact=x.exact and y.exact and (op != "Mul" or x.kind in WHOLE),
    )


@maker
def divided(g: Growing) -> None:
    x = g.pick(g.one([FLOAT, INT]))
    divisor = g.values(x.kind, x.shape[x.rank - g.number(0, x.rank) :])
    y = g.constant(np.where(divisor == 0, divisor.dtype.type(1), divisor))
    g.add(
        g.one(["Div", "Mod"] if x.kind == INT else ["Div"]),
        [x, y],
        [(x.kind, x.shape)],
        exact=x.kind == INT,
    )


@maker
def power(g: Growing) -> None:
    x = g.pick()
    exponent = g.constant(np.float32(g.one([0.0, 0.5, 1.0, 2.0, 3.0, -1.0])))
    g.add("Pow", [x, exponent], [(FLOAT, x.shape)], exact=False)


@maker
def clipped(g: Growing) -> None:
    x = g.pick()
    bounds = [g.constant(np.float32(v)) if g.number(0, 2) else None for v in (-1.0, 1.5)]
    g.add("Clip", [x, *bounds], [(FLOAT, x.shape)])


@maker
def compared(g: Growing) -> None:
    x = g.pick(g.one([FLOAT, INT, INT32, DOUBLE]), exact=True)
    y = _partner(g, x)
    if not y.exact:
        raise Skip
    op = g.one(["Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"])
    g.add(op, [x, y], [(BOOL, _broadcast(x.shape, y.shape))])


@maker
def decided(g: Growing) -> None:
    x = g.pick(BOOL)
    op = g.one(["And", "Or", "Xor", "Not", "Where"])
    if op == "Not":
        g.add(op, [x], [(BOOL, x.shape)])
        return
    if op == "Where":
        a = g.pick()
        b = _partner(g, a)
        shape = _broadcast(x.shape, _broadcast(a.shape, b.shape))
        g.add(op, [x, a, b], [(FLOAT, shape)])
        return
    y = _partner(g, x)
    g.add(op, [x, y], [(BOOL, _broadcast(x.shape, y.shape))])


@maker
def converted(g: Growing) -> None:
    x = g.pick(None, exact=True)
    target = g.one([k for k in NUMPY if k != x.kind])
    if target == UINT8 and x.kind != BOOL:
        raise Skip  # what is negative has no value there
    g.add("Cast", [x], [(target, x.shape)], to=target)


@maker
def prelu(g: Growing) -> None:
    x = g.pick()
    slope = g.constant(g.values(FLOAT, x.shape[x.rank - g.number(0, x.rank) :]))
    g.add("PRelu", [x, slope], [(FLOAT, x.shape)], exact=False)


# --- reductions


def _reduced(shape: Dims, axes: set[int], keep: int) -> Dims:
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)


@maker
def reduced(g: Growing) -> None:
    op = g.one(["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"])
    whole_numbers = op in ("Sum", "Max", "Min", "Prod") and g.number(0, 3) == 0
    x = g.pick(g.one([INT, INT32]) if whole_numbers else FLOAT, filled=True)
    axes = sorted({g.axis(x) % x.rank for _ in range(g.number(1, 2))}) if x.rank else []
    keep = g.number(0, 1)
    whole = not axes or g.number(0, 3) == 0
    shape = _reduced(x.shape, set(range(x.rank)) if whole else set(axes), keep)
    inputs, attributes = [x], {"keepdims": keep}
    if not whole and op == "Sum":
        inputs.append(g.ints(*axes))
    elif not whole:
        attributes["axes"] = axes
    g.add(
        f"Reduce{op}",
        inputs,
        [(x.kind, shape)],
        exact=x.exact and (x.kind in WHOLE or op in ("Max", "Min")),
        **attributes,
    )


@maker
def located(g: Growing) -> None:
    x = g.pick(exact=True, least=1, filled=True)
    axis, keep = g.axis(x), g.number(0, 1)
    g.add(
        g.one(["ArgMax", "ArgMin"]),
        [x],
        [(INT, _reduced(x.shape, {axis % x.rank}, keep))],
        axis=axis,
        keepdims=keep,
        select_last_index=g.number(0, 1),
    )


@maker
def normalized(g: Growing) -> None:
    x = g.pick(least=1, filled=True)
    g.add(g.one(["Softmax", "LogSoftmax"]), [x], [(FLOAT, x.shape)], axis=g.axis(x), exact=False)


@maker
def running(g: Growing) -> None:
    x = g.pick(least=1)
    g.add(
        "CumSum",
        [x, g.constant(np.int64(g.axis(x)))],
        [(FLOAT, x.shape)],
        exclusive=g.number(0, 1),
        reverse=g.number(0, 1),
        exact=False,
    )


@maker
def top(g: Growing) -> None:
    x = g.pick(exact=True, least=1, filled=True)
    axis = g.axis(x)
    k = g.number(1, x.shape[axis])
    shape = list(x.shape)
    shape[axis] = k
    g.add(
        "TopK",
        [x, g.ints(k)],
        [(FLOAT, tuple(shape)), (INT, tuple(shape))],
        axis=axis,
        largest=g.number(0, 1),
    )


# --- movement


@maker
def reshaped(g: Growing) -> None:
    x = g.pick(None)
    op = g.one(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"])
    if op == "Flatten":
        axis = g.number(0, x.rank)
        dims = (int(np.prod(x.shape[:axis], dtype=int)), int(np.prod(x.shape[axis:], dtype=int)))
        g.add(op, [x], [(x.kind, dims)], axis=axis)
    elif op == "Squeeze":
        ones = [i for i, d in enumerate(x.shape) if d == 1]
        g.add(
            op, [x, g.ints(*ones)] if ones else [x], [(x.kind, tuple(d for d in x.shape if d != 1))]
        )
    elif op == "Unsqueeze":
        axis = g.number(-x.rank - 1, x.rank)
        at = axis % (x.rank + 1)
        g.add(op, [x, g.ints(axis)], [(x.kind, (*x.shape[:at], 1, *x.shape[at:]))])
    elif op == "Transpose":
        perm = g.draw(st.permutations(range(x.rank)))
        attributes = {"perm": list(perm)} if perm else {}
        g.add(op, [x], [(x.kind, tuple(x.shape[i] for i in perm))], **attributes)
    else:
        _reshape(g, x)


def _reshape(g: Growing, x: Value) -> None:
    dims = list(x.shape)
    if len(dims) > 1 and g.number(0, 1):
        at = g.number(0, len(dims) - 2)
        dims[at : at + 2] = [dims[at] * dims[at + 1]]
    else:
        dims = [*dims, 1]
    spelled = list(dims)
    if spelled and x.size and g.number(0, 1):
        spelled[g.number(0, len(spelled) - 1)] = -1
    g.add("Reshape", [x, g.ints(*spelled)], [(x.kind, tuple(dims))], allowzero=int(0 in dims))


@maker
def sliced(g: Growing) -> None:
    x = g.pick(None, least=1)
    axis = g.axis(x)
    start, end = g.number(-7, 7), g.one([-100, -3, -1, 0, 1, 2, 4, 100])
    step = g.one([1, 1, 2, -1, -2])
    length = x.shape[axis]
    if step < 0 and (start < -length or end < -length):
        start, end = -1, -100
    bound = None if step < 0 and end < -length else end
    count = len(range(*slice(start, bound, step).indices(length)))
    dims = list(x.shape)
    dims[axis] = count
    g.add("Slice", [x, *(g.ints(v) for v in (start, end, axis, step))], [(x.kind, tuple(dims))])


@maker
def padded(g: Growing) -> None:
    x = g.pick(least=1, filled=True)
    mode = g.one(["constant", "constant", "edge", "reflect"])
    low = -1 if mode == "constant" and min(x.shape) > 1 else 0
    widths = [(g.number(low, 2), g.number(0, 2)) for _ in x.shape]
    if mode == "reflect":
        widths = [(min(b, d - 1), min(a, d - 1)) for d, (b, a) in zip(x.shape, widths, strict=True)]
    dims = tuple(d + b + a for d, (b, a) in zip(x.shape, widths, strict=True))
    pads = g.ints(*(b for b, _ in widths), *(a for _, a in widths))
    value = [g.constant(np.float32(1.5))] if mode == "constant" and g.number(0, 1) else []
    g.add("Pad", [x, pads, *value], [(FLOAT, dims)], mode=mode)


@maker
def joined(g: Growing) -> None:
    x = g.pick(None, least=1)
    axis = g.axis(x)
    at = axis % x.rank
    others = [
        v
        for v in g.pool
        if v.kind == x.kind
        and v.rank == x.rank
        and all(a == b for i, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if i != at)
    ]
    parts = [x, *(g.one(others) for _ in range(g.number(0, 2)))]
    dims = list(x.shape)
    dims[at] = sum(v.shape[at] for v in parts)
    g.add("Concat", parts, [(x.kind, tuple(dims))], axis=axis)


@maker
def cut(g: Growing) -> None:
    x = g.pick(None, least=1)
    axis = g.axis(x)
    length = x.shape[axis]
    first = g.number(0, length)
    at = axis % x.rank
    dims = [(*x.shape[:at], n, *x.shape[at + 1 :]) for n in (first, length - first)]
    g.add("Split", [x, g.ints(first, length - first)], [(x.kind, d) for d in dims], axis=axis)


@maker
def repeated(g: Growing) -> None:
    x = g.pick(None)
    if g.number(0, 1):
        repeats = [g.number(0, 2) for _ in x.shape]
        dims = tuple(d * r for d, r in zip(x.shape, repeats, strict=True))
        g.add("Tile", [x, g.ints(*repeats)], [(x.kind, dims)])
        return
    shape = [g.number(1, 3), *(d if d != 1 else g.number(1, 3) for d in x.shape)]
    g.add("Expand", [x, g.ints(*shape)], [(x.kind, tuple(shape))])


@maker
def gathered(g: Growing) -> None:
    x = g.pick(None, least=1, filled=True)
    axis = g.axis(x)
    at, length = axis % x.rank, x.shape[axis]
    op = g.one(["Gather", "GatherElements", "ScatterElements"])
    shape = draw_shape(g.draw)[:2] if op == "Gather" else x.shape
    indices = g.constant(g.rng.integers(-length, length, shape))
    if op == "Gather":
        g.add(
            op, [x, indices], [(x.kind, x.shape[:at] + tuple(shape) + x.shape[at + 1 :])], axis=axis
        )
    elif op == "GatherElements":
        g.add(op, [x, indices], [(x.kind, x.shape)], axis=axis)
    else:
        order = np.argsort(g.rng.random(x.shape), axis=axis)  # each place once
        updates = g.constant(g.values(x.kind, x.shape))
        g.add(op, [x, g.constant(order.astype(np.int64)), updates], [(x.kind, x.shape)], axis=axis)


@maker
def triangle(g: Growing) -> None:
    x = g.pick(least=2)
    g.add(
        "Trilu",
        [x, g.constant(np.int64(g.number(-2, 2)))],
        [(FLOAT, x.shape)],
        upper=g.number(0, 1),
    )


# --- products and layers


@maker
def product(g: Growing) -> None:
    a = g.pick(least=1)
    columns = g.number(1, 4)
    if g.number(0, 3) == 0:
        b = g.pick(least=1)
    else:
        b = g.constant(g.values(FLOAT, (a.shape[-1], columns)))
    try:
        shape = np.matmul(np.zeros(a.shape), np.zeros(b.shape)).shape
    except ValueError:
        raise Skip from None
    g.add("MatMul", [a, b], [(FLOAT, shape)], exact=False)


@maker
def gemm(g: Growing) -> None:
    a = g.pick(rank=2)
    trans_a, trans_b = g.number(0, 1), g.number(0, 1)
    rows, inner = a.shape[::-1] if trans_a else a.shape
    columns = g.number(1, 4)
    b = g.constant(g.values(FLOAT, (columns, inner) if trans_b else (inner, columns)))
    c = [g.constant(g.values(FLOAT, g.one([(), (columns,), (rows, 1), (rows, columns)])))]
    g.add(
        "Gemm",
        [a, b, *(c if g.number(0, 2) else [])],
        [(FLOAT, (rows, columns))],
        transA=trans_a,
        transB=trans_b,
        alpha=g.one([1.0, 0.5]),
        beta=g.one([1.0, 2.0]),
        exact=False,
    )


@maker
def convolution(g: Growing) -> None:
    x = g.pick(least=3, filled=True)
    if x.rank > 4:
        raise Skip
    group = g.one([1, x.shape[1]])
    out = group * g.number(1, 2)
    kernel = [g.number(1, min(3, d)) for d in x.shape[2:]]
    pads = [g.number(0, k - 1) for k in kernel for _ in range(1)] * 2
    strides = [g.number(1, 2) for _ in kernel]
    weight = g.constant(g.values(FLOAT, (out, x.shape[1] // group, *kernel)))
    bias = [g.constant(g.values(FLOAT, (out,)))] if g.number(0, 1) else []
    space = [
        (d + 2 * p - k) // s + 1
        for d, p, k, s in zip(x.shape[2:], pads, kernel, strides, strict=False)
    ]
    g.add(
        "Conv",
        [x, weight, *bias],
        [(FLOAT, (x.shape[0], out, *space))],
        group=group,
        pads=pads,
        strides=strides,
        exact=False,
    )


@maker
def pooled(g: Growing) -> None:
    x = g.pick(rank=4, filled=True)
    op = g.one(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if op.startswith("Global"):
        g.add(op, [x], [(FLOAT, (*x.shape[:2], 1, 1))], exact=x.exact and op == "GlobalMaxPool")
        return
    kernel = [g.number(1, d) for d in x.shape[2:]]
    space = [d - k + 1 for d, k in zip(x.shape[2:], kernel, strict=True)]
    g.add(
        op,
        [x],
        [(FLOAT, (*x.shape[:2], *space))],
        kernel_shape=kernel,
        exact=x.exact and op == "MaxPool",
    )


@maker
def batch_normalization(g: Growing) -> None:
    x = g.pick(least=3, filled=True)
    channels = x.shape[1]
    scale, bias, mean = (g.constant(g.values(FLOAT, (channels,))) for _ in range(3))
    var = g.constant(g.rng.uniform(0.5, 2, channels).astype(np.float32))
    g.add("BatchNormalization", [x, scale, bias, mean, var], [(FLOAT, x.shape)], exact=False)


@maker
def layer_normalization(g: Growing) -> None:
    x = g.pick(least=1, filled=True)
    if x.shape[-1] < 2:
        raise Skip
    scale = g.constant(g.values(FLOAT, x.shape[-1:]))
    bias = [g.constant(g.values(FLOAT, x.shape[-1:]))] if g.number(0, 1) else []
    g.add("LayerNormalization", [x, scale, *bias], [(FLOAT, x.shape)], exact=False, epsilon=0.1)


@maker
def measured(g: Growing) -> None:
    x = g.pick(None)
    start, end = g.number(0, 1), g.one([None, -1, 2])
    dims = np.array(x.shape)[start:end]
    attributes = {"start": start} | ({} if end is None else {"end": end})
    g.add("Shape", [x], [(INT, dims.shape)], exact=True, **attributes)


# Those whose result a rounding of their input can change altogether.
DECIDING = (rounding, compared, converted, located, top, divided)
