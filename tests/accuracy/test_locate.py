"""The culprit is named first, and nobody is blamed for what its type explains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.network import Layer
from polytool.backends.native.oracle import NativeOracle
from polytool.backends.native.tactics import choose
from polytool.comparators.findings import Location
from polytool.comparators.locate import locate
from scripts import made_models

FEEDS = {
    "ids": np.random.default_rng(0).integers(0, 500, (2, 12)),
    "mask": np.ones((2, 12), np.int64),
}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return made_models.transformer(layers=3, width=64, heads=4, vocabulary=500)


@pytest.fixture(scope="module")
def oracle(model: onnx.ModelProto) -> NativeOracle:
    return NativeOracle(model)


def with_fault(
    model: onnx.ModelProto, number: int, spoil: Callable[[Any], Any], precision: str
) -> tuple[NativeRunner, Layer]:
    """An engine whose layer `number` (of those that multiply) gives spoiled results."""
    runner = NativeRunner(model, precision=precision)
    program = runner.engine.program
    steps = [s for s in program._steps if s.layer.kind in ("gemm", "Attention")]
    step = steps[number]
    launch = choose(step.layer, runner.engine.mode).compile(step.layer, runner.engine.mode)

    def spoiled(*arguments: Any) -> Sequence[Any]:
        (value,) = launch(*arguments)
        return (spoil(np.array(value)),)

    step.launch = spoiled
    return runner, step.layer


def grid(bits: int) -> Callable[[Any], Any]:
    def rounded(value: Any) -> Any:
        mantissa, exponent = np.frexp(value)
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(np.float32)

    return rounded


def one_channel(value: Any) -> Any:
    value[..., 3] *= 1.5
    return value


def stale_corner(value: Any) -> Any:
    value.reshape(-1)[:5] = 0.25
    return value


def one_nan(value: Any) -> Any:
    value.reshape(-1)[7] = np.nan
    return value


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bfloat16 rounding": (grid(8), "bfloat16 grid"),
    "float8 rounding": (grid(4), "float8"),
    "a wrong scale": (lambda v: v * 1.01, "a scale is wrong"),
    "a wrong bias": (lambda v: v + 0.05, "a bias is wrong"),
    "a wrong channel": (one_channel, "slices along axis"),
    "transposed": (lambda v: v[..., ::-1].copy(), "wrong places"),
    "stale memory": (stale_corner, ""),
    "NaN": (one_nan, "NaN in 1 of"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("number", [2, 13])
def test_a_planted_fault_is_named_first_and_why(model, oracle, fault, precision, number):
    spoil, reason = FAULTS[fault]
    runner, layer = with_fault(model, number, spoil, precision)
    found = locate(runner, oracle, [FEEDS], contributions=0)
    top = found.ranking[0]
    assert top.layer == layer.name
    assert top.verdict == "broken" or (fault == "bfloat16 rounding" and precision == "fp16")
    if precision == "fp32" or "rounding" not in fault:
        assert reason in top.reason


def test_two_faults_are_the_first_two(model, oracle):
    runner, first = with_fault(model, 1, one_channel, "fp16")
    steps = [s for s in runner.engine.program._steps if s.layer.kind == "Attention"]
    launch = steps[2].launch
    steps[2].launch = lambda *a: (launch(*a)[0] * 1.1,)
    found = locate(runner, oracle, [FEEDS], contributions=0)
    assert {f.layer for f in found.ranking[:2]} == {first.name, steps[2].layer.name}
    assert found.first_broken is not None and found.first_broken.layer == first.name


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "fp64"])
def test_no_layer_of_a_sound_engine_is_blamed(model, oracle, precision):
    found = locate(NativeRunner(model, precision=precision), oracle, [FEEDS])
    assert found.verdict == "expected", found.ranking[0]
    assert not found.not_checked and len(found.findings) > 30


def test_an_overflow_that_float64_confirms_is_a_finding():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { h = Relu(x) s = Mul(h, h) t = Sqrt(s) y = Neg(t) }"""
    )
    feeds = {"x": np.float32([[1, 300, 2, 3]])}
    runner = NativeRunner(proto, precision="fp16", optimize=False)
    first = locate(runner, NativeOracle(proto), [feeds]).first_broken
    assert first is not None and first.nodes == ("Mul:s",)
    assert "overflow: the exact values reach 9e+04, float16 ends at 65504" in first.reason


def test_a_normalisation_is_judged_on_the_addends_of_a_sum_that_overflows_when_stored():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[4,16] x, float[4,16] r) =>
        (float[4,16] y, float[4,16] z)
        { s = Add(x, r) n = LayerNormalization(s, w) y = Neg(n) z = Neg(s) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(16, np.float32), "w"))
    x, r = np.random.default_rng(0).uniform(3e4, 6e4, (2, 4, 16)).astype(np.float32)
    found = locate(
        NativeRunner(proto, precision="fp16", device="cpu"),
        NativeOracle(proto),
        [{"x": x, "r": r}],
    )
    blamed = {f.tensors[0]: f for f in found.findings if f.verdict != "expected"}
    assert set(blamed) == {"s"} and blamed["s"].reason.startswith("overflow")
    (norm,) = (f for f in found.findings if f.tensors == ("n",))
    assert norm.inputs == ("x", "r")


def test_an_output_that_changes_between_runs_is_a_race(model, oracle):
    calls = iter(range(1000))
    runner, _ = with_fault(model, 3, lambda v: v + next(calls) * 1e-3, "fp32")
    assert locate(runner, oracle, [FEEDS]).verdict == "race"


