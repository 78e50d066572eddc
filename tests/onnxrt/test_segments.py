"""Observing onnxruntime: what is seen is what it computes, and nothing moves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model

from polytool import OnnxrtRunner
from polytool.backends.onnxrt import segments
from polytool.backends.onnxrt.oracle import OnnxrtOracle
from polytool.errors import UsageError

pytestmark = pytest.mark.ort

HEADER = '<ir_version: 9, opset_import: ["": 18]> agraph '
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def observed(runner, feeds):
    seen = []
    outputs = runner.infer(feeds, lambda tap, array: seen.append((tap, np.array(array))))
    return outputs, seen


@pytest.mark.parametrize("name", ["ppocr-rec", "ppocr-cls", "ddddocr-old", "silero", "t5-encoder"])
def test_observing_moves_no_bit_of_a_real_model(real_model, name):
    model = real_model(name)
    runner, feeds = OnnxrtRunner(model.path), model.feeds()
    outputs, seen = observed(runner, feeds)
    assert [tap for tap, _ in seen] == list(runner.taps())
    for key, value in runner.infer(feeds).items():
        np.testing.assert_array_equal(outputs[key], value)


def test_tensors_that_a_fusion_leaves_are_those_of_the_original_model(real_model):
    model = real_model("ppocr-rec")
    feeds = model.feeds()
    every = {
        tap.tensor: array
        for tap, array in observed(
            OnnxrtRunner(model.path, graph_optimization_level="disable"), feeds
        )[1]
    }
    _, stored = observed(OnnxrtRunner(model.path), feeds)
    assert len(every) > len(stored) > 100
    for tap, array in stored:
        scale = np.abs(every[tap.tensor]).max()
        np.testing.assert_allclose(array, every[tap.tensor], rtol=1e-3, atol=1e-4 * scale)


def test_without_rewriting_every_tensor_is_seen():
    model = parse_model(
        HEADER
        + """(float[a,3] x) => (float[a,3] y) <float[3] w = {1, 2, 3}>
        { b = Mul(x, w)  c = Relu(b)  d, i = TopK<axis=1>(c, k)  y = Neg(d) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "k"))
    _, seen = observed(OnnxrtRunner(model, graph_optimization_level="disable"), {"x": X})
    assert [tap.tensor for tap, _ in seen] == ["b", "c", "d", "i", "y"]
    values = {tap.tensor: array for tap, array in seen}
    np.testing.assert_array_equal(values["c"], np.maximum(X * np.float32([1, 2, 3]), 0))
    assert values["i"].dtype == np.int64


def test_a_tap_names_the_nodes_that_its_kernel_computes():
    model = parse_model(
        HEADER
        + """(float[n,8] x) => (float[n,8] y)
        { [mm] a = MatMul(x, w)  [add] b = Add(a, bias)  [act] c = Relu(b)  [out] y = Sqrt(c) }"""
    )
    for name, shape in (("w", (8, 8)), ("bias", (8,))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        )
    taps = OnnxrtRunner(model).taps()
    assert taps[-1].nodes == ("out",)
    assert [node for tap in taps for node in tap.nodes] == ["mm", "add", "act", "out"]
    assert len(taps) < 4  # MatMul and Add are one Gemm
    assert str(taps[-1].spec) == "y: float32[n, 8]"


@pytest.mark.parametrize("level", ["all", "basic", "disable"])
def test_float16_that_is_computed_in_float32_is_shown_as_it_is_stored(level):
    model = parse_model(
        HEADER
        + """(float16[n,8] x) => (float16[n,8] y)
        { a = MatMul(x, w)  b = Softmax(a)  c = MatMul(b, w)  y = Neg(c) }"""
    )
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    runner = OnnxrtRunner(model, graph_optimization_level=level)
    feeds = {"x": np.linspace(-3, 3, 16, dtype=np.float16).reshape(2, 8)}
    outputs, seen = observed(runner, feeds)
    np.testing.assert_array_equal(outputs["y"], runner.infer(feeds)["y"])
    assert {tap.tensor for tap, _ in seen} >= {"a", "b"}
    for tap, array in seen:
        assert tap.spec.dtype is not None
        assert array.dtype == tap.spec.dtype.numpy, tap
        assert tap.precision == ("fp16" if array.dtype == np.float16 else "fp32")


