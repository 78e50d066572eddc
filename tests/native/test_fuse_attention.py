"""Attention as exporters write it out, and look-alikes that are not attention."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner

RNG = np.random.default_rng(0)
FEEDS = {n: RNG.standard_normal((2, 6, 4, 8)).astype(np.float32) for n in "qkv"}
FEEDS["mask"] = np.where(RNG.random((2, 1, 1, 6)) < 0.3, -1e4, 0).astype(np.float32)
CONSTANTS = {
    "zero": np.float32(0),
    "s": np.float32(8**-0.25),
    "r": np.float32(8**0.5),
    "w": FEEDS["v"][:, :, :, :1],
    "open": np.int64([-1]),
    "size": np.int64([8]),
}


def kinds(body: str, **options) -> list[str]:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[N,S,4,8] q, float[N,S,4,8] k, float[N,S,4,8] v, float[N,1,1,S] mask)
        => (float[N,4,S,8] y) {{
            a = Transpose <perm = [0,2,1,3]> (q)
            b = Transpose <perm = [0,2,3,1]> (k)
            c = Transpose <perm = [0,2,1,3]> (v)
            {body}
        }}"""
    )
    used = {name for node in proto.graph.node for name in node.input}
    for name, value in CONSTANTS.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    runner = NativeRunner(proto, **options)
    expected = NativeRunner(proto, precision="fp64", optimize=False).infer(FEEDS)["y"]
    tolerance = 1e-5 if not options else 2e-2
    got = runner.infer(FEEDS)["y"]
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    return [n.op for layer in runner.engine.network.layers for n in layer.nodes]


@pytest.mark.parametrize(
    "scores",
    [
        "x = MatMul(a, b)",
        "x0 = MatMul(a, b) x = Div(x0, r)",
        "x0 = MatMul(a, b) x1 = Div(x0, r) x = Add(x1, mask)",
        "x0 = MatMul(a, b) x1 = Div(x0, r) x = Add(mask, x1)",
        "a0 = Mul(a, s) b0 = Mul(b, s) x0 = MatMul(a0, b0) x = Add(x0, mask)",
        "a0 = Div(a, r) x = MatMul(a0, b)",
    ],
)
@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}])
def test_attention_is_found(scores, options):
    found = kinds(f"{scores} p = Softmax(x) y = MatMul(p, c)", **options)
    assert "Attention" in found and "Softmax" not in found and found.count("Transpose") == 3


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}])
def test_a_guard_against_rows_that_see_nothing_belongs_to_it(options):
    body = """x0 = MatMul(a, b) x = Add(x0, mask) s0 = Softmax(x) n = IsNaN(s0)
              p = Where(n, zero, s0) y = MatMul(p, c)"""
    assert "IsNaN" not in kinds(body, **options)


TURNED = """d = Transpose <perm = [0,2,1,3]> (k) s2 = Shape <start = 2, end = 3> (d)
    n = Shape <end = 1> (d) h = Shape <start = 1, end = 2> (d)
    flat = Concat <axis = 0> (open, s2, size) f = Reshape(d, flat)
    t = Transpose <perm = [0,2,1]> (f)"""


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}])
def test_a_key_that_is_transposed_with_batch_and_heads_in_one_is_taken_as_it_was(options):
    body = f"""{TURNED} whole = Concat <axis = 0> (n, h, size, s2) b1 = Reshape(t, whole)
        b2 = Mul(b1, s) x = MatMul(a, b2) p = Softmax(x) y = MatMul(p, c)"""
    found = [op for op in kinds(body, **options) if op not in ("Shape", "Concat")]
    assert [op for op in found if op != "Cast"] == ["Transpose"] * 3 + ["Attention"]
    assert found.count("Cast") == (4 if options else 0)  # q, k, v, and the output


def test_a_key_whose_rows_are_cut_anew_is_not_taken_as_it_was():
    body = f"""{TURNED.replace("open, s2, size", "open, size, s2")}
        whole = Concat <axis = 0> (n, h, size, s2) b1 = Reshape(t, whole)
        x = MatMul(a, b1) p = Softmax(x) y = MatMul(p, c)"""
    assert kinds(body).count("Transpose") == 5


def test_a_transposed_key_of_its_own_is_turned_back_in_the_same_precision():
    body = """d = Exp(b) x = MatMul(a, d) p = Softmax(x) y = MatMul(p, c)"""
    found = kinds(body, precision="fp16")
    assert found.count("Cast") == 4  # q, k, v, and the output
    assert "Attention" in found


def test_rows_that_see_nothing_give_zeros(monkeypatch):
    monkeypatch.setitem(FEEDS, "mask", np.full((2, 1, 1, 6), -np.inf, np.float32))
    body = """x0 = MatMul(a, b) x = Add(x0, mask) s0 = Softmax(x) n = IsNaN(s0)
              p = Where(n, zero, s0) y = MatMul(p, c)"""
    assert "Attention" in kinds(body)


@pytest.mark.parametrize(
    "body",
    [
        "x = MatMul(a, b) p = Softmax <axis = 2> (x) y = MatMul(p, c)",
        "x = MatMul(a, b) p = Softmax(x) z = MatMul(p, c) e = ReduceMax(p) y = Add(z, e)",
        "x = MatMul(a, b) p = Softmax(x) t = Transpose <perm = [0,1,3,2]> (p) y = MatMul(t, c)",
    ],
)
def test_look_alikes_stay(body):
    assert "Attention" not in kinds(body)


def test_two_precisions_stay_apart():
    body = "x = MatMul(a, b) p = Softmax(x) y = MatMul(p, c)"
    found = kinds(body, precision="fp16", layer_precisions={"op:Softmax": "fp32"})
    assert "Softmax" in found and "Attention" not in found
