"""`--against MODEL`: nodes of two models correspond by name, else by structure."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import pytest

from polytool import NativeRunner
from polytool.backends.native.correspondence import correspond, oracle_of
from polytool.backends.native.oracle import NativeOracle
from polytool.comparators.locate import locate
from polytool.debugging import locate as locate_model
from polytool.errors import UsageError
from polytool.model import load
from polytool.surgeon import simplify
from scripts import made_models

RNG = np.random.default_rng(0)
FEEDS = {"ids": RNG.integers(0, 500, (2, 12)), "mask": np.ones((2, 12), np.int64)}


def transformer() -> onnx.ModelProto:
    return made_models.transformer(layers=2, width=64, heads=4, vocabulary=500)


def renamed(proto: onnx.ModelProto, inputs: bool = True) -> onnx.ModelProto:
    """The same model with other names for everything, as another exporter gives them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    keep = set() if inputs else {v.name for v in (*graph.input, *graph.output)}
    named = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    named |= {o for node in graph.node for o in node.output}
    new = {name: f"t{i}" for i, name in enumerate(sorted(named - keep))}
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new.get(value.name, value.name)
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        node.input[:] = [new.get(n, n) for n in node.input]
        node.output[:] = [new.get(n, n) for n in node.output]
    del graph.value_info[:]
    return copy


