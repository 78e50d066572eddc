"""Slices of the original model in float64."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool.backends.native import oracle as native_oracle
from polytool.backends.native.oracle import NativeOracle
from polytool.errors import UsageError

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 3)).astype(np.float32)


def oracle() -> NativeOracle:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[N,3] x, bool c) => (float[N,3] y) {
            p = MatMul(x, w)
            q = Sqrt(p)
            y = If (c) <then_branch = t () => (float[N,3] a) { h = Neg(q) a = Exp(h) },
                        else_branch = e () => (float[N,3] b) { b = Abs(q) }>
        }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    return NativeOracle(proto)


def test_a_slice_is_computed_in_float64_with_the_original_weights():
    x = RNG.random((2, 3)).astype(np.float32)
    p = oracle().evaluate({"x": x}, ["p"])["p"]
    assert p.dtype == np.float64
    assert np.allclose(p, x.astype(np.float64) @ W.astype(np.float64), rtol=1e-15)


def test_a_slice_starts_at_the_given_values_not_at_the_inputs():
    got = oracle().evaluate({"p": np.float16([[4, 9, 16]])}, ["q"])["q"]
    assert got.tolist() == [[2, 3, 4]]


def test_a_slice_may_lie_inside_a_body():
    (name,) = [n for n in oracle()._tensors if n.endswith("/a")]
    got = oracle().evaluate({"q": np.float32([[0, 0, 0]])}, [name])[name]
    assert got.tolist() == [[1, 1, 1]]


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="'x' is needed"):
        oracle().evaluate({}, ["p"])
    with pytest.raises(UsageError, match="no tensor 'ghost'"):
        oracle().evaluate({"x": W}, ["ghost"])


def test_noise_spares_exponents():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[4] x) => (float[4] y)
        <float two = {2}> { y = Pow(x, two) }"""
    )
    x = np.float32([-1, -2, 3, -4])
    noisy = NativeOracle(proto).evaluate({"x": x}, ["y"], noise=2.0**-20)["y"]
    assert np.isfinite(noisy).all() and not np.array_equal(noisy, x**2)


def test_slices_too_heavy_to_be_kept_give_the_same(monkeypatch):
    x = RNG.random((2, 3)).astype(np.float32)
    usual = [oracle().evaluate({"x": x}, ["q"], noise=n)["q"] for n in (0.0, 2.0**-20)]
    monkeypatch.setattr(native_oracle, "_CACHED", 0)
    heavy = [oracle().evaluate({"x": x}, ["q"], noise=n)["q"] for n in (0.0, 2.0**-20)]
    for one, other in zip(usual, heavy, strict=True):
        np.testing.assert_array_equal(one, other)