def test_values_of_every_kind_pass_from_segment_to_segment(monkeypatch):
    monkeypatch.setattr(segments, "_FIRST_NODES", 1)
    monkeypatch.setattr(segments, "_MOST_NODES", 1)
    model = parse_model(
        HEADER
        + """(float[a,3] x, string[a] s) =>
        (float[a,3] y, string[a] t, float[3] first, seq(float[3]) rest)
        { h = Cast<to=16>(x)  g = Identity(h)  f = Cast<to=1>(g)
          rest = SplitToSequence<axis=0, keepdims=0>(f)  zero = Constant<value_int=0>()
          first = SequenceAt(rest, zero)  u = Identity(s)  t = Identity(u)
          b = Less(x, f)  c = Where(b, x, f)  y = Identity(c) }"""
    )
    runner = OnnxrtRunner(model, graph_optimization_level="disable")
    feeds = {"x": X, "s": np.array(["a", "b"], object)}
    outputs, seen = observed_any(runner, feeds)
    plain = runner.infer(feeds)
    assert set(seen) >= {"h", "g", "f", "rest", "u", "b", "c"}
    assert str(seen["g"].dtype) == "bfloat16"
    assert outputs["t"].tolist() == plain["t"].tolist() == ["a", "b"]
    for name in ("y", "first"):
        np.testing.assert_array_equal(outputs[name], plain[name])
    assert [r.tolist() for r in outputs["rest"]] == [r.tolist() for r in plain["rest"]]


def observed_any(runner, feeds):
    seen = {}
    return runner.infer(feeds, lambda tap, value: seen.update({tap.tensor: value})), seen


