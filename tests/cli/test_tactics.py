"""Flags and commands about tactics and timing caches."""

import json

import onnx
import onnx.parser
import pytest

from polytool.backends.native.timing_cache import TimingCache
from polytool.cli import main

PROTO = onnx.parser.parse_model(
    """<ir_version: 9, opset_import: ["" : 20]>
    g (float[3,8] x) => (float[3,8] y) { a = Exp(x) b = Softmax(a) y = Add(b, x) }"""
)


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Runs a command in a directory with m.onnx: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    onnx.save(PROTO, "m.onnx")

    def run(line: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(line.split())
        return code, *capfd.readouterr()

    return run


def convert(call, more="", name="m"):
    code, _, err = call(f"convert m.onnx -o {name}.engine --device cpu {more}")
    assert code == 0, err
    return err


def test_tactics_go_through_files(call, tmp_path):
    convert(call, "--save-tactics generic.json --builder-optimization-level 0")
    convert(call, "--load-tactics generic.json", "again")
    _, first, _ = call("inspect tactics m.engine --json")
    _, again, _ = call("inspect tactics again.engine --json")
    saved = json.loads((tmp_path / "generic.json").read_text())
    assert json.loads(first)["devices"] == json.loads(again)["devices"] == [saved]
    assert {row["tactic"] for row in saved["tactics"]} == {"numpy.generic"}


def test_inspect_tactics_shows_one_row_a_decision(call):
    convert(call)
    code, out, _ = call("inspect tactics m.engine --show-candidates")
    assert code == 0 and "3 tactics for cpu" in out
    assert "numpy.softmax, numpy.generic" in out


def test_diff_tactics_names_what_only_the_bad_have(call, tmp_path):
    for folder, level in (("good", 3), ("bad", 0)):
        (tmp_path / folder).mkdir()
        convert(call, f"--builder-optimization-level {level}", f"{folder}/1")
    code, out, _ = call("inspect diff-tactics good bad")
    assert code == 1 and "only in bad engines: " in out and "1 good and 1 bad, for cpu" in out
    code, out, _ = call("inspect diff-tactics good/1.engine good --json")
    assert code == 0 and json.loads(out)["suspects"] == []
    assert call("inspect diff-tactics good m.onnx")[0] == 2


def test_run_saves_tactics_and_takes_them_back(call):
    code, _, err = call("run m.onnx --native --device cpu --save-tactics t.json")
    assert code == 0, err
    code, _, err = call("run m.onnx --native --device cpu --load-tactics t.json --no-cuda-graph")
    assert code == 0, err


def test_a_cache_has_no_effect_on_the_cpu_and_is_not_written(call, tmp_path):
    TimingCache().save("old.cache")
    err = convert(call, "--load-timing-cache old.cache --save-timing-cache new.cache")
    assert "the timing cache has no effect" in err and "new.cache is not written" in err
    assert not (tmp_path / "new.cache").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--load-timing-cache no.cache", "'no.cache' does not exist"),
        ("--load-timing-cache m.onnx", "'m.onnx' is no timing cache"),
        ("--load-tactics m.onnx", "'m.onnx' holds no tactics"),
        ("--tactic-sources cutlass", "'cutlass' is none of nvrtc, cublas_lt, cudnn"),
        ("--tactic-sources cudnn,-cublas_lt", "not both at once"),
        ("--pool-limit workspace:big", "workspace:1G"),
        ("--pool-limit dla:1G", "not 'dla'"),
        ("--builder-optimization-level 6", "0<=x<=5"),
        ("--save-tactics no/t.json", "no directory"),
    ],
)
def test_wrong_values_are_refused(call, flags, message):
    code, out, err = call(f"convert m.onnx -o m.engine --device cpu {flags}")
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize(
    ("texts", "sources"),
    [
        ([], None),
        (["nvrtc"], ("nvrtc",)),
        (["cudnn,nvrtc"], ("nvrtc", "cudnn")),
        (["-CUDNN"], ("nvrtc", "cublas_lt")),
        (["-cudnn", "+cublas_lt"], ("nvrtc", "cublas_lt")),
    ],
)
def test_sources_are_chosen_or_left_out(texts, sources):
    from polytool.cli._tactics import _sources

    assert _sources(texts) == sources
