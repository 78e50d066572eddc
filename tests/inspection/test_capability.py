"""`inspect capability`: what the engine cannot run, by node and reason, and the parts around it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from polytool import NativeRunner, cli
from polytool.capability import capability
from polytool.errors import ModelError

X = np.arange(-3, 3, dtype=np.float32).reshape(2, 3)


def model(graph: str, functions: str = "", opset: int = 20) -> onnx.ModelProto:
    head = f'<ir_version: 9, opset_import: ["" : {opset}, "own" : 3, "com.microsoft" : 1]>'
    return onnx.parser.parse_model(f"{head} {graph} {functions}")


CHAIN = """g (float[2,3] x) => (float[2,3] y, float[2,3] z)
    <float[3] w = {1, 2, 3}, float[2,3] b, float[2,3] d> {
    a = Relu(x)
    b = own.Foo(a)
    k = Constant<value = float {2.0}>()
    c = Mul(b, k)
    c2 = Add(c, a)
    d = own.Bar<size = 3>(c2, w)
    y = Neg(d)
    z = Abs(a)
}"""


def test_a_supported_model_is_said_to_be() -> None:
    found = capability(model("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }"))
    assert found.supported and found.nodes == 1 and not found.subgraphs


def test_every_node_is_told_with_its_reason_and_place() -> None:
    proto = model(
        """g (float[2,3] x, bool c) => (float[2,3] y, float[4,5] p) {
            a = own.Foo(x)
            b = Abs<strange = 1>(a)
            e = If(c) <
                then_branch = t () => (float[2,3] u) { u = own.Deep(b) },
                else_branch = f () => (float[2,3] v) { v = Neg(b) }
            >
            h = own.helper(e)
            i = own.helper(h)
            y = NonZeroish(i)
            p = com.microsoft.CDist<metric = "cosine">(x, x)
        }""",
        """<domain: "own", opset_import: ["" : 20, "own" : 3]>
        helper (q) => (r) { r = own.Inner(q) }""",
    )
    found = {(u.node, u.op, u.version): (u.graph, u.reason) for u in capability(proto).unsupported}
    none = "the engine has no such operator, and ONNX no definition of it"
    assert found == {
        ("Foo:a", "own.Foo", 3): ("", none),
        ("Abs:b", "Abs", 20): ("", "the engine knows no attribute strange of it"),
        ("Deep:u", "own.Deep", 3): ("If:e/then_branch", none),
        ("Inner:r", "own.Inner", 3): ("i/helper", none),
        ("NonZeroish:y", "NonZeroish", 20): ("", none),
        ("CDist:p", "com.microsoft.CDist", 1): (
            "",
            "metric 'cosine' is not implemented, only sqeuclidean and euclidean",
        ),
    }
    assert [u.graph for u in capability(proto).unsupported if u.node == "Inner:r"] == [
        "h/helper",
        "i/helper",
    ]


def test_an_unknown_attribute_of_an_operator_that_tells_its_types_is_told() -> None:
    (found,) = capability(model("g (float[2,2] x) => (y) { y = EyeLike<axis = 2>(x) }")).unsupported
    assert found.reason == "the engine knows no attribute axis of it"


def test_an_unknown_opset_is_a_reason_for_each_of_its_nodes() -> None:
    found = capability(model("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=200))
    (node,) = found.unsupported
    assert (node.node, node.version) == ("Neg:y", 200)
    assert "knows none above" in node.reason


def test_a_broken_model_is_an_error_not_an_answer() -> None:
    with pytest.raises(ModelError, match="reads 'ghost'"):
        capability(model("g (float[2] x) => (float[2] y) { y = Add(x, ghost) }"))


def test_subgraphs_are_saved_and_the_supported_ones_run(tmp_path: Path) -> None:
    """Run one after the other, with stand-ins for the custom operators, they give the model."""
    proto = model(CHAIN)
    found = capability(proto, partitions=tmp_path / "parts")
    assert [(s.supported, s.nodes) for s in found.subgraphs] == [
        (True, ("Relu:a", "Abs:z")),
        (False, ("Foo:b",)),
        (True, ("Mul:c", "Add:c2")),
        (False, ("Bar:d",)),
        (True, ("Neg:y",)),
    ]
    values = {"x": X}
    for part in found.subgraphs:
        assert part.path is not None
        saved = onnx.load(part.path)
        if not part.supported:
            with_stand_ins(saved)
        given = {name: values[name] for name in part.inputs}
        with NativeRunner(saved if not part.supported else part.path) as runner:
            results = runner.infer(given)
        assert set(results) == set(part.outputs)
        values |= results
    with_stand_ins(proto)
    expected = NativeRunner(proto).infer({"x": X})
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value)


def with_stand_ins(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        if node.domain == "own":
            node.domain, node.op_type = "", {"Foo": "Abs", "Bar": "Sub"}[node.op_type]
            node.ClearField("attribute")


def test_a_subgraph_whose_types_nobody_tells_is_not_saved_and_says_so(tmp_path: Path) -> None:
    proto = model(CHAIN.replace(", float[2,3] b, float[2,3] d", ""))
    found = capability(proto, partitions=tmp_path)
    reasons = {s.nodes[0]: s.reason for s in found.subgraphs if s.path is None}
    assert "Mul:c" in reasons and all("is not known" in r for r in reasons.values())
    saved = [s for s in found.subgraphs if s.path is not None]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        Path(str(s.path)).name for s in saved
    )


def test_what_nothing_needs_is_not_saved(tmp_path: Path) -> None:
    proto = model("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) d = own.Dead(x) }")
    found = capability(proto, partitions=tmp_path)
    assert [(s.nodes, s.reason) for s in found.subgraphs if s.path is None] == [
        (("Dead:d",), "not saved: nothing needs what it computes")
    ]


def test_the_command_answers_no_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(CHAIN), "m.onnx")
    assert cli.main(["inspect", "capability", "m.onnx", "--with-partitioning", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [u["node"] for u in found["unsupported"]] == ["Foo:b", "Bar:d"]
    assert all(Path(s["path"]).exists() for s in found["subgraphs"])
    assert found["subgraphs"][0]["path"] == "polytool_capability_dumps/00_supported.onnx"
    assert cli.main(["inspect", "capability", "m.onnx"]) == 1
    out = capsys.readouterr().out
    assert "own.Foo-3" in out and "cannot run 2 nodes" in out


def test_the_command_answers_yes_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }"), tmp_path / "m.onnx")
    command = ["inspect", "capability", str(tmp_path / "m.onnx"), "--with-partitioning"]
    assert cli.main([*command, "-o", str(tmp_path / "parts")]) == 0
    said = capsys.readouterr()
    assert "runs all 1 nodes" in said.out and "saved nothing" in said.err
    assert not (tmp_path / "parts").exists()
