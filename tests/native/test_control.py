"""If, Loop and Scan against onnxruntime."""

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from polytool import NativeRunner

pytestmark = pytest.mark.ort

COUNT_UP = """g (int64 n, bool go, float[2] x) => (float[2] y, float[k, 2] all) {
    one = Constant <value = float {1.0}> ()
    y, all = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) =>
        (bool again, float[2] w, float[2] seen) {
        w = Add(v, one)
        seen = Mul(w, x)
        limit = Constant <value = float {6.0}> ()
        top = ReduceMax <keepdims = 0> (w)
        again = Less(top, limit)
    }>
}"""

SCAN = """g (float[2] start, float[4, 2] xs) => (float[2] last, float[2, 4] sums) {
    last, sums = Scan <num_scan_inputs = 1, scan_input_directions = [1],
                       scan_output_axes = [1], scan_output_directions = [1],
        body = b (float[2] s, float[2] x) => (float[2] t, float[2] out) {
            t = Add(s, x)
            out = Mul(t, t)
        }> (start, xs)
}"""


def both(text: str, feeds: dict[str, np.ndarray]) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)
    for optimize in (False, True):
        got = NativeRunner(proto, optimize=optimize).infer(feeds)
        for want, (name, value) in zip(expected, got.items(), strict=True):
            assert value.dtype == want.dtype, name
            assert np.array_equal(value, want), name


@pytest.mark.parametrize("n", [0, 1, 3, 100])
@pytest.mark.parametrize("go", [True, False])
def test_loop(n, go):
    both(COUNT_UP, {"n": np.array(n), "go": np.array(go), "x": np.float32([1, 2])})


def test_scan_backwards_with_stacked_axis():
    rng = np.random.default_rng(0)
    both(SCAN, {"start": np.float32([1, 2]), "xs": rng.random((4, 2), np.float32)})


def test_nested_if_in_loop_captures_two_levels_out():
    both(
        """g (int64 n, bool go, float[2] x) => (float[2] y) {
            k = Neg(x)
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) =>
                (bool again, float[2] w) {
                again = Identity(c)
                zero = Constant <value = int64 {1}> ()
                odd = Equal(i, zero)
                w = If (odd) <then_branch = t () => (float[2] p) { p = Add(v, k) },
                              else_branch = e () => (float[2] q) { q = Mul(v, x) }>
            }>
        }""",
        {"n": np.array(3), "go": np.array(True), "x": np.float32([2, 3])},
    )


def test_a_loop_that_swaps_its_carried_values():
    both(
        """g (int64 n, bool go, float[1] a, float[1] b) => (float[1] p, float[1] q) {
            p, q = Loop (n, go, a, b) <body = l (int64 i, bool c, float[1] x, float[1] y) =>
                (bool again, float[1] y2, float[1] x2) {
                again = Identity(c)
                y2 = Identity(y)
                x2 = Identity(x)
            }>
        }""",
        {"n": np.array(3), "go": np.array(True), "a": np.float32([1]), "b": np.float32([2])},
    )
