"""ONNX in, ONNX in float16 out: what is cast, what stays, and that onnxruntime runs it."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import onnx
import pytest

from polytool import NativeRunner, OnnxrtRunner, convert_precision
from polytool.cli import main
from polytool.errors import UnsupportedError, UsageError
from polytool.model import Model, load, nodes
from polytool.surgeon.verify import difference
from tests.surgeon.surgery import ops, parse, random_feeds, session

RNG = np.random.default_rng(0)
FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16


def with_weights(proto, **weights):
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def weight(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def types(model: Model) -> dict[str, int]:
    """Element type of every tensor by name, as ONNX infers it."""
    proto = onnx.shape_inference.infer_shapes(model.to_proto(), check_type=True, strict_mode=True)
    graph = proto.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


def run(model: Model | onnx.ModelProto, feeds):
    proto = model.to_proto() if isinstance(model, Model) else model
    onnx.checker.check_model(proto, full_check=True)
    with_names = session(proto.SerializeToString())
    return dict(zip([o.name for o in with_names.get_outputs()], with_names.run(None, feeds),
                    strict=True))  # fmt: skip


def assert_near(before: onnx.ModelProto, after: Model, feeds=None, tolerance=5e-3):
    """Both run in onnxruntime, and the outputs differ by no more than float16 makes them."""
    if feeds is None:
        feeds = random_feeds(session(before.SerializeToString()).get_inputs())
    expected, found = run(before, feeds), run(after, feeds)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        error = np.linalg.norm(found[name] - value) / max(np.linalg.norm(value), 1e-9)
        assert error <= tolerance, name


def two_products():
    proto = parse("g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, v) b = Relu(a) "
                  "y = MatMul(b, w) }")  # fmt: skip
    return with_weights(proto, v=weight(8, 8), w=weight(8, 8))


def test_a_chain_is_cast_once_at_either_end_and_its_weights_are_stored_in_float16():
    proto = two_products()
    made = convert_precision(proto)
    assert ops(made.model) == {"Cast": 2, "MatMul": 2, "Relu": 1}
    found = types(made.model)
    assert (found["a"], found["b"], found["y"]) == (FLOAT16, FLOAT16, FLOAT)
    assert all(t.data_type == FLOAT16 for t in made.model.proto.graph.initializer)
    assert_near(proto, made.model)


@pytest.mark.parametrize("source", ["path", "bytes", "proto", "model", "gs"])
def test_any_kind_of_model_is_taken(source, tmp_path):
    proto = two_products()
    if source == "path":
        onnx.save(proto, tmp_path / "m.onnx")
        given = tmp_path / "m.onnx"
    elif source == "gs":
        from polytool.surgeon import to_gs

        given = to_gs(proto)
    else:
        given = {"bytes": proto.SerializeToString(), "proto": proto, "model": load(proto)}[source]
    assert_near(proto, convert_precision(given).model)


def test_a_weight_that_both_precisions_read_is_stored_in_both():
    proto = parse("g (float[2,8] x) => (float[2,8] y, float[2,8] z) { [low] y = MatMul(x, w) "
                  "[high] z = MatMul(x, w) }")  # fmt: skip
    with_weights(proto, w=weight(8, 8))
    made = convert_precision(proto, layer_precisions={"high": "fp32"}, simplify=False)
    stored = Counter(t.data_type for t in made.model.proto.graph.initializer)
    assert stored == {FLOAT: 1, FLOAT16: 1}
    exact = run(proto, feeds := {"x": weight(2, 8)})
    assert np.array_equal(run(made.model, feeds)["z"], exact["z"])


@pytest.mark.parametrize("pattern", ["op:MatMul", "first", "fir*"])
def test_patterns_keep_nodes_in_float32(pattern):
    proto = parse("g (float[2,8] x) => (float[2,8] y) { [first] a = MatMul(x, w) "
                  "[act] y = Tanh(a) }")  # fmt: skip
    with_weights(proto, w=weight(8, 8))
    made = convert_precision(proto, layer_precisions={pattern: "fp32"})
    found = types(made.model)
    assert found["a"] == FLOAT
    assert ops(made.model)["Cast"] == 2  # around the Tanh
    assert not made.notes


def test_a_pattern_that_fits_nothing_is_told():
    made = convert_precision(two_products(), layer_precisions={"op:Sofmax": "fp32"})
    assert "layer precision op:Sofmax:fp32 matches no node" in made.notes
    made = convert_precision(two_products(), layer_precisions={"MatMul": "fp32"})
    assert made.notes == (
        "layer precision MatMul:fp32 matches no node; for every MatMul write op:MatMul",
    )


def test_two_reduced_precisions_live_in_one_model():
    proto = parse("g (float[2,8] x) => (float[2,8] y) { a = Exp(x) b = Neg(a) y = Abs(b) }")
    made = convert_precision(proto, layer_precisions={"op:Neg": "bf16"})
    found = types(made.model)
    assert (found["a"], found["b"]) == (FLOAT16, BFLOAT16)
    runner = NativeRunner(proto, precision="fp16", layer_precisions={"op:Neg": "bf16"},
                          device="cpu", optimize=False)  # fmt: skip
    feeds = {"x": weight(2, 8)}
    assert np.array_equal(
        NativeRunner(made.model, device="cpu", optimize=False).infer(feeds)["y"],
        runner.infer(feeds)["y"],
    )


def test_what_only_moves_float32_values_is_not_cast():
    proto = parse("g (float[2,8] x) => (float[8,2] y) { a = Exp(x) b = Transpose(a) "
                  "s = Shape(b) c = Reshape(b, s) y = Log(c) }")  # fmt: skip
    made = convert_precision(proto, layer_precisions={"op:Exp": "fp32", "op:Log": "fp32"})
    assert "Cast" not in ops(made.model)
    assert made.notes == ("no node is lowered: nothing in float32 is left that fp16 could do",)


def test_integers_are_cast_straight_to_float16():
    proto = parse("g (int64[2,8] x) => (float[2,8] y) { a = Cast<to=1>(x) b = Exp(a) "
                  "y = Neg(b) }")  # fmt: skip
    made = convert_precision(proto)
    casts = [n for n in made.model.proto.graph.node if n.op_type == "Cast"]
    assert [(c.input[0], c.attribute[0].i) for c in casts[:1]] == [("x", FLOAT16)]
    assert len(casts) == 2
    assert_near(proto, made.model, {"x": np.ones((2, 8), np.int64)})


def test_inputs_and_outputs_change_on_request_and_keep_their_names():
    proto = two_products()
    made = convert_precision(proto, keep_io_types=False)
    (x,), (y,) = made.model.proto.graph.input, made.model.proto.graph.output
    assert (x.name, y.name) == ("x", "y")
    assert x.type.tensor_type.elem_type == y.type.tensor_type.elem_type == FLOAT16
    assert "Cast" not in ops(made.model)
    feeds = {"x": weight(2, 8)}
    got = run(made.model, {"x": feeds["x"].astype(np.float16)})["y"]
    assert np.allclose(got, run(proto, feeds)["y"], atol=1e-2)


BODIES = {
    "if": "g (bool c, float[2,8] x) => (float[2,8] y) { h = Exp(x) y = If(c) <"
    "then_branch = t () => (float[2,8] p) { a = MatMul(h, w) p = Tanh(a) },"
    "else_branch = e () => (float[2,8] q) { q = Neg(h) }> }",
    "loop": "g (int64 n, bool c, float[2,8] x) => (float[2,8] y, float[N,2,8] z) {"
    "h = Neg(x) y, z = Loop(n, c, x) <body = b (int64 i, bool k, float[2,8] s) => "
    "(bool k2, float[2,8] s2, float[2,8] o) { k2 = Identity(k) m = MatMul(s, w) "
    "t = Tanh(m) s2 = Add(t, h) o = Neg(s2) }> }",
    "scan": "g (float[2,8] x, float[5,2,8] v) => (float[2,8] y, float[5,2,8] z) {"
    "y, z = Scan<num_scan_inputs = 1, body = b (float[2,8] s, float[2,8] e) => "
    "(float[2,8] s2, float[2,8] o) { m = MatMul(e, w) s2 = Add(s, m) o = Tanh(s2) }>(x, v) }",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("truth", [True, False])
def test_bodies_compute_in_float16_and_keep_what_goes_in_and_out(body, truth):
    proto = with_weights(parse(BODIES[body]), w=weight(8, 8))
    made = convert_precision(proto)
    inside = [n for n in nodes(made.model.proto.graph.node) if n.op_type in ("MatMul", "Gemm")]
    assert len(inside) == 1
    assert all(t.data_type == FLOAT16 for t in made.model.proto.graph.initializer)
    feeds = random_feeds(session(proto.SerializeToString()).get_inputs())
    feeds |= {k: np.array(v) for k, v in (("c", truth), ("n", np.int64(3))) if k in feeds}
    assert_near(proto, made.model, feeds)


def test_functions_are_expanded_so_that_each_call_has_its_types():
    proto = parse(
        "g (float[2,8] x) => (float[2,8] y) { h = loc.f <a = 0.5>(x) y = loc.f <a = 0.1>(h) }"
        ' <domain: "loc", opset_import: ["" : 17]> '
        "f <a>(x) => (y) { t = LeakyRelu<alpha: float = @a>(x) y = Softmax(t) }",
        extra=', "loc": 1',
    )
    made = convert_precision(proto)
    assert ops(made.model) == {"Cast": 2, "LeakyRelu": 2, "Softmax": 2}
    assert_near(proto, made.model)


def test_nodes_of_functions_have_the_names_that_the_engine_gives_them():
    proto = parse(
        "g (float[2,8] x, bool c) => (float[2,8] y) { h = loc.f(x) y = loc.g(h, c) }"
        ' <domain: "loc", opset_import: ["" : 17]> f (x) => (y) { [e] t = Exp(x) y = Tanh(t) }'
        ' <domain: "loc", opset_import: ["" : 17, "loc": 1]> g (a, c) => (b) { s = loc.f(a) '
        "b = If(c) <then_branch = t () => (float[2,8] p) { [n] p = Neg(s) }, "
        "else_branch = e () => (float[2,8] q) { q = Abs(a) }> }",
        extra=', "loc": 1',
    )
    engine = NativeRunner(proto, precision="fp16", optimize=False, device="cpu")
    names = {node for tap in engine.taps() for node in tap.nodes}
    assert "y/g/s/f/e" in names  # in a function that a function calls
    for name in sorted(names - {"y/g/If:b"}):
        made = convert_precision(proto, layer_precisions={name: "fp32"}, simplify=False)
        assert not made.notes, name
        assert made.done["nodes in float16"] == 5
    for truth in (True, False):
        assert_near(proto, made.model, {"x": weight(2, 8), "c": np.array(truth)})


def test_functions_of_another_opset_stay_as_they_are():
    proto = parse(
        "g (float[2,8] x) => (float[2,8] y) { h = loc.f(x) y = Neg(h) }"
        ' <domain: "loc", opset_import: ["" : 16]> f (x) => (y) '
        "{ c = Constant<value_float = 2.0>() y = Mul(x, c) }",
        extra=', "loc": 1',
    )
    made = convert_precision(proto)
    assert made.done["nodes in float16"] == 1
    assert_near(proto, made.model)


def test_what_overflows_on_the_given_inputs_stays_in_float32_and_is_named():
    proto = parse("g (float[2,64] x) => (float[2,1] y) { [square] s = Mul(x, x) "
                  "[sum] t = ReduceSum<keepdims = 1>(s, axes) [root] y = Sqrt(t) }")  # fmt: skip
    with_weights(proto, axes=np.int64([1]))
    feeds = {"x": np.full((2, 64), 100, np.float32)}
    made = convert_precision(proto, feeds=[feeds])
    assert [(k.node, k.reaches) for k in made.kept] == [("sum", 640_000.0), ("root", 640_000.0)]
    assert run(made.model, feeds)["y"] == pytest.approx(800)
    unmeasured = NativeRunner(convert_precision(proto, measure=False).model, device="cpu")
    assert np.isinf(unmeasured.infer(feeds)["y"]).all()
    assert "sum (6.4e+05)" in made.summary()


ATTENTION = (
    "g (float[1,4,4] s, float[1,1,4] m) => (float[1,4,4] y) { o = Sub(one, m) "
    "big = Mul(o, lowest) a = Add(s, big) y = Softmax(a) }"
)


def masked(keep):
    proto = parse(ATTENTION)
    with_weights(proto, one=np.float32(1), lowest=np.float32(np.finfo(np.float32).min))
    mask = np.float32([[[1, 1, keep, 0]]]) * np.float32(keep > 0 or 0.0)
    return proto, {"s": 3 * weight(1, 4, 4), "m": mask}


def test_a_mask_that_softmax_makes_zero_of_keeps_nothing_in_float32():
    proto, feeds = masked(1.0)
    made = convert_precision(proto, feeds=[feeds])
    assert not made.kept
    assert "largest number" in made.notes[0]
    assert_near(proto, made.model, feeds)


def test_a_row_that_is_masked_throughout_keeps_its_softmax_in_float32():
    proto, feeds = masked(0.0)
    made = convert_precision(proto, feeds=[feeds])
    assert {k.node for k in made.kept} >= {"Softmax:y"}
    assert_near(proto, made.model, feeds)


def test_a_constant_that_does_not_fit_and_is_no_mask_keeps_its_node():
    proto = parse("g (float[2,8] x) => (float[2,8] y) { a = Mul(x, c) y = Tanh(a) }")
    with_weights(proto, c=np.float32(1e8))
    feeds = {"x": np.full((2, 8), 1e-8, np.float32)}
    made = convert_precision(proto, feeds=[feeds])
    assert [k.node for k in made.kept] == ["Mul:a"]
    assert_near(proto, made.model, feeds)


@pytest.mark.parametrize(
    ("op", "opset", "precision"),
    [("CumSum", 13, "fp16"), ("Celu", 17, "fp16"), ("IsInf", 13, "fp16"), ("Tan", 17, "bf16")],
)
def test_an_operator_that_does_not_take_the_type_at_its_opset_stays(op, opset, precision):
    axis, result = (", zero" if op == "CumSum" else ""), ("bool" if op == "IsInf" else "float")
    proto = parse(f"g (float[2,8] x) => ({result}[2,8] y) {{ a = Exp(x) y = {op}(a{axis}) }}",
                  opset=opset)  # fmt: skip
    if axis:
        with_weights(proto, zero=np.int32(0))
    made = convert_precision(proto, precision)
    assert [(k.node, k.reason.startswith(f"because {op} ")) for k in made.kept] == [
        (f"{op}:y", True)
    ]
    if op == "Tan":
        assert made.kept[0].reason.endswith("; from opset 22 on it does")
    feeds = {"x": weight(2, 8)}
    exact = run(proto, feeds)["y"]
    found = NativeRunner(made.model, device="cpu").infer(feeds)["y"]
    assert np.allclose(found, exact, rtol=0.05, atol=0.1)


def test_what_onnxruntime_cannot_run_in_float16_stays():
    proto = parse("g (float[A,B,8] x, int64[1,8] i, float[1,8] u, float[4,8] d, "
                  "int64[3] s) => (float[B,A,4] y, float[4,8] z) { h = Neg(x) r = Reshape(h, s) "
                  "t = Transpose<perm = [1, 0, 2]>(r) "
                  "y = MatMul(t, w) "
                  "z = ScatterElements<reduction = \"add\">(d, i, u) }")  # fmt: skip
    made = convert_precision(with_weights(proto, w=weight(8, 4)))
    assert {k.node for k in made.kept} == {"Transpose:t", "ScatterElements:z"}
    feeds = {"x": weight(2, 3, 8), "i": np.zeros((1, 8), np.int64), "u": weight(1, 8),
             "d": weight(4, 8), "s": np.int64([2, 3, 8])}  # fmt: skip
    with OnnxrtRunner(made.model) as runner:  # with every optimisation: it crashed
        assert runner.infer(feeds)["y"].shape == (3, 2, 4)
    assert_near(proto, made.model, feeds)


def test_bfloat16_before_opset_13_is_refused():
    proto = parse("g (float[2,8] x) => (float[2,8] y) { y = Exp(x) }", opset=11)
    with pytest.raises(UnsupportedError, match="bfloat16 needs opset 13, the model has 11"):
        convert_precision(proto, "bf16")


def test_custom_operators_stay_as_they_are():
    proto = parse("g (float[2,8] x) => (float[2,8] y) <float[2,8] b> "
                  "{ a = Exp(x) b = my.Op(a) y = Neg(b) }",
                  extra=', "my": 1')  # fmt: skip
    made = convert_precision(proto)
    assert [(k.node, "nothing is known of my.Op" in k.reason) for k in made.kept] == [
        ("Op:b", True)
    ]
    (custom,) = [n for n in made.model.proto.graph.node if n.op_type == "Op"]
    casts = {n.output[0]: n.attribute[0].i for n in made.model.proto.graph.node
             if n.op_type == "Cast"}  # fmt: skip
    assert casts[custom.input[0]] == FLOAT


def test_an_initializer_that_callers_may_override_stays_float32():
    proto = parse("g (float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }")
    with_weights(proto, w=weight(8, 8))
    made = convert_precision(proto, keep_io_types=False)
    assert {t.name: t.data_type for t in made.model.proto.graph.initializer} == {"w": FLOAT}
    feeds = {"x": weight(2, 8).astype(np.float16), "w": np.eye(8, dtype=np.float32)}
    assert np.allclose(run(made.model, feeds)["y"], feeds["x"], atol=1e-3)


def test_the_result_computes_what_the_engine_computes_in_that_precision():
    proto = two_products()
    feeds = {"x": weight(2, 8)}
    for precision in ("fp16", "bf16"):
        made = NativeRunner(convert_precision(proto, precision).model, device="cpu",
                            optimize=False)  # fmt: skip
        engine = NativeRunner(proto, precision=precision, device="cpu", optimize=False)
        assert np.array_equal(made.infer(feeds)["y"], engine.infer(feeds)["y"])


@pytest.mark.parametrize(
    ("start", "step"), [(0, 40), *(pytest.param(n, 4, marks=pytest.mark.slow) for n in range(4))]
)
def test_every_operator_of_the_conformance_suite_gives_a_valid_model(start, step):
    from scripts.conformance import cases

    broken = {}
    every = cases(("node", "simple", "pytorch-operator", "pytorch-converted"))
    for case, precision, keep in itertools.product(every[start::step], ("fp16", "bf16"), (0, 1)):
        proto, _ = case.load()
        if complaint(proto):
            continue
        try:
            made = convert_precision(proto, precision, keep_io_types=bool(keep), measure=False)
        except UnsupportedError as err:
            assert "needs opset 13" in str(err)
        else:
            broken[case.name, precision, keep] = complaint(made.model.to_proto())
    assert len(broken) > 2000 / step
    assert not {case: text for case, text in broken.items() if text}


def complaint(proto):
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        return str(err)
    return ""


def test_the_command_writes_the_model_and_says_what_stays(tmp_path, capfd):
    onnx.save(two_products(), tmp_path / "m.onnx")
    out = tmp_path / "half.onnx"
    args = ["convert", tmp_path / "m.onnx", "-o", out, "--fp-to-fp16", "--layer-precisions",
            "op:Relu:fp32", "--json"]  # fmt: skip
    assert main([str(a) for a in args]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["done"] == {
        "Casts added": 4,
        "nodes in float16": 2,
        "nodes in float32": 1,
        "weights stored in float16": 2,
    }
    assert facts["kept"] == []
    assert run(load(str(out)), {"x": weight(2, 8)})["y"].dtype == np.float32


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-o", "m.onnx"], "would be an engine"),
        (["-o", "m.engine", "--no-keep-io-types"], "no effect without --fp-to-fp16"),
        (["-o", "m.engine", "--load-inputs", "x.npz"], "no effect on an engine"),
        (["-o", "h.onnx", "--fp-to-fp16", "--fp16"], "--fp16 builds an engine"),
        (["-o", "h.onnx", "--fp-to-fp16", "--fp-to-bf16"], "exclude each other"),
        (["-o", "h.onnx", "--fp-to-fp16", "--layer-precisions", "op:Relu:fp33"], "choose one of"),
        (["-o", "h.onnx", "--fp-to-fp16", "--layer-precisions", "no.json"], "cannot read layer"),
    ],
)
def test_a_wrong_use_of_the_command_is_told(tmp_path, monkeypatch, capfd, args, said):
    monkeypatch.chdir(tmp_path)
    onnx.save(two_products(), "model.onnx")
    assert main(["convert", "model.onnx", *args]) == 2
    assert said in " ".join(capfd.readouterr().err.split())


def test_the_result_agrees_with_itself_on_two_runners(tmp_path, capfd):
    proto = two_products()
    convert_precision(proto).save(tmp_path / "half.onnx")
    args = ["run", str(tmp_path / "half.onnx"), "--native", "--onnxrt", "--device", "cpu"]
    assert main(args) == 0  # onnxruntime computes float16 as float32 on a CPU
    assert "float16" in capfd.readouterr().out


def test_sanitize_writes_float16_too(tmp_path, capfd):
    proto = two_products()
    onnx.save(proto, tmp_path / "m.onnx")
    out = tmp_path / "half.onnx"
    args = ["surgeon", "sanitize", str(tmp_path / "m.onnx"), "-o", str(out), "--fp-to-fp16"]
    assert main([*args, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["verdict"] == "agree"
    assert facts["fp"]["done"]["nodes in float16"] == 3
    assert_near(proto, load(str(out)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="neither fp16 nor bf16"):
        convert_precision(two_products(), "fp8")


def test_weights_may_lie_outside(tmp_path):
    proto = two_products()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    made = convert_precision(str(tmp_path / "m.onnx"))
    made.save(tmp_path / "half.onnx", external_data=True, size_threshold=0)
    half = load(tmp_path / "half.onnx")
    assert all(t.data_location == t.EXTERNAL for t in half.proto.graph.initializer)
    assert not difference(run(half, f := {"x": weight(2, 8)})["y"], run(made.model, f)["y"])
