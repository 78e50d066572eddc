"""Quantising, dequantising, and products of integers."""

from __future__ import annotations

import math

from polytool.backends.native.cuda.buffers import Dims, View
from polytool.backends.native.cuda.elements import compute, each
from polytool.backends.native.cuda.lower_convolution import convolve
from polytool.backends.native.cuda.lower_statistics import around, reduced, register_dtype
from polytool.backends.native.cuda.recorder import Recorder, alone, given, lowering
from polytool.backends.native.kernels.expr import SATURATED
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.errors import UnsupportedError
from polytool.tensors import DType


def limits(dtype: DType) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    if dtype.name.startswith("U"):
        return 0, 2**dtype.bits - 1
    return -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1


def on_grid(value: str, zero: str, dtype: DType, real: str, *, saturates: bool = True) -> str:
    """C for a scaled value, rounded to the grid of `dtype`, shifted by its zero point."""
    if dtype.is_integer:
        low, high = limits(dtype)
        wide = f"rint({value}) + ({real})({zero})"
        return f"narrow<T_y>((i64)fmin(fmax((double)({wide}), {low}.0), {high}.0))"
    text = f"({value}) + ({real})({zero})"
    if saturates and dtype in SATURATED:
        text = f"saturated((double)({text}), {SATURATED[dtype]})"
    return f"narrow<T_y>({text})"


def _parameter_index(rec: Recorder, view: View, shape: Dims, axis: int, block: int) -> str:
    """Where an element of (before, axis, after) finds its scale."""
    if block:
        return f"((i64)at[0] * {view.shape[axis]} + at[1] / {block}) * {shape[2]} + at[2]"
    if view.count == 1:
        return "0"
    if len(view.shape) == 1:
        return "at[1]"
    raise UnsupportedError("a scale of another shape than one a tensor, an axis or a block")


@lowering("QuantizeLinear", "DequantizeLinear")
def quantize(rec: Recorder, layer: Layer) -> None:
    """To the grid of a scale, and back."""
    node, (output,) = layer.nodes[0], layer.outputs
    x, scale = rec.view(given(node, 0)), rec.view(given(node, 1))
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    axis = int(node.attrs.get("axis", 1)) % max(len(x.shape), 1)
    block = int(node.attrs.get("block_size", 0))
    shape = around(x.shape, axis) if x.shape else (1, 1, 1)
    index = _parameter_index(rec, scale, shape, axis, block)
    views = {"x": x, "scale": scale}
    if zero is not None:
        views["zero"] = rec.view(zero)
    point = f"widen(zero[{index}])" if zero is not None else "0"
    result = rec.output(output)
    saturates = bool(node.attrs.get("saturate", 1))
    if node.op == "QuantizeLinear":
        real = "double" if DType.DOUBLE in (scale.dtype, x.dtype) else "float"
        scaled = f"({real})widen(x[unit]) / ({real})widen(scale[{index}])"
        value = on_grid(scaled, point, result.dtype, real, saturates=saturates)
    elif x.dtype.is_integer:
        value = f"narrow<T_y>((R_y)((i64)widen(x[unit]) - (i64){point}) * widen(scale[{index}]))"
    else:
        value = f"narrow<T_y>((widen(x[unit]) - {point}) * widen(scale[{index}]))"
    compute(rec, node.op, shape, views, {"y": result}, f"y[unit] = {value};")


@lowering("DynamicQuantizeLinear")
def dynamic_quantize(rec: Recorder, layer: Layer) -> None:
    """The range of the input decides scale and zero point."""
    node, x = layer.nodes[0], rec.dense(rec.view(given(layer.nodes[0], 0)))
    y, scale, zero = (
        rec.output(t) if t is not None else View.new(dtype, shape)
        for t, dtype, shape in zip(
            [*node.outputs, None, None][:3],
            (DType.UINT8, DType.FLOAT, DType.UINT8),
            (x.shape, (), ()),
            strict=True,
        )
    )
    dynamic_scale(rec, x, y, scale, zero)


def dynamic_scale(rec: Recorder, x: View, y: View, scale: View, zero: View) -> None:
    """Quantise `x` to uint8 by its range, widened to zero: values, scale and zero point."""
    axes = tuple(range(len(x.shape)))
    low, high = (reduced(rec, op, x, axes, DType.FLOAT) for op in ("ReduceMin", "ReduceMax"))
    body = f"""
        const bool any = {int(x.count > 0)};
        const float a = any ? fminf(low[0], 0) : 0, b = any ? fmaxf(high[0], 0) : 0;
        const float s = a == b ? 1 : (b - a) / 255.0f;
        scale[0] = s;
        zero[0] = (unsigned char)fminf(fmaxf(rintf(0 - a / s), 0), 255);"""
    outputs = {"scale": scale, "zero": zero}
    compute(rec, "dynamic_scale", (), {"low": low, "high": high}, outputs, body)
    value = on_grid("widen(x[unit]) / scale[0]", "zero[0]", DType.UINT8, "float")
    views = {"x": x, "scale": scale, "zero": zero}
    compute(rec, "dynamic_quantize", x.shape, views, {"y": y}, f"y[unit] = {value};")


