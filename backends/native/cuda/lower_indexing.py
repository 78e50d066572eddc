"""Reading and writing at indices: gathers, scatters, OneHot, triangles."""

from __future__ import annotations

import math

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.gather import Gather, Scatter
from polytool.backends.native.kernels.pointwise import copy
from polytool.backends.native.network import Layer, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType


def _indices(rec: Recorder, tensor: Tensor) -> View:
    view = rec.view(tensor)
    if view.dtype not in (DType.INT32, DType.INT64):
        raise UnsupportedError(f"indices of type {view.dtype.label}")
    return rec.dense(view)


@lowering("Gather")
def gather(rec: Recorder, layer: Layer) -> None:
    """Rows by index; one index that is known is a view."""
    node, (output,) = layer.nodes[0], layer.outputs
    index = given(node, 1)
    view = rec.view(given(node, 0))
    axis = int(node.attrs.get("axis", 0)) % len(view.shape)
    known = rec.shapes.value(index)
    if known is not None and np.size(known) == 1:
        at = int(np.reshape(known, -1)[0]) % view.shape[axis]
        part = view.sliced(axis, at, 1).reshaped(rec.shape(output))
        if part is not None:
            rec.define(output, part)
            return
    where, data_view = _indices(rec, index), rec.dense(view)
    plan = Gather("Gather", view.dtype, where.dtype).plan(view.shape, where.shape, axis=axis)
    rec.launch([plan], [data_view, where, rec.output(output)])


@lowering("GatherElements", "GatherND")
def gather_elements(rec: Recorder, layer: Layer) -> None:
    """Elements, or blocks, by index."""
    node, (output,) = layer.nodes[0], layer.outputs
    data, where = rec.dense(rec.view(given(node, 0))), _indices(rec, given(node, 1))
    op = Gather(node.op, data.dtype, where.dtype)
    axis = int(node.attrs.get("axis", 0)) % max(1, len(data.shape))
    batch = int(node.attrs.get("batch_dims", 0))
    plan = op.plan(data.shape, where.shape, axis=axis, batch_dims=batch)
    rec.launch([plan], [data, where, rec.output(output)])


@lowering("ScatterElements", "ScatterND")
def scatter(rec: Recorder, layer: Layer) -> None:
    """A copy of the data, then the updates, always in one order."""
    node, (output,) = layer.nodes[0], layer.outputs
    data, where = rec.view(given(node, 0)), _indices(rec, given(node, 1))
    updates = rec.dense(rec.view(given(node, 2)))
    result = rec.output(output)
    if data.count:
        plan = copy(data.dtype).plan(data.shape, [data.operand])
        rec.launch([plan], [data.whole, result])
    op = Scatter(node.op, data.dtype, where.dtype, str(node.attrs.get("reduction", "none")))
    axis = int(node.attrs.get("axis", 0)) % len(data.shape)
    rec.launch([op.plan(data.shape, where.shape, axis=axis)], [where, updates, result])


@lowering("TensorScatter")
def tensor_scatter(rec: Recorder, layer: Layer) -> None:
    """A cache with an update written at each sample's place."""
    node, (output,) = layer.nodes[0], layer.outputs
    past, update = rec.view(given(node, 0)), rec.view(given(node, 1))
    places = node.inputs[2] if len(node.inputs) > 2 else None
    axis = int(node.attrs.get("axis", -2)) % len(past.shape)
    circular = int(str(node.attrs.get("mode", "linear")) == "circular")
    views = {"past": past, "update": update}
    if places is not None:
        views["start"] = rec.view(places)
    inner = math.prod(past.shape[axis + 1 :])
    shape = (past.shape[0], math.prod(past.shape[1:axis]), past.shape[axis], inner)
    first = "start[at[0]]" if places is not None else "0"
    body = f"""
        i64 place = (i64)at[2] - {first};
        if ({circular}) place = (place % length + length) % length;
        const bool fresh = place >= 0 && place < count;
        const i64 line = (i64)at[0] * middle + at[1];
        y[unit] = fresh ? update[(line * count + place) * inner + at[3]] : past[unit];"""
    compute(
        rec, node.op, shape, views, {"y": rec.output(output)}, body,
        length=past.shape[axis], count=update.shape[axis], inner=inner, middle=shape[1],
    )  # fmt: skip


