"""RNN, GRU and LSTM: one product for all inputs, then the steps in one launch."""

from __future__ import annotations

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.lower_contractions import matmul, shaped
from polytool.backends.native.cuda.lower_statistics import register_dtype
from polytool.backends.native.cuda.recorder import Recorder, lowering
from polytool.backends.native.kernels.recurrence import (
    BUFFERS,
    KINDS,
    Activation,
    Layout,
    Recurrence,
)
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.ops.recurrent import ACTIVATIONS
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_DEFAULTS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _activations(node: Node, directions: int) -> tuple[Activation, ...]:
    """The activation functions, which all directions must share."""
    default = _DEFAULTS[node.op]
    names = [n.lower() for n in node.attrs.get("activations") or default * directions]
    left = {k: iter(node.attrs.get(f"activation_{k}") or ()) for k in ("alpha", "beta")}
    chosen: list[Activation] = []
    for name in names:
        known = ACTIVATIONS[name][1]
        chosen.append((name, tuple((k, float(next(left[k], v))) for k, v in known.items())))
    size = len(default)
    each = [tuple(chosen[i * size : (i + 1) * size]) for i in range(directions)]
    if len(set(each)) > 1:
        raise UnsupportedError("directions with different activation functions")
    return each[0]


@lowering("RNN", "GRU", "LSTM")
def recurrent(rec: Recorder, layer: Layer) -> None:
    """Every direction, layout, length, activation, peephole and clip."""
    node = layer.nodes[0]
    x, w, r, b, lengths, h0, c0, p = [*node.inputs, *([None] * 7)][:8]
    assert x is not None and w is not None and r is not None
    backwards = _DIRECTIONS[str(node.attrs.get("direction", "forward"))]
    batch_first = int(node.attrs.get("layout", 0))
    directions, gates = len(backwards), KINDS[node.op][1]
    image = rec.view(x)
    image = image.permuted((1, 0, 2)) if batch_first else image
    (time, batch, features), hidden = image.shape, rec.shape(r)[-1]
    real = register_dtype(image.dtype)
    rows = shaped(rec, image, (time * batch, features))
    filters = shaped(rec, rec.view(w), (directions * gates * hidden, features)).permuted((1, 0))
    products = matmul(rec, node, rows, filters, real)
    biased, inner = _biased(rec, node, products, b, directions, hidden, real)
    weights = rec.view(r)
    split = shaped(rec, weights, (directions, gates, hidden, hidden)).permuted((0, 3, 1, 2))
    buffers: dict[str, View] = {"gates": biased, "weights": _as_real(rec, split, real)}
    if inner is not None:
        buffers["inner"] = inner
    if p is not None:
        buffers["peepholes"] = _as_real(rec, rec.view(p), real)
    if lengths is not None:
        buffers["lengths"] = rec.dense(rec.view(lengths))
    for name, tensor in (("h0", h0), ("c0", c0)):
        if tensor is not None:
            buffers[name] = rec.dense(rec.view(tensor))
    outputs = [t for t in node.outputs if t is not None]
    for name, result in zip(("y", "last_h", "last_c"), node.outputs, strict=False):
        if result is not None:
            buffers[name] = rec.output(result)
    if batch_first:
        y = (directions * hidden, hidden, time * directions * hidden)
        state = (hidden, directions * hidden)
    else:
        y = (directions * batch * hidden, batch * hidden, hidden)
        state = (batch * hidden, hidden)
    stored = outputs[0].dtype
    assert stored is not None
    if any(buffers[n].dtype is not stored for n in ("h0", "c0") if n in buffers):
        raise UnsupportedError("states of another type than the outputs")
    op = Recurrence(
        node.op, real, stored, _activations(node, directions), frozenset(buffers),
        bool(node.attrs.get("linear_before_reset", 0)), bool(node.attrs.get("input_forget", 0)),
    )  # fmt: skip
    layout = Layout(time, batch, hidden, backwards, y, state)
    plan = op.plan(layout, float(node.attrs.get("clip") or 0.0))
    ordered = [buffers[n] for n in BUFFERS if n in buffers]
    rec.launch([plan], ordered, writes=len(outputs))


def _as_real(rec: Recorder, view: View, real: DType) -> View:
    """`view` in the type of the sums."""
    if view.dtype is real:
        return rec.dense(view)
    result = View.new(real, view.shape)
    body = "y[unit] = widen(x[unit]);"
    compute(rec, "widen", view.shape, {"x": view}, {"y": result}, body)
    return result


def _biased(
    rec: Recorder, node: Node, products: View, b: Tensor | None, directions: int, hidden: int,
    real: DType,
) -> tuple[View, View | None]:  # fmt: skip
    """The gates with their biases, and the bias that stays inside of a linear GRU's reset."""
    gates = KINDS[node.op][1]
    linear = node.op == "GRU" and bool(node.attrs.get("linear_before_reset", 0))
    inner = View.new(real, (directions, hidden)) if linear else None
    if b is None:
        if inner is not None:
            compute(rec, "no_bias", inner.shape, {}, {"y": inner}, "y[unit] = 0;")
        return products, inner
    width = gates * hidden
    bias = rec.view(b)
    kept = 2 * hidden if linear else width  # gates whose recurrent bias may be added now
    body = """
        const i64 d = at[1], k = at[2];
        R_y v = x[unit] + widen(b[d * 2 * width + k]);
        if (k < kept) v += widen(b[(d * 2 + 1) * width + k]);
        y[unit] = v;"""
    result = View.new(real, products.shape)
    compute(
        rec, "gate_biases", (products.shape[0], directions, width), {"x": products, "b": bias},
        {"y": result}, body, width=width, kept=kept,
    )  # fmt: skip
    if inner is not None:
        body = "y[unit] = widen(b[((i64)at[0] * 2 + 1) * width + 2 * hidden + at[1]]);"
        compute(
            rec, "inner_bias", inner.shape, {"b": bias}, {"y": inner}, body,
            width=width, hidden=hidden,
        )  # fmt: skip
    return result, inner
