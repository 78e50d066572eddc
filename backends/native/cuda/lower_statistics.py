"""Normalisations in their general forms, positions of extremes, running sums, TopK, losses."""

from __future__ import annotations

import dataclasses
import math

from polytool.backends.native.cuda.buffers import Dims, View
from polytool.backends.native.cuda.elements import compute, store
from polytool.backends.native.cuda.lower_rows import softmax
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.kernels.ordering import CumSum, TopK
from polytool.backends.native.kernels.reduce import Reduce
from polytool.backends.native.kernels.source import compute_type
from polytool.backends.native.kernels.spatial import GroupNorm
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType

_REGISTERS = {"float": DType.FLOAT, "double": DType.DOUBLE}


def register_dtype(dtype: DType) -> DType:
    """The type that holds sums of values of a real type."""
    return _REGISTERS[compute_type(dtype)]


def reduced(
    rec: Recorder, op: str, view: View, axes: tuple[int, ...], dtype: DType, *, last: bool = False
) -> View:
    """A reduction to a new dense view without the axes."""
    if view.offset:
        view = rec.dense(view)
    kept = tuple(n for d, n in enumerate(view.shape) if d not in axes)
    result = View.new(dtype, kept)
    plan = Reduce(op, view.dtype, dtype, last).plan(view.shape, axes, view.steps)
    rec.launch([plan], [view, result])
    return result


