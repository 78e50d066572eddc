"""Torch's tensors as inputs and outputs, and its modules as runners, where torch is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array
from onnx.parser import parse_model

import polytool
from polytool.backends.callables import as_runner
from polytool.cli import main
from polytool.errors import RunnerError, UsageError

torch: Any = pytest.importorskip("torch")

HEAD = '<ir_version: 10, opset_import: ["": 22]> g '
DTYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "int8": "int8",
    "uint8": "uint8",
}


def negation(dtype: str) -> onnx.ModelProto:
    return parse_model(HEAD + f"({dtype}[n,3] x) => ({dtype}[n,3] y) {{ y = Add(x, x) }}")


def dense() -> tuple[Any, onnx.ModelProto]:
    """A module, and the same as an ONNX model."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    text = "(float[n,6] input) => (float[n,2] y) { a = Gemm<transB=1>(input, w0, b0) b = Relu(a) "
    proto = parse_model(HEAD + text + "y = Gemm<transB=1>(b, w2, b2) }")
    for name, value in module.state_dict().items():
        place, kind = name.split(".")
        proto.graph.initializer.append(from_array(value.numpy(), kind[0] + place))
    return module, proto


@pytest.mark.parametrize(("label", "onnx_type"), DTYPES.items())
def test_tensors_of_every_type_go_in(label: str, onnx_type: str) -> None:
    x = torch.arange(6).reshape(2, 3).to(getattr(torch, label))
    y = polytool.NativeRunner(negation(onnx_type)).infer({"x": x})["y"]
    assert y.astype(np.float64).tolist() == (2 * np.arange(6.0).reshape(2, 3)).tolist()
    expected = ml_dtypes.bfloat16 if label == "bfloat16" else np.dtype(label)
    assert y.dtype == expected


@pytest.mark.parametrize("kind", ["strided", "needs a gradient", "conjugate view"])
def test_tensors_in_unusual_states_go_in(kind: str) -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(3, 2).T
    plain = x.numpy().copy()
    if kind == "needs a gradient":
        x = x.clone().requires_grad_()
    elif kind == "conjugate view":
        x = torch.complex(torch.zeros(2, 3), -x).conj().imag
    y = polytool.NativeRunner(negation("float")).infer({"x": x})["y"]
    assert np.array_equal(y, 2 * plain)


@pytest.mark.ort
def test_onnxruntime_gives_tensors_for_tensors() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    y = polytool.OnnxrtRunner(negation("float")).infer({"x": x})["y"]
    assert isinstance(y, torch.Tensor) and torch.equal(y, 2 * x)


def test_a_wrong_tensor_is_refused_in_the_words_of_the_model() -> None:
    runner = polytool.NativeRunner(negation("float"))
    with pytest.raises(UsageError, match=r"input 'x' is float64, but .* expects float32\[n, 3\]"):
        runner.infer({"x": torch.zeros(2, 3, dtype=torch.float64)})
    with pytest.raises(UsageError, match="dimension 1 is 4, not 3"):
        runner.infer({"x": torch.zeros(2, 4)})


@pytest.mark.ort
def test_tensors_are_data_for_all_runners(tmp_path: Path) -> None:
    module, proto = dense()
    feeds = [{"input": torch.randn(3, 6)}, {"input": torch.randn(4, 6)}]
    runners = ["native", "onnxrt", as_runner(module, "torch", proto)]
    results = polytool.run(proto, runners, feeds)
    results.save(tmp_path / "results.json")
    loaded = polytool.RunResults.load(tmp_path / "results.json")
    for name in ("onnxrt", "torch"):
        assert polytool.compare(loaded[name], loaded["native"]).agreed
    assert loaded["native"][1]["y"].shape == (4, 2)
    assert results["torch"].settings["version"] == torch.__version__


@pytest.mark.parametrize("label", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int8"])
def test_dicts_of_tensors_are_compared(label: str) -> None:
    x = torch.arange(1, 9).to(getattr(torch, label))
    assert polytool.compare({"y": x}, {"y": x.clone()}).agreed
    other = torch.arange(1, 9)
    other[3] = 40
    assert not polytool.compare({"y": other.to(getattr(torch, label))}, {"y": x}).agreed


def test_a_module_runs_without_gradients_and_says_what_failed() -> None:
    module, proto = dense()
    runner = as_runner(module, "torch", proto)
    y = runner.infer({"input": np.ones((2, 6), np.float32)})["y"]
    assert isinstance(y, np.ndarray) and y.shape == (2, 2)
    with pytest.raises(RunnerError, match="torch failed: RuntimeError"):
        runner.infer({"input": np.ones((2, 7), np.float32)})


@pytest.mark.parametrize("command", [["run", "--native"], ["bench", "--duration", "0"]], ids=str)
def test_a_module_from_a_script_runs_in_the_command(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    module, proto = dense()
    Path("m.onnx").write_bytes(proto.SerializeToString())
    torch.save(module, "module.pt")
    Path("script.py").write_text(
        "import torch\ndef make_runner(model):\n"
        "    return torch.load('module.pt', weights_only=False)\n"
    )
    name, *options = command
    assert main([name, "m.onnx", *options, "--runner", "script.py:make_runner", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    if name == "run":
        assert found["verdict"] == "agree"
        assert found["settings"]["script"]["backend"] == "torch"
    else:
        (runner,) = found["runners"]
        assert runner["settings"]["version"] == torch.__version__
