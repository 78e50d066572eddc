"""onnx_graphsurgeon graphs: accepted, returned, and nothing is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx.helper as oh
import onnx_graphsurgeon as gs
import pytest

from polytool.cli import main
from polytool.errors import ModelError
from polytool.surgeon import extract, from_gs, sanitize, simplify, to_gs
from polytool.surgeon.template import onnx_gs_script
from tests.surgeon.surgery import assert_equivalent, ops, parse

TEXT = (
    "g (float[N,2] x, bool c) => (float[N,2] y) <float[2] w = {1, 2}, float[2] o = {3, 4}> "
    "{[m] m = Mul(x, w) [i] i = Identity(m) [s] s = Add(i, o) [f] y = If(c) <"
    "then_branch = t () => (float[N,2] a) {[e] a = Exp(s)}, "
    "else_branch = e () => (float[N,2] b) {[n] b = Neg(s)}>}"
)


def rich_model() -> onnx.ModelProto:
    """A model with everything that GraphSurgeon forgets."""
    proto = parse(TEXT)
    proto.doc_string, proto.domain, proto.model_version = "doc", "org.x", 3
    proto.producer_name, proto.producer_version = "p", "1"
    proto.metadata_props.add(key="k", value="v")
    graph = proto.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="gk", value="gv")
    graph.input[0].doc_string = "input doc"
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.input.append(oh.make_tensor_value_info("o", 1, [2]))
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="nk", value="nv")
    body = next(a.g for a in graph.node[3].attribute if a.name == "then_branch")
    body.node[0].doc_string = "inner doc"
    annotation = graph.quantization_annotation.add(tensor_name="m")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    return proto


@pytest.mark.ort
def test_nothing_is_lost_on_the_way() -> None:
    proto = rich_model()
    back = from_gs(to_gs(proto)).to_proto()
    assert_equivalent(proto, from_gs(to_gs(proto)))
    for field in ("doc_string", "domain", "model_version", "metadata_props"):
        assert getattr(back, field) == getattr(proto, field)
    a, b = proto.graph, back.graph
    for field in ("doc_string", "metadata_props", "quantization_annotation"):
        assert getattr(b, field) == getattr(a, field)
    assert list(b.input) == list(a.input)
    assert b.node[0].doc_string == "node doc"
    assert b.node[0].metadata_props == a.node[0].metadata_props
    body = next(x.g for x in b.node[3].attribute if x.name == "then_branch")
    assert body.node[0].doc_string == "inner doc"


def test_what_surgery_removed_does_not_come_back() -> None:
    graph = to_gs(rich_model())
    multiply = next(n for n in graph.nodes if n.op == "Mul")
    multiply.o().inputs[0] = graph.inputs[0]
    graph.cleanup().toposort()
    back = from_gs(graph).to_proto()
    assert "Mul" not in ops(back)
    assert not back.graph.quantization_annotation


@pytest.mark.ort
def test_graphs_are_accepted_everywhere() -> None:
    proto = rich_model()
    assert ops(simplify(to_gs(proto))) == {"Mul": 1, "Add": 1, "If": 1, "Exp": 1, "Neg": 1}
    assert sanitize(to_gs(proto)).verdict.agree
    assert ops(extract(to_gs(proto), outputs=["s"])) == {"Mul": 1, "Identity": 1, "Add": 1}


def test_the_original_can_be_named() -> None:
    proto = rich_model()
    graph = gs.import_onnx(proto)
    assert from_gs(graph).proto.graph.input[0].doc_string == ""
    assert from_gs(graph, proto).proto.graph.input[0].doc_string == "input doc"


def test_a_graph_that_cannot_be_exported_is_an_error() -> None:
    graph = gs.Graph(nodes=[], inputs=[gs.Variable("x")], outputs=[gs.Variable("x")])
    with pytest.raises(ModelError, match="GraphSurgeon cannot export"):
        from_gs(graph)


@pytest.mark.ort
def test_the_template_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, script = tmp_path / "m.onnx", tmp_path / "surgery.py"
    onnx.save(rich_model(), path)
    assert main(["template", "onnx-gs", str(path), "-o", str(script)]) == 0
    assert "edit it" in capsys.readouterr().out
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "Mul m ['x', 'w']" in done.stdout
    assert "agree=True" in done.stdout
    assert onnx.load(tmp_path / "m_changed.onnx").doc_string == "doc"


def test_names_cannot_break_the_template() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {y = Exp(x)}")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = '"""\nimport os\\'
    compile(onnx_gs_script(proto, 'a"b\\c.onnx'), "script", "exec")
