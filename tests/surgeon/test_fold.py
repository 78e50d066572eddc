"""Constant folding: what is computed, what is not, and that results stay the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.surgeon.surgery import assert_equivalent, ops, parse, simplified

pytestmark = pytest.mark.ort

# id: (opset, operators left, graph)
CASES: dict[str, tuple[int, dict[str, int], str]] = {
    "arithmetic": (
        17,
        {"Add": 1},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> "
        "{c = Mul(a, b) d = Sqrt(c) y = Add(x, d)}",
    ),
    "constant nodes of every attribute": (
        17,
        {"Add": 2, "Mul": 1},
        "g (float[2] x, int64[2] i) => (float[2] y, int64[2] j) "
        "{a = Constant<value_float=2.0>() b = Constant<value_floats=[1.0, 2.0]>() "
        "c = Constant<value_int=3>() d = Constant<value_ints=[1, 2]>() "
        "e = Mul(a, b) y = Add(x, e) f = Add(c, d) j0 = Mul(i, f) j = Add(j0, f)}",
    ),
    "constant string": (
        17,
        {},
        'g () => (string[2] y) {y = Constant<value_strings=["a", "b"]>()}',
    ),
    "everything": (
        17,
        {},
        "g () => (float[2] y) <float[2] a = {1, 2}> {b = Neg(a) y = Exp(b)}",
    ),
    "integer division towards zero": (
        17,
        {"Add": 1},
        "g (int64[2] x) => (int64[2] y) <int64[2] a = {-7, 7}, int64[2] b = {2, -2}> "
        "{c = Div(a, b) y = Add(x, c)}",
    ),
    "integer overflow wraps": (
        17,
        {"Add": 1},
        "g (int32[1] x) => (int32[1] y) <int32[1] a = {2147483647}, int32[1] b = {1}> "
        "{c = Add(a, b) y = Add(x, c)}",
    ),
    "uint8 wraps": (
        17,
        {"Sub": 1},
        "g (uint8[1] x) => (uint8[1] y) <uint8[1] a = {200}, uint8[1] b = {100}> "
        "{c = Add(a, b) y = Sub(c, x)}",
    ),
    "not-a-number stays one": (
        17,
        {"Add": 1},
        "g (float[1] x) => (float[1] y) <float[1] a = {-1}> {c = Sqrt(a) y = Add(x, c)}",
    ),
    "float16": (
        17,
        {"Add": 1},
        "g (float16[2] x) => (float16[2] y) <float[2] a = {0.1, 3000}> "
        "{b = Cast<to=10>(a) c = Mul(b, b) y = Add(x, c)}",
    ),
    "double": (
        17,
        {"Add": 1},
        "g (double[2] x) => (double[2] y) <double[2] a = {0.1, 0.7}> {c = Mul(a, a) y = Add(x, c)}",
    ),
    "cast of a constant": (
        17,
        {"Mul": 1},
        "g (int64[2] x) => (int64[2] y) <float[2] a = {-1.7, 2.5}> "
        "{c = Cast<to=7>(a) y = Mul(x, c)}",
    ),
    "where, compare, boolean": (
        17,
        {"Add": 1},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 5}, float[2] b = {3, 4}> "
        "{c = Greater(a, b) d = Not(c) e = Where(d, a, b) y = Add(x, e)}",
    ),
    "shape of a static input": (
        17,
        {"Mul": 1},
        "g (float[2,3] x, int64[2] i) => (int64[2] y) {s = Shape(x) y = Mul(i, s)}",
    ),
    "shape with start and end": (
        17,
        {"Mul": 1},
        "g (float[2,3,N] x, int64[2] i) => (int64[2] y) "
        "{s = Shape<start=-3, end=-1>(x) y = Mul(i, s)}",
    ),
    "shape of a dynamic input stays": (
        17,
        {"Shape": 1},
        "g (float[2,N] x) => (int64[2] y) {y = Shape(x)}",
    ),
    "size of a static input": (
        17,
        {"Mul": 1},
        "g (float[2,3] x, int64 i) => (int64 y) {s = Size(x) y = Mul(i, s)}",
    ),
    "the known part of a dynamic shape": (
        17,
        {"Mul": 1},
        "g (float[N,3] x, int64[1] i) => (int64[1] y) <int64[1] one = {1}> "
        "{s = Shape(x) d = Gather(s, one) y = Mul(i, d)}",
    ),
    "reshape by a computed shape": (
        17,
        {"Reshape": 1},
        "g (float[N,6] x) => (float[N,2,3] y) "
        "<int64 zero = {0}, int64[1] ax = {0}, int64[2] r = {2, 3}> {s = Shape(x) "
        "n = Gather(s, zero) m = Unsqueeze(n, ax) t = Concat<axis=0>(m, r) y = Reshape(x, t)}",
    ),
    "reshape by the product of two unknown dimensions": (
        17,
        {"Reshape": 1},
        "g (float[N,M,6] x) => (float[P,6] y) "
        "<int64 zero = {0}, int64 one = {1}, int64[1] ax = {0}, int64[1] r = {6}> {s = Shape(x) "
        "n = Gather(s, zero) m = Gather(s, one) p = Mul(n, m) q = Unsqueeze(p, ax) "
        "t = Concat<axis=0>(q, r) y = Reshape(x, t)}",
    ),
    "reshape by two unknown dimensions stays": (
        17,
        {"Reshape": 1},
        "g (float[6,4] x, int64[2] s) => (float[N,M] y) {y = Reshape(x, s)}",
    ),
    "reshape by a dimension that must be one": (
        17,
        {"Reshape": 2},
        "g (float[6,N,4] x, float[M] z) => (float[K,6,N,4] y, float[A,N,B] w) "
        "<int64[1] six = {6}, int64[1] four = {4}, int64[1] m = {-1}> {"
        "n = Shape<start=1, end=2>(x) k = Shape(z) s = Concat<axis=0>(m, n, four) "
        "w = Reshape(x, s) t = Concat<axis=0>(k, six, n, four) y = Reshape(x, t)}",
    ),
    "reshape by a dimension that an empty one may hide stays": (
        17,
        {"Reshape": 1, "Shape": 2, "Concat": 1},
        "g (float[6,N,4] x, float[M] z) => (float[K,6,N,4] y) "
        "<int64[1] six = {6}, int64[1] four = {4}> {"
        "n = Shape<start=1, end=2>(x) k = Shape(z) t = Concat<axis=0>(k, six, n, four) "
        "y = Reshape(x, t)}",
    ),
    "reshape where zero means empty": (
        17,
        {"Reshape": 1},
        "g (float[N,6] x) => (float[N,2,3] y) <int64[2] r = {2, 3}> "
        "{n = Shape<end=1>(x) t = Concat<axis=0>(n, r) y = Reshape<allowzero=1>(x, t)}",
    ),
    "positions cut to the length of the input": (
        17,
        {"Slice": 1, "Shape": 1, "Add": 1, "Reshape": 1},
        "g (float[N,S,4] x) => (float[N,S,2,2] y) <float[1,8,4] p = {"
        + ", ".join(["1"] * 32)
        + "}, int64[1] z = {0}, int64[1] o = {1}, int64[2] r = {2, 2}> "
        "{s = Shape<start=1, end=2>(x) n = Shape<end=1>(x) c = Slice(p, z, s, o) a = Add(x, c) "
        "t = Concat<axis=0>(n, s, r) y = Reshape(a, t)}",
    ),
    "state of zeros": (
        17,
        {"GRU": 1},
        "g (float[S,N,3] x) => (float[S,1,N,2] y) <float[1,6,3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, "
        "1, 1, 1, 1, 1, 1, 1, 1}, float[1,6,2] r = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, "
        "int64[1] o = {1}, int64[1] h = {2}> "
        "{n = Shape<start=1, end=2>(x) s = Concat<axis=0>(o, n, h) z = ConstantOfShape(s) "
        "y = GRU<hidden_size=2>(x, w, r, , , z)}",
    ),
    "state of ones stays": (
        17,
        {"GRU": 1, "Shape": 1, "Concat": 1, "ConstantOfShape": 1},
        "g (float[S,N,3] x) => (float[S,1,N,2] y) <float[1,6,3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, "
        "1, 1, 1, 1, 1, 1, 1, 1}, float[1,6,2] r = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, "
        "int64[1] o = {1}, int64[1] h = {2}> "
        "{n = Shape<start=1, end=2>(x) s = Concat<axis=0>(o, n, h) "
        "z = ConstantOfShape<value = float[1] {1.0}>(s) y = GRU<hidden_size=2>(x, w, r, , , z)}",
    ),
    "expand to its own unknown dimension": (
        17,
        {"Expand": 1},
        "g (float[N,1] x) => (float[N,4] y) "
        "<int64[1] zero = {0}, int64[1] r = {4}> {s = Shape(x) "
        "n = Gather(s, zero) t = Concat<axis=0>(n, r) y = Expand(x, t)}",
    ),
    "slice up to its own size": (
        17,
        {"Relu": 1},
        "g (float[N,4] x) => (float[N,4] y) <int64[1] zero = {0}> {s = Shape(x) "
        "n = Gather(s, zero) t = Slice(x, zero, n) y = Relu(t)}",
    ),
    "slice up to another size stays": (
        17,
        {"Relu": 1, "Slice": 1, "Shape": 1},
        "g (float[N,4] x, float[M,4] z) => (float[P,4] y) <int64[1] zero = {0}, int64[1] one = {1}>"
        "{s = Shape<end=1>(z) t = Slice(x, zero, s) y = Relu(t)}",
    ),
    "sequence of constants": (
        17,
        {"Add": 1},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}, int64 i = {1}> "
        "{s = SequenceConstruct(a, b) c = SequenceAt(s, i) y = Add(x, c)}",
    ),
    "sequence of constants that is needed stays": (
        17,
        {"Add": 1, "Clip": 1, "SequenceConstruct": 1, "SequenceAt": 1},
        "g (float[2] x, int64 i) => (float[2] y) "
        "<float[2] a = {1, 2}, float[2] b = {3, 4}, int64 z = {0}, int64 o = {1}> "
        "{n = Neg(b) s = SequenceConstruct(a, n) j = Clip(i, z, o) c = SequenceAt(s, j) "
        "y = Add(x, c)}",
    ),
    "split of a constant": (
        17,
        {"Add": 1, "Mul": 1},
        "g (float[2] x) => (float[2] y) <float[4] a = {1, 2, 3, 4}, int64[2] p = {2, 2}> "
        "{b, c = Split(a, p) d = Mul(x, c) y = Add(d, b)}",
    ),
    "topk of a constant with one used output": (
        17,
        {"Mul": 1},
        "g (int64[1] x) => (int64[1] y) <float[3] a = {1, 3, 2}, int64[1] k = {1}> "
        "{v, i = TopK(a, k) y = Mul(x, i)}",
    ),
    "softmax-11 of a constant": (
        11,
        {"Add": 1},
        "g (float[2,2,2] x) => (float[2,2,2] y) <float[2,2,2] a = {1, 2, 3, 4, 5, 6, 7, 8}> "
        "{s = Softmax<axis=1>(a) y = Add(x, s)}",
    ),
    "random stays": (
        17,
        {"Add": 1, "RandomNormal": 1, "Mul": 1},
        "g (float[2] x) => (float[2] y) <float z = {0}> "
        "{r = RandomNormal<shape=[2]>() a = Mul(r, z) y = Add(x, a)}",
    ),
    "random of a constant's shape stays": (
        17,
        {"RandomUniformLike": 1, "Mul": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float z = {0}> "
        "{r = RandomUniformLike(a) m = Mul(r, z) y = Add(x, m)}",
    ),
    "bernoulli stays": (
        17,
        {"Bernoulli": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 1}> {r = Bernoulli(a) y = Add(x, r)}",
    ),
    "two draws stay two": (
        17,
        {"RandomNormal": 2, "Sub": 1, "IsNaN": 1},
        "g () => (bool[2] y) {a = RandomNormal<shape=[2]>() b = RandomNormal<shape=[2]>() "
        "c = Sub(a, b) y = IsNaN(c)}",
    ),
    "quantised constant stays": (
        17,
        {"DequantizeLinear": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <int8[2] a = {1, 2}, float s = {0.5}> "
        "{d = DequantizeLinear(a, s) y = Add(x, d)}",
    ),
    "equal constants": (
        17,
        {"Add": 2},
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> "
        "{c = Add(x, a) y = Add(c, b)}",
    ),
    "equal nodes": (
        17,
        {"Exp": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) {a = Exp(x) b = Exp(x) y = Add(a, b)}",
    ),
    "equal nodes with other attributes stay": (
        17,
        {"Elu": 2, "Add": 1},
        "g (float[2] x) => (float[2] y) {a = Elu(x) b = Elu<alpha=2.0>(x) y = Add(a, b)}",
    ),
    "equal nodes of which one is an output": (
        17,
        {"Exp": 1, "Add": 1},
        "g (float[2] x) => (float[2] y, float[2] b) {a = Exp(x) b = Exp(x) y = Add(a, b)}",
    ),
    "equal outputs stay two": (
        17,
        {"Exp": 2},
        "g (float[2] x) => (float[2] a, float[2] b) {a = Exp(x) b = Exp(x)}",
    ),
    "equal nodes after their inputs were merged": (
        17,
        {"Exp": 1, "Neg": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) "
        "{a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Add(c, d)}",
    ),
    "zeros of either sign stay two": (
        17,
        {"Div": 2, "Add": 1},
        "g (float[1] x) => (float[1] y) <float[1] a = {0.0}, float[1] b = {-0.0}> "
        "{c = Div(x, a) d = Div(x, b) y = Add(c, d)}",
    ),
    "dead nodes": (
        17,
        {"Exp": 1},
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> "
        "{y = Exp(x) d = Neg(x) e = Add(d, w)}",
    ),
    "out of order": (
        17,
        {"Exp": 1, "Neg": 1, "Abs": 1},
        "g (float[2] x) => (float[2] y) {a = Exp(x) b = Neg(a) y = Abs(b)}",
    ),
}


FEEDS: dict[str, dict[str, object]] = {
    "reshape by two unknown dimensions stays": {
        "x": np.ones((6, 4), np.float32),
        "s": np.array([8, 3]),
    },
    "reshape by a dimension that must be one": {
        "x": np.ones((6, 3, 4), np.float32),
        "z": np.ones(1, np.float32),
    },
    "reshape by a dimension that an empty one may hide stays": {
        "x": np.ones((6, 3, 4), np.float32),
        "z": np.ones(1, np.float32),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_fold(case: str) -> None:
    opset, expected, text = CASES[case]
    proto = parse(text, opset=opset)
    model, _ = simplified(proto)
    assert ops(model) == expected
    assert_equivalent(proto, model, FEEDS.get(case))


# id: (reason, text, domain of the first node)
REFUSED: dict[str, tuple[str, str, str]] = {
    "random": (
        "it is random",
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> "
        "{r = RandomNormalLike(a) y = Add(x, r)}",
        "",
    ),
    "quantising": (
        "it quantises",
        "g (float[2] x) => (float[2] y) <int8[2] a = {1, 2}, float s = {0.5}> "
        "{d = DequantizeLinear(a, s) y = Add(x, d)}",
        "",
    ),
    "unknown without inputs": (
        "nothing says that it always gives the same",
        "g (float[2] x) => (float[2] y) {r = Thing() y = Add(x, r)}",
        "my",
    ),
    "unknown": (
        "there is no Thing-1 here",
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> {r = Thing(a) y = Add(x, r)}",
        "my",
    ),
    "broken": (
        "Reshape fails on its constant inputs",
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, int64[1] s = {3}> "
        "{r = Reshape(a, s) y = Add(x, r)}",
        "",
    ),
    "too large": (
        "the file would grow by 399999980 bytes",
        "g (float[N] x) => (float[N] y) <float[1] a = {1}, int64[2] s = {10000, 10000}> "
        "{b = Expand(a, s) c = ReduceSum<keepdims=0>(b) y = Add(x, c)}",
        "",
    ),
    "random in a body": (
        "it is random inside",
        "g (float[2] x) => (float[2] y) <int64 n = {100}, float[2] a = {1, 2}> "
        "{r = Loop(n, , a) <body = b (int64 i, bool ci, float[2] v) => (bool co, float[2] w) "
        "{co = Identity(ci) w = RandomNormalLike(v)}> y = Add(x, r)}",
        "",
    ),
    "without an end": (
        "nothing says that it ends within 10000 iterations",
        "g (float x) => (float y) <bool c = {1}, float k = {0}, float h = {9}, float o = {1}> "
        "{p = Loop(, c, k) <body = b (int64 i, bool ci, float v) => (bool co, float w) "
        "{w = Add(v, o) co = Less(w, h)}> y = Add(p, x)}",
        "",
    ),
    "parameter of a function": (
        "it depends on a parameter of its function",
        "g (float[2] x) => (float[2] y) {y = f.F<s=[1, 2]>(x)} "
        '<domain: "f", opset_import: ["" : 17]> F <s> (a) => (b) '
        "{k = Constant<value_floats=[1.0, 2.0]>() t = Transpose<perm: ints = @s>(k) b = Add(a, t)}",
        "",
    ),
    "function of the model": (
        "F is a function of the model",
        "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> {e = f.F(k) y = Add(x, e)} "
        '<domain: "f", opset_import: ["" : 17]> F (a) => (b) {b = Exp(a)}',
        "",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_folded_says_why(case: str) -> None:
    reason, text, domain = REFUSED[case]
    proto = parse(text, extra=', "my" : 1, "f" : 1')
    proto.graph.node[0].domain = domain or proto.graph.node[0].domain
    model, report = simplified(proto)
    assert any(f"not folded: {reason}" in str(r) for r in report.refused), report.refused
    assert ops(model)


def test_nodes_out_of_order_are_sorted() -> None:
    proto = parse(CASES["out of order"][2])
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    model, report = simplified(proto)
    assert [n.op_type for n in model.proto.graph.node] == ["Exp", "Neg", "Abs"]
    assert report.done["graphs sorted"] == 1


def test_simplify_twice_changes_nothing_more() -> None:
    proto = parse(CASES["reshape by a computed shape"][2])
    once, _ = simplified(proto)
    twice, report = simplified(once.to_proto())
    assert report.total == 0
    assert twice.serialize() == once.serialize()
