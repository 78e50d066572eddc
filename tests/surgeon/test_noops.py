"""Operations without effect go, and those that look like them stay; outputs stay the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.surgeon.surgery import assert_equivalent, ops, parse, simplified

pytestmark = pytest.mark.ort

# id: (opset, operators left, graph)
CASES: dict[str, tuple[int, dict[str, int], str]] = {
    "identity": (17, {"Relu": 1}, "g (float[2] x) => (float[2] y) {a = Identity(x) y = Relu(a)}"),
    "identity between nodes takes the output's name": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Relu(x) y = Identity(a)}",
    ),
    "identity from input to output stays": (
        17,
        {"Identity": 1},
        "g (float[2] x) => (float[2] y) {y = Identity(x)}",
    ),
    "identity of an output stays": (
        17,
        {"Relu": 1, "Identity": 1},
        "g (float[2] x) => (float[2] a, float[2] y) {a = Relu(x) y = Identity(a)}",
    ),
    "two identities of one value": (
        17,
        {"Relu": 1, "Identity": 1},
        "g (float[2] x) => (float[2] y, float[2] z) {a = Relu(x) y = Identity(a) z = Identity(a)}",
    ),
    "constant to output": (
        17,
        {},
        "g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> {y = Identity(c) z = Relu(x)}",
    ),
    "cast to the same type": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Cast<to=1>(x) y = Relu(a)}",
    ),
    "cast to another type stays": (
        17,
        {"Cast": 1},
        "g (float[2] x) => (int64[2] y) {y = Cast<to=7>(x)}",
    ),
    "cast there and back through fewer bits stays": (
        17,
        {"Cast": 2},
        "g (float[2] x) => (float[2] y) {a = Cast<to=10>(x) y = Cast<to=1>(a)}",
    ),
    "cast through an integer stays": (
        17,
        {"Cast": 2, "Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Cast<to=6>(x) b = Cast<to=1>(a) y = Relu(b)}",
    ),
    "cast through more bits goes": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Cast<to=11>(x) b = Cast<to=1>(a) y = Relu(b)}",
    ),
    "widening cast before a cast goes": (
        17,
        {"Cast": 1},
        "g (int32[2] x) => (float[2] y) {a = Cast<to=7>(x) y = Cast<to=1>(a)}",
    ),
    "cast int32 through float stays": (
        17,
        {"Cast": 2},
        "g (int32[2] x) => (int32[2] y) {a = Cast<to=1>(x) y = Cast<to=6>(a)}",
    ),
    "cast int64 through double stays": (
        17,
        {"Cast": 2},
        "g (int64[2] x) => (int64[2] y) {a = Cast<to=11>(x) y = Cast<to=7>(a)}",
    ),
    "cast to bool and back stays": (
        17,
        {"Cast": 2},
        "g (float[2] x) => (float[2] y) {a = Cast<to=9>(x) y = Cast<to=1>(a)}",
    ),
    "cast, multiplication, cast stays": (
        17,
        {"Cast": 2, "Mul": 1},
        "g (int64[2] x) => (int64[2] y) <float h = {0.5}> "
        "{a = Cast<to=1>(x) b = Mul(a, h) y = Cast<to=7>(b)}",
    ),
    "castlike to the same type": (
        17,
        {"Relu": 1},
        "g (float[2] x, float[1] l) => (float[2] y) {a = CastLike(x, l) y = Relu(a)}",
    ),
    "reshape to the same static shape": (
        17,
        {"Relu": 1},
        "g (float[2,3] x) => (float[2,3] y) <int64[2] s = {2, 3}> {a = Reshape(x, s) y = Relu(a)}",
    ),
    "reshape by copied and computed dimensions": (
        17,
        {"Relu": 1},
        "g (float[N,M,4] x) => (float[N,M,4] y) <int64[3] s = {0, -1, 4}> "
        "{a = Reshape(x, s) y = Relu(a)}",
    ),
    "reshape to another shape stays": (
        17,
        {"Reshape": 1, "Relu": 1},
        "g (float[N,4] x) => (float[M,2] y) <int64[2] s = {-1, 2}> {a = Reshape(x, s) y = Relu(a)}",
    ),
    "reshape of a reshape": (
        17,
        {"Reshape": 1},
        "g (float[4,6] x) => (float[3,8] y) <int64[1] s = {-1}, int64[2] t = {3, 8}> "
        "{a = Reshape(x, s) y = Reshape(a, t)}",
    ),
    "reshape of a reshape by a copied dimension stays": (
        17,
        {"Reshape": 2},
        "g (float[N,6] x) => (float[M,3] y) <int64[2] s = {-1, 3}, int64[2] t = {0, 3}, "
        "int64[3] u = {0, 3, 1}> {a = Reshape(x, s) y = Reshape(a, u)}",
    ),
    "reshape of unsqueeze": (
        17,
        {"Reshape": 1},
        "g (float[4,6] x) => (float[8,3] y) <int64[1] a1 = {0}, int64[2] t = {-1, 3}> "
        "{a = Unsqueeze(x, a1) y = Reshape(a, t)}",
    ),
    "flatten of a matrix": (
        17,
        {"Relu": 1},
        "g (float[2,3] x) => (float[2,3] y) {a = Flatten<axis=1>(x) y = Relu(a)}",
    ),
    "flatten of four dimensions stays": (
        17,
        {"Flatten": 1},
        "g (float[2,3,2,2] x) => (float[2,12] y) {y = Flatten(x)}",
    ),
    "transpose by the identity": (
        17,
        {"Relu": 1},
        "g (float[2,3] x) => (float[2,3] y) {a = Transpose<perm=[0,1]>(x) y = Relu(a)}",
    ),
    "transpose and back": (
        17,
        {"Relu": 1},
        "g (float[2,3,4] x) => (float[2,3,4] y) "
        "{a = Transpose<perm=[1,2,0]>(x) b = Transpose<perm=[2,0,1]>(a) y = Relu(b)}",
    ),
    "transpose twice the same way": (
        17,
        {"Transpose": 1},
        "g (float[2,3,4] x) => (float[4,2,3] y) "
        "{a = Transpose<perm=[1,2,0]>(x) y = Transpose<perm=[1,2,0]>(a)}",
    ),
    "transpose without perm twice": (
        17,
        {"Relu": 1},
        "g (float[2,3,4] x) => (float[2,3,4] y) {a = Transpose(x) b = Transpose(a) y = Relu(b)}",
    ),
    "transpose without perm of a vector": (
        17,
        {"Relu": 1},
        "g (float[3] x) => (float[3] y) {a = Transpose(x) y = Relu(a)}",
    ),
    "slice of everything": (
        17,
        {"Relu": 1},
        "g (float[N,3] x) => (float[N,3] y) <int64[2] s = {0, 0}, "
        "int64[2] e = {9223372036854775807, 3}> {a = Slice(x, s, e) y = Relu(a)}",
    ),
    "slice of everything backwards stays": (
        17,
        {"Slice": 1},
        "g (float[3] x) => (float[3] y) <int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, "
        "int64[1] a = {0}, int64[1] t = {-1}> {y = Slice(x, s, e, a, t)}",
    ),
    "slice up to the last stays": (
        17,
        {"Slice": 1},
        "g (float[N] x) => (float[M] y) <int64[1] s = {0}, int64[1] e = {-1}> {y = Slice(x, s, e)}",
    ),
    "slice with an end that may be too early stays": (
        17,
        {"Slice": 1},
        "g (float[N] x) => (float[M] y) <int64[1] s = {0}, int64[1] e = {1}> {y = Slice(x, s, e)}",
    ),
    "slice-9 of everything": (
        9,
        {"Relu": 1},
        "g (float[N,3] x) => (float[N,3] y) "
        "{a = Slice<starts=[0], ends=[9223372036854775807], axes=[0]>(x) y = Relu(a)}",
    ),
    "pad by nothing": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) <int64[2] p = {0, 0}> {a = Pad(x, p) y = Relu(a)}",
    ),
    "pad by something stays": (
        17,
        {"Pad": 1},
        "g (float[2] x) => (float[3] y) <int64[2] p = {0, 1}> {y = Pad(x, p)}",
    ),
    "pad-2 by nothing": (
        10,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Pad<pads=[0,0]>(x) y = Relu(a)}",
    ),
    "dropout": (
        13,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Dropout(x) y = Relu(a)}",
    ),
    "dropout-7": (
        11,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Dropout<ratio=0.9>(x) y = Relu(a)}",
    ),
    "dropout whose mask is used stays": (
        13,
        {"Dropout": 1},
        "g (float[2] x) => (float[2] y, bool[2] m) {y, m = Dropout(x)}",
    ),
    "concat of one": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Concat<axis=0>(x) y = Relu(a)}",
    ),
    "sum, max, min, mean of one": (
        17,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Sum(x) b = Max(a) c = Min(b) d = Mean(c) y = Relu(d)}",
    ),
    "sum of two stays": (17, {"Sum": 1}, "g (float[2] x) => (float[2] y) {y = Sum(x, x)}"),
    "split into one": (
        13,
        {"Relu": 1},
        "g (float[2] x) => (float[2] y) {a = Split<axis=0>(x) y = Relu(a)}",
    ),
    "expand by ones": (
        17,
        {"Relu": 1},
        "g (float[N,2] x) => (float[N,2] y) <int64[1] s = {1}> {a = Expand(x, s) y = Relu(a)}",
    ),
    "expand by ones to a higher rank stays": (
        17,
        {"Expand": 1},
        "g (float[2] x) => (float[1,2] y) <int64[2] s = {1, 1}> {y = Expand(x, s)}",
    ),
    "tile by ones": (
        17,
        {"Relu": 1},
        "g (float[N,2] x) => (float[N,2] y) <int64[2] s = {1,1}> {a = Tile(x, s) y = Relu(a)}",
    ),
    "times one": (
        17,
        {"Relu": 1},
        "g (float[N] x) => (float[N] y) <float c = {1}> {a = Mul(c, x) b = Div(a, c) y = Relu(b)}",
    ),
    "one divided by stays": (
        17,
        {"Div": 1},
        "g (float[N] x) => (float[N] y) <float c = {1}> {y = Div(c, x)}",
    ),
    "times one that broadcasts stays": (
        17,
        {"Mul": 1},
        "g (float[2] x) => (float[1,2] y) <float[1,1] c = {1}> {y = Mul(x, c)}",
    ),
    "times ones that stretch stays": (
        17,
        {"Mul": 1},
        "g (float[N] x) => (float[2] y) <float[2] c = {1, 1}> {y = Mul(x, c)}",
    ),
    "minus zero": (
        17,
        {"Relu": 1},
        "g (float[N] x) => (float[N] y) <float c = {0}> {a = Sub(x, c) y = Relu(a)}",
    ),
    "plus zero changes the sign of zero and stays": (
        17,
        {"Add": 1, "Neg": 1, "Relu": 1},
        "g (float[N] x) => (float[N] y) <float c = {0}> {a = Relu(x) b = Neg(a) y = Add(b, c)}",
    ),
    "integer plus zero": (
        17,
        {"Neg": 1},
        "g (int64[N] x) => (int64[N] y) <int64 c = {0}> {a = Add(x, c) y = Neg(a)}",
    ),
    "and true, or false": (
        17,
        {"Not": 1},
        "g (bool[N] x) => (bool[N] y) <bool t = {1}, bool f = {0}> "
        "{a = And(x, t) b = Or(f, a) y = Not(b)}",
    ),
    "and false stays": (
        17,
        {"And": 1},
        "g (bool[N] x) => (bool[N] y) <bool f = {0}> {y = And(x, f)}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_noops(case: str) -> None:
    opset, expected, text = CASES[case]
    proto = parse(text, opset=opset)
    model, _ = simplified(proto)
    assert ops(model) == expected
    assert_equivalent(proto, model)


def test_dropout_in_training_stays() -> None:
    proto = parse(
        "g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}> {y = Dropout(x, r, t)}"
    )
    assert ops(simplified(proto)[0]) == {"Dropout": 1}


def test_what_was_removed_is_counted() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {a = Identity(x) b = Cast<to=1>(a) y = Relu(b)}")
    _, report = simplified(proto)
    assert report.done["Identity without effect removed"] == 1
    assert report.done["Cast without effect removed"] == 1


def test_a_slice_of_an_open_size_stays_at_opset_10() -> None:
    """ONNX's inference says of Slice-10 that open sizes stay as they are."""
    proto = parse(
        "g (float[N] x) => (float[M] y) <int64[1] s = {0}, int64[1] e = {5}> "
        "{a = Slice(x, s, e) y = Neg(a)}",
        opset=10,
    )
    model, _ = simplified(proto)
    assert ops(model) == {"Slice": 1, "Neg": 1}
    assert_equivalent(proto, model, {"x": np.arange(9, dtype=np.float32)})
