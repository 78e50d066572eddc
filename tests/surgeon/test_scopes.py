"""Bodies of If, Loop and Scan, outer names, hidden names, functions, sequences, optionals."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from polytool.errors import ModelError
from polytool.surgeon import simplify
from tests.surgeon.surgery import assert_equivalent, ops, parse, session, simplified

pytestmark = pytest.mark.ort

X = np.array([1.5, -2.0], np.float32)

# id: (operators left, graph)
CASES: dict[str, tuple[dict[str, int], str]] = {
    "decided branch": (
        {"Exp": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}> {y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Exp(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "decided branch whose names are used outside": (
        {"Exp": 1, "Neg": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <bool c = {0}> {a = Exp(x) i = If(c) <"
        "then_branch = t () => (float[2] z) {z = Abs(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(a)}> y = Add(i, a)}",
    ),
    "decided branch that returns an outer value": (
        {"Exp": 1, "Neg": 1},
        "g (float[2] x) => (float[2] y, float[2] n) <bool c = {1}> {a = Exp(x) y = If(c) <"
        "then_branch = t () => (float[2] z) {z = Identity(a)}, "
        "else_branch = e () => (float[2] b) {b = Neg(a)}> n = Neg(a)}",
    ),
    "decided branch that returns a constant": (
        {"Add": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}> {i = If(c) <"
        "then_branch = t () => (float[2] z) {z = Constant<value_floats=[1.0, 2.0]>()}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}> y = Add(i, x)}",
    ),
    "decided branches inside of each other": (
        {"Abs": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}, bool d = {0}> {y = If(c) <"
        "then_branch = t () => (float[2] z) {z = If(d) <"
        "then_branch = tt () => (float[2] u) {u = Exp(x)}, "
        "else_branch = te () => (float[2] v) {v = Abs(x)}>}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "two decided branches with the same names": (
        {"Exp": 2, "Neg": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}> {i = If(c) <"
        "then_branch = t () => (float[2] z) {z = Exp(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}> "
        "w = Neg(i) j = If(c) <"
        "then_branch = t () => (float[2] z) {z = Exp(w)}, "
        "else_branch = e () => (float[2] b) {b = Neg(w)}> y = Add(i, j)}",
    ),
    "decided branches of another rank": (
        {"Exp": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}, int64[1] ax = {0}> {y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Exp(x)}, "
        "else_branch = e () => (float[1,2] b) {b = Unsqueeze(x, ax)}>}",
    ),
    "constants inside of an undecided branch": (
        {"If": 1, "Mul": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) <float k = {2}> {y = If(c) <"
        "then_branch = t () => (float[2] a) {j = Exp(k) a = Mul(x, j)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "an identity of an outer value as a branch's output stays": (
        {"If": 1, "Identity": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Identity(x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "an identity inside of a branch": (
        {"If": 1, "Exp": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {y = If(c) <"
        "then_branch = t () => (float[2] a) {i = Identity(x) j = Exp(i) a = Identity(j)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "a value only used in a branch is not dead": (
        {"If": 1, "Exp": 1, "Mul": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {o = Exp(x) y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Mul(o, x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(x)}>}",
    ),
    "an outer identity used in a branch": (
        {"If": 1, "Exp": 1, "Mul": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {e0 = Exp(x) o = Identity(e0) y = If(c) <"
        "then_branch = t () => (float[2] a) {a = Mul(o, x)}, "
        "else_branch = e () => (float[2] b) {b = Neg(o)}>}",
    ),
    "a branch computes what is there already": (
        {"If": 1, "Exp": 1, "Abs": 1, "Neg": 1, "Add": 1},
        "g (float[2] x, bool c) => (float[2] y) {o = Exp(x) i = If(c) <"
        "then_branch = t () => (float[2] a) {p = Exp(x) a = Abs(p)}, "
        "else_branch = e () => (float[2] b) {b = Neg(o)}> y = Add(i, o)}",
    ),
    "equal nodes in two branches stay two": (
        {"If": 1, "Exp": 2, "Abs": 1, "Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {y = If(c) <"
        "then_branch = t () => (float[2] a) {p = Exp(x) a = Abs(p)}, "
        "else_branch = e () => (float[2] b) {p = Exp(x) b = Neg(p)}>}",
    ),
    "dead node with a body": (
        {"Neg": 1},
        "g (float[2] x, bool c) => (float[2] y) {o = Exp(x) i = If(c) <"
        "then_branch = t () => (float[2] a) {a = Abs(o)}, "
        "else_branch = e () => (float[2] b) {b = Neg(o)}> y = Neg(x)}",
    ),
    "loop over constants only": (
        {"Add": 2},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}, float[2] k = {1, 2}> "
        "{p, s = Loop(n, c, k) <body = b "
        "(int64 i, bool ci, float[2] v) => (bool co, float[2] w, float[2] u) "
        "{co = Identity(ci) w = Mul(v, k) u = Identity(w)}> "
        "z = Constant<value_ints=[0]>() q = ReduceSum<keepdims=0>(s, z) a = Add(x, p) "
        "y = Add(a, q)}",
    ),
    "loop of random values over constants stays": (
        {"Loop": 1, "Identity": 1, "RandomNormalLike": 1, "Mul": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, bool c = {1}, float[2] k = {0, 0}> "
        "{p = Loop(n, c, k) <body = b "
        "(int64 i, bool ci, float[2] v) => (bool co, float[2] w) "
        "{co = Identity(ci) r = RandomNormalLike(v) w = Mul(v, r)}> y = Add(x, p)}",
    ),
    "loop without an end over constants stays": (
        {"Loop": 1, "Less": 1, "Add": 3},
        "g (float[2] x) => (float[2] y) <bool c = {1}, float k = {0}, float h = {9}, "
        "float o = {1}> {p = Loop(, c, k) <body = b "
        "(int64 i, bool ci, float v) => (bool co, float w) "
        "{w = Add(v, o) co = Less(w, h)}> q = Add(p, x) y = Add(q, q)}",
    ),
    "loop with constants inside and outside": (
        {"Loop": 1, "Mul": 1, "Add": 1, "Identity": 1},
        "g (float[2] x) => (float[2] y, float[n,2] s) "
        "<int64 n = {40}, bool c = {1}, float k = {2}> {y, s = Loop(n, c, x) <body = b "
        "(int64 i, bool ci, float[2] v) => (bool co, float[2] w, float[2] u) "
        "{co = Identity(ci) k1 = Exp(k) w = Mul(v, k1) u = Add(w, x)}>}",
    ),
    "loop whose value changes its shape": (
        {"Loop": 1, "Concat": 1, "Identity": 1, "Shape": 1, "Cast": 1, "ReduceSum": 1, "Mul": 1},
        "g (float[2] x) => (float[m] y) <int64 n = {20}, bool c = {1}> {y = Loop(n, c, x) <body = "
        "b (int64 i, bool ci, float[2] v) => (bool co, float[2] w) "
        "{co = Identity(ci) s = Shape(v) f = Cast<to=1>(s) r = ReduceSum<keepdims=1>(f) "
        "t = Mul(r, x) w = Concat<axis=0>(v, t)}>}",
    ),
    "loop that passes a value through": (
        {"Loop": 1, "Identity": 2, "Add": 1},
        "g (float[2] x) => (float[2] y, float[2] z) <int64 n = {80}, bool c = {1}> "
        "{y, z = Loop(n, c, x, x) <body = b "
        "(int64 i, bool ci, float[2] v, float[2] p) => (bool co, float[2] w, float[2] q) "
        "{co = Identity(ci) w = Add(v, p) q = Identity(p)}>}",
    ),
    "scan": (
        {"Scan": 1, "Add": 1, "Mul": 1},
        "g (float[2] x, float[3,2] s) => (float[2] y, float[3,2] z) <float k = {2}> "
        "{y, z = Scan<num_scan_inputs=1, body = b "
        "(float[2] v, float[2] e) => (float[2] w, float[2] u) "
        "{k1 = Exp(k) w = Add(v, e) i = Identity(w) u = Mul(i, k1)}>(x, s)}",
    ),
    "sequence through an if": (
        {"If": 1, "SequenceConstruct": 2, "SequenceAt": 1, "Exp": 1},
        "g (float[2] x, bool c) => (float[2] y) <int64 i = {0}> {s = If(c) <"
        "then_branch = t () => (seq(float[2]) a) {a = SequenceConstruct(x, x)}, "
        "else_branch = e () => (seq(float[2]) b) {n = Exp(x) b = SequenceConstruct(n)}> "
        "y = SequenceAt(s, i)}",
    ),
    "optional": (
        {"Optional": 1, "OptionalHasElement": 1, "OptionalGetElement": 1, "Exp": 1},
        "g (float[2] x) => (float[2] y, bool h) {e = Exp(x) o = Optional(e) "
        "p = Identity(o) y = OptionalGetElement(p) h = OptionalHasElement(p)}",
    ),
    "strings": (
        {"Equal": 1},
        'g (string[2] x) => (bool[2] y) <string[2] s = {"a", "b"}> '
        "{t = Identity(s) i = Identity(x) y = Equal(i, t)}",
    ),
    "sequence insert and erase": (
        {"SequenceConstruct": 1, "SequenceInsert": 1, "SequenceErase": 1, "SequenceAt": 1},
        "g (float[2] x) => (float[2] y) <int64 i = {0}> {s = SequenceConstruct(x) "
        "t = SequenceInsert(s, x, i) u = SequenceErase(t, i) v = Identity(u) y = SequenceAt(v, i)}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scopes(case: str) -> None:
    expected, text = CASES[case]
    proto = parse(text, opset=19 if case == "strings" else 18)
    model, _ = simplified(proto)
    assert ops(model) == expected
    names = [i.name for i in proto.graph.input]
    for flag in (False, True) if "c" in names else (True,):
        feeds: dict[str, object] = {"x": X, "c": np.array(flag), "s": np.ones((3, 2), np.float32)}
        if case == "strings":
            feeds["x"] = np.array(["a", "c"], object)
        assert_equivalent(proto, model, {k: v for k, v in feeds.items() if k in names})


def test_a_decided_branch_that_returns_the_same_value_twice() -> None:
    """onnxruntime gives garbage for the first output of such an If."""
    proto = parse(
        "g (float[2] x) => (float[2] y, float[2] n) <bool c = {1}> {y, n = If(c) <"
        "then_branch = t () => (float[2] z, float[2] z) {z = Exp(x)}, "
        "else_branch = e () => (float[2] b, float[2] d) {b = Neg(x) d = Abs(x)}>}"
    )
    model, _ = simplified(proto)
    assert ops(model) == {"Exp": 1, "Identity": 1}
    for output in session(model.serialize()).run(None, {"x": X}):
        np.testing.assert_allclose(output, np.exp(X), rtol=1e-6)


def test_hidden_names_are_told_apart() -> None:
    """A body that defines a name of the graph around it is not valid, but exists."""
    proto = parse(
        "g (float[2] x, bool c) => (float[2] y) {z = Exp(x) i = If(c) <"
        "then_branch = t () => (float[2] z) {k = Exp(x) z = Neg(k)}, "
        "else_branch = e () => (float[2] b) {b = Abs(z)}> y = Add(i, z)}"
    )
    model, _ = simplified(proto)
    assert ops(model) == {"Exp": 1, "If": 1, "Neg": 1, "Abs": 1, "Add": 1}
    for flag in (False, True):
        from onnx.reference import ReferenceEvaluator

        feeds = {"x": X, "c": np.array(flag)}
        want = np.exp(X) + (-np.exp(X) if flag else np.abs(np.exp(X)))
        got = ReferenceEvaluator(model.to_proto()).run(None, feeds)[0]
        np.testing.assert_allclose(got, want, rtol=1e-6)


def function_model(body: str, call: str, attributes: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "f" : 1]> '
        f"g (float[2] x) => (float[2] y) {{{call}}} "
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F {attributes}(a) => (b) {{{body}}}'
    )


def test_functions_are_simplified_inside() -> None:
    proto = function_model(
        "k = Constant<value_float=2.0>() j = Exp(k) i = Identity(a) m = Mul(i, j) b = Neg(m)",
        "y = f.F(x)",
    )
    model, _ = simplified(proto)
    assert ops(model) == {"F": 1, "Constant": 1, "Mul": 1, "Neg": 1}
    assert_equivalent(proto, model)


def test_parameters_of_functions_are_not_folded() -> None:
    proto = function_model(
        "k = Constant<value_float: float = @k>() j = Exp(k) b = Mul(a, j)",
        "y = f.F<k=3.0>(x)",
        "<k>",
    )
    model, _ = simplified(proto)
    assert ops(model) == {"F": 1, "Constant": 1, "Exp": 1, "Mul": 1}
    assert_equivalent(proto, model)


def test_unused_functions_go() -> None:
    proto = function_model("b = Neg(a)", "y = Exp(x)")
    model, report = simplified(proto)
    assert not model.proto.functions
    assert report.done["unused functions removed"] == 1


def test_a_function_on_constants_is_kept() -> None:
    proto = function_model(
        "b = Neg(a)", "k = Constant<value_floats=[1.0, 2.0]>() c = f.F(k) y = Add(c, x)"
    )
    model, _ = simplified(proto)
    assert ops(model) == {"F": 1, "Add": 1, "Neg": 1}
    assert_equivalent(proto, model)


def test_sparse_initializers_are_kept() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {i = Identity(s) y = Add(x, i)}")
    sparse = proto.graph.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(onnx.helper.make_tensor("s", 1, [1], [5.0]))
    sparse.indices.CopyFrom(onnx.helper.make_tensor("", 7, [1], [1]))
    model, _ = simplified(proto)
    assert ops(model) == {"Add": 1}
    assert_equivalent(proto, model)


BROKEN = {
    "undefined": ("g (float[2] x) => (float[2] y) {y = Add(x, q)}", "node 'Add:y': it reads 'q'"),
    "no output": ("g (float[2] x) => (float[2] y) {z = Exp(x)}", "output 'y' .* never defined"),
    "twice": ("g (float[2] x) => (float[2] y) {y = Exp(x) y = Neg(x)}", "'y' is defined twice"),
    "cycle": ("g (float[2] x) => (float[2] y) {a = Add(x, y) y = Exp(a)}", "cycle through node"),
    "branch": (
        "g (bool c) => (float[2] y) {y = If(c) <then_branch = t () => (float[2] a) {a = Exp(q)}, "
        "else_branch = e () => (float[2] b) {b = Neg(q)}>}",
        "node 'Exp:a': it reads 'q'.*node 'Neg:b': it reads 'q'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused(case: str) -> None:
    text, message = BROKEN[case]
    with pytest.raises(ModelError, match=message):
        simplify(parse(text))


def test_duplicate_node_names_and_odd_output_names_are_no_obstacle() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {a = Exp(x) b = Exp(x) c = Add(a, b) y = Neg(c)}")
    for node, name in zip(proto.graph.node, itertools.repeat("same"), strict=False):
        node.name = name
    for value in ("a", "b"):
        new = '{"json": 1}/' + value + ":0"
        for node in proto.graph.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name == value:
                        field[index] = new
    model, report = simplified(proto)
    assert [n.name for n in model.proto.graph.node] == ["same", "same_1", "same_2"]
    assert report.done["duplicate node names made unique"] == 2
    for node in proto.graph.node:
        node.name = ""
    assert_equivalent(proto, model)
