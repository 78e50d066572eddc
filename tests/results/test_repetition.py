"""Outputs that are not the same when the same is run again are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx.parser import parse_model

import polytool
from polytool.cli import main
from polytool.repetition import changes

X = np.array([1.0, np.nan, 3.0], np.float32)


@pytest.mark.parametrize(
    ("again", "difference"),
    [
        (X.copy(), "same"),
        (X + np.array([0, 0, 0.5], np.float32), 0.5),
        (np.array([1.0, 2.0, 3.0], np.float32), 0.0),  # NaN became a number
        (X[:2], None),
        (X.astype(np.float64), 0.0),
        (None, None),
    ],
)
def test_what_counts_as_the_same(again: object, difference: object) -> None:
    found = dict(changes({"y": X}, {"y": again}))
    assert found.get("y", "same") == difference


def test_members_of_sequences_and_maps_are_looked_at() -> None:
    first = {"s": [X, X], "m": {"a": 1.0, "b": 2.0}, "t": np.array(["a", "b"], object)}
    same = {"s": [X, X.copy()], "m": {"a": 1.0, "b": 2.0}, "t": np.array(["a", "b"], object)}
    other = {"s": [X, X + 1], "m": {"a": 1.0, "b": 3.0}, "t": np.array(["a", "c"], object)}
    assert not list(changes(first, same))
    assert dict(changes(first, other)) == {"s": 1.0, "m": None, "t": None}


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[3] x) => (float[3] y, float[3] z) '
    proto = parse_model(text + "{ y = Abs(x) z = Neg(x) }")
    Path("m.onnx").write_bytes(proto.SerializeToString())
    Path("shaky.py").write_text(
        "import itertools\n"
        "def make_runner(model):\n"
        "    calls = itertools.count()\n"
        "    return lambda f: {'y': abs(f['x']), 'z': -f['x'] * (1 + next(calls) * 2.0**-20)}\n"
    )


@pytest.mark.usefixtures("scripts")
def test_run_names_them(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["run", "m.onnx", "--native", "--runner", "shaky.py:make_runner"]
    assert main([*command, "--iterations", "3", "--rtol", "1", "--json"]) == 0
    changed = json.loads(capfd.readouterr().out)["changed"]
    assert changed.keys() == {"shaky"} and changed["shaky"].keys() == {"z"}
    assert 0 < changed["shaky"]["z"] < 1e-5
    assert main([*command, "--iterations", "3", "--rtol", "1"]) == 0
    assert "not repeatable  z of shaky changes between identical runs, by up to" in (
        capfd.readouterr().out
    )
    assert main([*command, "--rtol", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["changed"] == {}


@pytest.mark.usefixtures("scripts")
def test_a_runner_alone_is_looked_at_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m.onnx", "--runner", "shaky.py:make_runner", "--iterations", "2"]) == 0
    assert "z of shaky changes between identical runs" in capfd.readouterr().out


def test_results_stay_as_many_as_inputs() -> None:
    proto = parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[3] x) => (float[3] y) { y = Abs(x) }'
    )
    seen: list[object] = []
    results = polytool.run(
        proto, "native", [{"x": X}] * 2, on_change=lambda *change: seen.append(change)
    )
    assert len(results["native"]) == 2
    assert not seen
