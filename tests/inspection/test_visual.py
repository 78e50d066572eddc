"""The page to look at a model: complete, harmless, and it opens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

from polytool.cli import main
from polytool.inspection import inspect_model
from polytool.visual import facts, render
from scripts.made_models import deep

BRANCH = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> '
    "g (float[2] x, bool c) => (float[2] y) <float[2] k = {1, 2}> {[if] y = If(c) <"
    "then_branch = t () => (float[2] a) {[mul] a = Mul(x, k)}, "
    "else_branch = e () => (float[2] b) {[inner] b = If(c) <"
    "then_branch = tt () => (float[2] u) {u = Neg(x)}, "
    "else_branch = te () => (float[2] v) {v = Elu<alpha=0.5>(x)}>}>}"
)


def test_the_page_holds_every_graph_with_its_values() -> None:
    found = facts(inspect_model(BRANCH))
    graphs = {g["path"]: g for g in found["graphs"]}
    assert list(graphs) == [
        "",
        "if/then_branch",
        "if/else_branch",
        "if/else_branch/inner/then_branch",
        "if/else_branch/inner/else_branch",
    ]
    names = [value[0] for value in found["values"]]
    (branch,) = graphs[""]["nodes"]
    assert branch[5] == {"then_branch": 1, "else_branch": 2}
    (mul,) = graphs["if/then_branch"]["nodes"]
    assert [names[v] for v in mul[2]] == ["x", "k"]
    assert mul[2][0] == names.index("x")
    assert found["values"][mul[2][1]][1:] == ("float32[2], 8 bytes", True)
    inner = graphs["if/else_branch/inner/else_branch"]
    assert found["graphs"][inner["parent"]]["path"] == "if/else_branch"
    assert inner["nodes"][0][4] == {"alpha": "0.5"}
    assert [names[v] for v in graphs[""]["inputs"]] == ["x", "c"]
    assert [names[v] for v in graphs[""]["outputs"]] == ["y"]


def test_the_page_says_what_input_shapes_and_weights_are_like() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[M,2] y) '
        "<float[2] k = {1, 3}> {y = Add(x, k)}"
    )
    found = facts(inspect_model(model, input_shapes={"x": (5, 2)}, statistics=True))
    kinds = {name: kind for name, kind, _ in found["values"]}
    assert kinds["y"] == "float32[5, 2]"
    assert kinds["k"] == "float32[2], 8 bytes, 1 to 3, mean 2, std 1"
    assert found["graphs"][0]["nodes"][0][6:] == [10, 4 * (10 + 2 + 10)]


def test_the_page_needs_no_network_and_names_cannot_end_its_script() -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(BRANCH)
    proto.graph.node[0].name = '</script><img src="https://example.org">'
    page = render(inspect_model(proto))
    assert "</script><img" not in page
    assert not re.search(r'(src|href)="?https?:', page.replace("\\u003c", ""))
    data = re.search(r'<script type="application/json" id="model">(.*?)</script>', page, re.S)
    assert data is not None
    assert json.loads(data[1])["graphs"][0]["nodes"][0][0] == proto.graph.node[0].name


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = str(tmp_path / "m.onnx"), tmp_path / "m.html"
    onnx.save(BRANCH, path)
    assert main(["inspect", "model", path, "--save-visual", str(page)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["branch", "deep"])
def test_a_browser_draws_the_page(model: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium on this machine")
    proto = BRANCH if model == "branch" else deep()
    page = tmp_path / "m.html"
    page.write_text(render(inspect_model(proto)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    drawn = re.search(r'data-ready="(\d+)"', done.stdout)
    assert drawn is not None
    assert int(drawn[1]) >= 1
