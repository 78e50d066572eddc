"""`polytool run`: verdicts, exit codes, tables, JSON, and every way to say what is compared."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model

from polytool import RunResults
from polytool.cli import main

pytestmark = pytest.mark.ort

MODEL = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[n,8] x) => (float[n,8] y, int64[n,1] best)
{ a = MatMul(x, w)  b = Relu(a)  y = Softmax<axis=-1>(b)  best = ArgMax<axis=-1>(y) }"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Paths are relative to an empty directory, which also holds two scripts."""
    monkeypatch.chdir(tmp_path)
    proto = parse_model(MODEL)
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, "m.onnx")
    (tmp_path / "off.py").write_text(
        "from polytool import NativeRunner\n"
        "def make(model):\n"
        "    runner = NativeRunner(model)\n"
        "    def infer(feeds):\n"
        "        y = runner.infer(feeds)\n"
        "        y['y'] = y['y'] * 1.01\n"
        "        return y\n"
        "    return infer\n"
        "def short(model):\n"
        "    runner = NativeRunner(model)\n"
        "    return lambda feeds: {'y': runner.infer(feeds)['y']}\n"
        "def compare_outputs(a, b):\n"
        "    return {'y': bool(abs(a['y'] - b['y']).max() < 1)}\n"
        "def round(outputs):\n"
        "    return {'y': outputs['y'].round(1)}\n"
    )
    return "m.onnx"


@pytest.fixture
def call(capfd):
    """Runs a command as the shell would: exit code, stdout and stderr."""

    def run(*args, command="run"):
        capfd.readouterr()
        code = main([command, *map(str, args)])
        return code, *capfd.readouterr()

    return run


def test_the_verdict_comes_first(model, call):
    code, out, err = call(model, "--native", "--onnxrt")
    assert code == 0
    assert out.startswith("agree  onnxrt against native: 2 outputs\n")
    assert "rel L2 5e-06" in out and "tolerance: floor of float32" in out
    assert "x: float32[1, 8], uniform in [0, 1)" in err


def test_a_difference_is_exit_code_1_with_its_place(model, call):
    code, out, _ = call(model, "--onnxrt", "--runner", "off.py:make")
    assert code == 1
    assert out.startswith("differ  off against onnxrt: 1 of 2 outputs\n")
    assert "largest error at [0, " in out


def test_an_output_that_is_missing_on_one_side_is_a_difference(model, call):
    code, out, _ = call(model, "--onnxrt", "--runner", "off.py:short")
    assert code == 1
    assert "best: missing in off" in out


def test_json_is_one_object_also_when_outputs_differ(model, call):
    code, out, _ = call(model, "--onnxrt", "--runner", "off.py:make", "--json")
    assert code == 1
    facts = json.loads(out)
    assert facts["verdict"] == "differ"
    assert facts["settings"]["onnxrt"]["providers"] == ["CPUExecutionProvider"]
    (pair,) = facts["pairs"]
    assert (pair["a"], pair["b"]) == ("off", "onnxrt")
    assert pair["outputs"]["y"]["verdict"] == "differ"
    assert pair["outputs"]["y"]["max_rel"] == pytest.approx(0.01, rel=1e-3)
    assert pair["outputs"]["best"]["verdict"] == "agree"
    assert set(facts["seconds"]) == {"onnxrt", "off"}


def test_all_are_compared_with_the_oracle_wherever_it_stands(model, call):
    _, out, _ = call(model, "--native", "--oracle", "--onnxrt", "--json")
    pairs = json.loads(out)["pairs"]
    assert [(p["a"], p["b"]) for p in pairs] == [("native", "oracle"), ("onnxrt", "oracle")]


def test_runners_keep_their_order(model, call):
    _, out, _ = call(model, "--runner", "off.py:make", "--onnxrt", "--native", "--json")
    assert list(json.loads(out)["settings"]) == ["off", "onnxrt", "native"]


def test_one_runner_alone_is_not_compared(model, call):
    code, out, _ = call(model, "--onnxrt")
    assert code == 0
    assert out.startswith("not compared  onnxrt alone: 2 outputs")
    code, out, _ = call(model, "--onnxrt", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "not_compared")


def test_nan_is_a_failure_with_validate(tmp_path, call):
    onnx.save(
        parse_model(
            '<ir_version: 9, opset_import: ["": 18]> agraph (float[2] x) => (float[2] y) '
            "{ a = Neg(x)  y = Log(a) }"
        ),
        tmp_path / "m.onnx",
    )
    path = tmp_path / "m.onnx"
    assert call(path, "--onnxrt")[0] == 0
    code, out, _ = call(path, "--onnxrt", "--validate")
    assert code == 1
    assert "NaN or Inf in y" in out
    assert call(path, "--onnxrt", "--native")[0] == 2  # nothing but NaN: nothing was compared
    assert call(path, "--onnxrt", "--native", "--validate")[0] == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--rtol", "0.02"], 0),
        (["--rtol", "1e-3"], 1),
        (["--rtol", "1e-3", "y:0.02"], 0),
        (["--atol", "1"], 0),
        (["--atol", "1e-6", "--check-error-stat", "mean"], 1),
        (["--compare", "cosine_similarity"], 0),
        (["--compare", "cosine_similarity", "snr", "--snr-threshold", "50"], 1),
        (["--l2-threshold", "1"], 0),
        (["--compare", "simple", "l2", "--l2-threshold", "1"], 1),
        (["--ulp-threshold", "16"], 1),
        (["--postprocess", "y:top-3"], 0),
        (["--compare-func-script", "off.py"], 0),
        (["--postprocess-func-script", "off.py:round"], 0),
    ],
    ids=str,
)
def test_what_agreement_means_can_be_said(model, call, options, code):
    assert call(model, "--onnxrt", "--runner", "off.py:make", *options)[0] == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rtol", "q:1"], "relative tolerance is given for 'q', which does not exist"),
        (["--postprocess", "q:top-5"], "--postprocess is given for 'q', which does not exist"),
        (["--check-average"], "needs metrics to average"),
        (["--compare-func-script", "off.py:nothing"], "defines no function 'nothing'"),
        (["--providers", "nothing"], "no execution provider 'nothing'"),
        (["--graph-optimization-level", "most"], "no optimization level 'most'"),
        (["--device", "cuda"], "cuda"),
    ],
    ids=str,
)
def test_wrong_use_is_exit_code_2(model, call, options, message):
    code, out, err = call(model, "--native", "--onnxrt", *options)
    assert code == 2
    assert message in err
    assert not out


