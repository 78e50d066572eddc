"""RNN, GRU and LSTM with every attribute, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from polytool.errors import ModelError
from tests.ops.conftest import Call
from tests.ops.one_node import Case, micro, sweep

Rng = np.random.Generator
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
# Those that are bounded, and whose parameters ONNX Runtime defaults as ONNX does.
PLAIN = ["Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid", "Elu", "Softsign"]
PARAMETRIC = ["ThresholdedRelu", "ScaledTanh", "Affine", *PLAIN]


def draw(rng: Rng) -> Iterator[Case]:
    def floats(*dims: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(dims) * 0.7).astype(np.float32)

    def maybe(*dims: int) -> np.ndarray[Any, Any] | None:
        return floats(*dims) if rng.integers(2) else None

    op = str(rng.choice(["RNN", "GRU", "LSTM"]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    lanes, hidden = (2 if direction == "bidirectional" else 1), 4
    batch, time, gates = int(rng.integers(1, 4)), int(rng.integers(1, 6)), GATES[op] * hidden
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    kind = rng.integers(3)
    if kind:
        count = FUNCTIONS[op] * lanes
        attrs["activations"] = rng.choice(PLAIN if kind == 1 else PARAMETRIC, count).tolist()
        if kind == 2:  # one value for each, used or not, is enough for all
            for name in ("activation_alpha", "activation_beta"):
                attrs[name] = [float(v) for v in rng.uniform(0.1, 0.9, count).astype(np.float32)]
    if rng.integers(2):
        attrs["clip"] = float(rng.choice([0.25, 1.5]))
    if op == "GRU":
        attrs["linear_before_reset"] = int(rng.integers(2))
    if op == "LSTM":
        attrs["input_forget"] = int(rng.integers(2))
    lengths = rng.integers(1, time + 1, batch).astype(np.int32) if rng.integers(2) else None
    inputs = [
        floats(time, batch, 3),
        floats(lanes, gates, 3),
        floats(lanes, gates, hidden),
        maybe(lanes, 2 * gates),
        lengths,
        maybe(lanes, batch, hidden),
    ]
    if op == "LSTM":
        inputs += [maybe(lanes, batch, hidden), maybe(lanes, 3 * hidden)]
    yield Case(op, inputs, attrs, 3 if op == "LSTM" else 2, opset=14, rtol=1e-3, atol=1e-4)


@pytest.mark.ort
def test_random_attributes_give_what_onnxruntime_gives() -> None:
    sweep(draw, range(60))


@pytest.mark.ort
@pytest.mark.slow
def test_many_random_attributes_give_what_onnxruntime_gives() -> None:
    sweep(draw, range(1000, 1600))


def draw_quantized(rng: Rng) -> Iterator[Case]:
    lanes = int(rng.integers(1, 3))
    direction = "bidirectional" if lanes == 2 else str(rng.choice(["forward", "reverse"]))
    signed, batch, hidden = bool(rng.integers(2)), int(rng.integers(1, 4)), 8
    low, kind = (-128, np.int8) if signed else (0, np.uint8)

    def weights(rows: int) -> np.ndarray[Any, Any]:
        return rng.integers(low, low + 256, (lanes, rows, 4 * hidden)).astype(kind)

    def floats(*dims: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(dims).astype(np.float32)

    lengths = rng.integers(1, 8, batch).astype(np.int32) if rng.integers(2) else None
    columns = (4 * hidden,) if rng.integers(2) else ()
    scale = np.abs(floats(lanes, *columns)) * np.float32(0.01)
    zero = np.full((lanes, *columns), low + 128 if columns else 5, dtype=kind)
    yield micro(
        "DynamicQuantizeLSTM",
        floats(7, batch, 10),
        weights(10),
        weights(hidden),
        floats(lanes, 8 * hidden),
        lengths,
        floats(lanes, batch, hidden),
        floats(lanes, batch, hidden),
        floats(lanes, 3 * hidden) if rng.integers(2) else None,
        *(scale, zero, scale, zero),
        outputs=3,
        hidden_size=hidden,
        direction=direction,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.ort
def test_dynamically_quantized_lstm_gives_what_onnxruntime_gives() -> None:
    sweep(draw_quantized, range(30))


@pytest.mark.parametrize("op", GATES)
def test_batch_major_layout_is_the_same_sequence(call: Call, op: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    w = rng.standard_normal((2, GATES[op] * 4, 3)).astype(np.float32)
    r = rng.standard_normal((2, GATES[op] * 4, 4)).astype(np.float32)
    h = rng.standard_normal((2, 2, 4)).astype(np.float32)
    lengths, options = np.array([5, 3]), {"direction": "bidirectional"}
    plain = call(op, x, w, r, None, lengths, h, **options)
    turned = call(op, x.swapaxes(0, 1), w, r, None, lengths, h.swapaxes(0, 1), layout=1, **options)
    np.testing.assert_array_equal(turned[0].transpose(1, 2, 0, 3), plain[0])
    for state, expected in zip(turned[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(state.swapaxes(0, 1), expected)


def test_thresholded_relu_and_affine_default_as_onnx_says(call: Call) -> None:
    x, one = np.array([[[0.5]], [[1.5]]], np.float32), np.ones((1, 1, 1), np.float32)
    y, _ = call("RNN", x, one, 0 * one, activations=["ThresholdedRelu"])
    assert y.ravel().tolist() == [0, 1.5]
    y, _ = call("RNN", x, one, 0 * one, activations=["Affine"])
    assert y.ravel().tolist() == [0.5, 1.5]


def test_alphas_go_to_the_functions_that_take_one(call: Call) -> None:
    x, w = np.array([[[-1.0]]], np.float32), np.ones((1, 3, 1), np.float32)
    r = np.zeros((1, 3, 1), np.float32)
    # Tanh takes none, so LeakyRelu gets the first: h = (1 - tanh(-1)) * (0.25 * -1)
    y, _ = call("GRU", x, w, r, activations=["Tanh", "LeakyRelu"], activation_alpha=[0.25])
    np.testing.assert_allclose(y.item(), (1 - np.tanh(-1.0)) * -0.25, rtol=1e-6)


def test_unknown_names_are_errors(call: Call) -> None:
    x, w = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    with pytest.raises(ModelError, match="'Swish' is no activation"):
        call("RNN", x, w, w, activations=["Swish"])
    with pytest.raises(ModelError, match="'backward' is no direction"):
        call("RNN", x, w, w, direction="backward")
