"""What `run` does before it compares: outputs to show, sizes, senseless requests."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model

from polytool import noise
from polytool.agreement import Request, perform
from polytool.errors import UsageError
from polytool.model import load
from polytool.noise import NoiseMeter
from polytool.selection import select_tensors, with_input_shapes

TEXT = """<ir_version: 9, opset_import: ["": 18]>
agraph (float[2,3] x) => (float[2,3] y, float[2,3] z) <float[3] w = {1, 2, 3}, float two = {2}>
{ a = Mul(x, w)  [relu] b = Relu(a)  c = Pow(b, two)  y = Neg(c)  z = Sqrt(c) }"""


@pytest.fixture
def path(tmp_path):
    onnx.save(parse_model(TEXT), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


def select(include=(), exclude=(), types=()):
    return select_tensors(load(parse_model(TEXT)), include, exclude, types)


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (select(), ()),
        (select(["c", "a"]), ("a", "c")),
        (select(["mark", "all"]), ("a", "b", "c", "y", "z")),
        (select(["*"], ["[yz]"]), ("a", "b", "c")),
        (select(exclude=["z"]), ("y",)),
        (select(types=["Re*"]), ("b",)),
        (select(["a"], types=["Neg"]), ("a", "y")),
    ],
    ids=str,
)
def test_outputs_are_selected_in_the_order_of_the_graph(chosen, wanted):
    assert chosen == wanted


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ((["nothing"],), "--onnx-outputs 'nothing' fits no tensor"),
        (([], ["q"]), "--onnx-exclude-outputs 'q' fits no tensor"),
        (([], [], ["Conv"]), "no node of type 'Conv'; it has Mul, Neg, Pow, Relu, Sqrt"),
        ((["a"], ["a"]), "no tensor is left to show"),
    ],
)
def test_selections_that_fit_nothing_are_refused(selection, message):
    with pytest.raises(UsageError, match=message):
        select(*selection)


@pytest.mark.ort
def test_tensors_named_exactly_are_made_outputs(path):
    session = perform(Request(path, ("native", "onnxrt"), outputs=["a", "c"]))
    native, onnxrt = (run[0] for run in session.results.values())
    assert list(native) == list(onnxrt) == ["a", "c"]
    np.testing.assert_array_equal(native["a"], onnxrt["a"])


@pytest.mark.ort
def test_patterns_show_what_every_runner_stores_and_the_rest_is_counted(path):
    session = perform(Request(path, ("native", "onnxrt"), outputs=["*"]))
    native, onnxrt = (run[0] for run in session.results.values())
    assert list(native) == list(onnxrt)
    assert set(native) >= {"y", "z"}
    hidden = 5 - len(native)
    assert not hidden or any(f"{hidden} of 5 tensors" in note for note in session.notes)
    for name, value in native.items():
        np.testing.assert_allclose(value, onnxrt[name], rtol=1e-6)


@pytest.mark.ort
def test_declared_sizes_can_be_overridden(path):
    session = perform(Request(path, ("native", "onnxrt"), shapes={"x": (5, 3)}))
    assert [run[0]["y"].shape for run in session.results.values()] == [(5, 3), (5, 3)]
    assert any("overridden" in note for note in session.notes)


def test_a_model_whose_sizes_fit_is_not_copied():
    model = load(parse_model(TEXT))
    assert with_input_shapes(model, {"x": (2, 3)}) is model


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("m.onnx", ()), r"no runner was chosen: give --native, .*installed: native"),
        (Request("m.onnx", (), load_outputs=["a"]), "nothing to be compared with"),
        (Request("m.onnx", ("onnxrt",), engine="m.engine"), "--load-engine needs the native"),
        (Request("m.engine", ("native", "onnxrt")), "is an engine, which only the native runner"),
    ],
)
def test_requests_without_meaning_are_refused(request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.engine").write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        perform(request_)


def test_the_same_runner_twice_gets_two_names(path):
    session = perform(Request(path, ("native", "native")))
    assert list(session.results) == ["native", "native#2"]


def test_a_saved_engine_gives_the_same_outputs(path, tmp_path):
    engine = str(tmp_path / "m.engine")
    built = perform(Request(path, ("native",), save_engine=engine))
    for request in (Request(path, ("native",), engine=engine), Request(engine, ("native",))):
        loaded = perform(request)
        np.testing.assert_array_equal(
            loaded.results["native"][0]["y"], built.results["native"][0]["y"]
        )


@pytest.mark.ort
def test_tensors_inside_of_a_loaded_engine_are_observed(path, tmp_path):
    engine = str(tmp_path / "m.engine")
    perform(Request(path, ("native",), save_engine=engine))
    session = perform(Request(path, ("native", "onnxrt"), engine=engine, outputs=["c", "y"]))
    native, onnxrt = (run[0] for run in session.results.values())
    assert "y" in native
    assert list(native) == list(onnxrt)


@pytest.mark.ort
def test_tensors_that_runners_store_in_other_types_are_compared_in_the_narrowest(tmp_path):
    model = parse_model("""<ir_version: 9, opset_import: ["": 18]>
        agraph (float16[n,8] x) => (float16[n,8] y)
        { a = MatMul(x, w)  b = Softmax(a)  c = MatMul(b, w)  y = Neg(c) }""")
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    path = str(tmp_path / "m.onnx")
    session = perform(Request(path, ("native", "onnxrt", "oracle"), outputs=["*"]))
    for run in session.results.values():
        assert {value.dtype for value in run[0].values()} == {np.dtype(np.float16)}
    assert session.compare().agreed


def test_saved_results_stand_beside_new_ones(path, tmp_path):
    saved = str(tmp_path / "r.safetensors")
    perform(Request(path, ("native",), save_outputs=saved))
    session = perform(Request(path, ("native",), load_outputs=[saved]))
    assert list(session.results) == ["native", "native#2"]


def wide():
    model = parse_model("""<ir_version: 9, opset_import: ["": 18]>
        agraph (float[n,64] x) => (float[n,64] y) <float two = {2}>
        { a = Mul(x, w)  y = Pow(a, two) }""")
    w = np.linspace(-3, 3, 64, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return load(model)


def test_noise_moves_weights_by_its_size_and_spares_exponents():
    meter = NoiseMeter(wide(), [])
    (weight,) = meter._weights
    clean = weight.constant.array()
    seen = []
    for seed, times in ((0, 1), (1, 1), (0, 10)):
        with meter.noise(seed, times):
            moved = weight.constant.array()
            np.testing.assert_array_equal(moved, weight.constant.array())
        assert (moved != clean).all()
        seen.append(moved)
        np.testing.assert_allclose(moved, clean, rtol=times * 3e-7)
    assert np.abs(seen[2] - clean).max() > 5 * np.abs(seen[0] - clean).max()
    assert not np.array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(weight.constant.array(), clean)


def test_noise_spares_constants_that_decide_shapes():
    model = load(
        parse_model("""<ir_version: 9, opset_import: ["": 18]>
    agraph (float[1,1,4,4] x) => (float[n,c,h,w] y)
    { s = Constant<value = float[4] {1, 1, 2, 2}>()  y = Resize(x, , s) }""")
    )
    response = NoiseMeter(model, [{"x": np.ones((1, 1, 4, 4), np.float32)}]).measure()
    assert response.clean[0]["y"].shape == (1, 1, 8, 8)
    assert all(run[0]["y"].shape == (1, 1, 8, 8) for run in response.noisy)


def test_the_response_of_a_model_is_measured_on_its_inputs():
    feed = {"x": np.linspace(0.1, 1, 128, dtype=np.float32).reshape(2, 64)}
    response = NoiseMeter(wide(), [feed]).measure()
    assert len(response.noisy) == 3
    for run in response.noisy:
        moved = np.abs(run[0]["y"] - response.clean[0]["y"]) / np.abs(response.clean[0]["y"])
        assert 5e-7 < moved.max() < 2e-6


def test_noise_on_heavy_weights_is_made_layer_by_layer_with_the_same_numbers(monkeypatch):
    feed = {"x": np.linspace(0.1, 1, 128, dtype=np.float32).reshape(2, 64)}
    usual = NoiseMeter(wide(), [feed]).measure()
    monkeypatch.setattr(noise, "_RESIDENT", 0)
    lazy = NoiseMeter(wide(), [feed]).measure()
    for one, other in zip(usual.noisy, lazy.noisy, strict=True):
        np.testing.assert_array_equal(one[0]["y"], other[0]["y"])