def broken(proto: onnx.ModelProto, op: str, number: int) -> tuple[onnx.ModelProto, str]:
    """One weight of a node of that type is coarse; the node's output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    weights = {t.name: t for t in copy.graph.initializer}
    nodes = [n for n in copy.graph.node if n.op_type == op and n.input[1] in weights]
    tensor = weights[nodes[number].input[1]]
    value = np.round(onnx.numpy_helper.to_array(tensor) * 64) / 64
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return copy, nodes[number].output[0]


def first_broken(suspect: onnx.ModelProto, reference: onnx.ModelProto) -> set[str]:
    runner = NativeRunner(suspect, device="cpu")
    found = locate(runner, oracle_of(load(suspect), load(reference)), [FEEDS])
    assert found.first_broken is not None
    blamed = [f for f in found.findings if f.verdict != "expected"]
    assert len(blamed) == 1, [(f.layer, f.excess) for f in blamed]
    return {*found.first_broken.nodes, *found.first_broken.tensors}


def node_of(proto: onnx.ModelProto, output: str) -> set[str]:
    node = next(n for n in proto.graph.node if output in n.output)
    return {output, node.name or f"{node.op_type}:{output}"}


@pytest.mark.parametrize("change", ["renamed", "opset", "simplified", "all"])
def test_a_fault_is_found_against_a_model_with_other_names(change):
    suspect, output = broken(transformer(), "MatMul", 5)
    reference = transformer()
    if change in ("opset", "all"):
        reference = onnx.version_converter.convert_version(reference, 18)
        assert reference.opset_import[0].version != suspect.opset_import[0].version
    if change in ("simplified", "all"):
        reference = simplify(load(reference)).to_proto()
    if change != "simplified":
        reference = renamed(reference, inputs=False)
    assert first_broken(suspect, reference) & node_of(suspect, output)


def test_two_sound_exports_agree_layer_by_layer():
    proto = transformer()
    runner = NativeRunner(proto, precision="fp16", device="cpu")
    found = locate(runner, oracle_of(load(proto), load(renamed(proto, inputs=False))), [FEEDS])
    assert found.verdict == "expected" and not found.not_checked
    plain = NativeRunner(proto, optimize=False, device="cpu")
    assert not locate(plain, oracle_of(load(proto), load(renamed(proto))), [FEEDS]).not_checked
    usual = locate(runner, NativeOracle(proto), [FEEDS])
    assert [f.own_error for f in found.findings] == [f.own_error for f in usual.findings]


def test_layers_that_differ_in_weights_only_correspond_by_their_weights():
    proto = transformer()
    pairs = correspond(load(proto), load(renamed(proto, inputs=False)))
    ordered = dict(zip(_made(proto), _made(renamed(proto, inputs=False)), strict=True))
    assert len(pairs) > 50
    merged = {n for node in proto.graph.node if node.op_type == "Identity" for n in node.input}
    wrong = {a: b for a, b in pairs.items() if a in ordered and ordered[a] != b}
    assert set(wrong) <= merged


def test_numbers_as_names_that_were_shifted_mean_nothing():
    """torch names tensors by counting; one node more and every name means another tensor."""
    text = """<ir_version: 9, opset_import: ["": 20]> g (float[4,8] x) => (float[4,8] {last}) {{
        {body} }}"""
    body = "v1 = Exp(x) v2 = Neg(v1) v3 = Tanh(v2)"
    shifted = "v1 = Abs(x) v0 = Sub(x, x) v2 = Exp(x) v3 = Neg(v2) v4 = Tanh(v3)"
    a = onnx.parser.parse_model(text.format(last="v3", body=body))
    b = onnx.parser.parse_model(text.format(last="v4", body=shifted))
    assert correspond(load(a), load(b)) == {"x": "x", "v1": "v2", "v2": "v3", "v3": "v4"}


def test_a_wrong_attribute_is_found_though_the_structure_differs_there():
    text = """<ir_version: 9, opset_import: ["": 20]> g (float[4,8] x) => (float[4,8] y) {{
        {p}a = Exp(x) {p}b = Softmax<axis={axis}>({p}a) {p}c = Neg({p}b) y = Tanh({p}c) }}"""
    suspect = onnx.parser.parse_model(text.format(p="a_", axis=0))
    reference = onnx.parser.parse_model(text.format(p="b_", axis=1))
    oracle = oracle_of(load(suspect), load(reference))
    x = {"x": RNG.standard_normal((4, 8)).astype(np.float32)}
    found = locate(NativeRunner(suspect, device="cpu"), oracle, [x])
    assert found.first_broken is not None
    assert "a_b" in found.first_broken.layer


def test_a_model_converted_to_float16_is_judged_by_its_original(tmp_path):
    text = """<ir_version: 9, opset_import: ["": 20]> g (float[4,8] x) => (float[4,8] y) {{
        {before} h = MatMul({x}, w) s = Softmax(h) {out} = MatMul(s, v) {after} }}"""
    original = weighted(text.format(before="", x="x", out="y", after=""))
    half = weighted(
        text.format(before="x16 = Cast<to=10>(x)", x="x16", out="y16", after="y = Cast<to=1>(y16)")
    )
    for tensor in half.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(original, tmp_path / "original.onnx")
    x = {"x": RNG.standard_normal((4, 8)).astype(np.float32)}
    found = locate_model(half, [x], against=str(tmp_path / "original.onnx"), device="cpu")
    assert found.verdict == "expected" and not found.not_checked, found
    assert 1e-5 < (found.outputs["y"] or 0) < 1e-2


ONE = """<ir_version: 9, opset_import: ["": 20]> g (float[4,8] x) => (float[4,8] y) {
    h = Gemm(x, w, b) s = Sigmoid(h) g = Mul(h, s) n = Gemm<transB=1>(g, v) p = Softmax(n)
    q = MatMul(p, u) y = Add(q, x) }"""
OTHER = """<ir_version: 9, opset_import: ["": 13]> g (float[4,8] a) => (float[4,8] z) {
    c = MatMul(a, w) d = Add(b, c) e = Neg(d) f = Exp(e) i = Add(f, one) j = Div(d, i)
    t = Transpose<perm=[1,0]>(v) k = MatMul(j, t) l = Exp(k)
    m = ReduceSum<keepdims=1>(l, last) n = Div(l, m) o = MatMul(n, u) z = Add(o, a) }"""


def weighted(text: str) -> onnx.ModelProto:
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(7)
    arrays = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in "wvu"}
    arrays |= {"b": rng.standard_normal(8).astype(np.float32)}
    arrays |= {"one": np.float32(1), "last": np.int64([-1])}
    used = {n for node in proto.graph.node for n in node.input}
    for name, value in arrays.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


@pytest.mark.parametrize("wrong", ["", "w", "v", "u"])
def test_other_operators_for_the_same_computation_correspond_by_their_values(tmp_path, wrong):
    suspect, reference = weighted(ONE), tmp_path / "other.onnx"
    onnx.save(weighted(OTHER), reference)
    for tensor in suspect.graph.initializer:
        if tensor.name == wrong:
            value = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, wrong))
    x = {"x": RNG.standard_normal((4, 8)).astype(np.float32)}
    found = locate_model(suspect, [x], against=str(reference), optimize=False, device="cpu")
    blamed = {f.layer for f in found.findings if f.verdict != "expected"}
    if wrong in ("w", "v"):  # other operators make it, so that only what follows is comparable
        assert blamed and found.first_broken is not None
        assert found.first_broken.layer in {"w": ("h", "g"), "v": ("n", "p")}[wrong]
    else:
        assert blamed == ({"q"} if wrong else set())
    if wrong == "u":
        assert found.first_broken is not None and found.first_broken.cause == "operator"
        assert "MatMul of other.onnx and of this model" in found.first_broken.reason


def test_models_of_other_inputs_are_refused():
    one = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[4] x) => (float[4] y) { y = Exp(x) }'
    )
    two = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[4] a, float[4] b) => (float[4] c) '
        "{ c = Add(a, b) }"
    )
    with pytest.raises(UsageError, match=r"1 inputs and .* 2"):
        oracle_of(load(one), load(two))


def _made(proto: onnx.ModelProto) -> list[str]:
    return [o for node in proto.graph.node for o in node.output]