def test_what_drowns_in_nan_is_not_called_judged(model, oracle):
    runner, layer = with_fault(model, 2, lambda v: np.full_like(v, np.nan), "fp32")
    found = locate(runner, oracle, [FEEDS], contributions=0)
    assert found.first_broken is not None and found.first_broken.layer == layer.name
    (last,) = [f for f in found.findings if f.tensors == ("y",)]
    assert last.reason.startswith("not judged")
    assert "y: its inputs leave no finite value" in found.not_checked


def test_the_worst_sample_is_named(model, oracle):
    runner, layer = with_fault(model, 4, lambda v: v if v.shape[0] < 2 else v * 1.2, "fp32")
    small = {k: v[:1] for k, v in FEEDS.items()}
    top = locate(runner, oracle, [small, FEEDS, small], contributions=0).ranking[0]
    assert top.layer == layer.name and top.iteration == "1"
    assert top.own_error is not None and top.mean_own_error is not None
    assert top.mean_own_error < top.own_error


def test_layers_inside_a_loop_are_judged_with_their_iteration():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (int64 n, bool go, float[1,4] x) => (float[1,4] y) {
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[1,4] v) =>
                (bool again, float[1,4] w) {
                again = Identity(c)
                s = Mul(v, v)
                t = ReduceSum <keepdims = 1> (s)
                w = Mul(t, x)
            }>
        }"""
    )
    feeds = {"n": np.array(4), "go": np.array(True), "x": np.float32([[1, 2, 3, 4]])}
    found = locate(NativeRunner(proto, precision="fp16"), NativeOracle(proto), [feeds])
    first = found.first_broken
    assert first is not None and "overflow" in first.reason
    assert first.iteration == "0.2" and "Loop" in first.nodes[0]


IF = """<ir_version: 9, opset_import: ["" : 18]>
    g (bool go, float[1,4] x) => (float[1,4] y) {
        y = If (go) <then_branch = t () => (float[1,4] a) { s = Mul(x, x) r = Sqrt(s) a = Neg(r) },
                     else_branch = e () => (float[1,4] b) { b = Neg(x) }> }"""
SCAN = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[1,4] start, float[5,4] x) => (float[1,4] y, float[5,1,4] all) {
        y, all = Scan <num_scan_inputs = 1, body = b (float[1,4] v, float[4] row) =>
            (float[1,4] w, float[1,4] seen) { s = Mul(row, row) r = Sqrt(s) w = Add(v, r)
                seen = Identity(w) }> (start, x) }"""
FUNCTION = """<ir_version: 9, opset_import: ["" : 18, "our" : 1]>
    g (float[1,4] x) => (float[1,4] y) { h = our.rms (x) y = Neg(h) }
    <domain: "our", opset_import: ["" : 18]> rms (v) => (w) { s = Mul(v, v) w = Sqrt(s) }"""
LARGE = np.float32([[1, 300, 2, 3]])


@pytest.mark.parametrize(
    ("text", "feeds", "iteration"),
    [
        (IF, {"go": np.array(True), "x": LARGE}, "0.0"),
        (SCAN, {"start": 0 * LARGE, "x": np.float32(np.diag([1, 2, 3, 300, 4])[:, 1:])}, "0.3"),
        (FUNCTION, {"x": LARGE}, "0"),
    ],
    ids=["If", "Scan", "function"],
)
def test_layers_inside_bodies_are_named(text, feeds, iteration):
    proto = onnx.parser.parse_model(text)
    runner = NativeRunner(proto, precision="fp16", optimize=False, device="cpu")
    first = locate(runner, NativeOracle(proto), [feeds]).first_broken
    assert first is not None and first.cause == "overflow", first
    assert first.iteration == iteration
    assert first.operators == ("Mul",) and first.tensors[0].endswith("/s")


def test_the_contribution_of_a_broken_layer_is_what_it_does_to_the_outputs(model, oracle):
    runner, _ = with_fault(model, 5, one_channel, "fp32")
    found = locate(runner, oracle, [FEEDS])
    top = found.ranking[0]
    (output,) = found.outputs.values()
    assert top.contribution is not None and output is not None
    assert top.contribution == pytest.approx(output, rel=0.05)


def test_locating_is_reproducible(model, oracle):
    def once() -> Location:
        return locate(NativeRunner(model, precision="bf16"), oracle, [FEEDS])

    assert json.dumps(once().to_json()) == json.dumps(once().to_json())


def test_answers_are_the_same_in_every_process(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(made_models.transformer(layers=1, width=32, heads=2, vocabulary=50), path)
    answers = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "polytool", "debug", "locate", str(path), "--bf16"]
        command += ["--input-shapes", "ids:[2,12]", "mask:[2,12]", "--target", "snr>=55", "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, env=environment
        )
        assert json.loads(done.stdout)["fix"]["layers"], done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1


def test_the_command_finds_fixes_and_writes(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { s = Mul(x, x) t = ReduceMax <keepdims = 1> (s) y = Div(s, t) }"""
    )
    path, fix = tmp_path / "m.onnx", tmp_path / "fix.json"
    onnx.save(proto, path)
    np.savez(tmp_path / "x.npz", x=np.float32([[1, 300, 2, 3]]))
    command = [sys.executable, "-m", "polytool", "debug", "locate", str(path), "--fp16", "--json"]
    command += ["--load-inputs", str(tmp_path / "x.npz"), "--fix", str(fix), "--target", "snr>=40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and answer["verdict"] == "broken"
    assert "Mul:s" in answer["first_broken"]["nodes"]
    table = json.loads(fix.read_text())["layer_precisions"]
    assert "Mul:s" in table and set(table.values()) == {"fp32"}
    assert (
        NativeRunner(str(path), precision="fp16", layer_precisions=fix)
        .infer({"x": np.float32([[1, 300, 2, 3]])})["y"]
        .argmax()
        == 1
    )