@pytest.mark.parametrize(
    "options",
    [
        ["--fp16", "--bf16"],
        ["--native-min-shapes", "x:[1,8]"],
        ["--rtol", "much"],
        ["--postprocess", "bottom-3"],
        ["--provider-options", "cuda"],
        ["--compare", "looks"],
    ],
    ids=str,
)
def test_values_that_cannot_be_read_are_exit_code_2(model, call, options):
    assert call(model, "--native", *options)[0] == 2


def test_options_that_do_nothing_say_so(model, call):
    assert "no effect without --native" in call(model, "--onnxrt", "--fp16")[2]
    assert "no effect without --onnxrt" in call(model, "--native", "--providers", "cpu")[2]
    infinities = call(model, "--native", "--onnxrt", "--infinities-compare-equal")[2]
    assert "changes nothing" in infinities


def test_outputs_are_saved_and_compared_later(model, call):
    assert call(model, "--native", "--save-outputs", "a.safetensors", "--iterations", "3")[0] == 0
    assert len(RunResults.load("a.safetensors")["native"]) == 3
    code, out, _ = call(
        model, "--onnxrt", "--iterations", "3", "--load-outputs", "a.safetensors", "--json"
    )
    assert code == 0
    (pair,) = json.loads(out)["pairs"]
    assert (pair["a"], pair["b"]) == ("native", "onnxrt")
    assert pair["outputs"]["y"]["iterations"] == ["agree"] * 3


def test_other_inputs_than_those_of_the_saved_outputs_differ(model, call):
    call(model, "--native", "--save-outputs", "a.json")
    assert call(model, "--onnxrt", "--load-outputs", "a.json")[0] == 0
    assert call(model, "--onnxrt", "--load-outputs", "a.json", "--seed", "1")[0] == 1


def test_saved_inputs_give_the_same_outputs(model, call):
    call(model, "--native", "--save-inputs", "in.npz", "--save-outputs", "a.json", "--seed", "7")
    code, _, _ = call(model, "--onnxrt", "--load-inputs", "in.npz", "--load-outputs", "a.json")
    assert code == 0


def test_an_engine_runs_in_place_of_the_model(model, call):
    assert call(model, "--native", "--save-engine", "m.engine")[0] == 0
    assert call(model, "--native", "--onnxrt", "--load-engine", "m.engine")[0] == 0
    assert call("m.engine", "--native", "--input-shapes", "x:[2,8]")[0] == 0


def test_profiles_limit_the_shapes(model, call):
    profile = ["--native-min-shapes", "x:[1,8]", "--native-opt-shapes", "x:[2,8]"]
    profile += ["--native-max-shapes", "x:[4,8]"]
    assert call(model, "--native", *profile, "--input-shapes", "x:[3,8]")[0] == 0
    code, _, err = call(model, "--native", *profile, "--input-shapes", "x:[5,8]")
    assert code == 2
    assert "[5, 8]" in err


def test_precision_widens_the_tolerance_and_is_named(model, call):
    code, out, _ = call(model, "--onnxrt", "--native", "--fp16", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["settings"]["native"]["precision"] == "fp16"
    assert facts["pairs"][0]["outputs"]["y"]["tolerance"]["source"] == "floor of float16"


def test_many_tensors_show_the_worst_first(model, call):
    names = [f"t{i}" for i in range(31)]
    nodes = " ".join(f"{b} = Sin({a})" for a, b in itertools.pairwise(names))
    text = (
        f'<ir_version: 9, opset_import: ["": 18]> g (float[4] t0) => (float[4] t30) {{ {nodes} }}'
    )
    onnx.save(parse_model(text), "chain.onnx")
    code, out, _ = call("chain.onnx", "--oracle", "--onnxrt", "--onnx-outputs", "mark", "all")
    assert code == 0
    assert "30 outputs" in out
    assert "... and 10 more: 10 agree" in out


def test_convert_says_what_it_made(model, call):
    _, out, _ = call(model, "-o", "m.engine", "--json", command="convert")
    facts = json.loads(out)
    assert facts["engine"] == "m.engine"
    assert facts["nodes"] == 4
    assert facts["config"]["precision"] == "fp32"
    assert call("m.engine", "--native")[0] == 0
