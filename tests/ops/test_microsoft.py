"""com.microsoft operators against ONNX Runtime: fused and quantised ones, weights, aliases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polytool.errors import PolytoolError
from tests.ops.one_node import Case, check, micro, native

Array = np.ndarray[Any, Any]
pytestmark = pytest.mark.ort


def floats(*dims: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *dims]).standard_normal(dims).astype(np.float32)


def bytes_of(kind: Any, *dims: int, seed: int = 0) -> Array:
    low = np.iinfo(kind).min
    return np.random.default_rng([seed, *dims]).integers(low, low + 256, dims).astype(kind)


def scalar(value: float, kind: Any = np.float32) -> Array:
    return np.array(value).astype(kind)


def test_fused_activations() -> None:
    x, bias = floats(2, 5, 8), floats(8)
    check(
        micro("Gelu", x),
        micro("BiasGelu", x, bias),
        micro("FastGelu", x),
        micro("FastGelu", x, bias),
        micro("QuickGelu", x, alpha=1.5),
    )


def test_skip_layer_normalization() -> None:
    x, skip = floats(2, 5, 8), floats(2, 5, 8, seed=1)
    gamma, beta, bias = (floats(8, seed=k) for k in range(3))
    wanted = ["y", "", "", "sum"]
    check(
        *(
            micro("SkipLayerNormalization", x, s, gamma, beta, epsilon=1e-5)
            for s in (skip, skip[0])
        ),
        micro("SkipLayerNormalization", x, skip[:1], gamma, epsilon=1e-5),
        micro("SkipLayerNormalization", x, skip, gamma, beta, bias, outputs=wanted, epsilon=1e-5),
        micro(
            "SkipSimplifiedLayerNormalization", x, skip, gamma, bias, outputs=wanted, epsilon=1e-5
        ),
    )


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_fused_matmul(trans_a: int, trans_b: int) -> None:
    a = floats(2, 3, 5, 4) if trans_a else floats(2, 3, 4, 5)
    b = floats(2, 3, 6, 5) if trans_b else floats(2, 3, 5, 6)
    batch_a, batch_b = (x.transpose(2, 0, 1, 3).copy() for x in (a, b))
    options: dict[str, Any] = {"transA": trans_a, "transB": trans_b, "alpha": 0.5}
    check(
        micro("FusedMatMul", a, b, **options),
        micro("FusedMatMul", batch_a, b, transBatchA=1, **options),
        micro("FusedMatMul", batch_a, batch_b, transBatchA=1, transBatchB=1, **options),
    )


ACTIVATIONS = [
    ("Relu", []),
    ("LeakyRelu", [0.1]),
    ("Clip", [-0.5, 0.5]),
    ("HardSigmoid", [0.3, 0.4]),
    ("Tanh", []),
    ("Sigmoid", []),
]


@pytest.mark.parametrize(("name", "parameters"), ACTIVATIONS)
def test_fused_convolution(name: str, parameters: list[float]) -> None:
    x, w, b = floats(1, 3, 7, 7), floats(4, 3, 3, 3), floats(4)
    options: dict[str, Any] = {"activation": name}
    if parameters:
        options["activation_params"] = parameters
    check(micro("FusedConv", x, w, b, pads=[1, 1, 1, 1], **options))
    if name == "Relu":
        check(micro("FusedConv", x, w, b, floats(1, 4, 5, 5), **options))


def test_fused_gemm() -> None:
    a, b, c = floats(4, 3), floats(5, 3), floats(5)
    check(
        micro("FusedGemm", a, b, c, activation="Relu", alpha=0.5, beta=2.0, transB=1),
        micro("FusedGemm", a, b, c, activation="LeakyRelu", activation_alpha=0.1, transB=1),
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_weights_times_floats(kind: Any) -> None:
    b, zero = bytes_of(kind, 16, 6), scalar(7, kind)
    columns, zeros = np.abs(floats(6)), np.full(6, 7).astype(kind)
    a, rows = floats(2, 5, 16), bytes_of(np.uint8, 5, 16)
    options = {"atol": 1e-3}
    check(
        micro("DynamicQuantizeMatMul", a, b, scalar(0.02), zero, **options),
        micro("DynamicQuantizeMatMul", a, b, columns, zeros, floats(6), **options),
        micro("MatMulIntegerToFloat", rows, b, scalar(0.02), scalar(0.1), **options),
        micro(
            "MatMulIntegerToFloat",
            *(rows, b, scalar(0.02), columns, scalar(3, np.uint8), zeros, floats(6)),
            **options,
        ),
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_pointwise_operators(kind: Any) -> None:
    scale, other, result = scalar(0.0513), scalar(0.0733), scalar(0.1017)
    three, seven, nine = (scalar(v, kind) for v in (3, 7, 9))
    cases = []
    for left, right in (((3, 4, 5), (3, 4, 5)), ((3, 1, 5), (4, 1)), ((3, 4), ())):
        operands = bytes_of(kind, *left), scale, three, bytes_of(kind, *right), other, seven
        cases.append(micro("QLinearAdd", *operands, result, nine, steps=1))
        cases.append(micro("QLinearMul", *operands, result, nine, steps=1))
    x, unit = bytes_of(kind, 3, 4, 25), scalar(1 / 256)
    cases.append(micro("QLinearSigmoid", x, scale, three, unit, scalar(0, kind), steps=1))
    cases.append(micro("QLinearLeakyRelu", x, scale, three, result, nine, alpha=0.2, steps=1))
    for axis, opset in ((1, 12), (2, 12), (1, 13), (-1, 13)):
        soft = {"axis": axis, "opset": opset, "steps": 1}
        cases.append(micro("QLinearSoftmax", x, scale, three, unit, scalar(0, kind), **soft))
    pair = (x[..., :3].copy(), scale, three, x[..., 5:12].copy(), other, seven)
    cases.append(micro("QLinearConcat", result, nine, *pair, axis=2, steps=1))
    chosen = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(bool)
    where = (bytes_of(kind, 3, 4), scale, three, bytes_of(kind, 4), other, seven, result, nine)
    cases.append(micro("QLinearWhere", chosen, *where, steps=1))
    check(*cases)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("channels_last", [0, 1])
def test_quantised_windows(kind: Any, channels_last: int) -> None:
    quantisation = scalar(0.0513), scalar(3, kind), scalar(0.0617), scalar(5, kind)
    last: dict[str, Any] = {"channels_last": channels_last, "steps": 1}
    x = bytes_of(kind, 2, 6, 7, 8)
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
    cases = [
        micro("QLinearAveragePool", x, *quantisation, pads=[1, 1, 1, 1], **window, **last),
        micro("QLinearAveragePool", x, *quantisation, ceil_mode=1, **window, **last),
        micro("QLinearGlobalAveragePool", x, *quantisation, **last),
    ]
    if channels_last:
        cases.append(micro("NhwcMaxPool", x, pads=[1, 1, 0, 0], **window))
    image = bytes_of(kind, 2, 8, 7, 6) if channels_last else bytes_of(kind, 2, 6, 8, 7)
    filters = bytes_of(np.int8, 4, 3, 3, 3), np.abs(floats(4)) * np.float32(0.01)
    cases.append(
        micro(
            "QLinearConv",
            *(image, scalar(0.02), scalar(3, kind), *filters, np.zeros(4, np.int8)),
            *(scalar(0.3), scalar(9, kind), np.arange(-2, 2).astype(np.int32) * 200),
            group=2,
            pads=[1, 1, 1, 1],
            **last,
        )
    )
    check(*cases)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_quantised_gemm(trans_a: int, trans_b: int) -> None:
    a = bytes_of(np.uint8, 8, 5) if trans_a else bytes_of(np.uint8, 5, 8)
    b = bytes_of(np.int8, 6, 8) if trans_b else bytes_of(np.int8, 8, 6)
    left, columns = (a, scalar(0.02), scalar(3, np.uint8)), np.abs(floats(6)) * np.float32(0.01)
    right, c = (b, columns, np.zeros(6, np.int8)), np.arange(-3, 3).astype(np.int32) * 99
    options: dict[str, Any] = {"transA": trans_a, "transB": trans_b}
    check(
        micro("QGemm", *left, *right, c, scalar(0.3), scalar(9, np.uint8), steps=1, **options),
        micro("QGemm", *left, b, scalar(0.01), scalar(2, np.int8), alpha=2.0, **options),
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("features", [64, 70])
def test_weights_of_a_few_bits(bits: int, features: int) -> None:
    blocks = -(-features // 32)
    w, scales = bytes_of(np.uint8, 12, blocks, 4 * bits), np.abs(floats(12, blocks)) * 0.1
    sizes: dict[str, Any] = {"K": features, "N": 12, "bits": bits, "block_size": 32}
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    packed = bytes_of(np.uint8, 12, -(-blocks * bits // 8))
    zeros = [None, packed] + ([floats(12, blocks)] if bits < 8 else [])
    x, scales = floats(2, 3, features), scales.astype(np.float32)
    check(
        *(micro("MatMulNBits", x, w, scales, z, **sizes, **tolerance) for z in zeros),
        micro("MatMulNBits", x, w, scales, None, None, floats(12), **sizes, **tolerance),
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_tables_of_a_few_bits(bits: int) -> None:
    table, scales = bytes_of(np.uint8, 10, 8 * bits), np.abs(floats(10, 2))
    zeros = bytes_of(np.uint8, 10, 1 if bits == 4 else 2)
    options = {"bits": bits, "block_size": 32, "quantize_axis": 1}
    where = np.array([[1, 3], [9, -2]])
    check(
        micro("GatherBlockQuantized", table, where, scales, **options),
        micro("GatherBlockQuantized", table, where, scales, zeros, **options),
    )


def test_embeddings() -> None:
    def int32(low: int, high: int, *dims: int) -> Array:
        return np.random.default_rng(dims).integers(low, high, dims).astype(np.int32)

    words, segments = int32(0, 9, 2, 5), int32(0, 2, 2, 5)
    mask = np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)
    tables = floats(9, 8), floats(7, 8), floats(2, 8)
    norm = floats(8), floats(8, seed=1)
    plain = (words, None, *tables[:2], None, *norm)
    eight = [bytes_of(np.uint8, n, 8) for n in (9, 7, 2)] + [bytes_of(np.uint8, 8)] * 2
    scales = [scalar(v) for v in (0.1, 0.2, 0.1, 0.3, 0.1)]
    zeros = [scalar(v, np.uint8) for v in range(1, 6)]
    check(
        micro("EmbedLayerNormalization", words, segments, *tables, *norm, mask, outputs=3),
        micro("EmbedLayerNormalization", *plain, outputs=2),
        *(
            micro("EmbedLayerNormalization", *plain, None, places, outputs=2)
            for places in (int32(0, 7, 2, 5), int32(0, 7, 1, 5))
        ),
        micro(
            "QEmbedLayerNormalization",
            *(words, segments, *eight, mask, *scales, *zeros),
            outputs=2,
            epsilon=1e-5,
        ),
    )


def test_types_beyond_the_standard_of_old_models() -> None:
    x, columns = floats(3, 4), np.abs(floats(4))
    check(
        micro("QuantizeLinear", x, scalar(0.01), scalar(3, np.uint16)),
        micro("QuantizeLinear", x, columns, np.zeros(4, np.int8), axis=1),
        micro(
            "DequantizeLinear", bytes_of(np.uint8, 3, 4), columns, np.full(4, 9, np.uint8), axis=1
        ),
        micro("DequantizeLinear", x.astype(np.uint16), scalar(0.1), scalar(3, np.uint16)),
    )


def test_what_onnx_has_adopted() -> None:
    x = floats(3, 4)
    values = np.array([2, 1, 1, 3, 4, 3], np.float32)
    gates = floats(2, 3, 2), np.abs(floats(2, 3, 2, seed=1))
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    qkv = [floats(2, 3, 8, seed=k) for k in range(3)]
    check(
        micro("Trilu", x, np.array(1), upper=0),
        micro("GatherND", x, np.array([[0, 1], [2, -1]], np.int32)),
        micro("GridSample", floats(1, 2, 5, 5), floats(1, 3, 3, 2)),
        micro("Unique", values, outputs=3),
        micro("Pad", x, np.array([[1, 0, 0, 2]]), scalar(2)),
        micro("Pad", x, np.array([1, 0, 0, 2]), mode="edge"),
        micro("ExpandDims", x, np.array(1, np.int32)),
        micro("ExpandDims", x, np.array(-1, np.int32)),
        micro("Range", np.array(1, np.int32), np.array(7, np.int32)),
        micro("Range", *(np.array([v], np.float32) for v in (1, -7, -0.7))),
        micro("Inverse", floats(2, 3, 3), rtol=1e-3),
        micro("CDist", floats(4, 3), floats(5, 3), metric="euclidean"),
        micro("CDist", floats(4, 3), floats(5, 3), metric="sqeuclidean"),
        micro("TransposeMatMul", floats(2, 5, 4), floats(2, 5, 6), transA=1),
        micro("CausalConvWithState", floats(2, 3, 6), floats(3, 1, 4), floats(3), outputs=2),
        micro("LinearAttention", *qkv, None, *gates, outputs=2, **heads),
    )


def test_what_is_not_implemented_says_so() -> None:
    case = micro("CausalConvWithState", floats(2, 3, 6), floats(3, 1, 4), dilation=2)
    with pytest.raises(PolytoolError, match="dilation=2, of which only 1 is implemented"):
        native(case)
    with pytest.raises(PolytoolError, match="metric 'cosine' is not implemented"):
        native(micro("CDist", floats(4, 3), floats(5, 3), metric="cosine"))


def test_bias_add_and_split_gelu() -> None:
    # ONNX Runtime has no CPU kernels for these
    x, bias, skip = floats(2, 3, 8), floats(8), floats(2, 3, 8, seed=1)
    (y,) = native(micro("BiasAdd", x, bias, skip))
    np.testing.assert_allclose(y, x + bias + skip, rtol=1e-6)
    (y,) = native(micro("BiasSplitGelu", x, bias))
    total = x + bias
    (gelu,) = native(Case("Gelu", [total[..., 4:].copy()], opset=20))
    np.testing.assert_allclose(y, total[..., :4] * gelu, rtol=1e-6)
