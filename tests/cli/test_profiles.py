"""Optimization profiles and CUDA graphs through `convert`, `run` and `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onnx.parser import parse_model

from polytool.cli import main

BOTH = ["--native-min-shapes", "x:[1,4]", "x:[8,16]", "--native-opt-shapes", "x:[2,6]", "x:[9,20]",
        "--native-max-shapes", "x:[4,8]", "x:[16,32]"]  # fmt: skip
QUICK = ["--duration", "0", "--iterations", "2", "--warmUp", "0"]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float[n,c] x) => (float[n,c] y) '
        "{ a = Abs(x) y = Softmax(a) }"
    )
    Path("m.onnx").write_bytes(parse_model(text).SerializeToString())


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*args: str, code: int = 0) -> tuple[str, str]:
        assert main(args) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        return out, err

    return call


@pytest.mark.parametrize(
    ("index", "shape"), [([], "[2, 6]"), (["0"], "[2, 6]"), (["1"], "[9, 20]")]
)
def test_the_usual_shapes_of_a_profile_are_run(call: Any, index: list[str], shape: str) -> None:
    chosen = ["--optimization-profile", *index] if index else []
    _, err = call("run", "m.onnx", "--oracle", "--native", *BOTH, *chosen, "--json")
    assert f"x: float32{shape}" in err


def test_shapes_must_fit_the_profile_that_was_chosen(call: Any) -> None:
    shape = ["--input-shapes", "x:[3,5]"]
    call("run", "m.onnx", "--native", *BOTH, *shape)
    call("run", "m.onnx", "--native", *BOTH, *shape, "--optimization-profile", "0")
    _, err = call("run", "m.onnx", "--native", *BOTH, *shape, "--optimization-profile", "1", code=2)
    assert "x has shape [3, 5], outside [8, 16] to [16, 32]" in err


def test_an_engine_keeps_its_profiles_and_its_choice_of_graphs(call: Any) -> None:
    call("convert", "m.onnx", "-o", "m.engine", *BOTH, "--no-cuda-graph")
    out, _ = call("inspect", "model", "m.engine", "--json")
    config = json.loads(out)["config"]
    assert config["cuda_graph"] is False and len(config["profiles"]) == 2
    _, err = call("run", "m.engine", "--native", "--optimization-profile", "1")
    assert "x: float32[9, 20]" in err
    _, err = call(
        "run", "m.onnx", "--oracle", "--native", "--load-engine", "m.engine",
        "--optimization-profile", "1",
    )  # fmt: skip
    assert "x: float32[9, 20]" in err
    out, _ = call("bench", "m.engine", "--optimization-profile", "1", *QUICK, "--json")
    assert json.loads(out)["inputs"] == {"x": "float32[9, 20]"}


def test_profiles_as_trtexec_writes_them(call: Any) -> None:
    profile = ["--minShapes=x:1x4,z:1x4", "--optShapes=x:2x6,z:2x6", "--maxShapes=x:4x8,z:4x8"]
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float[n,c] x, float[n,c] z) => (float[n,c] y) '
        "{ y = Add(x, z) }"
    )
    Path("two.onnx").write_bytes(parse_model(text).SerializeToString())
    out, _ = call("bench", "--onnx=two.onnx", *profile, "--useCudaGraph", *QUICK, "--json")
    assert json.loads(out)["inputs"] == {"x": "float32[2, 6]", "z": "float32[2, 6]"}


@pytest.mark.parametrize(
    ("given", "said"),
    [(BOTH, "has 2 optimization profiles (0 to 1)"), ([], "has 0 optimization profiles")],
    ids=["two", "none"],
)
def test_a_profile_that_is_not_there(call: Any, given: list[str], said: str) -> None:
    _, err = call("run", "m.onnx", "--native", *given, "--optimization-profile", "2", code=2)
    assert "there is no optimization profile 2" in err
    assert said in err


def test_flags_without_effect_are_named(call: Any) -> None:
    shape = ["--input-shapes", "x:[1,4]"]
    _, err = call("run", "m.onnx", "--native", *shape, "--device", "cpu", "--use-cuda-graph")
    assert "--use-cuda-graph has no effect on the CPU" in err
    _, err = call("run", "m.onnx", "--native", *shape, "--device", "cpu")
    assert "cuda-graph" not in err
    _, err = call("run", "m.onnx", "--oracle", *shape, "--optimization-profile", "0")
    assert "options of the native engine have no effect without --native" in err
    _, err = call("bench", "m.onnx", *shape, "--device", "cpu", "--no-cuda-graph", *QUICK)
    assert "--no-cuda-graph has no effect on the CPU" in err


@pytest.mark.ort
def test_tensors_are_shown_and_tactics_saved_in_one_run(call: Any) -> None:
    call(
        "run", "m.onnx", "--native", "--onnxrt", "--input-shapes", "x:[1,4]",
        "--onnx-outputs", "*", "--save-tactics", "t.json",
    )  # fmt: skip
    assert Path("t.json").exists()
