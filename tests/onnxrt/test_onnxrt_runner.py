"""OnnxrtRunner: every element type and container, options, checks and messages."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.parser import parse_model

from polytool import OnnxrtRunner
from polytool.arrays import to_tensor
from polytool.backends.onnxrt.values import from_ort, to_ort, view_ort
from polytool.errors import (
    MissingDependencyError,
    ModelError,
    RunnerError,
    UnsupportedError,
    UsageError,
)
from polytool.tensors import DType

pytestmark = pytest.mark.ort

HEADER = '<ir_version: 9, opset_import: ["": 21, "com.microsoft": 1, "my": 1]> agraph '
X = np.arange(6, dtype=np.float32).reshape(2, 3)
# Without the types that onnxruntime does not have at all.
TYPES = [d for d in DType if d.numpy.kind != "c" and d.bits != 6]


def runner_of(text, **options):
    return OnnxrtRunner(parse_model(HEADER + text), **options)


def sample(dtype):
    if dtype is DType.STRING:
        return np.array(["a", "ü", ""], object)
    return np.array([1, 0, 1]).astype(dtype.numpy)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: d.label)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (0,), ()], ids=str)
def test_every_type_survives_the_way_to_onnxruntime_and_back(dtype, shape):
    array = sample(dtype)[: int(np.prod(shape))].reshape(shape)
    value = to_ort(array)
    for back in (from_ort(value), view_ort(value)):
        assert (back.dtype, back.shape) == (array.dtype, shape)
        assert back.tolist() == array.tolist() or dtype is DType.FLOAT8E8M0  # it has no zero


@pytest.mark.parametrize(
    "dtype", [d for d in TYPES if d.bits >= 8 and d is not DType.FLOAT8E8M0] + [DType.STRING]
)
def test_identity_of_every_type_that_onnxruntime_computes(dtype):
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", int(dtype), ["n"])],
            [helper.make_tensor_value_info("y", int(dtype), ["n"])],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    x = sample(dtype)
    y = OnnxrtRunner(model).infer({"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.tolist() == x.tolist()


def test_four_bit_weights_come_out_unpacked():
    model = parse_model(HEADER + "(float[n] x) => (int4[3] y, float[n] z) { z = Neg(x) }")
    weight = np.array([-8, 7, 1]).astype(DType.INT4.numpy)
    model.graph.initializer.append(to_tensor(weight, "y"))
    outputs = OnnxrtRunner(model).infer({"x": X[0]})
    assert outputs["y"].dtype == DType.INT4.numpy
    assert outputs["y"].astype(int).tolist() == [-8, 7, 1]


def test_outputs_of_an_odd_type_beside_text_and_sequences():
    runner = runner_of("""
        (float[n] x, string[n] s, seq(float[n]) q)
        => (bfloat16[n] y, string[n] t, seq(float[n]) r, int64 k)
        { y = Cast<to=16>(x)  t = Identity(s)  r = Identity(q)  k = SequenceLength(q) }""")
    text = np.array(["a", "b", "c"], object)
    outputs = runner.infer({"x": X[0], "s": text, "q": [X[0], X[1]]})
    assert list(outputs) == ["y", "t", "r", "k"]
    assert outputs["y"].astype(np.float32).tolist() == X[0].tolist()
    assert outputs["t"].tolist() == text.tolist()
    assert [r.tolist() for r in outputs["r"]] == X.tolist()
    assert outputs["k"] == 2
    assert runner.infer({"x": X[0], "s": text, "q": []})["r"] == []


def test_sequences_and_optionals():
    runner = runner_of("""(seq(float[n]) x, optional(float[n]) o) => (seq(float[n]) y, bool has)
        { y = Identity(x)  has = OptionalHasElement(o) }""")
    assert [s.container for s in runner.inputs] == ["sequence", "optional"]
    outputs = runner.infer({"x": [X[0], X[1, :2]], "o": None})
    assert [y.tolist() for y in outputs["y"]] == [[0, 1, 2], [3, 4]]
    assert not outputs["has"]
    assert runner.infer({"x": [], "o": X[0]})["has"]


def test_an_empty_optional_comes_out_as_none():
    runner = runner_of("(optional(float[n]) x) => (optional(float[n]) y) { y = Identity(x) }")
    assert runner.infer({"x": None})["y"] is None
    assert runner.infer({"x": X[0]})["y"].tolist() == X[0].tolist()


NEG = "(float[a,3] x, int64 k) => (float[a,3] y) { f = Cast<to=1>(k)  y = Mul(x, f) }"


@pytest.mark.parametrize(
    "x",
    [X[::-1], np.asfortranarray(X), X.astype(">f4"), X.tolist()],
    ids=["strided", "fortran", "big-endian", "list"],
)
def test_feeds_in_any_layout(x):
    wanted = 2 * np.asarray(x, np.float32)
    for k in (2, np.int64(2), np.array(2)):
        np.testing.assert_array_equal(runner_of(NEG).infer({"x": x, "k": k})["y"], wanted)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X}, r"input 'k' is missing; the model expects x: float32\[a, 3\], k: int64\[\]"),
        ({"X": X, "k": 1}, r"input 'x' is missing; 'X' is not an input"),
        ({"x": X, "k": 1, "xx": X}, r"'xx' is not an input \(did you mean 'x'\?\)"),
        ({"x": X.astype(float), "k": 1}, r"'x' is float64, but the model expects float32\[a, 3\]"),
        ({"x": X[0], "k": 1}, r"'x' has 1 dimensions, shape \[3\], but the model expects 2"),
        ({"x": X[:, :2], "k": 1}, r"shape \[2, 2\].*expects \[a, 3\]: dimension 1 is 2, not 3"),
        ({"x": X, "k": 1.5}, "'k' is float64, but the model expects int64"),
        ({"x": None, "k": 1}, "'x' is None, but the model expects x: float32"),
        ({"x": object(), "k": 1}, "'x' cannot be read as an array"),
    ],
)
def test_feeds_that_do_not_fit_are_explained(feeds, message):
    with pytest.raises(UsageError, match=message):
        runner_of(NEG).infer(feeds)


def test_an_initializer_that_is_an_input_may_be_overridden_and_need_not():
    runner = runner_of(
        "(float[3] x, float[3] w) => (float[3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"
    )
    assert [s.name for s in runner.inputs] == ["x"]
    ones = np.ones(3, np.float32)
    for observe in (None, lambda tap, array: None):
        assert runner.infer({"x": ones}, observe)["y"].tolist() == [1, 2, 3]
        assert runner.infer({"x": ones, "w": ones}, observe)["y"].tolist() == [1, 1, 1]


def test_a_dimension_of_minus_one_is_an_unknown_one():
    model = parse_model(HEADER + "(float[n,3] x) => (float[n,3] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    runner = OnnxrtRunner(model)
    assert runner.inputs[0].shape == (None, 3)
    assert runner.infer({"x": X})["y"].shape == (2, 3)


def test_outputs_belong_to_the_caller():
    runner = runner_of(
        "(float[3] x) => (float[3] y, float[3] w) <float[3] w = {1, 2, 3}> { y = Identity(x) }"
    )
    x = np.ones(3, np.float32)
    first = runner.infer({"x": x})
    first["y"][:] = first["w"][:] = 7
    assert x.tolist() == [1, 1, 1]
    assert runner.infer({"x": x})["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexec"])
def test_providers_by_partial_name(name):
    if name == "cpuexec":
        with pytest.raises(UsageError, match="no execution provider 'cpuexec': it has"):
            runner_of(NEG, providers=[name])
        return
    assert runner_of(NEG, providers=[name]).settings["providers"] == ["CPUExecutionProvider"]


def test_a_provider_that_is_not_built_in_is_an_error_not_a_run_on_the_cpu():
    with pytest.raises(UsageError, match="no execution provider 'tensorrt'"):
        runner_of(NEG, providers=["tensorrt", "cpu"])


def test_options_for_a_provider_that_is_not_used_are_an_error():
    with pytest.raises(UsageError, match="not among the providers"):
        runner_of(NEG, provider_options={"azure": {"a": 1}})


@pytest.mark.parametrize(
    ("given", "level"),
    [
        (None, "all"),
        ("ORT_ENABLE_BASIC", "basic"),
        ("extended", "extended"),
        ("ORT_DISABLE_ALL", "disable"),
    ],
)
def test_optimization_levels_by_either_name(given, level):
    settings = runner_of(NEG, graph_optimization_level=given).settings
    assert settings["graph_optimization_level"] == level


def test_an_unknown_optimization_level_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="no optimization level 'most': known are disable, basic"):
        runner_of(NEG, graph_optimization_level="most")


def test_settings_say_what_changes_numbers():
    import onnxruntime

    settings = runner_of(NEG, threads=1).settings
    assert settings["version"] == onnxruntime.__version__
    assert settings["device"] == "cpu"
    assert settings["threads"] == 1


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (
            "y = Foo(x)  [bar] z = Bar(x)  [b2] w = Bar(x)",
            UnsupportedError,
            r"lacks Foo \(no such operator\) of node 'Foo:y'; "
            r"Bar \(no such operator\) of nodes 'bar', 'b2'",
        ),
        ("y = my.Foo(x)", UnsupportedError, r"lacks my\.Foo \(no such operator\)"),
        (
            "z = Loop<body = b () => (float s) { s = my.Foo(x) }>()  y = Neg(x)",
            UnsupportedError,
            r"lacks my\.Foo",
        ),
        ("y = Neg(z)", ModelError, "Node input 'z' is not a graph input"),
        ("y = Neg(x, x)", ModelError, "Neg node that makes 'y': .* has input size 2"),
        ("a = Add(x, b)  b = Neg(a)  y = Neg(b)", ModelError, "has a cycle through node"),
    ],
)
def test_what_onnxruntime_cannot_load_is_explained(nodes, error, message):
    with pytest.raises(error, match=message) as caught:
        runner_of("(float[n] x) => (float[n] y) { " + nodes + " }").infer({"x": X[0]})
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_opset_of_the_future_is_explained():
    model = parse_model(
        '<ir_version: 9, opset_import: ["": 999]> agraph '
        "(float[n] x) => (float[n] y) { y = Neg(x) }"
    )
    with pytest.raises(ModelError, match="it has opset 999 of ai.onnx, newer than any"):
        OnnxrtRunner(model).infer({"x": X[0]})


def test_a_failure_while_running_names_the_node():
    runner = runner_of("(float[n] x, int64[r] s) => (float[m] y) { [shaper] y = Reshape(x, s) }")
    with pytest.raises(RunnerError, match="onnxruntime failed in agraph: Reshape node 'shaper':"):
        runner.infer({"x": X[0], "s": np.array([7])})


def test_a_custom_operator_library_that_does_not_load_is_named():
    with pytest.raises(RunnerError, match=r"custom-operator library 'none\.so' cannot be loaded"):
        runner_of(NEG, custom_ops=["none.so"]).infer({"x": X, "k": 1})


def test_a_missing_onnxruntime_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'polytool\[cpu\]'"):
        OnnxrtRunner(parse_model(HEADER + NEG))


def save_with_weights(folder, external):
    w = onnx.numpy_helper.from_array(np.arange(3072, dtype=np.float32).reshape(3, 1024), "w")
    model = parse_model(HEADER + "(float[n,3] x) => (float[n,m] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(w)
    folder.mkdir()
    onnx.save(model, folder / "m.onnx", save_as_external_data=external, location="m.data")
    return folder / "m.onnx", X @ np.arange(3072, dtype=np.float32).reshape(3, 1024)


@pytest.mark.parametrize("external", [False, True])
def test_weights_are_found_wherever_they_lie(tmp_path, external):
    path, wanted = save_with_weights(tmp_path / "a", external)
    sources = [path, onnx.load(path), onnx.load(path).SerializeToString()]
    for source in sources:
        np.testing.assert_allclose(OnnxrtRunner(source).infer({"x": X})["y"], wanted, rtol=1e-6)


def test_weights_in_another_directory(tmp_path):
    from polytool.model import load

    path, wanted = save_with_weights(tmp_path / "a", True)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "m.data").rename(tmp_path / "b" / "m.data")
    model = load(path, external_data_dir=tmp_path / "b")
    np.testing.assert_allclose(OnnxrtRunner(model).infer({"x": X})["y"], wanted, rtol=1e-6)


def test_a_model_whose_file_was_replaced_after_loading_keeps_its_weights(tmp_path):
    from polytool.model import load

    path, wanted = save_with_weights(tmp_path / "a", False)
    model = load(path)
    path.unlink()
    path.write_bytes(b"something else")
    np.testing.assert_allclose(OnnxrtRunner(model).infer({"x": X})["y"], wanted, rtol=1e-6)


class Shared:
    """An array of a library that knows DLPack and the array API, as torch and CuPy do."""

    def __init__(self, array):
        self.array = array
        self.dtype, self.shape = array.dtype, array.shape

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return Library


class Library:
    @staticmethod
    def from_dlpack(value):
        return Shared(np.from_dlpack(value))


def test_arrays_of_another_library_come_back_as_such():
    runner = runner_of(
        "(float[a,3] x, float[3] w) => (float[a,3] y, int64[2] s) { y = Mul(x, w)  s = Shape(x) }"
    )
    outputs = runner.infer({"x": Shared(X), "w": np.full(3, 2, np.float32)})
    assert all(isinstance(v, Shared) for v in outputs.values())
    np.testing.assert_array_equal(outputs["y"].array, 2 * X)
    assert outputs["s"].array.tolist() == [2, 3]


def test_arrays_of_another_library_are_checked_too():
    runner = runner_of("(float[a,3] x) => (float[a,3] y) { y = Neg(x) }")
    with pytest.raises(UsageError, match="'x' is float64, but the model expects float32"):
        runner.infer({"x": Shared(X.astype(float))})


def test_proto_given_to_a_runner_is_not_changed():
    model = parse_model(HEADER + NEG)
    before = model.SerializeToString()
    OnnxrtRunner(model).infer({"x": X, "k": 1}, lambda tap, array: None)
    assert model.SerializeToString() == before
    assert model.graph.node[0].op_type == "Cast"
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
