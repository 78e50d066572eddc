"""`debug precision` and `debug build`: engines judged by a command."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest

from polytool import NativeRunner
from polytool.cli import main
from polytool.errors import UsageError
from polytool.precision_search import search_precision

# The squares overflow in half precision, and so does what is stored between them and their roots.
TEXT = """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
{ a = Softmax(x) h = ReduceSumSquare <keepdims = 1> (x) b = Sqrt(h) c = Softmax(b)
  u = ReduceSumSquare <keepdims = 1> (b) d = Sqrt(u) e = Add(c, d) f = Softmax(e) y = Mul(d, a) }"""
X = np.float32([[1, 300, 2, 3]])


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    np.savez(tmp_path / "x.npz", x=X)
    return path


def finite(engine) -> bool:
    return bool(np.isfinite(NativeRunner(engine).infer({"x": X})["y"]).all())


@pytest.mark.parametrize("reverse", [False, True])
def test_bisection_keeps_what_is_needed_and_no_more(model, reverse):
    found = search_precision(str(model), finite, reverse=reverse)
    assert found.layers == ("h", "b", "u", "d") and found.minimal
    table = found.layer_precisions
    assert finite(NativeRunner(str(model), precision="fp16", layer_precisions=table).engine)
    for node in table:
        less = {name: precision for name, precision in table.items() if name != node}
        assert not finite(NativeRunner(str(model), precision="fp16", layer_precisions=less).engine)


def test_linear_mode_takes_the_first_layers(model):
    found = search_precision(str(model), finite, mode="linear")
    whole = search_precision(str(model), lambda engine: False)
    assert found.layers == ("a", "h", "b", "u", "d") and not found.minimal
    assert whole.layers is None and whole.to_json()["layer_precisions"] is None
    assert len(found.layers) == found.runs - 1


def test_an_unknown_mode_is_refused(model):
    with pytest.raises(UsageError, match="unknown mode"):
        search_precision(str(model), finite, mode="random")


CHECK = """
import sys, numpy as np
from polytool import NativeRunner
y = NativeRunner(sys.argv[1]).infer({"x": np.float32([[1, 300, 2, 3]])})["y"]
sys.exit(int(not np.isfinite(y).all()))
"""


def test_the_command_searches_with_a_check_and_writes_the_layers(model, tmp_path, capfd):
    (tmp_path / "check.py").write_text(CHECK)
    engine, fix = tmp_path / "it.engine", tmp_path / "fix.json"
    args = ["debug", "precision", str(model), "--fp16", "--iter-artifact", str(engine)]
    args += ["-o", str(fix), "--json", "-p", "float32"]
    assert main([*args, "--check", f"{sys.executable} {tmp_path / 'check.py'} {engine}"]) == 0
    answer = json.loads(capfd.readouterr().out)
    table = json.loads(fix.read_text())["layer_precisions"]
    assert table == answer["layer_precisions"] and set(table.values()) == {"fp32"}
    assert finite(NativeRunner(str(model), precision="fp16", layer_precisions=fix).engine)


def test_the_command_searches_for_a_target(model, tmp_path, capfd):
    args = ["debug", "precision", str(model), "--load-inputs", str(tmp_path / "x.npz")]
    assert main([*args, "--target", "snr>=40"]) == 0
    assert "none of which can be left out" in capfd.readouterr().out
    assert main([*args, "--target", "snr>=900"]) == 1
    assert main(args) == 2


def test_builds_are_sorted_into_good_and_bad(model, tmp_path, capfd):
    engine, folder = tmp_path / "it.engine", tmp_path / "sorted"
    args = ["debug", "build", str(model), "--iter-artifact", str(engine), "--json"]
    args += ["--artifacts", str(engine), "--art-dir", str(folder), "--until", "3"]
    assert main([*args, "--check", f"test -f {engine}"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer == {"runs": ["good"] * 3, "good": 3, "bad": 0, "suspects": []}
    assert len(list((folder / "good").iterdir())) == 3
    assert main([*args, "--check", f"test ! -f {engine}"]) == 1
