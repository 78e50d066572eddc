"""Tuned matrix products equal the operators, integers exactly."""

import numpy as np
import pytest

from polytool import NativeRunner
from polytool.backends.native.tactics.gemm_plans import ConstantMatrix
from tests.tactics.tuned import assert_close, check, model, tactics_of

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


SHAPES = [(1, 5, 3), (1, 300, 700), (9, 512, 130), (21, 1024, 77), (40, 100, 1000), (300, 70, 90)]


@pytest.mark.parametrize(("rows", "depth", "columns"), [*SHAPES, (22, 1024, 1100), (9, 4096, 64)])
def test_rows_by_constant_matrix(rows, depth, columns):
    matrix, x = normal(depth, columns), normal(rows, depth)
    out = np.full((rows, columns), np.nan, np.float32)
    blocks = []
    ConstantMatrix(matrix).multiply(x, out, lambda b, n, m, p: blocks.append((p.start, p.stop)))
    assert_close(out, x.astype(np.float64) @ matrix, 3e-6)
    covered = [c for start, stop in sorted(blocks) for c in range(start, stop)]
    assert covered == list(range(columns))


@pytest.mark.parametrize(("rows", "depth", "columns"), [*SHAPES, (1, 900, 1500), (200, 600, 700)])
def test_bytes_give_the_same_as_floats(rows, depth, columns):
    matrix = byte_array(-128, 128, np.int8, depth, columns)
    x = RNG.integers(0, 16, (rows, depth)).astype(np.float32)
    out = np.full((rows, columns), np.nan, np.float32)
    ConstantMatrix(matrix).multiply(x, out, None)
    np.testing.assert_array_equal(out, x.astype(np.int64) @ matrix.astype(np.int64))


@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_gemm_with_bias_and_activation(rows, depth, columns):
    weights = {"w": normal(columns, depth), "b": normal(columns)}
    proto = model(
        "g = Gemm<transB=1>(x, w, b) y = Relu(g)",
        f"float[N,{depth}] x",
        f"float[N,{columns}] y",
        weights,
    )
    feeds = [{"x": normal(rows, depth)}, {"x": normal(0, depth)}, {"x": normal(2, depth)}]
    check(proto, *feeds, tactic="numpy.gemm", tolerance=4e-6)


def test_matmul_of_any_rank_with_residual_and_gate():
    proto = model(
        "m = MatMul(x, w) a = Add(m, b) s = Sigmoid(a) g = Mul(a, s) y = Add(g, r)",
        "float[2,3,7,40] x, float[2,3,7,200] r",
        "float[2,3,7,200] y",
        {"w": normal(40, 200), "b": normal(200)},
    )
    feeds = {"x": normal(2, 3, 7, 40), "r": normal(2, 3, 7, 200)}
    check(proto, feeds, tactic="numpy.gemm", tolerance=4e-6)


@pytest.mark.parametrize("attributes", ["alpha=0.5", "transA=1", "beta=2.0"])
def test_gemm_forms_without_a_tuned_kernel_are_still_right(attributes):
    proto = model(
        f"y = Gemm<{attributes}>(x, w, b)",
        "float[6,6] x",
        "float[6,9] y",
        {"w": normal(6, 9), "b": normal(9)},
    )
    check(proto, {"x": normal(6, 6)}, tactic="numpy.generic", tolerance=4e-6)


def byte_array(low, high, dtype, *shape):
    return RNG.integers(low, high, shape).astype(dtype)


QUANTISED = [  # a type, b type, b zero point, depth
    (np.uint8, np.int8, None, 40),
    (np.uint8, np.uint8, np.uint8(128), 300),
    (np.int8, np.int8, np.zeros(70, np.int8), 33),
    (np.uint8, np.int8, None, 1000),
]


