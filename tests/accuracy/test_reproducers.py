"""The culprit alone, as a small model with its inputs, is as broken as it was in the whole."""

from __future__ import annotations

import json

import numpy as np
import onnx

from polytool import NativeRunner
from polytool.cli import main
from polytool.debugging import locate
from polytool.model import load
from polytool.reproducers import command, inputs_of
from scripts import made_models


def test_the_layer_alone_fails_in_the_same_way(real_model, tmp_path, capfd):
    model = real_model("t5-encoder")
    found = locate(model.path, [model.feeds()], precision="fp16", reproducer=tmp_path / "layer")
    first = found.first_broken
    assert first is not None and first.reproducer is not None
    assert len(load(first.reproducer).proto.graph.node) < 10
    words = command(first).split()
    assert words[:3] == ["polytool", "debug", "locate"] and words[-1] == "--fp16"
    capfd.readouterr()
    assert main([*words[1:], "--json"]) == 1
    again = json.loads(capfd.readouterr().out)["first_broken"]
    assert again["reason"] == first.reason and set(again["nodes"]) <= set(first.nodes)


def test_a_sound_model_needs_no_reproducer(tmp_path):
    proto = made_models.deep(blocks=1)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 16), np.float32)}
    found = locate(proto, [feeds], reproducer=tmp_path / "layer")
    assert found.verdict == "expected" and not (tmp_path / "layer").exists()


def test_the_inputs_are_those_of_the_worst_sample(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { h = Softmax(x) s = Exp(x) t = ReduceSum(s) u = Sqrt(t) v = Mul(u, h) y = Neg(v) }"""
    )
    feeds = [{"x": np.float32([[1, 2, high, 4]])} for high in (3, 12, 5)]
    found = locate(proto, feeds, precision="fp16", optimize=False, reproducer=tmp_path)
    first = found.first_broken
    assert first is not None and first.nodes == ("Exp:s",) and first.iteration == "1"
    values = np.load(inputs_of(first.reproducer))
    assert values["x"].dtype == np.float32 and values["x"].max() == 12


def test_of_a_layer_in_a_loop_the_loop_is_saved(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (int64 n, bool go, float[1,4] x) => (float[1,4] z) {
            r = Relu(x)
            y = Loop (n, go, r) <body = b (int64 i, bool c, float[1,4] v) =>
                (bool again, float[1,4] w) {
                again = Identity(c)
                s = Mul(v, v)
                t = ReduceSum <keepdims = 1> (s)
                w = Mul(t, r)
            }>
            z = Neg(y)
        }"""
    )
    feeds = {"n": np.array(4), "go": np.array(True), "x": np.float32([[1, 2, 3, 4]])}
    found = locate(proto, [feeds], precision="fp16", reproducer=tmp_path)
    first = found.first_broken
    assert first is not None and first.reproducer is not None
    nodes = load(first.reproducer).proto.graph.node
    assert [n.op_type for n in nodes] == ["Loop"]
    inputs = {name: np.load(inputs_of(first.reproducer))[name] for name in ("n", "go", "r")}
    with np.errstate(all="ignore"):
        assert np.isinf(NativeRunner(first.reproducer, precision="fp16").infer(inputs)["y"]).any()


def test_the_command_prints_what_reproduces_the_layer(tmp_path, capfd):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,4] x) => (float[1,4] y)
        { s = Mul(x, x) t = ReduceMax <keepdims = 1> (s) y = Div(s, t) }"""
    )
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.float32([[1, 300, 2, 3]]))
    inputs = ["--load-inputs", str(tmp_path / "x.npz")]
    args = ["debug", "locate", str(tmp_path / "m.onnx"), "--fp16", *inputs]
    args += ["--reproducer", str(tmp_path / "layer")]
    assert main(args) == 1
    out = capfd.readouterr().out
    assert "reproduce" in out and "polytool debug locate" in out
