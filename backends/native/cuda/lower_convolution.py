"""Convolutions of every rank, type and direction: one thread an output element."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute
from polytool.backends.native.cuda.recorder import Recorder, alone, given, lowering
from polytool.backends.native.network import Constant, Layer, Node, Tensor
from polytool.backends.native.ops.conv import transposed_windows
from polytool.backends.native.ops.windows import Windows, windows
from polytool.errors import UnsupportedError
from polytool.tensors import DType

# for each position of the window: the input element, or none where it hangs over
_WINDOW = """
        for (i64 kz = 0; kz < kernel.step[0]; kz++) {
            const i64 z = (i64)at[2] * stride.step[0] - pad.step[0] + kz * dilation.step[0];
            if (z < 0 || z >= size.step[0]) continue;
            for (i64 kh = 0; kh < kernel.step[1]; kh++) {
                const i64 h = (i64)at[3] * stride.step[1] - pad.step[1] + kh * dilation.step[1];
                if (h < 0 || h >= size.step[1]) continue;
                for (i64 kw = 0; kw < kernel.step[2]; kw++) {
                    const i64 v = (i64)at[4] * stride.step[2] - pad.step[2] + kw * dilation.step[2];
                    if (v < 0 || v >= size.step[2]) continue;
                    const i64 place = (z * size.step[1] + h) * size.step[2] + v;
                    const i64 tap = (kz * kernel.step[1] + kh) * kernel.step[2] + kw;
                    %s
                }
            }
        }"""
_PRODUCT = (
    """
        const i64 m = at[1], group = m / per_group;
        const T_x* image = x + ((i64)at[0] * groups + group) * channels * pixels;
        const T_w* filter = w + m * channels * taps;
        ACC sum = 0;
"""
    + _WINDOW
    % (
        "for (i64 c = 0; c < channels; c++)"
        " sum += ((ACC)widen(image[c * pixels + place]) - ACC(X_ZERO))"
        " * ((ACC)widen(filter[c * taps + tap]) - ACC(W_ZERO));"
    )
)

# for each input element whose window reaches an output element: where both lie
_REACHED = """
        for (i64 kz = 0; kz < kernel.step[0]; kz++) {
            i64 z = (i64)at[2] + pad.step[0] - kz * dilation.step[0];
            if (z < 0 || z % stride.step[0]) continue;
            if ((z /= stride.step[0]) >= count.step[0]) continue;
            for (i64 kh = 0; kh < kernel.step[1]; kh++) {
                i64 h = (i64)at[3] + pad.step[1] - kh * dilation.step[1];
                if (h < 0 || h % stride.step[1]) continue;
                if ((h /= stride.step[1]) >= count.step[1]) continue;
                for (i64 kw = 0; kw < kernel.step[2]; kw++) {
                    i64 v = (i64)at[4] + pad.step[2] - kw * dilation.step[2];
                    if (v < 0 || v % stride.step[2]) continue;
                    if ((v /= stride.step[2]) >= count.step[2]) continue;
                    const i64 place = (z * count.step[1] + h) * count.step[2] + v;
                    const i64 tap = (kz * kernel.step[1] + kh) * kernel.step[2] + kw;
                    USE
                }
            }
        }"""


def geometry(where: Windows) -> dict[str, Any]:
    """The scalars of the window loop: three spatial dimensions, ones in front."""
    missing = 3 - len(where.kernel)
    if missing < 0:
        raise UnsupportedError("a convolution over more than three dimensions")
    fields = {
        "kernel": (where.kernel, 1),
        "stride": (where.strides, 1),
        "dilation": (where.dilations, 1),
        "pad": (where.before, 0),
        "size": (where.size, 1),
    }
    return {k: (*((fill,) * missing), *v) for k, (v, fill) in fields.items()}


def spatial(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Three spatial sizes."""
    return (*((1,) * (3 - len(dims))), *dims)


