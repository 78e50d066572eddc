"""Loops: unchanged states, constant trip counts, results that nobody reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from polytool.backends.native.runner import NativeRunner
from polytool.model import Model, load
from polytool.surgeon import Report, sanitize, simplify
from tests.surgeon.surgery import assert_equivalent, ops, parse, simplified

pytestmark = pytest.mark.ort

X = np.array([1.5, -2.0], np.float32)
BODY = "(int64 i, bool ci, float[2] v) => (bool co, float[2] w, float[2] u) "

# id: (opset, operators left, graph)
CASES: dict[str, tuple[int, dict[str, int], str]] = {
    "three iterations": (
        18,
        {"Mul": 3, "Exp": 1, "Neg": 3, "Unsqueeze": 3, "Concat": 1},
        "g (float[2] x) => (float[2] y, float[3,2] z) <int64 n = {3}> {k = Exp(x) y, z = Loop(n, , "
        f"x) <body = b {BODY}"
        "{co = Identity(ci) w = Mul(v, k) u = Neg(w)}>}",
    ),
    "the number of the iteration": (
        18,
        {"Add": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {4}> {y, z = Loop(n, , x) <body = b "
        f"{BODY}{{co = Identity(ci) f = Cast<to=1>(i) w = Add(x, f) u = Neg(v)}}>}}",
    ),
    "collecting before axes were an input": (
        11,
        {"Mul": 2, "Unsqueeze": 2, "Concat": 1},
        "g (float[2] x) => (float[2] y, float[2,2] z) <int64 n = {2}> {y, z = Loop(n, , x) "
        f"<body = b {BODY}"
        "{co = Identity(ci) w = Mul(v, v) u = Identity(w)}>}",
    ),
    "no iteration": (
        18,
        {"Neg": 1},
        "g (float[2] x) => (float[2] y, float[0,2] z) <int64 n = {0}> {a, z = Loop(n, , x) "
        f"<body = b {BODY}"
        "{co = Identity(ci) w = Mul(v, v) u = Exp(x)}> y = Neg(a)}",
    ),
    "a condition that is false from the start": (
        18,
        {"Neg": 1},
        "g (float[2] x) => (float[2] y) <bool c = {0}> {a, z = Loop(, c, x) "
        f"<body = b {BODY}"
        "{co = Identity(ci) w = Mul(v, v) u = Exp(x)}> y = Neg(a)}",
    ),
    "a condition that becomes false at once": (
        18,
        {"Mul": 1},
        "g (float[2] x) => (float[2] y) <bool c = {1}, bool d = {0}> {y, z = Loop(, c, x) "
        f"<body = b {BODY}"
        "{co = Identity(d) w = Mul(v, v) u = Exp(x)}>}",
    ),
    "a negative number of iterations": (
        18,
        {"Neg": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {-1}> {a, z = Loop(n, , x) "
        f"<body = b {BODY}"
        "{co = Identity(ci) w = Mul(v, v) u = Exp(x)}> y = Neg(a)}",
    ),
    "states that change places": (
        18,
        {"Neg": 1, "Sub": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}> {k = Neg(x) p, q = Loop(n, , x, k) <body = "
        "b (int64 i, bool ci, float[2] v, float[2] w) => (bool co, float[2] s, float[2] t) "
        "{co = Identity(ci) s = Identity(w) t = Identity(v)}> y = Sub(p, q)}",
    ),
    "a branch inside": (
        18,
        {"If": 2, "Neg": 2, "Mul": 2},
        "g (float[2] x, bool c) => (float[2] y) <int64 n = {2}> {y, z = Loop(n, , x) <body = b "
        f"{BODY}"
        "{co = Identity(ci) w = If(c) <then_branch = t () => (float[2] a) {a = Mul(v, x)}, "
        "else_branch = e () => (float[2] d) {d = Neg(v)}> u = Exp(w)}>}",
    ),
    "a loop inside": (
        18,
        {"Mul": 4},
        "g (float[2] x) => (float[2] y) <int64 n = {2}> {y, z = Loop(n, , x) <body = b "
        f"{BODY}"
        "{co = Identity(ci) w, o = Loop(n, , v) <body = bb (int64 j, bool cj, float[2] p) => "
        "(bool ck, float[2] q, float[2] r) {ck = Identity(cj) q = Mul(p, x) r = Neg(q)}> "
        "u = Exp(w)}>}",
    ),
    "constants inside": (
        18,
        {"Mul": 2},
        "g (float[2] x) => (float[2] y) <int64 n = {2}> {y, z = Loop(n, , x) <body = b "
        f"{BODY}"
        "{co = Identity(ci) k = Constant<value_floats=[2.0, 3.0]>() w = Mul(v, k) u = Exp(w)}>}",
    ),
    "random inside once": (
        18,
        {"RandomNormalLike": 1, "Sub": 1, "Add": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {1}> {y, z = Loop(n, , x) <body = b "
        f"{BODY}"
        "{co = Identity(ci) r = RandomNormalLike(v) s = Sub(r, r) w = Add(v, s) "
        "u = Exp(w)}>}",
    ),
    "a sequence as state": (
        18,
        {"SequenceConstruct": 1, "SequenceInsert": 2, "ConcatFromSequence": 1},
        "g (float[2] x) => (float[m] y) <int64 n = {2}> {s = SequenceConstruct(x) q = Loop(n, , s)"
        " <body = b (int64 i, bool ci, seq(float[2]) v) => (bool co, seq(float[2]) w) "
        "{co = Identity(ci) w = SequenceInsert(v, x)}> y = ConcatFromSequence<axis=0>(q)}",
    ),
    # --- states that stay the same, of loops that end when data says so
    "an unchanged state": (
        18,
        {"Loop": 1, "Mul": 1, "Exp": 1, "ReduceSum": 1, "Less": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, float h = {9}> {e = Exp(x) "
        "y, z = Loop(n, , x, e) <body = b (int64 i, bool ci, float[2] v, float[2] k) => (bool co, "
        "float[2] w, float[2] j) {w = Mul(v, k) j = Identity(k) s = ReduceSum<keepdims=0>(w) "
        "co = Less(s, h)}>}",
    ),
    "an unchanged constant is folded": (
        18,
        {"Loop": 1, "Mul": 1, "ReduceSum": 1, "Less": 1},
        "g (float[2] x) => (float[2] y, float[2] z) <int64 n = {3}, float h = {9}, float[2] e = "
        "{1, 2}> {y, z = Loop(n, , x, e) <body = b (int64 i, bool ci, float[2] v, float[2] k) => "
        "(bool co, float[2] w, float[2] j) {m = Exp(k) w = Mul(v, m) j = Identity(k) "
        "s = ReduceSum<keepdims=0>(w) co = Less(s, h)}>}",
    ),
    "a state that changes places stays": (
        18,
        {"Loop": 1, "Exp": 1, "ReduceSum": 1, "Less": 1, "Identity": 2},
        "g (float[2] x) => (float[2] y, float[2] z) <int64 n = {3}, float h = {1}> {e = Exp(x) "
        "y, z = Loop(n, , x, e) <body = b (int64 i, bool ci, float[2] v, float[2] k) => (bool co, "
        "float[2] w, float[2] j) {w = Identity(k) j = Identity(v) s = ReduceSum<keepdims=0>(v) "
        "co = Less(s, h)}>}",
    ),
    "a loop of which nothing is left": (
        18,
        {"Neg": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}> {s = Size(x) m = Add(n, s) "
        "a = Loop(m, , x) <body = b (int64 i, bool ci, float[2] v) => (bool co, float[2] w) "
        "{co = Identity(ci) w = Identity(v)}> y = Neg(a)}",
    ),
    # --- results that nobody reads
    "an unread result of a loop": (
        18,
        {"Loop": 1, "Mul": 1, "ReduceSum": 1, "Less": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, float h = {9}> {y, z, o = Loop(n, , x, x) "
        "<body = b (int64 i, bool ci, float[2] v, float[2] k) => (bool co, float[2] w, float[2] j,"
        " float[2] u) {w = Mul(v, x) j = Exp(k) s = ReduceSum<keepdims=0>(w) co = Less(s, h) "
        "u = Neg(w)}>}",
    ),
    "an unread result that the condition needs stays": (
        18,
        {"Loop": 1, "Mul": 1, "Exp": 1, "ReduceSum": 1, "Less": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, float h = {9}> {y, z = Loop(n, , x, x) "
        "<body = b (int64 i, bool ci, float[2] v, float[2] k) => (bool co, float[2] w, float[2] j)"
        " {w = Mul(v, x) j = Exp(k) s = ReduceSum<keepdims=0>(j) co = Less(s, h)}>}",
    ),
    "an unread state that another one needs stays": (
        18,
        {"Loop": 1, "Mul": 1, "Exp": 1, "ReduceSum": 1, "Less": 1},
        "g (float[2] x) => (float[2] y) <int64 n = {3}, float h = {9}> {y, z = Loop(n, , x, x) "
        "<body = b (int64 i, bool ci, float[2] v, float[2] k) => (bool co, float[2] w, float[2] j)"
        " {w = Mul(v, k) j = Exp(k) s = ReduceSum<keepdims=0>(w) co = Less(s, h)}>}",
    ),
    "an unread result of a branch": (
        18,
        {"If": 1, "Neg": 1, "Exp": 1},
        "g (float[2] x, bool c) => (float[2] y) {z, y = If(c) <then_branch = t () => (float[2] a, "
        "float[2] d) {a = Abs(x) d = Neg(x)}, else_branch = e () => (float[2] f, float[2] h) "
        "{f = Sqrt(x) h = Exp(x)}>}",
    ),
    "an unread result of a scan": (
        18,
        {"Scan": 1, "Add": 1, "Neg": 1},
        "g (float[2] x, float[3,2] s) => (float[2] y, float[3,2] z) "
        "{y, q, z = Scan<num_scan_inputs=1, scan_output_directions=[1, 0], body = b "
        "(float[2] v, float[2] e) => (float[2] w, float[2] p, float[2] u) "
        "{w = Add(v, e) p = Exp(w) u = Neg(e)}>(x, s)}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loops(case: str) -> None:
    opset, expected, text = CASES[case]
    proto = parse(text, opset=opset)
    model, _ = simplified(proto)
    assert ops(model) == expected
    for flag in (False, True):
        feeds = {"x": X, "c": np.array(flag), "s": np.arange(6, dtype=np.float32).reshape(3, 2)}
        names = [i.name for i in proto.graph.input]
        assert_equivalent(proto, model, {k: v for k, v in feeds.items() if k in names})


# id: (reason, graph)
REFUSED: dict[str, tuple[str, str]] = {
    "many iterations": (
        "not unrolled: 100 iterations would be 100 nodes",
        "g (float[2] x) => (float[2] y) <int64 n = {100}> {y = Loop(n, , x) <body = b "
        "(int64 i, bool ci, float[2] v) => (bool co, float[2] w) {co = Identity(ci) w = Mul(v, x)}"
        ">}",
    ),
    "random inside": (
        "not unrolled: it is random inside",
        "g (float[2] x) => (float[2] y) <int64 n = {2}> {y = Loop(n, , x) <body = b "
        "(int64 i, bool ci, float[2] v) => (bool co, float[2] w) "
        "{co = Identity(ci) w = RandomNormalLike(v)}>}",
    ),
    "no iteration that collects something of unknown size": (
        "not unrolled: it never runs, and the shape of what it collects is not known",
        "g (float[N] x) => (float[0,N] y) <int64 n = {0}, bool c = {1}> {y = Loop(n, c) <body = b "
        "(int64 i, bool ci) => (bool co, float[N] w) {co = Identity(ci) w = Neg(x)}>}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_unrolled_says_why(case: str) -> None:
    reason, text = REFUSED[case]
    report = Report()
    proto = parse(text, opset=18)
    model = simplify(load(proto), report=report)
    assert ops(model)["Loop"] == 1
    assert any(r.reason.startswith(reason) for r in report.refused), report.refused


def test_a_loop_that_data_ends_is_not_mentioned() -> None:
    proto = parse(CASES["an unchanged state"][2], opset=18)
    result = sanitize(proto)
    assert not result.report.refused
    assert result.verdict.agree


def test_the_copies_of_a_body_are_named_apart() -> None:
    proto = parse(CASES["a branch inside"][2], opset=18)
    proto.graph.node[0].name = "loop"
    for index, node in enumerate(proto.graph.node[0].attribute[0].g.node):
        node.name = f"n{index}"
    model: Model = simplified(proto)[0]
    names = [n.name for n in model.proto.graph.node if n.name]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(model.to_proto())


def test_an_engine_keeps_the_names_of_a_loop() -> None:
    """Locating an error names tensors of the model, so its loops are not written out."""
    proto = parse(CASES["three iterations"][2], opset=18)
    assert ops(simplify(proto, unroll=False))["Loop"] == 1
    with NativeRunner(proto) as runner:
        assert not [tap.tensor for tap in runner.taps() if tap.tensor.startswith(("w_", "u_"))]
