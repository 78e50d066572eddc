"""Looking at saved data and joining it: the library, and the commands on top of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytool.cli import main
from polytool.errors import UsageError
from polytool.feeds import save_feeds
from polytool.results import Iteration, Run, RunResults
from polytool.saved_data import concat, load_saved, merge, statistics


def inputs(path, *values, name="x"):
    save_feeds([{name: np.array([v], np.float32)} for v in values], path)
    return str(path)


def results(path, **runs):
    made = [
        Run(n, [Iteration({"y": np.array([v])}, 0.5) for v in values], {"precision": "fp16"})
        for n, values in runs.items()
    ]
    RunResults(made).save(path)
    return str(path)


def numbers(run, name):
    return [float(i[name][0]) for i in run]


@pytest.mark.parametrize("ending", ["safetensors", "json", "npz"])
def test_merge_puts_tensors_together(tmp_path, ending):
    one, two = inputs(tmp_path / f"a.{ending}", 1), inputs(tmp_path / "b.json", 2, name="z")
    feeds, notes = merge([one, two])
    assert [list(f) for f in feeds] == [["x", "z"]] and notes == []


def test_outputs_of_one_runner_become_inputs(tmp_path):
    one = results(tmp_path / "r.bin", native=[1, 2])
    feeds, _ = merge([one, inputs(tmp_path / "b.json", 3, 4)])
    assert [sorted(f) for f in feeds] == [["x", "y"]] * 2
    with pytest.raises(UsageError, match=r"of 2 runners \(a, b\).*exactly one"):
        merge([results(tmp_path / "two.bin", a=[1], b=[2])])


def test_a_tensor_in_several_files_comes_from_the_last_and_that_is_said(tmp_path):
    files = [inputs(tmp_path / "a.json", 1), inputs(tmp_path / "b.json", 2)]
    feeds, notes = merge(files)
    assert feeds[0]["x"] == 2 and notes == [f"x: taken from {files[1]!r}"]


def test_files_of_other_lengths_do_not_merge(tmp_path):
    files = [inputs(tmp_path / "a.json", 1, 2), inputs(tmp_path / "b.json", 2, name="z")]
    with pytest.raises(UsageError, match="has 1 iterations, but the files before it have 2"):
        merge(files)


def test_concat_appends_iterations_by_runner(tmp_path):
    files = [results(tmp_path / "1.bin", a=[1, 2], b=[7]), results(tmp_path / "2.json", a=[3])]
    joined = concat([*files, results(tmp_path / "dir", a=[4, 5])])
    assert joined.kind == "results"
    assert [numbers(r, "y") for r in joined.runs] == [[1, 2, 3, 4, 5], [7]]
    joined.save(tmp_path / "all.json")
    assert load_saved(tmp_path / "all.json").runs[0].settings == {"precision": "fp16"}


def test_concat_of_inputs(tmp_path):
    files = [inputs(tmp_path / "1.npz", 1), inputs(tmp_path / "dir", 2, 3)]
    joined = concat(files)
    assert joined.kind == "inputs" and numbers(joined.runs[0], "x") == [1, 2, 3]


def test_concat_refuses_what_does_not_belong_together(tmp_path):
    one = inputs(tmp_path / "a.json", 1)
    with pytest.raises(UsageError, match=r"cannot be joined: .*a\.json' inputs, .*r\.bin' results"):
        concat([one, results(tmp_path / "r.bin", a=[1])])
    with pytest.raises(UsageError, match="iteration 1 holds z, but the first one x"):
        concat([one, inputs(tmp_path / "b.json", 1, name="z")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([1, 2, 3, 0]), {"min": 0, "max": 3, "mean": 1.5, "zeros": 1, "nan": 0}),
        (np.array([np.nan, np.inf, 2.0]), {"min": 2, "max": 2, "nan": 1, "inf": 1, "zeros": 0}),
        (np.array([True, False]), {"dtype": "bool", "mean": 0.5, "zeros": 1}),
        (np.array([3 + 4j]), {"max": 5}),
        (np.array([2**63], np.uint64), {"max": 2**63}),
        (np.array(["a", "a"], object), {"dtype": "string", "distinct": 1}),
        (np.zeros((0, 2)), {"shape": [0, 2], "zeros": 0}),
        (None, {"dtype": None}),
    ],
)
def test_statistics(value, expected):
    found = statistics(value)
    assert {k: found[k] for k in expected} == expected


def test_statistics_of_sequences_and_histograms():
    assert [i["max"] for i in statistics([np.ones(1), np.zeros(1)])["items"]] == [1, 0]
    counts, edges = statistics(np.array([0, 0, 1.0, np.inf]), bins=2)["histogram"]
    assert counts == [2, 1] and edges == [0, 0.5, 1]


def test_inspect_data_shows_what_is_there(tmp_path, capsys):
    path = results(tmp_path / "r.bin", native=[1, 2], onnxrt=[3, 4])
    assert main(["inspect", "data", path]) == 0
    out = capsys.readouterr().out
    assert "native: 2 iterations, median 500 ms, fp16" in out
    assert "int64[1]" in out and "iteration 1" not in out
    assert main(["inspect", "data", path, "-a", "-s", "--histogram"]) == 0
    out = capsys.readouterr().out
    assert "iteration 1" in out and "[4]" in out and "count" in out


def test_inspect_data_as_json(tmp_path, capsys):
    values = {"s": [np.ones(1)], "c": np.array([1j]), "t": np.array(["é"], object), "n": None}
    RunResults([Run("r", [Iteration(values)])]).save(tmp_path / "r.bin")
    assert main(["inspect", "data", str(tmp_path / "r.bin"), "--json", "-s"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (tensors,) = run["tensors"]
    assert tensors["c"]["values"] == [[0, 1]] and tensors["t"]["values"] == ["é"]
    assert tensors["s"]["items"][0]["max"] == 1 and tensors["n"]["values"] is None


def test_the_commands_of_data(tmp_path, capsys):
    one, two = inputs(tmp_path / "a.npz", 1), inputs(tmp_path / "b.json", 2)
    assert main(["data", "concat", one, two, "-o", str(tmp_path / "c.json")]) == 0
    assert numbers(load_saved(tmp_path / "c.json").runs[0], "x") == [1, 2]
    outputs = results(tmp_path / "r.bin", native=[5])
    for command in ("merge", "to-input"):
        target = str(tmp_path / f"{command}.json")
        assert main(["data", command, one, outputs, "-o", target, "--json"]) == 0
        assert list(load_saved(target).runs[0][0]) == ["x", "y"]
    capsys.readouterr()
    assert main(["data", "concat", one, outputs, "-o", str(tmp_path / "d.json")]) == 2
    assert "cannot be joined" in capsys.readouterr().err
    assert not (tmp_path / "d.json").exists()


def test_an_unusable_file_ends_with_2(tmp_path, capsys):
    assert main(["inspect", "data", str(tmp_path / "absent")]) == 2
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07")
    assert main(["inspect", "data", str(tmp_path / "m.onnx")]) == 2
    assert "neither a file of polytool nor JSON" in capsys.readouterr().err
