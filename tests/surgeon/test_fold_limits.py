"""Constant folding leaves alone what is large, overridable, unknown or only described."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from tests.surgeon.surgery import ops, parse, simplified

pytestmark = pytest.mark.ort


def test_a_large_expand_is_not_stored() -> None:
    proto = parse(
        "g (float[N] x) => (float[N,M] y) <float[1] a = {1}, int64[2] s = {4096, 16384}, "
        "int64[2] sl = {0, 0}, int64[2] e = {1, 1}> "
        "{b = Expand(a, s) c = Neg(b) d = Slice(c, sl, e) y = Add(x, d)}"
    )
    model, report = simplified(proto)
    assert ops(model) == {"Expand": 1, "Neg": 1, "Slice": 1, "Add": 1}
    assert len(model.serialize()) < 2000
    assert any("the file would grow by 268435436 bytes" in str(r) for r in report.refused)


def test_the_limit_counts_what_is_freed() -> None:
    w = numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(20, 30), "w")
    proto = parse("g (float[2,20] x) => (float[2,30] y) {t = Transpose(w0) y = MatMul(x, t)}")
    del proto.graph.node[:]
    proto.graph.node.extend(
        [oh.make_node("Transpose", ["w"], ["t"]), oh.make_node("Transpose", ["t"], ["u"]),
         oh.make_node("Exp", ["u"], ["v"]), oh.make_node("MatMul", ["x", "v"], ["y"])]
    )  # fmt: skip
    proto.graph.initializer.append(w)
    assert ops(simplified(proto, fold_limit=0)[0]) == {"MatMul": 1}


def test_overridable_inputs_are_not_folded() -> None:
    text = "g (float[2] x, float[2] a) => (float[2] y) <float[2] a = {1, 2}> "
    body = "{b = Exp(a) y = Add(x, b)}"
    proto = parse(text.replace(", float[2] a)", ")") + body)
    proto.graph.input.append(oh.make_tensor_value_info("a", 1, [2]))
    model, _ = simplified(proto)
    assert ops(model) == {"Exp": 1, "Add": 1}
    assert [i.name for i in model.proto.graph.input] == ["x", "a"]
    proto.ir_version = 3  # every initializer has to be an input there
    model, _ = simplified(proto)
    assert ops(model) == {"Add": 1}
    assert [i.name for i in model.proto.graph.input] == ["x"]


def test_one_unknown_operator_does_not_stop_folding() -> None:
    proto = parse(
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> "
        "{b = Exp(a) c = my.Thing(b) d = Neg(b) e = Add(c, d) y = Add(x, e)}",
        extra=', "my" : 1',
    )
    proto.graph.node[1].domain = "my"
    proto.graph.node[1].op_type = "Thing"
    model, report = simplified(proto)
    assert ops(model) == {"Thing": 1, "Add": 2}
    assert any("Thing" in str(r) for r in report.refused)


def test_quantisation_annotations_keep_their_tensors() -> None:
    proto = parse("g (float[2] x) => (float[2] y) <float s = {0.5}> {a = Identity(x) y = Exp(a)}")
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model, _ = simplified(proto)
    assert [t.name for t in model.proto.graph.initializer] == ["s"]
    assert model.proto.graph.quantization_annotation == proto.graph.quantization_annotation


def test_everything_beside_the_graph_is_carried_over() -> None:
    proto = parse("g (float[N] x) => (float[N] y) {a = Identity(x) y = Exp(a)}")
    proto.metadata_props.add(key="k", value="v")
    proto.doc_string, proto.producer_name, proto.graph.doc_string = "d", "p", "gd"
    proto.graph.metadata_props.add(key="gk", value="gv")
    proto.graph.node[1].doc_string = "nd"
    proto.graph.node[1].metadata_props.add(key="nk", value="nv")
    proto.graph.input[0].doc_string = "in"
    proto.graph.input[0].type.denotation = "TENSOR"
    model, _ = simplified(proto)
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    del expected.graph.node[0]
    expected.graph.node[0].input[0] = "x"
    assert model.proto == expected