def around(shape: Dims, axis: int) -> Dims:
    """The elements before, along and after an axis."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@lowering("ArgMax", "ArgMin")
def arg_extreme(rec: Recorder, layer: Layer) -> None:
    """Where the extreme along an axis lies."""
    node, (output,) = layer.nodes[0], layer.outputs
    view = rec.view(given(node, 0))
    axis = int(node.attrs.get("axis", 0)) % len(view.shape)
    last = bool(node.attrs.get("select_last_index", 0))
    result = reduced(rec, node.op, view, (axis,), DType.INT64, last=last)
    shaped = result.reshaped(rec.shape(output))
    assert shaped is not None
    rec.define(output, shaped)


@lowering("Hardmax")
def hardmax(rec: Recorder, layer: Layer) -> None:
    """One at the first maximum, else zero."""
    node, (output,) = layer.nodes[0], layer.outputs
    view = rec.view(given(node, 0))
    old = node.version < 13
    axis = int(node.attrs.get("axis", 1 if old else -1)) % len(view.shape)
    shape = around(view.shape, axis)
    if old:
        shape = (math.prod(view.shape[:axis]), math.prod(view.shape[axis:]), 1)
    flat = rec.dense(view).reshaped(shape)
    assert flat is not None
    where = reduced(rec, "ArgMax", flat, (1,), DType.INT64)
    body = "y[unit] = narrow<T_y>(where[(i64)at[0] * inner + at[2]] == (i64)at[1] ? 1 : 0);"
    views = {"where": where}
    compute(rec, node.op, shape, views, {"y": rec.output(output)}, body, inner=shape[2])


@lowering("CumSum", "CumProd")
def running(rec: Recorder, layer: Layer) -> None:
    """Running sums or products."""
    node, (output,) = layer.nodes[0], layer.outputs
    view = rec.dense(rec.view(given(node, 0)))
    axis = int(rec.attribute(given(node, 1)).reshape(-1)[0]) % len(view.shape)
    exclusive, reverse = (bool(node.attrs.get(k, 0)) for k in ("exclusive", "reverse"))
    op = CumSum(view.dtype, exclusive, reverse, node.op == "CumProd")
    rec.launch([op.plan(view.shape, axis)], [view, rec.output(output)])


@lowering("TopK")
def top_k(rec: Recorder, layer: Layer) -> None:
    """The extreme values and where they lie, always in order."""
    node, view = layer.nodes[0], rec.dense(rec.view(given(layer.nodes[0], 0)))
    axis = int(node.attrs.get("axis", -1)) % len(view.shape)
    k = int(rec.attribute(given(node, 1)).reshape(-1)[0])
    shape = (*view.shape[:axis], k, *view.shape[axis + 1 :])
    if k > view.shape[axis]:
        raise UnsupportedError("a TopK of more elements than there are")
    results = [
        rec.output(t) if t is not None else View.new(dtype, shape)
        for t, dtype in zip([*node.outputs, None][:2], (view.dtype, DType.INT64), strict=True)
    ]
    plan = TopK(view.dtype, bool(node.attrs.get("largest", 1))).plan(view.shape, axis, k)
    rec.launch([plan], [view, *results], writes=2)


@lowering("LpNormalization")
def lp_normalization(rec: Recorder, layer: Layer) -> None:
    """Divided by the norm along an axis; zeros stay."""
    node, (output,) = layer.nodes[0], layer.outputs
    view = rec.view(given(node, 0))
    axis = int(node.attrs.get("axis", -1)) % len(view.shape)
    op = "ReduceL1" if int(node.attrs.get("p", 2)) == 1 else "ReduceL2"
    norm = reduced(rec, op, view, (axis,), register_dtype(view.dtype))
    shape = around(view.shape, axis)
    body = """
        const R_norm n = norm[(i64)at[0] * inner + at[2]];
        y[unit] = narrow<T_y>(widen(x[unit]) / (n == 0 ? (R_norm)1 : n));"""
    views = {"x": view, "norm": norm}
    compute(rec, node.op, shape, views, {"y": rec.output(output)}, body, inner=shape[2])


@lowering("MeanVarianceNormalization")
def mean_variance(rec: Recorder, layer: Layer) -> None:
    """Zero mean and unit deviation over some axes."""
    node, (output,) = layer.nodes[0], layer.outputs
    view = rec.dense(rec.view(given(node, 0)))
    rank, attrs = len(view.shape), node.attrs
    axes = tuple(int(a) % rank for a in attrs.get("axes", (0, 2, 3)))
    if node.version < 9:
        axes = tuple(a for a in range(rank) if attrs.get("across_channels", 0) or a != 1)
    kind = register_dtype(view.dtype)
    mean = _spread(reduced(rec, "ReduceMean", view, axes, kind), view.shape, axes)
    squares = View.new(kind, view.shape)
    body = "const R_y d = widen(x[unit]) - mean[unit]; y[unit] = d * d;"
    compute(rec, "squares", view.shape, {"x": view, "mean": mean}, {"y": squares}, body)
    square = _spread(reduced(rec, "ReduceMean", squares, axes, kind), view.shape, axes)
    divided = int(attrs.get("normalize_variance", 1))
    body = f"""
        const R_mean d = widen(x[unit]) - mean[unit];
        y[unit] = narrow<T_y>({divided} ? d / (sqrt(square[unit]) + (R_mean)1e-9) : d);"""
    views = {"x": view, "mean": mean, "square": square}
    compute(rec, node.op, view.shape, views, {"y": rec.output(output)}, body)


def _spread(view: View, shape: Dims, axes: tuple[int, ...]) -> View:
    """A reduced view, repeated along the axes that are gone."""
    kept = view.reshaped(tuple(1 if d in axes else n for d, n in enumerate(shape)))
    assert kept is not None
    return kept.broadcast(shape)


@lowering("BatchNormalization")
def batch_normalization(rec: Recorder, layer: Layer) -> None:
    """With given statistics, or with those of the batch, which are returned too."""
    node = layer.nodes[0]
    if node.attrs.get("training_mode", 0):
        _training(rec, node)
        return
    names = ("x", "scale", "bias", "mean", "var")
    views = {k: rec.view(given(node, i)) for i, k in enumerate(names)}
    shape = around(views["x"].shape, 1)
    body = """
        const u32 c = at[1];
        typedef decltype(widen(*x) + widen(*var)) R;
        const R factor = (R)widen(scale[c]) / sqrt((R)widen(var[c]) + (R)epsilon);
        const R centred = (R)widen(x[unit]) - (R)widen(mean[c]);
        y[unit] = narrow<T_y>(centred * factor + (R)widen(bias[c]));"""
    result = {"y": rec.output(layer.outputs[0])}
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    compute(rec, node.op, shape, views, result, body, epsilon=epsilon)


def _training(rec: Recorder, node: Node) -> None:
    """Statistics by one thread a channel, then the normalisation."""
    x = rec.dense(rec.view(given(node, 0)))
    batch, channels, inner = around(x.shape, 1)
    held = {
        k: rec.view(given(node, i))
        for i, k in enumerate(("scale", "bias", "old_mean", "old_var"), 1)
    }
    kind = register_dtype(x.dtype)
    mean, var = View.new(kind, (channels,)), View.new(kind, (channels,))
    running = [
        rec.output(t) if t is not None else View.new(held[k].dtype, (channels,))
        for t, k in zip([*node.outputs[1:], None, None][:2], ("old_mean", "old_var"), strict=True)
    ]
    body = """
        R_mean sum = 0, square = 0;
        for (i64 n = 0; n < batch; n++)
            for (i64 i = 0; i < inner; i++) sum += widen(x[(n * channels + unit) * inner + i]);
        const R_mean center = sum / (R_mean)(batch * inner);
        for (i64 n = 0; n < batch; n++)
            for (i64 i = 0; i < inner; i++) {
                const R_mean d = widen(x[(n * channels + unit) * inner + i]) - center;
                square += d * d;
            }
        mean[unit] = center;
        var[unit] = square / (R_mean)(batch * inner);
        const double kept = momentum, fresh = 1 - momentum;
        new_mean[unit] = narrow<T_new_mean>(widen(old_mean[unit]) * kept + center * fresh);
        new_var[unit] = narrow<T_new_var>(widen(old_var[unit]) * kept + var[unit] * fresh);"""
    inputs = {"x": x, "old_mean": held["old_mean"], "old_var": held["old_var"]}
    outputs = {"mean": mean, "var": var, "new_mean": running[0], "new_var": running[1]}
    compute(
        rec, "batch_statistics", (channels,), inputs, outputs, body,
        batch=batch, channels=channels, inner=inner,
        momentum=float(node.attrs.get("momentum", 0.9)),
    )  # fmt: skip
    first = node.outputs[0]
    assert first is not None
    body = """
        const u32 c = at[1];
        const R_mean v = (widen(x[unit]) - mean[c]) / sqrt(var[c] + (R_mean)epsilon);
        y[unit] = narrow<T_y>(v * widen(scale[c]) + widen(bias[c]));"""
    views = {"x": x, "mean": mean, "var": var, "scale": held["scale"], "bias": held["bias"]}
    compute(
        rec, node.op, (batch, channels, inner), views, {"y": rec.output(first)}, body,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),
    )  # fmt: skip


@lowering("InstanceNormalization", "GroupNormalization")
def group_normalization(rec: Recorder, layer: Layer) -> None:
    """Over groups of channels; a channel a group is InstanceNormalization."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, scale, bias = (rec.dense(rec.view(given(node, i))) for i in range(3))
    batch, channels = x.shape[:2]
    groups = int(node.attrs.get("num_groups", channels))
    if scale.count != channels:  # before version 21 one a group
        scale, bias = (_each_channel(rec, v, channels) for v in (scale, bias))
    if scale.dtype is not bias.dtype or output.dtype is not x.dtype:
        raise UnsupportedError("a normalisation whose scale and shift differ in type")
    op = GroupNorm(x.dtype, scale.dtype)
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    plan = op.plan(batch, channels, groups, math.prod(x.shape[2:]), epsilon)
    rec.launch([plan], [x, scale, bias, rec.output(output)])