@lowering("OneHot")
def one_hot(rec: Recorder, layer: Layer) -> None:
    """The second value at each index, else the first."""
    node, (output,) = layer.nodes[0], layer.outputs
    where, values = rec.view(given(node, 0)), rec.view(given(node, 2))
    axis = int(node.attrs.get("axis", -1)) % (len(where.shape) + 1)
    shape = rec.shape(output)
    flat = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    body = """
        i64 place = (i64)widen(where[(i64)at[0] * inner + at[2]]);
        if (place < 0) place += depth;
        y[unit] = values[place == (i64)at[1]];"""
    views = {"where": where, "values": values}
    compute(
        rec, node.op, flat, views, {"y": rec.output(output)}, body, depth=flat[1], inner=flat[2]
    )


@lowering("Trilu")
def trilu(rec: Recorder, layer: Layer) -> None:
    """The upper or lower triangle of matrices."""
    node, (output,) = layer.nodes[0], layer.outputs
    k = rec.attribute(node.inputs[1] if len(node.inputs) > 1 else None)
    view = rec.view(given(node, 0))
    shape = (math.prod(view.shape[:-2]), *view.shape[-2:])
    sign = ">=" if node.attrs.get("upper", 1) else "<="
    body = f"y[unit] = (i64)at[2] - (i64)at[1] {sign} k ? x[unit] : T_x();"
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    compute(rec, node.op, shape, {"x": view}, {"y": rec.output(output)}, body, k=diagonal)


@lowering("EyeLike")
def eye_like(rec: Recorder, layer: Layer) -> None:
    """Ones on a diagonal."""
    node, (output,) = layer.nodes[0], layer.outputs
    body = "y[unit] = narrow<T_y>((i64)at[1] - (i64)at[0] == k ? 1 : 0);"
    k = int(node.attrs.get("k", 0))
    compute(rec, node.op, rec.shape(output), {}, {"y": rec.output(output)}, body, k=k)


@lowering("Range")
def range_(rec: Recorder, layer: Layer) -> None:
    """Start plus multiples of the step."""
    node, (output,) = layer.nodes[0], layer.outputs
    views = {"start": rec.view(given(node, 0))}
    delta = node.inputs[2] if len(node.inputs) > 2 else None
    if delta is not None:
        views["delta"] = rec.view(delta)
    step = "widen(delta[0])" if delta is not None else "1"
    body = f"y[unit] = narrow<T_y>(widen(start[0]) + (R_y)unit * {step});"
    compute(rec, node.op, rec.shape(output), views, {"y": rec.output(output)}, body)


@lowering("ReverseSequence")
def reverse_sequence(rec: Recorder, layer: Layer) -> None:
    """The first steps of each batch entry in reverse order."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, lengths = rec.view(given(node, 0)), rec.view(given(node, 1))
    batch, time = (
        int(node.attrs.get(k, d)) % len(x.shape) for k, d in (("batch_axis", 1), ("time_axis", 0))
    )
    steps = tuple(math.prod(x.shape[d + 1 :]) for d in range(len(x.shape)))
    body = """
        const i64 length = min((i64)lengths[at[BATCH]], steps), t = at[TIME];
        y[unit] = x[(i64)unit + (t < length ? (length - 1 - 2 * t) * step : 0)];"""
    compute(
        rec, node.op, x.shape, {"x": x, "lengths": lengths}, {"y": rec.output(output)}, body,
        defines={"BATCH": batch, "TIME": time}, step=steps[time], steps=x.shape[time],
    )  # fmt: skip


@lowering("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(rec: Recorder, layer: Layer) -> None:
    """Columns by index: a Gather along the last axis."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, where = rec.dense(rec.view(given(node, 0))), _indices(rec, given(node, 1))
    plan = Gather("Gather", x.dtype, where.dtype).plan(x.shape, where.shape, axis=len(x.shape) - 1)
    rec.launch([plan], [x, where, rec.output(output)])
