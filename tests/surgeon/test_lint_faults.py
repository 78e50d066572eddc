"""Faulty models, a class each: the node and the cause are named, wherever the node stands."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from polytool.cli import main
from polytool.surgeon import lint
from polytool.tensors import DType
from tests.surgeon.surgery import parse
from tests.surgeon.test_lint import errors, warnings

pytestmark = pytest.mark.ort

# class: (nodes of which [bad] is broken, part of the message)
FAULTS = {
    "two types": ("[bad] a = Add(x, i)", "'i' are tensor(float) and tensor(int64)"),
    "a type that is not taken": ("[bad] a = Sqrt(i)", "tensor(int64), which Sqrt does not take"),
    "an unknown attribute": ("[bad] a = Elu<nope = 1>(x)", "Unrecognized attribute: nope"),
    "a missing attribute": ("[bad] a = Cast(x)", "Required attribute 'to' is missing"),
    "an attribute of another type": ("[bad] a = Concat<axis = 1.5>(x, x)", "Expected: 'INT'"),
    "too few inputs": ("[bad] a = Mul(x)", "input size 1 not in range"),
    "too many inputs": ("[bad] a = Relu(x, x)", "input size 2 not in range"),
    "too many outputs": ("[bad] a, b, c = Relu(x)", "output size 3 not in range"),
    "an unknown operator": ("[bad] a = Nonsense(x)", "ONNX defines no Nonsense in opset 17"),
    "an operator of a newer opset": ("[bad] a = Gelu(x)", "ONNX defines no Gelu in opset 17"),
    "an unknown domain": ("[bad] a = what.Op(x)", "imports no opset for its domain 'what'"),
    "shapes of a product": ("[bad] a = MatMul(x, x)", "Incompatible dimensions"),
    "shapes that cannot be joined": ("s = Shape(x) [bad] a = Concat<axis = 1>(s, v)", "axis"),
    "an axis beyond the rank": ("[bad] a = Softmax<axis = 5>(x)", "'axis' must be in"),
    "a shape of another size": (
        "k = Constant<value_ints = [4, -1]>() [bad] a = Reshape(x, k)", "incompatible shapes"),
    "an undefined input": ("[bad] a = Add(x, nothing)", "'nothing', which is never defined"),
}  # fmt: skip
INPUTS = "float[2,3] x, int64[2,3] i, int64[2] v"
PLACES = {
    "main": (f"g ({INPUTS}) => (float[M,N] a) {{[good] z = Neg(x) %s}}", "", ""),
    "branch": (
        f"g ({INPUTS}, bool c) => (float[M,N] y) {{[if] y = If(c) <then_branch = t () => "
        "(float[M,N] a) {[good] z = Neg(x) %s}, else_branch = e () => (float[M,N] o) "
        "{[fine] o = Neg(x)}>}", "", "if/then_branch/",
    ),
    "loop": (
        f"g ({INPUTS}, bool c) => (float[K,M,N] y) <int64 t = {{2}}> {{[loop] y = Loop(t, c) "
        "<body = b (int64 n, bool g) => (bool h, float[M,N] a) "
        "{h = Identity(g) [good] z = Neg(x) %s}>}", "", "loop/body/",
    ),
    "function": (
        f"g ({INPUTS}) => (float[M,N] y) {{[call] y = f.F(x, i, v)}} "
        '<domain: "f", opset_import: ["" : 17]> F (x, i, v) => (a) {[good] z = Neg(x) %s}',
        ', "f": 1', "f.F/",
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_node_and_the_cause_are_named(fault: str, place: str) -> None:
    (nodes, cause), (text, opsets, path) = FAULTS[fault], PLACES[place]
    found = lint(parse(text % nodes, extra=opsets))
    broken = errors(found)
    assert f"{path}bad" in broken, found.summary()
    assert cause in broken[f"{path}bad"]
    assert not {f"{path}good", "if/else_branch/fine", "if", "loop", "call"} & broken.keys()
    assert not found.is_valid
    assert {f"{path}good"} & ({*found.passing} | found.unchecked.keys())


@pytest.mark.parametrize("place", ["main", "branch", "function"])
def test_several_faults_are_all_named(place: str) -> None:
    text, opsets, path = PLACES[place]
    nodes = (
        "[one] p = Add(x, i) [two] q = Elu<nope = 1>(x) [three] r = Mul(x) [four] a = MatMul(x, x)"
    )
    broken = errors(lint(parse(text % nodes, extra=opsets)))
    assert broken.keys() == {path + n for n in ("one", "two", "three", "four")}


def test_faults_in_the_main_graph_hide_none_inside() -> None:
    text = PLACES["branch"][0].replace("[if]", "[main] m = Add(x, i) [if]")
    broken = errors(lint(parse(text % "[bad] a = MatMul(x, x)")))
    assert broken.keys() == {"main", "if/then_branch/bad"}


def test_a_function_is_judged_by_each_call() -> None:
    proto = parse(
        "g (float[2] x, int64[2] i) => (float[2] y, int64[2] z) {[sound] y = f.F(x) "
        '[broken] z = f.F(i)} <domain: "f", opset_import: ["" : 17]> F (a) => (b) '
        "{[root] b = Sqrt(a)}",
        extra=', "f": 1',
    )
    found = lint(proto)
    assert "tensor(int64), which Sqrt does not take" in errors(found)["f.F/root"]


TYPES = [d for d in DType if not d.name.startswith("FLOAT6")]  # onnx's Identity knows none of these


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.label)
def test_every_element_type_is_known(dtype: DType) -> None:
    """What is sound has no errors, and a Where of two types is told as such."""
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"], name="fine")],
        "g", [info("x", int(dtype), [2])], [info("y", int(dtype), [2])],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 25)]
    sound = lint(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12))
    assert "fine" not in errors(sound)
    other = DType.INT32 if dtype is not DType.INT32 else DType.FLOAT
    graph.input.append(info("o", int(other), [2]))
    graph.node.append(onnx.helper.make_node("Concat", ["x", "o"], ["z"], name="bad", axis=0))
    found = errors(lint(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12)))
    assert found.keys() == {"bad"}
    assert any(text in found["bad"] for text in ("have to be equal", "does not take there"))


WARNINGS = {
    "an unused input": (
        "g (float[2] x, float[2] u) => (float[2] y) {y = Neg(x)}", "input 'u' is not used"),
    "an unused initializer": (
        "g (float[2] x) => (float[2] y) <float[1] w = {1}> {y = Neg(x)}",
        "initializers are not used: w"),
    "nodes that nobody needs": (
        "g (float[2] x) => (float[2] y) {[dead] z = Exp(x) y = Neg(x)}",
        "nothing uses what these nodes compute"),
    "an initializer as an input": (
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> {y = Mul(x, w)}",
        "initializer 'w' is also an input"),
    "nodes out of order": (
        "g (float[2] x) => (float[2] y) {y = Neg(z) z = Exp(x)}",
        "nodes stand before nodes that they depend on"),
    "names twice": (
        "g (float[2] x) => (float[2] y) {[a] z = Exp(x) [a] y = Neg(z)}", "2 nodes have this name"),
    "a weight beyond float16": (
        "g (float[2] x) => (float[2] y) <float[1] w = {100000}> {y = Mul(x, w)}",
        "weight w has 1e+05, which float16 cannot hold"),
    "a constant beyond float16": (
        "g (float[2] x) => (float[2] y) {[c] w = Constant<value = float {1e9}>() y = Mul(x, w)}",
        "weight c has 1e+09, which float16 cannot hold"),
    "a constant number beyond float16": (
        "g (float[2] x) => (float[2] y) {[c] w = Constant<value_float = -3.4e38>() y = Mul(x, w)}",
        "weight c has 3.4e+38, which float16 cannot hold"),
    "one inside of a branch": (
        "g (float[2] x, bool c) => (float[2] y) {[if] y = If(c) <then_branch = t () => (float[2] a)"
        " <float[1] w = {100000}> {a = Mul(x, w)}, else_branch = e () => (float[2] b) "
        "{b = Neg(x)}>}", "weight if/then_branch/w has 1e+05"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_what_could_become_a_fault_is_a_warning(case: str) -> None:
    text, said = WARNINGS[case]
    found = lint(parse(text))
    assert said in warnings(found)
    assert not errors(found)


def test_deprecated_operators_are_a_warning() -> None:
    text = "g (float[1,1,2,2] x, float[4] s) => (float[A,B,C,D] y) {[old] y = Upsample(x, s)}"
    proto = parse(text, opset=10)
    (entry,) = [e for e in lint(proto).entries if "deprecated since opset 10" in e.message]
    assert (entry.level, entry.nodes) == ("warning", ("old",))


def test_nans_in_weights_are_a_warning() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {y = Mul(x, w)}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.nan]), "w"))
    assert "weight w has NaNs" in warnings(lint(proto))


def test_what_was_not_run_is_told(tmp_path, capsys) -> None:
    text = PLACES["branch"][0]
    onnx.save(parse(text % "[bad] a = Elu<nope = 1>(x)"), tmp_path / "m.onnx")
    assert main(["check", "lint", str(tmp_path / "m.onnx")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["exception", "exception"]
    assert "not run: if: a node inside of it is broken" in lines
    assert lines[-1].startswith("4 nodes: 0 passing, 1 failing, 3 not run")


def test_the_sound_nodes_beside_types_that_numpy_has_not_are_not_called_broken() -> None:
    proto = parse(
        "g (bfloat16[2] x, float[2] q) => (bfloat16[2] y, float[2] z) <float8e4m3fn[2] f = {1, 2}> "
        "{[cast] b = Cast<to = 16>(f) [ok] y = Add(x, b) [bad] z = Elu<nope = 1>(q)}",
        opset=19,
    )
    found = lint(proto)
    assert errors(found).keys() == {"bad"}
    assert "float8e4m3fn" in found.unchecked["cast"]


# onnxruntime builds no kernel of these: RNNs with layout 1, and a locale that may not be installed.
REFUSED = ("batchwise", "strnorm", "optional_get_element_optional_sequence")


@pytest.mark.parametrize(
    ("start", "step"), [(7, 40), *(pytest.param(n, 4, marks=pytest.mark.slow) for n in range(4))]
)
def test_the_models_of_the_conformance_suite_are_sound(start: int, step: int) -> None:
    from scripts.conformance import cases

    every = cases(("node", "simple", "pytorch-operator", "pytorch-converted"))
    found = {c.name: lint(c.load()[0]) for c in every[start::step]}
    assert len(found) > 1900 / step
    broken = {name for name, report in found.items() if not report.is_valid}
    assert not {name for name in broken if not any(word in name for word in REFUSED)}