def test_bodies_take_what_they_capture_across_segments(monkeypatch):
    monkeypatch.setattr(segments, "_FIRST_NODES", 1)
    monkeypatch.setattr(segments, "_MOST_NODES", 1)
    model = parse_model(
        HEADER
        + """(float[a,3] x, bool c) => (float[a,3] y)
        { a = Relu(x)  b = Neg(x)
          y = If (c) <then_branch = t () => (float[a,3] r) { r = Add(a, b) },
                      else_branch = e () => (float[a,3] r2) { r2 = Sub(a, w) }> }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "w"))
    runner = OnnxrtRunner(model, graph_optimization_level="disable")
    for condition in (True, False):
        feeds = {"x": X, "c": np.array(condition)}
        outputs, seen = observed(runner, feeds)
        assert [tap.tensor for tap, _ in seen] == ["a", "b", "y"]
        np.testing.assert_array_equal(outputs["y"], runner.infer(feeds)["y"])


def test_outputs_that_no_node_makes():
    model = parse_model(
        HEADER + "(float[3] x) => (float[3] y, float[3] w, float[3] x2) "
        "<float[3] w = {1, 2, 3}> { y = Neg(x)  x2 = Identity(x) }"
    )
    outputs, _ = observed(OnnxrtRunner(model), {"x": X[0]})
    assert list(outputs) == ["y", "w", "x2"]
    assert outputs["w"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(outputs["x2"], X[0])


def test_sessions_of_heavy_segments_are_not_kept(monkeypatch):
    monkeypatch.setattr(segments, "_WEIGHT_BUDGET", 1000)
    model = parse_model(
        HEADER + "(float[n,16] x) => (float[n,16] y) "
        "{ a = MatMul(x, w)  b = MatMul(a, w2)  y = Neg(b) }"
    )
    for name in ("w", "w2"):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), name)
        )
    runner = OnnxrtRunner(model)
    x = np.ones((1, 16), np.float32)
    for _ in range(2):
        assert observed(runner, {"x": x})[0]["y"].tolist() == (-x).tolist()
    plan = next(iter(runner._segments.values()))._plan
    assert len(plan) == 2
    assert all(s.session is None for s in plan if s.weights)


def test_values_that_grow_are_cut_finer_next_time(monkeypatch):
    monkeypatch.setattr(segments, "_OUTPUT_BUDGET", 1000)
    text = " ".join(f"t{i + 1} = Sin(t{i})" for i in range(40))
    model = parse_model(HEADER + "(float[n] t0) => (float[n] t40) { " + text + " }")
    runner = OnnxrtRunner(model)
    sizes = []
    for count in (1, 500, 500):
        outputs, _ = observed(runner, {"t0": np.ones(count, np.float32)})
        np.testing.assert_array_equal(
            outputs["t40"], runner.infer({"t0": np.ones(count, np.float32)})["t40"]
        )
        plan = next(iter(runner._segments.values()))._plan
        sizes.append(max(s.stop - s.start for s in plan))
    assert sizes[0] == sizes[1] > sizes[2]


CHAIN = (
    HEADER
    + """(float[a,3] x) => (float[a,3] y) <float[3] w = {1, 2, 3}>
    { b = Mul(x, w)  c = Exp(b)  d = Add(b, c)  y = Neg(d) }"""
)


def test_the_oracle_computes_any_slice_from_any_values():
    oracle = OnnxrtOracle(parse_model(CHAIN))
    b, c = np.float32([[1, 2, 3]]), np.float32([[10, 20, 30]])
    assert oracle.evaluate({"b": b, "c": c}, ["d"])["d"].tolist() == (b + c).tolist()
    np.testing.assert_allclose(oracle.evaluate({"b": b}, ["d"])["d"], b + np.exp(b), rtol=1e-6)
    made = oracle.evaluate({"x": X, "c": c}, ["b", "c"])
    assert made["c"] is c
    np.testing.assert_array_equal(made["b"], X * np.float32([1, 2, 3]))
    assert oracle.evaluate({}, ["w"])["w"].tolist() == [1, 2, 3]


def test_the_oracle_converts_floats_to_the_type_that_the_model_declares():
    oracle = OnnxrtOracle(parse_model(CHAIN))
    made = oracle.evaluate({"b": np.array([[1, 2, 3]], np.float64)}, ["c"])["c"]
    assert made.dtype == np.float32
    with pytest.raises(UsageError, match="'b' is int64, but the model makes it float32"):
        oracle.evaluate({"b": np.array([[1, 2, 3]])}, ["c"])


def test_the_oracle_says_what_it_lacks():
    oracle = OnnxrtOracle(parse_model(CHAIN))
    with pytest.raises(UsageError, match="'d' needs the values of 'x', which are not given"):
        oracle.evaluate({"c": X}, ["d"])
    with pytest.raises(UsageError, match="'nothing' is not a tensor of the main graph"):
        oracle.evaluate({"x": X}, ["nothing"])


def test_the_oracle_agrees_with_the_whole_model_layer_by_layer(real_model):
    model = real_model("ppocr-cls")
    runner = OnnxrtRunner(model.path, graph_optimization_level="disable")
    feeds = model.feeds()
    values = dict(feeds)
    runner.infer(feeds, lambda tap, array: values.update({tap.tensor: np.array(array)}))
    oracle = OnnxrtOracle(model.path)
    for tap in runner.taps()[::25]:
        given = {k: v for k, v in values.items() if k != tap.tensor}
        made = oracle.evaluate(given, [tap.tensor])[tap.tensor]
        np.testing.assert_array_equal(made, values[tap.tensor])


def test_the_oracle_tells_what_a_tensor_is_computed_from():
    oracle = OnnxrtOracle(parse_model(CHAIN))
    trace = oracle.trace("d", ["x", "b", "d"])
    assert set(trace.inputs) == {"b"}
    assert trace.operators == ("Exp", "Add")
    assert set(oracle.trace("d", ["x", "b", "c"]).inputs) == {"b", "c"}
    with pytest.raises(UsageError, match="'d' depends on 'x', which is not available"):
        oracle.trace("d", ["c"])
