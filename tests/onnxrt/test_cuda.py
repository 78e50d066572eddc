"""ONNX Runtime's CUDA provider: inputs bound where they are, outputs on the same device."""

import numpy as np
import onnx.parser
import pytest

from polytool import OnnxrtRunner
from scripts import made_models

ort = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.ort,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="no onnxruntime-gpu"
    ),
]
FEEDS = {"ids": np.arange(32).reshape(2, 16) % 500, "mask": np.ones((2, 16), np.int64)}
MODEL = made_models.transformer(layers=2, width=64, heads=4, vocabulary=500)


def error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_numpy_in_gives_numpy_out():
    expected = OnnxrtRunner(MODEL, providers=["cpu"]).infer(FEEDS)["y"]
    with OnnxrtRunner(MODEL, providers=["cuda"]) as runner:
        got = runner.infer(FEEDS)["y"]
    assert isinstance(got, np.ndarray)
    assert error(got, expected) < 1e-2  # TF32 may be used


def test_torch_tensors_stay_on_the_gpu():
    torch = pytest.importorskip("torch")
    given = {n: torch.from_numpy(v).cuda() for n, v in FEEDS.items()}
    with OnnxrtRunner(MODEL, providers=["cuda"]) as runner:
        expected = runner.infer(FEEDS)["y"]
        got = runner.infer(given)["y"]
        assert got.is_cuda
        assert np.array_equal(got.cpu().numpy(), expected)
        given["ids"] += 1
        moved = runner.infer(given)["y"]
    assert not torch.equal(moved, got)


def test_results_of_two_inferences_are_two_tensors():
    torch = pytest.importorskip("torch")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,4] y) { y = Abs(x) }'
    )
    with OnnxrtRunner(model, providers=["cuda"]) as runner:
        first = runner.infer({"x": -torch.ones(3, 4).cuda()})["y"]
        second = runner.infer({"x": -2 * torch.ones(5, 4).cuda()})["y"]
    assert first.shape == (3, 4) and second.shape == (5, 4)
    assert float(first.sum()) == 12 and float(second.sum()) == 40


def test_taps_are_observed_in_order():
    seen = []
    with OnnxrtRunner(MODEL, providers=["cuda"]) as runner:
        runner.infer(FEEDS, observe=lambda tap, value: seen.append((tap.tensor, value)))
        assert [name for name, _ in seen] == [t.tensor for t in runner.taps()]
    assert all(np.isfinite(v).all() for _, v in seen if v.dtype.kind == "f")
