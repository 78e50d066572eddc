"""`check lint`: all faults and not only the first, and no false alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from polytool.cli import main
from polytool.surgeon import lint
from polytool.surgeon.linting import Entry, Lint
from scripts.models import MODELS, RealModel
from tests.surgeon.surgery import parse

pytestmark = pytest.mark.ort
QUICK = {"ppocr-cls", "silero", "slanet-plus", "t5-encoder", "khmersm", "lac", "shufflenet"}


def errors(found: Lint) -> dict[str, str]:
    """Node to message, of what is broken."""
    return {n: e.message for e in found.entries if e.level == "exception" for n in e.nodes}


def warnings(found: Lint) -> str:
    return "\n".join(e.message for e in found.entries if e.level == "warning")


def test_every_faulty_node_is_found() -> None:
    proto = parse(
        "g (float[2,3] x, int64[2,3] i) => (float[2,3] y) {"
        "[types] a = Add(x, i) [fine] b = Exp(x) [attribute] c = Elu<nope=3>(b) "
        "[shapes] d = MatMul(b, b) [number] e = Mul(b) [unknown] f = Nonsense(b) "
        "[undefined] h = Add(b, q) [behind] k = Neg(d) y = Neg(b)}"
    )
    found = lint(proto)
    broken = errors(found)
    assert "have to be equal" in broken["types"]
    assert "nope" in broken["attribute"]
    assert "ncompatible" in broken["shapes"]
    assert "input size 1" in broken["number"]
    assert "no Nonsense in opset 17" in broken["unknown"]
    assert "'q', which is never defined" in broken["undefined"]
    assert found.failing == ["types", "attribute", "shapes", "number", "unknown", "undefined"]
    assert found.passing == ["fine", "Neg:y"]
    assert found.unchecked["behind"] == "there is no value for 'd'"
    assert not found.is_valid


def test_types_that_an_operator_does_not_take() -> None:
    found = lint(parse("g (string[2] x) => (string[2] y) {[n] y = Relu(x)}"))
    assert "tensor(string), which Relu does not take" in errors(found)["n"]


def test_faults_inside_of_bodies_and_functions_are_found() -> None:
    proto = parse(
        "g (float[2] x, bool c) => (float[2] y) {[if] y = If(c) <"
        "then_branch = t () => (float[2] a) {[bad] a = Elu<nope=1>(x)}, "
        "else_branch = e () => (float[2] b) {[good] b = Neg(x)}>}"
    )
    broken = errors(lint(proto))
    assert "nope" in broken["if/then_branch/bad"]
    function = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> '
        "g (float[2] x) => (float[2] y) {y = f.F(x)} "
        '<domain: "f", opset_import: ["" : 17]> F (a) => (b) {[in] b = Elu<nope=1>(a)}'
    )
    assert "f.F/in" in errors(lint(function))


def test_a_sound_model_passes_with_warnings() -> None:
    proto = parse(
        "g (float[2] x, float[2] u) => (float[2] y) <float[1] w = {100000}, float[1] d = {1}> "
        "{[a] p = Exp(x) [a] y = Mul(p, w) [dead] z = Neg(x)}"
    )
    for node in proto.graph.node:
        node.name = "" if node.name == "a" else node.name
    proto.graph.node.insert(0, proto.graph.node.pop(1))
    proto.graph.input.append(oh.make_tensor_value_info("d", 1, [1]))
    found = lint(proto)
    assert found.is_valid
    assert len(found.passing) == 3
    text = warnings(found)
    for part in (
        "input 'u' is not used",
        "'d' is also an input",
        "1e+05, which float16 cannot hold",
        "nothing uses",
        "stand before nodes that they depend on",
    ):
        assert part in text


def test_duplicate_names_are_faults_for_onnxruntime() -> None:
    found = lint(parse("g (float[2] x) => (float[2] y) {[a] p = Exp(x) [a] y = Neg(p)}"))
    assert "2 nodes have this name" in warnings(found)
    assert not found.is_valid


def test_cycles_and_missing_opsets() -> None:
    found = lint(parse("g (float[2] x) => (float[2] y) {a = Add(x, y) y = Exp(a)}"))
    assert any("cycle" in e.message for e in found.entries)
    assert set(found.unchecked) == {"Add:a", "Exp:y"}
    proto = parse("g (float[2] x) => (float[2] y) {[n] y = Exp(x)}")
    proto.graph.node[0].domain = "other"
    assert "imports no opset for its domain 'other'" in errors(lint(proto))["n"]


def test_a_custom_operator_is_named_and_not_a_fault_of_its_own() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {[n] y = Exp(x)}", extra=', "my" : 1')
    proto.graph.node[0].domain = "my"
    found = lint(proto)
    assert any("my.Exp is a custom operator" in e.message for e in found.entries)
    assert found.is_valid
    assert found.unchecked == {"n": "onnxruntime has no kernel for it"}


def test_inputs_of_the_user_decide_whether_running_fails() -> None:
    proto = parse("g (float[N] x, int64[M] s) => (float[K] y) {[r] y = Reshape(x, s)}", opset=17)
    made = lint(proto)
    given = lint(proto, feeds={"x": np.ones(4, np.float32), "s": np.array([3])})
    assert not given.is_valid
    assert "does not run" in given.entries[-1].message
    sound = lint(proto, feeds={"x": np.ones(4, np.float32), "s": np.array([2, 2])})
    assert sound.is_valid
    assert sound.passing == ["r"]
    assert made.is_valid


def test_the_report_has_polygraphys_fields() -> None:
    found = Lint(labels=["a", "b"])
    found.add("exception", "onnx_checker", "broken", ["a"])
    assert found.to_json() == {
        "summary": {"passing": ["b"], "failing": ["a"]},
        "lint_entries": [
            {"level": "exception", "source": "onnx_checker", "message": "broken", "nodes": ["a"]}
        ],
        "not_checked": {},
    }
    assert str(Entry("info", "polytool", "text")) == "info: text"


@pytest.mark.parametrize(
    "name",
    [pytest.param(m.name, marks=[] if m.name in QUICK else [pytest.mark.slow]) for m in MODELS],
)
def test_real_models_have_no_faults(name: str, real_model: Callable[[str], RealModel]) -> None:
    model = real_model(name)
    found = lint(model.path, feeds=model.feeds())
    assert not errors(found)
    assert found.is_valid
    assert found.passing == found.labels


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = str(tmp_path / "m.onnx"), tmp_path / "r.json"
    onnx.save(parse("g (float[2] x) => (float[2] y) {[n] y = Exp(x)}"), path)
    assert main(["check", "lint", path, "-o", str(report)]) == 0
    assert "1 passing, 0 failing" in capsys.readouterr().out
    assert json.loads(report.read_text())["summary"] == {"passing": ["n"], "failing": []}
    onnx.save(parse("g (float[2] x) => (float[2] y) {[n] y = Elu<nope=1>(x)}"), path)
    assert main(["check", "lint", path, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["summary"]["failing"] == ["n"]
    assert main(["check", "lint", str(tmp_path / "none.onnx")]) == 2
