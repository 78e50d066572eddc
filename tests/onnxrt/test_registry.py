"""Runners by name, from scripts, and from anything callable."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import types

import numpy as np
import pytest
from onnx.parser import parse_model

from polytool.backends import registry
from polytool.backends.callables import as_runner
from polytool.errors import RunnerError, UsageError
from polytool.tensors import DType, TensorSpec

MODEL = parse_model("""<ir_version: 9, opset_import: ["": 18]>
agraph (float[n] x) => (float[n] y) { y = Neg(x) }""")
X = np.array([1, 2], np.float32)


@pytest.mark.ort
@pytest.mark.parametrize("name", ["native", "onnxrt", "oracle"])
def test_built_in_backends_run_by_name(name):
    with registry.runner(name, MODEL) as runner:
        assert runner.name == name
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], -X)


@pytest.mark.ort
def test_options_reach_the_backend():
    runner = registry.runner("onnxrt", MODEL, graph_optimization_level="basic", name="mine")
    assert (runner.name, runner.settings["graph_optimization_level"]) == ("mine", "basic")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"did you mean 'native'\? known are native, onnxrt"):
        registry.runner("nativ", MODEL)


def test_entry_points_of_other_packages_are_backends(monkeypatch, tmp_path):
    (tmp_path / "other_backend.py").write_text("def make(model):\n    return lambda feeds: feeds\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("other", "other_backend:make", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"other": point})
    assert registry.available() == ("native", "onnxrt", "oracle", "other")
    runner = registry.runner("other", MODEL)
    assert runner.name == "other"
    np.testing.assert_array_equal(runner.infer({"x": X})["x"], X)


def write(tmp_path, text):
    path = tmp_path / "my_script.py"
    path.write_text(text)
    return f"{path}:make"


def test_a_script_may_return_a_function(tmp_path):
    text = "def make(model):\n    return lambda feeds: {'y': -feeds['x']}\n"
    runner = registry.runner(write(tmp_path, text), MODEL)
    assert runner.name == "my_script"
    np.testing.assert_array_equal(runner.infer({"x": X})["y"], -X)
    assert runner.last_inference_time() > 0


def test_a_script_may_return_a_runner(tmp_path):
    text = "from polytool import NativeRunner\ndef make(model):\n    return NativeRunner(model)\n"
    runner = registry.runner(write(tmp_path, text), MODEL)
    np.testing.assert_array_equal(runner.infer({"x": X})["y"], -X)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("def other(model): ...\n", UsageError, "defines no function 'make'; it has other"),
        ("1 / 0\n", RunnerError, "failed while it was read: ZeroDivisionError"),
        ("def make(model):\n    return 3\n", RunnerError, "gave a int; it must give"),
        ("def make(model):\n    return 1 / 0\n", RunnerError, "failed: ZeroDivisionError"),
    ],
)
def test_a_script_that_gives_no_runner_is_explained(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        registry.runner(write(tmp_path, text), MODEL)


def test_a_missing_script_is_named():
    with pytest.raises(UsageError, match=r"the script 'none\.py' does not exist"):
        registry.runner("none.py:make", MODEL)


def test_outputs_without_names_take_those_of_the_model():
    runner = as_runner(lambda feeds: -feeds["x"], "mine", MODEL)
    np.testing.assert_array_equal(runner.infer({"x": X})["y"], -X)
    with pytest.raises(RunnerError, match="returned 2 outputs without names where the model has 1"):
        as_runner(lambda feeds: (X, X), "mine", MODEL).infer({"x": X})


def test_a_callable_that_fails_is_a_failure_of_the_runner():
    with pytest.raises(RunnerError, match="mine failed: KeyError: 'z'"):
        as_runner(lambda feeds: feeds["z"], "mine").infer({"x": X})


def test_a_callable_may_say_its_inputs():
    def negate(feeds):
        return {"y": -feeds["x"]}

    negate.inputs = [TensorSpec("x", DType.FLOAT, ("n",))]
    assert as_runner(negate, "mine").inputs[0].name == "x"


class FakeTensor:
    """As much of a torch tensor as the runner needs."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.dtype = f"torch.{self.array.dtype}"

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array

    resolve_conj = resolve_neg = cpu


class FakeModule:
    """As much of a torch module."""

    def state_dict(self):
        return {}

    def parameters(self):
        return iter(())

    def forward(self, x):
        assert isinstance(x, FakeTensor)
        return FakeTensor(-x.array)

    __call__ = forward


@pytest.mark.parametrize("name", ["x", "input.1"])
def test_a_pytorch_module_gets_tensors_by_name_or_by_place(monkeypatch, name):
    torch = types.ModuleType("torch")
    torch.as_tensor = lambda value, device=None: FakeTensor(value)
    torch.no_grad = contextlib.nullcontext
    monkeypatch.setitem(sys.modules, "torch", torch)
    runner = as_runner(FakeModule(), "torch", MODEL)
    outputs = runner.infer({name: X})
    assert type(outputs["y"]) is np.ndarray
    np.testing.assert_array_equal(outputs["y"], -X)
