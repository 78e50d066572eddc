"""The commands that Polygraphy has, beside Polygraphy's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from polytool.cli import main
from tests.surgeon.surgery import assert_same, ops, parse, session

pytest.importorskip("polygraphy")
pytestmark = pytest.mark.ort

TEXT = (
    "g (float[2,8,5,5] x) => (float[2,6] y) {[conv] c = Conv(x, cw) [relu] a = Relu(c) "
    "[pool] q = GlobalAveragePool(a) [flat] f = Flatten(q) [mm] m = MatMul(f, mw) "
    "[gemm] y = Gemm<transB=1>(m, gw, gb)}"
)
SHAPES = {"cw": (16, 8, 3, 3), "mw": (16, 32), "gw": (6, 32), "gb": (6,)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto, rng = parse(TEXT), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def polygraphy(*args: object) -> str:
    """Run Polygraphy's command; returns what it prints."""
    code = "import sys; from polygraphy.tools import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def both(command: str, model: Path, *args: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """What ours and theirs make of `model`."""
    ours, theirs = model.with_name("ours.onnx"), model.with_name("theirs.onnx")
    assert main(["surgeon", command, str(model), "-o", str(ours), *args]) == 0
    said = polygraphy("surgeon", command, model, "-o", theirs, *args)
    assert theirs.exists(), said
    return onnx.load(ours), onnx.load(theirs)


def weights(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_prune_keeps_the_same_weights(model: Path) -> None:
    ours, theirs = map(weights, both("prune", model))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], name)
    assert (ours["gw"] == 0).mean() == 0.5


def test_sparsity_is_told_of_the_same_weights(model: Path, capsys) -> None:
    pruned = model.with_name("p.onnx")
    onnx.save(both("prune", model)[0], pruned)
    for path, word in ((pruned, "2:4"), (model, "dense")):
        capsys.readouterr()
        assert main(["inspect", "sparsity", str(path), "--json"]) == 0
        ours = json.loads(capsys.readouterr().out)["weights"]
        theirs = re.findall(r"Found (sparse|non-sparse) tensor: (\w+)", polygraphy(
            "inspect", "sparsity", path))  # fmt: skip
        assert {n for _, n in theirs} == ours.keys()
        assert {"2:4" if kind == "sparse" else "dense" for kind, _ in theirs} == {word}
        assert set(ours.values()) == {word}


def test_each_restores_what_the_other_stripped(model: Path) -> None:
    ours, theirs = both("weight-strip", model)
    stripped = [{t.name for t in p.graph.initializer if not t.raw_data} for p in (ours, theirs)]
    assert stripped[0] == stripped[1] == SHAPES.keys()
    back = model.with_name("back.onnx")
    for path, tool in (("theirs", "ours"), ("ours", "theirs")):
        source = model.with_name(f"{path}.onnx")
        if tool == "ours":
            assert main(["surgeon", "weight-reconstruct", str(source), "-o", str(back)]) == 0
        else:
            polygraphy("surgeon", "weight-reconstruct", source, "-o", back)
        made = onnx.load(back)
        assert {n: a.shape for n, a in weights(made).items()} == SHAPES
        x = np.ones((2, 8, 5, 5), np.float32)
        assert np.isfinite(session(made.SerializeToString()).run(None, {"x": x})[0]).all()
        back.unlink()


def test_sparse_weights_are_sparse_again_whoever_strips_and_restores(model: Path) -> None:
    pruned = model.with_name("p.onnx")
    onnx.save(both("prune", model)[0], pruned)
    both("weight-strip", pruned)
    back = model.with_name("back.onnx")
    assert main(["surgeon", "weight-reconstruct", str(model.with_name("theirs.onnx")),
                 "-o", str(back)]) == 0  # fmt: skip
    assert (weights(onnx.load(back))["cw"] == 0).mean() == 0.5


@pytest.mark.parametrize(
    "args",
    [
        ("--op", "Sigmoid", "--inputs", "c", "--outputs", "a", "--name", "new"),
        ("--op", "LeakyRelu", "--inputs", "a", "--outputs", "a", "--attrs", "alpha=0.5"),
        ("--op", "Softmax", "--inputs", "y", "--outputs", "y", "--attrs", "axis=1"),
        ("--op", "Add", "--inputs", "c", "a", "--outputs", "q"),
    ],
)
def test_insert_gives_the_same_graph(model: Path, args: tuple[str, ...]) -> None:
    ours, theirs = both("insert", model, *args)
    assert ops(ours) == ops(theirs)
    if "Add" not in args:  # of these shapes the rest of the graph makes no sense
        x = np.ones((2, 8, 5, 5), np.float32)
        results = [session(p.SerializeToString()).run(None, {"x": x}) for p in (ours, theirs)]
        assert_same(results[0], results[1])


def test_extract_gives_the_same_part(model: Path) -> None:
    ours, theirs = both("extract", model, "--inputs", "a:auto:auto", "--outputs", "m:auto")
    assert ops(ours) == ops(theirs)
    assert [t.name for t in ours.graph.initializer] == [t.name for t in theirs.graph.initializer]
    for kind in ("input", "output"):
        pair = [getattr(p.graph, kind)[0] for p in (ours, theirs)]
        assert pair[0].name == pair[1].name
        assert pair[0].type.tensor_type.elem_type == pair[1].type.tensor_type.elem_type
    a = np.ones((2, 16, 3, 3), np.float32)
    results = [session(p.SerializeToString()).run(None, {"a": a}) for p in (ours, theirs)]
    assert_same(results[0], results[1])


def test_the_report_of_lint_has_the_same_verdicts(model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[1].op_type = "NoSuchOperator"
    proto.graph.node[5].attribute.append(onnx.helper.make_attribute("nope", 1))
    onnx.save(proto, model)
    ours, theirs = model.with_name("ours.json"), model.with_name("theirs.json")
    assert main(["check", "lint", str(model), "-o", str(ours)]) == 1
    polygraphy("check", "lint", model, "-o", theirs)
    a, b = (json.loads(p.read_text()) for p in (ours, theirs))
    assert b.keys() <= a.keys()
    assert b["summary"].keys() == a["summary"].keys()
    assert set(b["summary"]["failing"]) <= set(a["summary"]["failing"]) == {"relu", "gemm"}
    fields = {key for entry in a["lint_entries"] for key in entry}
    assert {key for entry in b["lint_entries"] for key in entry} <= fields
