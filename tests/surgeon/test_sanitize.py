"""`sanitize` as a whole: choices, checks, interface, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from polytool.cli import main
from polytool.errors import ModelError, UsageError
from polytool.model import load
from polytool.surgeon import Choice, sanitize
from polytool.surgeon.verify import Verdict, check_structure, compare_models
from tests.surgeon.surgery import ops, parse, session

pytestmark = pytest.mark.ort

TEXT = (
    "g (float[N,4] x) => (float[N,6] y) <float[4,6] w = {"
    + ", ".join(map(str, range(24)))
    + "}, float[6] k = {1, 2, 3, 4, 5, 6}> "
    "{a = Identity(x) e = Exp(k) c = MatMul(a, w) y = Add(c, e)}"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    onnx.save(parse(TEXT), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), {"Gemm": 1}),
        (Choice(weights=False), {"MatMul": 1, "Add": 1}),
        (Choice(weights=False, cleanup=False), {"Identity": 1, "MatMul": 1, "Add": 1}),
        (Choice(weights=False, fold=False), {"Exp": 1, "MatMul": 1, "Add": 1}),
        (
            Choice(weights=False, fold=False, cleanup=False),
            {"Identity": 1, "Exp": 1, "MatMul": 1, "Add": 1},
        ),
    ],
)
def test_choices_narrow_what_is_done(choice: Choice, expected: dict[str, int]) -> None:
    result = sanitize(parse(TEXT), choice=choice)
    assert ops(result.model) == expected
    assert result.nodes == (4, sum(expected.values()))
    assert result.verdict == Verdict(True)


def test_a_pass_that_did_nothing_is_named() -> None:
    narrow = sanitize(parse(TEXT), choice=Choice(weights=False, cleanup=False))
    assert dict(narrow.report.passes) == {"toposort": 0, "fold constants": 1, "fold shapes": 0}
    assert "nothing to do for: toposort, fold shapes" in narrow.summary()
    assert narrow.to_json()["passes"]["fold constants"] == 1
    idle = sanitize(parse("g (float[2] x) => (float[2] y) {y = Exp(x)}"))
    assert "there was nothing to do" in idle.summary()


def test_outputs_can_be_chosen(path: str) -> None:
    result = sanitize(path, outputs=["e", "c"])
    proto = result.model.to_proto()
    assert [o.name for o in proto.graph.output] == ["e", "c"]
    assert ops(proto) == {"MatMul": 1}
    assert proto.graph.output[1].type.tensor_type.elem_type == 1
    assert result.verdict.agree
    with pytest.raises(UsageError, match="'q', which does not exist"):
        sanitize(path, outputs=["q"])


def test_input_shapes_can_be_set(path: str) -> None:
    result = sanitize(path, input_shapes={"x": (3, 4)})
    graph = result.model.proto.graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [3, 4]
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == [3, 6]
    with pytest.raises(UsageError, match="has 2 dimensions, but"):
        sanitize(path, input_shapes={"x": (3,)})
    with pytest.raises(UsageError, match="did you mean 'x'|there are x"):
        sanitize(path, input_shapes={"z": (3,)})


def test_a_changed_model_is_noticed() -> None:
    before = load(parse(TEXT))
    other = parse(TEXT.replace("Exp(k)", "Neg(k)"))
    assert "output 'y' differs by" in compare_models(before, load(other)).reason
    shape = parse(TEXT.replace("y = Add(c, e)", "z = Add(c, e) y = Transpose(z)"))
    assert "instead of float32" in compare_models(before, load(shape)).reason
    broken = parse(TEXT.replace("y = Add(c, e)", "z = Add(c, e) y = Transpose<perm=[0]>(z)"))
    verdict = compare_models(before, load(broken))
    assert verdict.agree is False
    assert "cannot load the result" in verdict.reason or "does not run" in verdict.reason


def test_a_result_that_differs_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    from polytool.surgeon import sanitizing

    monkeypatch.setattr(sanitizing, "compare_models", lambda a, b: Verdict(False, "output 'y'"))
    with pytest.raises(ModelError, match="not the model any more.*please report"):
        sanitize(parse(TEXT), choice=Choice(weights=False))


def test_rounding_rewrites_are_given_up_where_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from polytool.surgeon import sanitizing

    verdicts = iter([Verdict(False, "output 'y' differs by 1"), Verdict(True)])
    monkeypatch.setattr(sanitizing, "compare_models", lambda a, b: next(verdicts))
    result = sanitize(parse(TEXT))
    assert ops(result.model) == {"MatMul": 1, "Add": 1}
    assert any("output 'y' differs by 1" in r.reason for r in result.report.refused)


def test_random_models_are_not_compared() -> None:
    proto = parse("g () => (float[2] y) {a = RandomNormal<shape=[2]>() y = Identity(a)}")
    result = sanitize(proto)
    assert result.verdict == Verdict(None, "the model is random")


def test_models_that_are_random_inside_of_a_body_are_not_compared() -> None:
    branch = "{r = RandomNormal<shape=[2]>()}"
    proto = parse(
        "g (bool c) => (float[2] y) {y = If(c) <then_branch = t () => (float[2] r) "
        f"{branch}, else_branch = e () => (float[2] q) {{q = RandomNormal<shape=[2]>()}}>}}"
    )
    assert sanitize(proto).verdict == Verdict(None, "the model is random")


def test_structure_is_checked_without_weights(path: str) -> None:
    assert check_structure(load(path)) == ""
    broken = parse(TEXT)
    broken.graph.node[1].op_type = "Nonsense"
    assert "Nonsense" in check_structure(load(broken))


def test_a_custom_operator_is_kept_and_an_unknown_standard_one_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = parse(TEXT, extra=', "my" : 1')
    proto.graph.node[1].domain, proto.graph.node[1].op_type = "my", "Thing"
    onnx.save(proto, tmp_path / "custom.onnx")
    out = str(tmp_path / "out.onnx")
    assert main(["surgeon", "sanitize", str(tmp_path / "custom.onnx"), "-o", out]) == 0
    assert "Thing" in capsys.readouterr().out
    assert ops(onnx.load(out))["Thing"] == 1
    assert main(["surgeon", "sanitize", str(tmp_path / "custom.onnx"), "-o", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["custom_operators"] == {"my.Thing": 1}
    proto.graph.node[1].domain = ""
    onnx.save(proto, tmp_path / "unknown.onnx")
    Path(out).unlink()
    assert main(["surgeon", "sanitize", str(tmp_path / "unknown.onnx"), "-o", out]) == 2
    assert "Thing" in capsys.readouterr().err
    assert not Path(out).exists()


def test_the_command(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.onnx")
    assert main(["surgeon", "sanitize", path, "-o", out, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["nodes"] == {"before": 4, "after": 1}
    assert shown["verdict"] == "agree"
    assert shown["done"]["MatMul and Add made one Gemm"] == 1
    x = {"x": np.ones((2, 4), np.float32)}
    before = session(parse(TEXT).SerializeToString()).run(None, x)[0]
    after = session(Path(out).read_bytes()).run(None, x)[0]
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_the_command_saves_external_data(path: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.onnx")
    args = ["--save-external-data", "w.bin", "--external-data-size-threshold", "16"]
    assert main(["surgeon", "sanitize", path, "-o", out, *args]) == 0
    assert (tmp_path / "w.bin").exists()
    onnx.checker.check_model(out)


def test_the_command_refuses_what_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_text("hello")
    code = main(["surgeon", "sanitize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")])
    assert code == 2
    assert "is a text file" in capsys.readouterr().err
