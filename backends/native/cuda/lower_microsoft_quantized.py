"""com.microsoft's operators on quantised tensors: dequantised, computed in float32, requantised."""

from __future__ import annotations

import dataclasses

from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.elements import compute, each, run
from polytool.backends.native.cuda.lower_contractions import as_tensor
from polytool.backends.native.cuda.lower_quantized import integer_product, on_grid, qlinear_conv
from polytool.backends.native.cuda.recorder import Recorder, given, lowering
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.tensors import DType

_DOMAIN = "com.microsoft"
_POINTWISE = {"QLinearAdd": "Add", "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu"}


def _floats(
    rec: Recorder, node: Node, x: Tensor, scale: Tensor | None, zero: Tensor | None
) -> Tensor:
    """The numbers that a quantised tensor stands for."""
    result = rec.temporary(DType.FLOAT, rec.shape(x), "floats")
    inputs = [x, scale] if zero is None else [x, scale, zero]
    run(rec, node, "DequantizeLinear", inputs, result, 21)
    return result


def _requantize(
    rec: Recorder, node: Node, value: Tensor, scale: Tensor | None, zero: Tensor | None,
    output: Tensor,
) -> None:  # fmt: skip
    inputs = [value, scale] if zero is None else [value, scale, zero]
    run(rec, node, "QuantizeLinear", inputs, output, 21)


def _turned(rec: Recorder, tensor: Tensor, *, last: bool) -> Tensor:
    """Channels moved from the end to the second place, or back."""
    view = rec.view(tensor)
    rank = len(view.shape)
    order = (0, *range(2, rank), 1) if last else (0, rank - 1, *range(1, rank - 1))
    return as_tensor(rec, view.permuted(order))


@lowering(*_POINTWISE)
def pointwise(rec: Recorder, layer: Layer) -> None:
    """One operator of ONNX on the numbers."""
    (node,), (output,) = layer.nodes, layer.outputs
    count = 2 if node.op == "QLinearAdd" else 1
    inputs = [*node.inputs, None]
    values = [
        _floats(rec, node, given(node, 3 * i), *inputs[3 * i + 1 : 3 * i + 3]) for i in range(count)
    ]
    result = rec.temporary(DType.FLOAT, rec.shape(output), "result")
    attrs = {k: v for k, v in node.attrs.items() if k == "alpha"}
    run(rec, node, _POINTWISE[node.op], values, result, 16, **attrs)
    _requantize(rec, node, result, inputs[3 * count], inputs[3 * count + 1], output)


@lowering("QLinearSoftmax")
def softmax(rec: Recorder, layer: Layer) -> None:
    """Before opset 13 over all axes from one on."""
    (node,), (output,) = layer.nodes, layer.outputs
    x, scale, zero, y_scale, y_zero = [*node.inputs, None][:5]
    assert x is not None
    result = rec.temporary(DType.FLOAT, rec.shape(x), "result")
    version, axis = int(node.attrs["opset"]), int(node.attrs.get("axis", -1))
    values = [_floats(rec, node, x, scale, zero)]
    run(rec, node, "Softmax", values, result, 13 if version >= 13 else 11, axis=axis)
    _requantize(rec, node, result, y_scale, y_zero, output)


@lowering("QLinearMul")
def multiply(rec: Recorder, layer: Layer) -> None:
    """The product of the integers, rescaled once."""
    (node,), (output,) = layer.nodes, layer.outputs
    shape = rec.shape(output)
    views, places = {}, {}
    names = ("a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero")
    for name, tensor in zip(names, node.inputs, strict=False):
        if tensor is not None:
            views[name], at = each(rec, rec.view(tensor), shape)
            places[name] = f"widen({name}[{at}])"
    a, b = (f"((int){places[n]} - (int){places.get(f'{n}_zero', '0')})" for n in "ab")
    factor = f"({places['a_scale']} * {places['b_scale']} / {places['y_scale']})"
    assert output.dtype is not None
    value = on_grid(
        f"(float)({a} * {b}) * {factor}", places.get("y_zero", "0"), output.dtype, "float"
    )
    result = {"y": rec.output(output)}
    compute(rec, node.op, shape, views, result, f"y[unit] = {value};")


@lowering("QLinearWhere")
def where(rec: Recorder, layer: Layer) -> None:
    """One of two tensors."""
    (node,), (output,) = layer.nodes, layer.outputs
    condition, *rest = [given(node, i) for i in range(9)]
    values = [_floats(rec, node, *rest[i : i + 3]) for i in (0, 3)]
    result = rec.temporary(DType.FLOAT, rec.shape(output), "result")
    run(rec, node, "Where", [condition, *values], result, 16)
    _requantize(rec, node, result, rest[6], rest[7], output)


@lowering("QLinearConcat")
def concat(rec: Recorder, layer: Layer) -> None:
    """Each part requantised to the common scale, side by side."""
    (node,), (output,) = layer.nodes, layer.outputs
    y_scale, y_zero, *parts = [given(node, i) for i in range(len(node.inputs))]
    moved = []
    for i in range(0, len(parts), 3):
        values = _floats(rec, node, *parts[i : i + 3])
        part = rec.temporary(output.dtype, rec.shape(parts[i]), "part")
        _requantize(rec, node, values, y_scale, y_zero, part)
        moved.append(part)
    run(rec, node, "Concat", moved, output, 13, axis=int(node.attrs["axis"]))


@lowering("QLinearAveragePool", "QLinearGlobalAveragePool")
def average_pool(rec: Recorder, layer: Layer) -> None:
    """AveragePool on the numbers, wherever the channels are."""
    (node,), (output,) = layer.nodes, layer.outputs
    x, scale, zero, y_scale, y_zero = [*node.inputs, None][:5]
    assert x is not None
    last = bool(node.attrs.get("channels_last", 0))
    values = _floats(rec, node, x, scale, zero)
    values = _turned(rec, values, last=False) if last else values
    shape = rec.shape(output)
    result_shape = (shape[0], shape[-1], *shape[1:-1]) if last else shape
    result = rec.temporary(DType.FLOAT, result_shape, "result")
    attrs = {k: v for k, v in node.attrs.items() if k != "channels_last"}
    run(rec, node, node.op.removeprefix("QLinear"), [values], result, 11, **attrs)
    result = _turned(rec, result, last=True) if last else result
    _requantize(rec, node, result, y_scale, y_zero, output)


@lowering("NhwcMaxPool")
def max_pool(rec: Recorder, layer: Layer) -> None:
    """MaxPool with channels last."""
    (node,), (output,) = layer.nodes, layer.outputs
    shape = rec.shape(output)
    result = rec.temporary(output.dtype, (shape[0], shape[-1], *shape[1:-1]), "result")
    turned = _turned(rec, given(node, 0), last=False)
    run(rec, node, "MaxPool", [turned], result, 12, **node.attrs)
    rec.define(output, rec.view(_turned(rec, result, last=True)))


@lowering("QLinearConv", domain=_DOMAIN)
def convolution(rec: Recorder, layer: Layer) -> None:
    """QLinearConv with the channels where they are asked for."""
    (node,), (output,) = layer.nodes, layer.outputs
    attrs = {k: v for k, v in node.attrs.items() if k != "channels_last"}
    inner = dataclasses.replace(node, domain="", version=10, attrs=attrs)
    if not node.attrs.get("channels_last", 0):
        qlinear_conv(rec, Layer.single(inner))
        return
    shape = rec.shape(output)
    result = rec.temporary(output.dtype, (shape[0], shape[-1], *shape[1:-1]), "result")
    inputs = [_turned(rec, given(node, 0), last=False), *node.inputs[1:]]
    qlinear_conv(rec, Layer.single(dataclasses.replace(inner, inputs=inputs, outputs=[result])))
    rec.define(output, rec.view(_turned(rec, result, last=True)))


@lowering("QGemm")
def gemm(rec: Recorder, layer: Layer) -> None:
    """A product of integers, with an int32 bias, requantised or in float32."""
    (node,), (output,) = layer.nodes, layer.outputs
    a, b = rec.view(given(node, 0)), rec.view(given(node, 3))
    a = a.permuted((1, 0)) if node.attrs.get("transA", 0) else a
    b = b.permuted((1, 0)) if node.attrs.get("transB", 0) else b
    added, y_scale, y_zero = [*node.inputs[6:], *([None] * 3)][:3]
    shape = rec.shape(output)
    extra: dict[str, View] = {}

    def place(name: str, tensor: Tensor) -> str:
        extra[name], at = each(rec, rec.view(tensor), shape)
        return f"widen({name}[{at}])"

    total = "sum" if added is None else f"(sum + {place('c', added)})"
    alpha = float(node.attrs.get("alpha", 1.0))
    factor = f"{place('a_scale', given(node, 1))} * {place('b_scale', given(node, 4))} * {alpha}f"
    assert output.dtype is not None
    if y_scale is None:
        result = f"narrow<T_y>((float){total} * ({factor}))"
    else:
        scaled = f"(float){total} * ({factor} / {place('y_scale', y_scale)})"
        zero = "0" if y_zero is None else place("y_zero", y_zero)
        result = on_grid(scaled, zero, output.dtype, "float")
    zeros = (node.inputs[2], node.inputs[5])
    integer_product(rec, node, a, b, zeros, extra, output, result, "int")