def node_windows(node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> Windows:
    """Where the kernel of a convolution stands."""
    a = node.attrs
    return windows(
        size, kernel, a.get("strides"), a.get("dilations"), a.get("pads"),
        str(a.get("auto_pad", "NOTSET")),
    )  # fmt: skip


def convolve(
    rec: Recorder, node: Node, x: View, w: View, extra: Mapping[str, View], output: View,
    result: str, acc: str, zeros: tuple[str, str] = ("0", "0"),
) -> None:  # fmt: skip
    """Record a convolution whose stored value is the C expression `result` of `sum` and `m`."""
    where = node_windows(node, x.shape[2:], w.shape[2:])
    groups = int(node.attrs.get("group", 1))
    body = f"{_PRODUCT}\n        y[unit] = {result};"
    shape = (x.shape[0], w.shape[0], *spatial(where.out))
    compute(
        rec, node.op, shape, {"x": x, "w": w, **extra}, {"y": output}, body,
        defines={"ACC": acc, "X_ZERO": zeros[0], "W_ZERO": zeros[1]},
        groups=groups, channels=w.shape[1], per_group=w.shape[0] // groups,
        pixels=math.prod(x.shape[2:]), taps=math.prod(w.shape[2:]), **geometry(where),
    )  # fmt: skip


@lowering("Conv", general=True)
def convolution(rec: Recorder, layer: Layer) -> None:
    """One-dimensional ones as two-dimensional ones, all others directly."""
    node, output = alone(layer, "a general convolution")
    x, w = rec.view(given(node, 0)), rec.view(given(node, 1))
    if len(x.shape) == 3 and given(node, 1).constant is not None:
        _one_dimensional(rec, node, output)
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    extra = {} if bias is None else {"bias": rec.view(bias)}
    acc = "double" if x.dtype is DType.DOUBLE else "float"
    result = "narrow<T_y>(sum" + ("" if bias is None else " + (ACC)widen(bias[m])") + ")"
    convolve(rec, node, x, w, extra, rec.output(output), result, acc)


def _one_dimensional(rec: Recorder, node: Node, output: Tensor) -> None:
    x, w = given(node, 0), given(node, 1)
    constant, shape = w.constant, rec.shape(w)
    assert constant is not None
    n, c, length = rec.shape(x)
    wide_x = rec.temporary(x.dtype, (n, c, 1, length), "image")
    view = rec.view(x)
    rec.define(wide_x, view.reshaped((n, c, 1, length)) or _reshaped(rec, view, (n, c, 1, length)))
    flat = (shape[0], shape[1], 1, shape[2])
    filters = Tensor(w.name, w.dtype, flat)
    filters.constant = Constant(
        constant.dtype, flat, lambda: np.ascontiguousarray(constant.array()).reshape(flat)
    )
    out = rec.shape(output)
    wide_y = rec.temporary(output.dtype, (out[0], out[1], 1, out[2]), "image")
    attrs: dict[str, Any] = dict(node.attrs)
    for name, fill in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if attrs.get(name):
            attrs[name] = [fill, *attrs[name]]
    if attrs.get("pads"):
        before, after = attrs["pads"]
        attrs["pads"] = [0, before, 0, after]
    inputs = [wide_x, filters, *node.inputs[2:]]
    rec.lower(Layer.single(dataclasses.replace(node, inputs=inputs, outputs=[wide_y], attrs=attrs)))
    result = rec.view(wide_y)
    rec.define(output, result.reshaped(out) or _reshaped(rec, result, out))


def _reshaped(rec: Recorder, view: View, shape: tuple[int, ...]) -> View:
    found = rec.dense(view).reshaped(shape)
    assert found is not None
    return found


@lowering("ConvTranspose")
def conv_transpose(rec: Recorder, layer: Layer) -> None:
    """Each output element gathers the inputs whose windows reach it."""
    node, output = alone(layer, "a transposed convolution")
    x, w = rec.view(given(node, 0)), rec.view(given(node, 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    keys = ("dilations", "output_padding", "output_shape", "pads", "strides")
    where = transposed_windows(
        x.shape[2:], w.shape[2:], auto_pad=str(node.attrs.get("auto_pad", "NOTSET")),
        **{k: node.attrs.get(k) for k in keys},
    )  # fmt: skip
    groups = int(node.attrs.get("group", 1))
    extra = {} if bias is None else {"bias": rec.view(bias)}
    inner = """
        const i64 m = at[1], group = m / per_group, own = m % per_group;
        const T_x* image = x + ((i64)at[0] * groups + group) * channels * pixels;
        ACC sum = 0;""" + _REACHED.replace(
        "USE",
        "const T_w* filter = w + (group * channels * per_group + own) * taps + tap;"
        "for (i64 c = 0; c < channels; c++) sum +="
        " (ACC)widen(image[c * pixels + place]) * (ACC)widen(filter[c * per_group * taps]);",
    )
    added = "" if bias is None else " + (ACC)widen(bias[m])"
    fields = geometry(where)
    del fields["size"]
    compute(
        rec, node.op, (x.shape[0], w.shape[1] * groups, *spatial(where.size)),
        {"x": x, "w": w, **extra}, {"y": rec.output(output)},
        f"{inner}\n        y[unit] = narrow<T_y>(sum{added});",
        defines={"ACC": "double" if x.dtype is DType.DOUBLE else "float"},
        groups=groups, channels=x.shape[1] // groups, per_group=w.shape[1],
        pixels=math.prod(x.shape[2:]), taps=math.prod(w.shape[2:]),
        count=spatial(x.shape[2:]), **fields,
    )  # fmt: skip


@lowering("Col2Im")
def col2im(rec: Recorder, layer: Layer) -> None:
    """Each pixel adds up the blocks that cover it."""
    node, (output,) = layer.nodes[0], layer.outputs
    x = rec.view(given(node, 0))
    image, block = (
        tuple(int(d) for d in rec.attribute(given(node, i)).reshape(-1)) for i in (1, 2)
    )
    where = node_windows(node, image, block)
    body = """
        R_x sum = 0;
        const T_x* line = x + ((i64)at[0] * channels + at[1]) * taps * blocks;
    """ + _REACHED.replace("USE", "sum += widen(line[tap * blocks + place]);")
    body += "y[unit] = narrow<T_y>(sum);"
    fields = geometry(where)
    del fields["size"]
    shape = rec.shape(output)
    compute(
        rec, node.op, (*shape[:2], *spatial(shape[2:])), {"x": x}, {"y": rec.output(output)}, body,
        channels=shape[1], taps=math.prod(block), blocks=math.prod(where.out),
        count=spatial(where.out), **fields,
    )  # fmt: skip


@lowering("CausalConvWithState")
def causal_conv_with_state(rec: Recorder, layer: Layer) -> None:
    """A depthwise convolution of what was and what is; the state is its end."""
    node = layer.nodes[0]
    x, w = rec.view(given(node, 0)), rec.view(given(node, 1))
    bias, past = [*node.inputs[2:], None, None][:2]
    activation = str(node.attrs.get("activation", "none"))
    views = {"x": x, "w": w}
    views |= {k: rec.view(t) for k, t in (("bias", bias), ("past", past)) if t is not None}
    batch, channels, length = x.shape
    read = """
        const i64 history = taps - 1;
        auto value = [&](i64 i) -> R_x {
            const i64 line = (i64)at[0] * channels + at[1];
            if (i >= history) return widen(x[line * length + i - history]);
            %s
        };"""
    past_code = "return widen(past[line * history + i]);"
    read %= past_code if past is not None else "return 0;"
    outputs = [*node.outputs, None][:2]
    if outputs[0] is not None:
        silu = activation in ("silu", "swish")
        body = (
            read
            + f"""
        R_x sum = 0;
        for (i64 k = 0; k < taps; k++) sum += value((i64)at[2] + k) * widen(w[at[1] * taps + k]);
        {"sum += widen(bias[at[1]]);" if bias is not None else ""}
        y[unit] = narrow<T_y>({"sum * sigmoid(sum)" if silu else "sum"});"""
        )
        compute(
            rec, node.op, x.shape, views, {"y": rec.output(outputs[0])}, body,
            channels=channels, length=length, taps=w.shape[2],
        )  # fmt: skip
    if outputs[1] is not None:
        state = (batch, channels, w.shape[2] - 1)
        body = read + "y[unit] = narrow<T_y>(value((i64)at[2] + length));"
        compute(
            rec, "conv_state", state, views, {"y": rec.output(outputs[1])}, body,
            channels=channels, length=length, taps=w.shape[2],
        )  # fmt: skip
