"""Arithmetic on weights, and chains of data movement: operators left, and the same outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.surgeon.surgery import assert_equivalent, ops, parse, session, simplified

pytestmark = pytest.mark.ort

RNG = np.random.default_rng(7)


def with_weights(
    text: str, opset: int = 17, dtype: str = "float32", **shapes: tuple[int, ...]
) -> onnx.ModelProto:
    """A model from text, with random initializers; names that begin with v are positive."""
    proto = parse(text, opset=opset)
    for name, shape in shapes.items():
        values = np.asarray(RNG.standard_normal(shape))
        values = np.abs(values) + 0.1 if name.startswith("v") else values
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
    return proto


BN = {"s": (6,), "b": (6,), "m": (6,), "v": (6,)}
FOLDED: dict[str, tuple[dict[str, int], onnx.ModelProto]] = {
    "conv, batch norm": (
        {"Conv": 1},
        with_weights(
            "g (float[2,4,5,5] x) => (float[2,6,3,3] y) "
            "{c = Conv(x, w) y = BatchNormalization(c, s, b, m, v)}",
            w=(6, 4, 3, 3), **BN,
        ),
    ),
    "conv with bias and groups, batch norm": (
        {"Conv": 1},
        with_weights(
            "g (float[2,4,5] x) => (float[2,6,3] y) "
            "{c = Conv<group=2>(x, w, o) y = BatchNormalization<epsilon=0.1>(c, s, b, m, v)}",
            w=(6, 2, 3), o=(6,), **BN,
        ),
    ),
    "transposed conv with groups, batch norm": (
        {"ConvTranspose": 1},
        with_weights(
            "g (float[2,4,5,5] x) => (float[2,6,7,7] y) "
            "{c = ConvTranspose<group=2>(x, w) y = BatchNormalization(c, s, b, m, v)}",
            w=(4, 3, 3, 3), **BN,
        ),
    ),
    "batch norm of opset 9": (
        {"Conv": 1},
        with_weights(
            "g (float[2,4,5,5] x) => (float[2,6,3,3] y) "
            "{c = Conv(x, w) y = BatchNormalization<momentum=0.5>(c, s, b, m, v)}",
            opset=9, w=(6, 4, 3, 3), **BN,
        ),
    ),
    "conv, scale, shift": (
        {"Conv": 1},
        with_weights(
            "g (float[2,4,5,5] x) => (float[2,6,3,3] y) "
            "{c = Conv(x, w) d = Mul(k, c) y = Add(d, o)}",
            w=(6, 4, 3, 3), k=(1, 6, 1, 1), o=(6, 1, 1),
        ),
    ),
    "conv, one number": (
        {"Conv": 1},
        with_weights(
            "g (float[2,4,5,5] x) => (float[2,6,3,3] y) "
            "{c = Conv(x, w) d = Mul(c, k) y = Add(d, k)}",
            w=(6, 4, 3, 3), k=(1,),
        ),
    ),
    "matmul, add in double": (
        {"Gemm": 1},
        with_weights(
            "g (double[N,4] x) => (double[N,6] y) {c = MatMul(x, w) y = Add(c, k)}",
            w=(4, 6), k=(1,), dtype="float64",
        ),
    ),
    "matmul, add": (
        {"Gemm": 1},
        with_weights(
            "g (float[N,4] x) => (float[N,6] y) {c = MatMul(x, w) y = Add(k, c)}", w=(4, 6), k=(6,)
        ),
    ),
    "matmul, add of a computed matrix": (
        {"Gemm": 1, "Exp": 1},
        with_weights(
            "g (float[N,4] x, float[N,6] z) => (float[N,6] y) "
            "{e = Exp(z) c = MatMul(x, w) y = Add(c, e)}",
            w=(4, 6),
        ),
    ),
}  # fmt: skip
KEPT: dict[str, tuple[dict[str, int], onnx.ModelProto]] = {
    "conv that is an output": (
        {"Conv": 1, "Add": 1},
        with_weights(
            "g (float[2,4,5] x) => (float[2,6,3] y, float[2,6,3] c) {c = Conv(x, w) y = Add(c, k)}",
            w=(6, 4, 3), k=(6, 1),
        ),
    ),
    "conv with two readers": (
        {"Conv": 1, "Add": 2},
        with_weights(
            "g (float[2,4,5] x) => (float[2,6,3] y) {c = Conv(x, w) d = Add(c, k) y = Add(c, d)}",
            w=(6, 4, 3), k=(6, 1),
        ),
    ),
    "shared weights": (
        {"Conv": 2, "Mul": 1, "Add": 1},
        with_weights(
            "g (float[2,4,5] x) => (float[2,6,3] y) "
            "{c = Conv(x, w) d = Mul(c, k) e = Conv<dilations=[1]>(x, w) y = Add(e, d)}",
            w=(6, 4, 3), k=(6, 1),
        ),
    ),
    "a constant per pixel": (
        {"Conv": 1, "Add": 1},
        with_weights(
            "g (float[2,4,5] x) => (float[2,6,3] y) {c = Conv(x, w) y = Add(c, k)}",
            w=(6, 4, 3), k=(3,),
        ),
    ),
    "a constant of a higher rank": (
        {"Conv": 1, "Add": 1},
        with_weights(
            "g (float[2,4,5] x) => (float[1,2,6,3] y) {c = Conv(x, w) y = Add(c, k)}",
            w=(6, 4, 3), k=(1, 1, 6, 1),
        ),
    ),
    "a batch norm without a conv": (
        {"Relu": 1, "BatchNormalization": 1},
        with_weights(
            "g (float[2,6,5] x) => (float[2,6,5] y) "
            "{r = Relu(x) y = BatchNormalization(r, s, b, m, v)}",
            **BN,
        ),
    ),
    "a product of three dimensions": (
        {"MatMul": 1, "Add": 1},
        with_weights(
            "g (float[2,N,4] x) => (float[2,N,6] y) {c = MatMul(x, w) y = Add(c, k)}",
            w=(4, 6), k=(6,),
        ),
    ),
    "an addend that enlarges the product": (
        {"MatMul": 1, "Add": 1},
        with_weights(
            "g (float[1,4] x) => (float[5,6] y) {c = MatMul(x, w) y = Add(c, k)}",
            w=(4, 6), k=(5, 6),
        ),
    ),
    "integers": (
        {"MatMul": 1, "Add": 1},
        with_weights(
            "g (int32[N,4] x) => (int32[N,6] y) {c = MatMul(x, w) y = Add(c, k)}",
            w=(4, 6), k=(6,), dtype="int32",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*FOLDED, *KEPT])
def test_weights(case: str) -> None:
    expected, proto = {**FOLDED, **KEPT}[case]
    model, _ = simplified(proto)
    assert ops(model) == expected
    assert_equivalent(proto, model)


@pytest.mark.parametrize("case", FOLDED)
def test_weights_are_left_alone_on_request(case: str) -> None:
    _, proto = FOLDED[case]
    model, _ = simplified(proto, weights=False)
    assert ops(model) == ops(proto)


def test_batch_norm_in_training_stays() -> None:
    proto = with_weights(
        "g (float[2,4,5] x) => (float[2,6,3] y) "
        "{c = Conv(x, w) y, p, q = BatchNormalization<training_mode=1>(c, s, b, m, v)}",
        w=(6, 4, 3),
        **BN,
    )
    assert ops(simplified(proto)[0]) == {"Conv": 1, "BatchNormalization": 1}


def test_shared_weights_are_refused() -> None:
    proto = parse(
        "g (float[1,2,2,2] x) => (float[1,2,2,2] y) <float[2,2,1,1] w = {2, 3, 4, 5}, "
        "float[1,2,1,1] k = {5, 7}> {c = Conv(x, w) d = Conv(c, w) y = Mul(d, k)}"
    )
    model, report = simplified(proto)
    assert ops(model) == {"Conv": 2, "Mul": 1}
    assert [r.reason for r in report.refused] == ["not folded into Conv:d: its weights are shared"]


def test_weights_that_would_overflow_are_refused() -> None:
    proto = with_weights(
        "g (float[2,4,5] x) => (float[2,6,3] y) <float k = {1e38}> "
        "{c = Conv(x, w) d = Mul(c, k) e = Mul(d, k) y = Mul(e, k)}",
        w=(6, 4, 3),
    )
    model, report = simplified(proto)
    assert ops(model) == {"Conv": 1, "Mul": 2}
    assert any("would not be finite" in str(r) for r in report.refused)


def test_the_tensor_that_is_left_has_the_last_name() -> None:
    """A name stands for one value: whoever compares `c` before and after must not be fooled."""
    _, proto = FOLDED["conv, scale, shift"]
    model, _ = simplified(proto)
    assert [list(n.output) for n in model.proto.graph.node] == [["y"]]
    proto = with_weights(
        "g (float[2,4,5] x) => (float[2,6,3] y) {c = Conv(x, w) d = Mul(c, k) y = Exp(d)}",
        w=(6, 4, 3),
        k=(6, 1),
    )
    model, _ = simplified(proto)
    assert [list(n.output) for n in model.proto.graph.node] == [["d"], ["y"]]


# id: (opset, operators left, graph)
CHAINS: dict[str, tuple[int, dict[str, int], str]] = {
    "slices of other axes": (
        17,
        {"Slice": 1},
        "g (float[4,5,6] x) => (float[2,3,6] y) <int64[1] o = {1}, int64[1] t = {3}, "
        "int64[1] z = {0}, int64[1] f = {-1}, int64[1] m = {-2}, int64[1] b = {-9}> "
        "{a = Slice(x, o, t, z) y = Slice(a, f, b, m, m)}",
    ),
    "slices of one axis stay": (
        17,
        {"Slice": 2},
        "g (float[6] x) => (float[2] y) <int64[1] o = {1}, int64[1] t = {4}, int64[1] m = {-1}>"
        "{a = Slice(x, o, t) y = Slice(a, o, t, m)}",
    ),
    "slices with two readers stay": (
        17,
        {"Slice": 2, "Exp": 1},
        "g (float[4,5] x) => (float[2,2] y, float[2,5] e) <int64[1] o = {1}, int64[1] t = {3}, "
        "int64[1] z = {0}> {a = Slice(x, o, t, z) y = Slice(a, o, t, o) e = Exp(a)}",
    ),
    "unsqueezes": (
        17,
        {"Unsqueeze": 1},
        "g (float[4,5] x) => (float[4,1,5,1] y) <int64[1] o = {1}, int64[1] m = {-1}> "
        "{a = Unsqueeze(x, m) y = Unsqueeze(a, o)}",
    ),
    "unsqueezes of opset 11": (
        11,
        {"Unsqueeze": 1},
        "g (float[4,5] x) => (float[1,4,1,1,5] y) "
        "{a = Unsqueeze<axes=[0, 2]>(x) y = Unsqueeze<axes=[2]>(a)}",
    ),
    "squeezes": (
        17,
        {"Squeeze": 1},
        "g (float[1,4,1,5,1] x) => (float[4,5] y) <int64[1] z = {0}, int64[2] m = {-1, 1}> "
        "{a = Squeeze(x, z) y = Squeeze(a, m)}",
    ),
    "concats": (
        17,
        {"Concat": 1},
        "g (float[2,3] x, float[2,1] z) => (float[2,7] y) "
        "{a = Concat<axis=1>(x, z) y = Concat<axis=-1>(x, a)}",
    ),
    "concats along other axes stay": (
        17,
        {"Concat": 2},
        "g (float[2,3] x) => (float[2,6] y) "
        "{a = Concat<axis=0>(x, x) b = Concat<axis=0>(a, x) y = Concat<axis=1>(b, b)}",
    ),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains(case: str) -> None:
    opset, expected, text = CHAINS[case]
    proto = parse(text, opset=opset)
    model, _ = simplified(proto)
    assert ops(model) == expected
    assert_equivalent(proto, model)


def test_weights_on_disk_stay_there(tmp_path: object) -> None:
    proto = with_weights(
        "g (float[N,64] x) => (float[N,64] y) {c = MatMul(x, w) d = Identity(c) y = Add(d, k)}",
        w=(64, 64),
        k=(64,),
    )
    onnx.save(proto, f"{tmp_path}/m.onnx")
    from polytool.surgeon import simplify

    model = simplify(f"{tmp_path}/m.onnx")
    assert len(model.proto.SerializeToString()) < 2000
    x = {"x": np.ones((2, 64), np.float32)}
    before = session(proto.SerializeToString()).run(None, x)[0]
    np.testing.assert_allclose(session(model.serialize()).run(None, x)[0], before, rtol=1e-5)
