"""`polytool check accuracy`, and how a comparison is shown."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest

from polytool.cli import main
from polytool.comparators import comparison_text
from polytool.comparators.compare import compare, compare_all
from polytool.comparators.response import Response
from polytool.comparators.tolerances import Criteria
from polytool.results import Iteration, Run, RunResults

X = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    a = {"y": X * np.float32(1.001), "z": X}
    path = tmp_path / "accuracy.json"
    compare([a, a], [{"y": X, "z": X}] * 2, criteria=Criteria(full=True)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--rtol", "1e-2"], 0),
        (["--rtol", "1e-4"], 1),
        (["--rtol", "y:1e-2"], 0),
        (["--rtol", "y:1e-2", "z:0"], 0),
        (["--compare", "snr", "--snr-threshold", "40"], 0),
        (["--compare", "snr", "--snr-threshold", "y:80"], 1),
        (["--check-error-stat", "median", "--atol", "1e-2"], 0),
        (["--compare", "cosine_similarity", "--check-average"], 0),
        (["--rtol", "q:1"], 2),
        (["--postprocess", "top-3"], 2),
        (["--no-shape-check"], 2),
    ],
)
def test_the_verdict_follows_the_thresholds(saved, options, code, capsys):
    assert main(["check", "accuracy", saved, *options, "--json"]) == code
    out, err = capsys.readouterr()
    if code == 2:
        assert not out and err.startswith("polytool:")
    else:
        assert json.loads(out)["verdict"] == ("agree", "differ")[code]


def test_the_new_verdict_can_be_saved(saved, tmp_path):
    target = str(tmp_path / "new.json")
    assert main(["check", "accuracy", saved, "--rtol", "1", "--save-accuracy-results", target]) == 0
    assert main(["check", "accuracy", target]) == 0


def shown(comparison):
    text = click.unstyle(comparison_text.describe(comparison))
    assert str(comparison) == text, "print(comparison) shows what the command shows"
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_the_verdict_comes_first_and_the_worst_value_is_shown():
    wrong = X.copy()
    wrong[2, 5] = 100
    text = shown(compare({"y": wrong, "z": X}, {"y": X, "z": X}))
    assert text.startswith("differ  a against b: 1 of 2 outputs\n")
    assert "largest error at [2, 5]: 100 in a," in text
    assert "1 of 256 values are not equal" in text


def test_many_outputs_show_the_worst_first():
    a = {
        f"a/very/long/name/of/a/tensor/in/a/model/{i}": X * np.float32(1 + i * i / 1e6)
        for i in range(50)
    }
    text = shown(compare(a, dict.fromkeys(a, X)))
    rows = [line for line in text.splitlines() if "..." in line and "float32" in line]
    assert len(rows) == comparison_text.MOST_ROWS
    assert "l/49 " in rows[0] and "l/48 " in rows[1]
    assert "... and 30 more:" in text


def test_sources_of_tolerances_are_said_once():
    response = Response("native fp32, 3 seeds", [{"y": X}], [[{"y": X * np.float32(1.02)}]] * 3)
    a = {"y": X * np.float32(1.01), "z": X, "i": np.arange(3)}
    text = shown(compare(a, {**a, "y": X}, response=lambda times: response))
    assert text.splitlines()[0] == (
        "agree  a against b: 3 outputs, within the model's own instability"
    )
    assert "tolerance of y: 2 x response (native fp32, 3 seeds)" in text
    assert "tolerance of z: floor of float32" in text


def test_settings_and_missing_outputs_are_named():
    one = Run("native", [Iteration({"y": 2 * X})], {"precision": "fp16"})
    other = Run("onnxrt", [Iteration({"y": X, "z": X})], {"precision": "fp32"})
    text = shown(compare_all(RunResults([other, one])))
    assert "z: missing in native" in text
    assert "other settings: precision: fp16 in native, fp32 in onnxrt" in text


def test_several_pairs_have_a_table_each():
    runs = [Run(n, [Iteration({"y": v})] * 2) for n, v in (("a", X), ("b", X), ("c", -X))]
    text = shown(compare_all(RunResults(runs)))
    assert text.startswith("differ  b and c against a: 1 of 1 output over 2 iterations")
    assert "b against a" in text and "c against a" in text and "worst at" in text


def test_nothing_to_compare_is_said():
    assert shown(compare({}, {})).startswith("not compared")