def _each_channel(rec: Recorder, view: View, channels: int) -> View:
    split = view.reshaped((view.count, 1))
    assert split is not None
    whole = rec.dense(split.broadcast((view.count, channels // view.count))).reshaped((channels,))
    assert whole is not None
    return whole


@lowering("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", general=True)
def layer_normalization(rec: Recorder, layer: Layer) -> None:
    """With any broadcast of scale and shift, returning mean and inverse deviation if asked."""
    node = layer.nodes[0]
    x = rec.dense(rec.view(given(node, 0)))
    axis = int(node.attrs.get("axis", -1)) % len(x.shape)
    rows, width = math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    centred = node.op == "LayerNormalization"
    kind = register_dtype(x.dtype)
    mean, inverse = View.new(kind, (rows,)), View.new(kind, (rows,))
    body = f"""
        R_mean sum = 0, square = 0;
        for (i64 i = 0; i < width; i++) sum += widen(x[unit * width + i]);
        const R_mean center = {int(centred)} ? sum / (R_mean)width : (R_mean)0;
        for (i64 i = 0; i < width; i++) {{
            const R_mean d = widen(x[unit * width + i]) - center;
            square += d * d;
        }}
        mean[unit] = center;
        inverse[unit] = (R_mean)1 / sqrt(square / (R_mean)width + (R_mean)epsilon);"""
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    compute(
        rec, "row_statistics", (rows,), {"x": x}, {"mean": mean, "inverse": inverse}, body,
        width=width, epsilon=epsilon,
    )  # fmt: skip
    views = {"x": x, "mean": mean, "inverse": inverse}
    factors = {"scale": node.inputs[1], "bias": ([*node.inputs, None, None])[2]}
    views |= {k: rec.view(t).broadcast(x.shape) for k, t in factors.items() if t is not None}
    body = f"""
        const R_mean v = (widen(x[unit]) - mean[at[0]]) * inverse[at[0]] * widen(scale[unit]);
        y[unit] = narrow<T_y>(v {"+ widen(bias[unit])" if "bias" in views else ""});"""
    first = node.outputs[0]
    assert first is not None
    compute(rec, node.op, (rows, width), views, {"y": rec.output(first)}, body)
    statistics = (mean, inverse) if centred else (inverse,)
    for tensor, view in zip(node.outputs[1:], statistics, strict=False):
        if tensor is not None:
            store(rec, view, tensor)


@lowering("NegativeLogLikelihoodLoss")
def negative_log_likelihood(rec: Recorder, layer: Layer) -> None:
    """The loss of each element and its weight, then their sums."""
    node, (output,) = layer.nodes[0], layer.outputs
    _loss(rec, node, rec.view(given(node, 0)), output)


@lowering("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(rec: Recorder, layer: Layer) -> None:
    """The logarithm of the softmax over classes, and its loss."""
    node = layer.nodes[0]
    scores = given(node, 0)
    logs = node.outputs[1] if len(node.outputs) > 1 else None
    logs = logs or rec.temporary(scores.dtype, rec.shape(scores), "logs")
    log = dataclasses.replace(
        node, op="LogSoftmax", version=13, inputs=[scores], outputs=[logs], attrs={"axis": 1}
    )
    softmax(rec, Layer.single(log))
    if node.outputs[0] is not None:
        _loss(rec, node, rec.view(logs), node.outputs[0])


def _loss(rec: Recorder, node: Node, logs: View, output: Tensor) -> None:
    target = rec.view(given(node, 1))
    weight = node.inputs[2] if len(node.inputs) > 2 else None
    shape = around(logs.shape, 1)
    kind = register_dtype(logs.dtype)
    reduction = str(node.attrs.get("reduction", "mean"))
    ignored = node.attrs.get("ignore_index")
    whole = reduction == "none"
    loss = rec.output(output) if whole else View.new(kind, target.shape)
    factor = View.new(kind, target.shape)
    views = {"logs": logs, "target": target}
    if weight is not None:
        views["weight"] = rec.view(weight)
    body = f"""
        const i64 c = target[unit];
        const bool valid = c >= 0 && c < classes;  // a wrong class must not end the process
        const bool counted = valid && ({int(ignored is None)} || c != ignored);
        R_factor f = counted ? (R_factor){"widen(weight[c])" if weight is not None else "1"} : 0;
        factor[unit] = f;
        const i64 place = (at[0] * classes + c) * inner + at[1];
        loss[unit] = narrow<T_loss>(counted ? -widen(logs[place]) * f : 0);"""
    compute(
        rec, node.op, (shape[0], shape[2]), views, {"loss": loss, "factor": factor}, body,
        classes=shape[1], inner=shape[2], ignored=int(ignored or 0),
    )  # fmt: skip
    if whole:
        return
    axes = tuple(range(len(target.shape)))
    total, weights = (reduced(rec, "ReduceSum", v, axes, kind) for v in (loss, factor))
    divided = "/ weights[0]" if reduction == "mean" else ""
    body = f"y[unit] = narrow<T_y>(total[0] {divided});"
    compute(
        rec, "total_loss", (), {"total": total, "weights": weights}, {"y": rec.output(output)}, body
    )