def integer_product(
    rec: Recorder, node: Node, a: View, b: View, zeros: tuple[Tensor | None, Tensor | None],
    extra: dict[str, View], output: Tensor, result: str, acc: str,
) -> None:  # fmt: skip
    """A thread an element of a product of matrices minus their zero points."""
    rows = len(a.shape) > 1
    wide_a = a if rows else a.reshaped((1, *a.shape))
    wide_b = b if len(b.shape) > 1 else b.reshaped((*b.shape, 1))
    assert wide_a is not None and wide_b is not None
    m, k, n = *wide_a.shape[-2:], wide_b.shape[-1]
    shape = rec.shape(output)
    batch = shape[: len(shape) - (rows + (len(b.shape) > 1))]
    full_a, full_b = wide_a.broadcast((*batch, m, k)), wide_b.broadcast((*batch, k, n))
    views, terms = {"a": full_a, "b": full_b, **extra}, []
    for name, tensor, whole, place in (
        ("a", zeros[0], full_a, "(line + at[1]) * k + i"),
        ("b", zeros[1], full_b, "((i64)at[0] * k + i) * n + at[2]"),
    ):
        if tensor is None:
            terms.append(f"(ACC)widen({name}[{place}])")
            continue
        zero = rec.view(tensor)
        if name == "a" and len(zero.shape) == 1 and zero.count > 1 and rows:
            zero = zero.reshaped((zero.count, 1)) or zero
        at = "0" if zero.count == 1 else place
        views[f"{name}_zero"] = zero if zero.count == 1 else zero.broadcast(whole.shape)
        terms.append(f"((ACC)widen({name}[{place}]) - (ACC)widen({name}_zero[{at}]))")
    body = f"""
        const i64 line = (i64)at[0] * m;
        ACC sum = 0;
        for (i64 i = 0; i < k; i++) sum += {terms[0]} * {terms[1]};
        y[unit] = {result};"""
    compute(
        rec, node.op, (math.prod(batch), m, n), views, {"y": rec.output(output)}, body,
        defines={"ACC": acc}, m=m, k=k, n=n,
    )  # fmt: skip


@lowering("MatMulInteger", general=True)
def matmul_integer(rec: Recorder, layer: Layer) -> None:
    """int32 sums of products of 8-bit numbers."""
    node, output = alone(layer, "an integer product")
    a, b = rec.view(given(node, 0)), rec.view(given(node, 1))
    zero_a, zero_b = [*node.inputs[2:], None, None][:2]
    integer_product(rec, node, a, b, (zero_a, zero_b), {}, output, "sum", "int")


@lowering("QLinearMatMul")
def qlinear_matmul(rec: Recorder, layer: Layer) -> None:
    """The product of quantised matrices, requantised."""
    node, output = alone(layer, "an integer product")
    a, b = rec.view(given(node, 0)), rec.view(given(node, 3))
    shape = rec.shape(output)
    extra, factors = {}, []
    for name, index in (("a_scale", 1), ("b_scale", 4), ("y_scale", 6), ("y_zero", 7)):
        scale = rec.view(given(node, index))
        if name == "a_scale" and len(scale.shape) == 1 and scale.count > 1 and len(a.shape) > 1:
            scale = scale.reshaped((scale.count, 1)) or scale
        extra[name], at = each(rec, scale, shape)
        factors.append(f"{name}[{at}]")
    whole = a.dtype.is_integer
    real = register_dtype(extra["a_scale"].dtype)
    kind = "double" if real is DType.DOUBLE else "float"
    scaled = f"({kind})sum * (widen({factors[0]}) * widen({factors[1]}) / widen({factors[2]}))"
    assert output.dtype is not None
    result = on_grid(scaled, f"widen({factors[3]})", output.dtype, kind)
    zeros = (given(node, 2), given(node, 5))
    integer_product(rec, node, a, b, zeros, extra, output, result, "int" if whole else kind)


def _zero(name: str, tensor: Tensor | None, rec: Recorder, extra: dict[str, View]) -> str:
    if tensor is None:
        return "0"
    view = extra[name] = rec.view(tensor)
    return f"widen({name}[{'0' if view.count == 1 else 'm'}])"


@lowering("ConvInteger")
def conv_integer(rec: Recorder, layer: Layer) -> None:
    """int32 sums; padding stands for the zero point."""
    node, output = alone(layer, "an integer convolution")
    x, w = rec.view(given(node, 0)), rec.view(given(node, 1))
    zero_x, zero_w = [*node.inputs[2:], None, None][:2]
    extra: dict[str, View] = {}
    zeros = (_zero("x_zero", zero_x, rec, extra), _zero("w_zero", zero_w, rec, extra))
    convolve(rec, node, x, w, extra, rec.output(output), "sum", "int", zeros)


@lowering("QLinearConv")
def qlinear_conv(rec: Recorder, layer: Layer) -> None:
    """A convolution of 8-bit numbers, requantised; weights may have a scale a filter."""
    node, output = alone(layer, "an integer convolution")
    x, w = rec.view(given(node, 0)), rec.view(given(node, 3))
    extra: dict[str, View] = {}
    zeros = tuple(_zero(k, node.inputs[i], rec, extra) for k, i in (("x_zero", 2), ("w_zero", 5)))
    x_scale, w_scale, y_scale, y_zero = (
        _zero(k, node.inputs[i], rec, extra)
        for k, i in (("x_scale", 1), ("w_scale", 4), ("y_scale", 6), ("y_zero", 7))
    )
    bias = node.inputs[8] if len(node.inputs) > 8 else None
    total = "sum"
    if bias is not None:
        extra["bias"] = rec.view(bias)
        total = "(sum + bias[m])"
    assert output.dtype is not None
    scaled = f"(float){total} * ({x_scale} * {w_scale} / {y_scale})"
    result = on_grid(scaled, y_zero, output.dtype, "float")
    convolve(rec, node, x, w, extra, rec.output(output), result, "int", (zeros[0], zeros[1]))
