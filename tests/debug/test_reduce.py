"""The smallest part that still fails, with the values that it had."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool.errors import UsageError
from polytool.reduction import differ, reduce
from scripts import made_models
from scripts.models import get

FEEDS = {"ids": np.arange(20).reshape(2, 10), "mask": np.ones((2, 10), np.int64)}


def holds(*names: str):
    """Fails when all these nodes are in the model, and checks that the model is sound."""

    def outcome(model, feeds):
        onnx.checker.check_model(model)
        assert {i.name for i in model.graph.input} == set(feeds[0])
        return "found" if set(names) <= {n.name for n in model.graph.node} else ""

    return outcome


def named(model: onnx.ModelProto, op: str, index: int) -> str:
    return [n.name for n in model.graph.node if n.op_type == op][index]


@pytest.mark.parametrize("mode", ["bisect", "linear"])
def test_two_distant_nodes_are_all_that_remains(mode):
    model = made_models.transformer(layers=2, width=32, heads=4, vocabulary=50)
    culprits = {named(model, "MatMul", 1), named(model, "Softmax", 1)}
    found = reduce(model, [FEEDS], holds(*culprits), mode=mode)
    assert set(found.nodes) == culprits


def test_a_real_model_of_700_nodes_reduces_to_the_culprits():
    model = get("ppocr-rec")
    proto = onnx.load(model.path)
    culprits = {named(proto, "Conv", 3), named(proto, "MatMul", -1)}
    found = reduce(str(model.path), [model.feeds()], holds(*culprits))
    assert set(found.nodes) == culprits and found.tests < 150


def test_the_inputs_of_the_part_are_the_values_of_the_whole():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[3] x) => (float[3] y)
        { a = Exp(x) b = Neg(a) c = Abs(b) y = Sqrt(c) }"""
    )
    for node in proto.graph.node:
        node.name = node.op_type
    x = np.float32([1, 2, 3])
    found = reduce(proto, [{"x": x}, {"x": 2 * x}], holds("Abs"))
    assert [list(f) for f in found.feeds] == [["b"], ["b"]]
    np.testing.assert_allclose(found.feeds[1]["b"], -np.exp(2 * x), rtol=1e-6)
    assert [o.name for o in found.model.graph.output] == ["c"]


def test_runners_that_disagree_are_reduced_to_the_layer_that_makes_them():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { a = Relu(x) s = Mul(a, a) m = ReduceSum <keepdims = 1> (s) d = Div(s, m) y = Neg(d) }"""
    )
    feeds = [{"x": np.float32([[1, 300, 2, 3]])}]
    outcome = differ("native", "onnxrt", {"native": {"precision": "fp16"}})
    found = reduce(proto, feeds, outcome)
    assert found.failure == "differs" and "Mul:s" in found.nodes and len(found.nodes) <= 2


def test_a_model_that_does_not_fail_is_said_so():
    proto = made_models.transformer(layers=1, width=32, heads=4, vocabulary=50)
    with pytest.raises(UsageError, match="does not fail as a whole"):
        reduce(proto, [FEEDS], lambda model, feeds: "")


def test_an_interrupted_search_goes_on_where_it_was():
    model = made_models.transformer(layers=1, width=32, heads=4, vocabulary=50)
    culprit = named(model, "Softmax", 0)
    known: dict[str, str] = {}
    calls = iter(range(8))

    def interrupted(proto, feeds):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return holds(culprit)(proto, feeds)

    with pytest.raises(KeyboardInterrupt):
        reduce(model, [FEEDS], interrupted, known=known)
    assert len(known) == 8
    again = reduce(model, [FEEDS], holds(culprit), known=known)
    fresh = reduce(model, [FEEDS], holds(culprit))
    assert again.nodes == fresh.nodes == (culprit,)
    assert again.tests == fresh.tests - 8


def polytool(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polytool", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_command_reduces_by_a_command(tmp_path):
    model = made_models.transformer(layers=1, width=32, heads=4, vocabulary=50)
    onnx.save(model, tmp_path / "m.onnx")
    culprit = named(model, "Softmax", 0)
    script = f"import sys; sys.exit(b'{culprit}' in open('polytool_debug.onnx', 'rb').read())"
    (tmp_path / "check.py").write_text(script)
    done = polytool(
        *("debug", "reduce", "m.onnx", "-o", "small.onnx", "--json", "--min-good", "good.onnx"),
        *("--input-shapes", "ids:1x4", "mask:1x4", "--check", f"{sys.executable} check.py"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"] == [culprit]
    assert len(onnx.load(tmp_path / "small.onnx").graph.node) == 1
    assert len(onnx.load(tmp_path / "good.onnx").graph.node) > 5
    run = polytool(
        *("run", "small.onnx", "--load-inputs", "small.inputs.npz", "--native", "--onnxrt"),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr


def test_the_command_that_is_shown_fails_as_the_whole_model_does(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { a = Neg(x) s = Mul(a, a) t = ReduceMax <keepdims = 1> (s) y = Div(s, t) }"""
    )
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.float32([[1, 300, 2, 3]]))
    words = ["debug", "reduce", "m.onnx", "-o", "small.onnx", "--native", "--fp16", "--onnxrt"]
    done = polytool(*words, "--rtol", "0.01", "--load-inputs", "x.npz", cwd=tmp_path)
    assert done.returncode == 0 and "Mul:s" in done.stdout, done.stderr
    _, _, shown = done.stdout.partition("run it on its real inputs with: polytool ")
    assert "--fp16" in shown and "--rtol 0.01" in shown
    assert polytool(*shown.split(), cwd=tmp_path).returncode == 1


def test_repeat_sorts_what_a_flaky_command_leaves(tmp_path):
    (tmp_path / "flaky.py").write_text(
        "import pathlib, sys; c = pathlib.Path('count'); n = len(c.read_text()) if c.exists() "
        "else 0\nc.write_text('x' * (n + 1)); pathlib.Path('out.txt').write_text(str(n))\n"
        "sys.exit(n % 2)"
    )
    done = polytool(
        *("debug", "repeat", "--until", "4", "--artifacts", "out.txt", "--json"),
        *("--check", f"{sys.executable} flaky.py"),
        cwd=tmp_path,
    )
    assert done.returncode == 1 and json.loads(done.stdout)["good"] == 2
    assert len(list((tmp_path / "polytool_artifacts/good").iterdir())) == 2
    assert len(list((tmp_path / "polytool_artifacts/bad").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("repeat", "--check", "no-such-program-here"), "cannot be run"),
        (("repeat", "--check", "true", "--until", "never"), "neither a number"),
        (("repeat", "--check", "true", "--fail-regex", "("), "no regular expression"),
        (("reduce", "m.onnx", "-o", "s.onnx"), "reduce needs --check COMMAND, or two runners"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(tmp_path, arguments, text):
    done = polytool("debug", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr
