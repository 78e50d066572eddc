"""Tuned recurrent layers equal the operators in float64."""

import numpy as np
import pytest

from polytool import NativeRunner
from tests.tactics.tuned import assert_close, check, model, tactics_of

RNG = np.random.default_rng(3)
GATES = {"LSTM": 4, "GRU": 3}


def normal(*shape):
    return (0.4 * RNG.standard_normal(shape)).astype(np.float32)


def recurrent(op, direction, hidden, features, *, attributes="", state=True, bias=True):
    """A model of one recurrent layer; h0 and c0 are its inputs where `state`."""
    lanes, gates = (2 if direction == "bidirectional" else 1), GATES[op]
    weights = {
        "w": normal(lanes, gates * hidden, features),
        "r": normal(lanes, gates * hidden, hidden) / np.float32(hidden**0.5),
    }
    if bias:
        weights["b"] = normal(lanes, 2 * gates * hidden)
    names = ["h0", "c0"][: 2 if op == "LSTM" else 1] if state else []
    outputs = ["y", "yh", "yc"][: 3 if op == "LSTM" else 2]
    inputs = ", ".join(
        [f"float[T,B,{features}] x", *(f"float[{lanes},B,{hidden}] {n}" for n in names)]
    )
    declared = ", ".join(f"float[?,?,?{',?' if n == 'y' else ''}] {n}" for n in outputs)
    given = f"x, w, r, {'b' if bias else ''}, {',' if names else ''} {', '.join(names)}"
    body = (
        f'{", ".join(outputs)} = {op}<hidden_size={hidden}, direction="{direction}"'
        f"{attributes}>({given.rstrip(', ')})"
    )
    return model(body, inputs, declared, weights), lanes, names


CASES = [
    (op, direction, hidden, batch, attributes)
    for op, attributes in (
        ("LSTM", ""),
        ("GRU", ", linear_before_reset=0"),
        ("GRU", ", linear_before_reset=1"),
    )
    for direction in ("forward", "reverse", "bidirectional")
    for hidden, batch in ((7, 1), (16, 3), (200, 1), (192, 9))
]


@pytest.mark.parametrize(("op", "direction", "hidden", "batch", "attributes"), CASES)
def test_every_direction_size_and_batch(op, direction, hidden, batch, attributes):
    proto, lanes, names = recurrent(op, direction, hidden, 12, attributes=attributes)
    feeds = {"x": normal(5, batch, 12), **{n: normal(lanes, batch, hidden) for n in names}}
    check(proto, feeds, tactic="numpy.rnn", tolerance=4e-6)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_no_bias_and_no_initial_state(op):
    proto, _, _ = recurrent(op, "bidirectional", 10, 6, state=False, bias=False)
    check(proto, {"x": normal(4, 2, 6)}, tactic="numpy.rnn", tolerance=4e-6)


def test_states_given_by_the_caller_are_not_written_to():
    proto, lanes, _ = recurrent("LSTM", "forward", 8, 6)
    feeds = {"x": normal(3, 2, 6), "h0": normal(lanes, 2, 8), "c0": normal(lanes, 2, 8)}
    before = {name: value.copy() for name, value in feeds.items()}
    with NativeRunner(proto) as runner:
        runner.infer(feeds)
    for name, value in feeds.items():
        np.testing.assert_array_equal(value, before[name])


def test_shorter_sequences_take_the_operator():
    weights = {"w": normal(1, 32, 6), "r": normal(1, 32, 8), "b": normal(1, 64)}
    proto = model(
        "y = LSTM<hidden_size=8>(x, w, r, b, lengths)",
        "float[T,B,6] x, int32[B] lengths",
        "float[T,1,B,8] y",
        weights,
    )
    for lengths in ([4, 2, 3], [4, 4, 4]):
        feeds = {"x": normal(4, 3, 6), "lengths": np.array(lengths, np.int32)}
        check(proto, feeds, tactic="numpy.rnn", tolerance=4e-6)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_dynamically_quantised_lstm(direction, per_column):
    hidden, features = 12, 20
    lanes = 2 if direction == "bidirectional" else 1
    columns = (lanes, 4 * hidden) if per_column else (lanes,)
    weights = {
        "w": RNG.integers(0, 256, (lanes, features, 4 * hidden)).astype(np.uint8),
        "r": RNG.integers(0, 256, (lanes, hidden, 4 * hidden)).astype(np.uint8),
        "b": normal(lanes, 8 * hidden),
        "ws": (0.01 + 0.001 * RNG.random(columns)).astype(np.float32),
        "wz": np.full(columns, 128, np.uint8),
        "rs": (0.01 + 0.001 * RNG.random(columns)).astype(np.float32),
        "rz": np.full(columns, 120, np.uint8),
    }
    proto = model(
        f"y, yh, yc = com.microsoft.DynamicQuantizeLSTM<hidden_size={hidden},"
        f'direction="{direction}">(x, w, r, b, , , , , ws, wz, rs, rz)',
        f"float[T,B,{features}] x",
        "float[?,?,?,?] y, float[?,?,?] yh, float[?,?,?] yc",
        weights,
    )
    feeds = {"x": normal(6, 2, features)}
    with NativeRunner(proto) as tuned, NativeRunner(proto) as plain:
        assert tactics_of(tuned) == ["numpy.rnn"]
        for layer in plain.engine.network.layers:
            layer.tactic = "numpy.generic"
        found, expected = tuned.infer(feeds), plain.infer(feeds)
    for name, value in found.items():
        assert_close(value, expected[name], 1e-5)