@pytest.mark.parametrize(("a_type", "b_type", "zero", "depth"), QUANTISED)
@pytest.mark.parametrize("tail", ["", "f = Cast<to=1>(i) m = Mul(f, s) y = Relu(m)"])
def test_integer_product(a_type, b_type, zero, depth, tail):
    low, high = np.iinfo(b_type).min, np.iinfo(b_type).max + 1
    weights = {"w": byte_array(low, high, b_type, depth, 70)}
    if zero is not None:
        weights["z"] = np.asarray(zero)
    label = np.dtype(a_type).name
    proto = model(
        f"{'i' if tail else 'y'} = MatMulInteger(x, w, a{', z' if zero is not None else ''}) "
        f"{tail}",
        f"{label}[N,{depth}] x, {label} a" + (", float s" if tail else ""),
        f"{'float' if tail else 'int32'}[N,70] y",
        weights,
    )
    limits = np.iinfo(a_type)
    x = byte_array(limits.min, limits.max + 1, a_type, 9, depth)
    x[0], x[1] = limits.min, limits.max
    feeds = {"x": x, "a": np.asarray(limits.max - 3, a_type)}
    if tail:
        feeds["s"] = np.asarray(0.01, np.float32)
    check(proto, feeds, tactic="numpy.gemm_integer", tolerance=1e-6)


def test_sums_beyond_the_exact_range_of_float32_are_cut_or_left_to_the_operator():
    depth = 900
    weights = {"w": np.full((depth, 20), 127, np.int8)}
    x = np.full((3, depth), 255, np.uint8)
    scaled = model(
        "i = MatMulInteger(x, w) f = Cast<to=1>(i) y = Mul(f, s)",
        f"uint8[N,{depth}] x, float s",
        "float[N,20] y",
        weights,
    )
    check(scaled, {"x": x, "s": np.asarray(1, np.float32)}, tactic="numpy.gemm_integer")
    plain = model("y = MatMulInteger(x, w)", f"uint8[N,{depth}] x", "int32[N,20] y", weights)
    check(plain, {"x": x}, tactic="numpy.generic")


@pytest.mark.parametrize("tail", ["", "b = Add(i, v) f = Cast<to=1>(b) y = Mul(f, s)"])
@pytest.mark.parametrize("geometry", [(12, 12, 3), (20, 16, 1), (3, 8, 5)])
def test_integer_convolution(geometry, tail):
    c, m, k = geometry
    weights = {"w": byte_array(-128, 128, np.int8, m, c, k, k)}
    if tail:
        weights["v"] = byte_array(-9000, 9000, np.int32, 1, m, 1, 1)
        weights["s"] = np.asarray(0.03, np.float32)
    proto = model(
        f"{'i' if tail else 'y'} = ConvInteger<pads=[{k // 2},{k // 2},{k // 2},{k // 2}]>(x, w, z)"
        f" {tail}",
        f"uint8[N,{c},14,15] x, uint8 z",
        f"{'float' if tail else 'int32'}[N,{m},14,15] y",
        weights,
    )
    x = byte_array(0, 256, np.uint8, 2, c, 14, 15)
    feeds = {"x": x, "z": np.asarray(117, np.uint8)}
    check(proto, feeds, tactic="numpy.conv_integer", tolerance=1e-6)


@pytest.mark.parametrize("kind", ["mixed", "positive", "negative", "zero", "nan", "large"])
def test_dynamic_quantisation(kind):
    x = normal(7, 900) if kind != "large" else normal(300, 700)
    x = {"positive": np.abs(x), "negative": -np.abs(x), "zero": x * 0}.get(kind, x)
    if kind == "nan":
        x[2, 3] = np.nan
    proto = model(
        "q, s, z = DynamicQuantizeLinear(x)",
        "float[N,M] x",
        "uint8[N,M] q, float s, uint8 z",
        {},
    )
    with NativeRunner(proto) as tuned, NativeRunner(proto) as plain:
        assert tactics_of(tuned) == ["numpy.dynamic_quantize"]
        for layer in plain.engine.network.layers:
            layer.tactic = "numpy.generic"
        found, expected = tuned.infer({"x": x}), plain.infer({"x": x})
    np.testing.assert_array_equal(found["s"], expected["s"])
    if kind != "nan":  # then the codes mean nothing
        np.testing.assert_array_equal(found["q"], expected["q"])
        np.testing.assert_array_equal(found["z"], expected["z"])
