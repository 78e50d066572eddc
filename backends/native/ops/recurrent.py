"""RNN, GRU and LSTM: every direction, layout, activation, peephole and clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from polytool.backends.native.ops import activation
from polytool.backends.native.ops.registry import Arg, Array, flops, op, shape
from polytool.errors import ModelError

Activation = Callable[[Any, Array], Array]
Step = Callable[..., tuple[Array, ...]]


def _scaled_tanh(xp: Any, x: Array, *, alpha: float, beta: float) -> Array:
    return alpha * xp.tanh(beta * x)


def _affine(xp: Any, x: Array, *, alpha: float, beta: float) -> Array:
    return alpha * x + beta


def _tanh(xp: Any, x: Array) -> Array:
    return xp.tanh(x)


# name -> function and the defaults of what it takes
ACTIVATIONS: dict[str, tuple[Callable[..., Array], dict[str, float]]] = {
    "relu": (activation.relu, {}),
    "tanh": (_tanh, {}),
    "sigmoid": (activation.sigmoid, {}),
    "softsign": (activation.softsign, {}),
    "softplus": (activation.softplus, {}),
    "leakyrelu": (activation.leaky_relu, {"alpha": 0.01}),
    "thresholdedrelu": (activation.thresholded_relu, {"alpha": 1.0}),
    "elu": (activation.elu, {"alpha": 1.0}),
    "hardsigmoid": (activation.hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
    "scaledtanh": (_scaled_tanh, {"alpha": 1.0, "beta": 1.0}),
    "affine": (_affine, {"alpha": 1.0, "beta": 0.0}),
}


def activation_functions(
    names: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    default: Sequence[str],
    directions: int,
) -> list[list[Activation]]:
    """The activation functions of each direction.

    `alphas` and `betas` are consumed, in order, by the functions that take one.
    """
    names = names or list(default) * directions
    left = {"alpha": iter(alphas or ()), "beta": iter(betas or ())}
    chosen: list[Activation] = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise ModelError(f"{name!r} is no activation that ONNX defines for RNN, GRU and LSTM")
        function, defaults = ACTIVATIONS[name.lower()]
        chosen.append(partial(function, **{k: next(left[k], v) for k, v in defaults.items()}))
    each = len(default)
    return [chosen[i * each : (i + 1) * each] for i in range(directions)]


LSTM_DEFAULT = ("Sigmoid", "Tanh", "Tanh")


@dataclass(frozen=True)
class Recurrence:
    """What the three operators have in common: directions, layout and lengths.

    Attributes:
        lengths: int array (batch,), or None where every sequence is whole.
        clip: the bound on what enters an activation, or None.
    """

    xp: Any
    direction: str = "forward"
    layout: int = 0
    lengths: Array | None = None
    clip: float | None = None

    @property
    def reversed(self) -> list[bool]:
        """One flag a direction."""
        flags = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
        if self.direction not in flags:
            raise ModelError(f"{self.direction!r} is no direction: forward, reverse, bidirectional")
        return flags[self.direction]

    def functions(
        self,
        names: Sequence[str] | None,
        alphas: Sequence[float] | None,
        betas: Sequence[float] | None,
        default: Sequence[str],
    ) -> list[list[Activation]]:
        """The activations of each direction; see `activation_functions`."""
        return activation_functions(names, alphas, betas, default, len(self.reversed))

    def bounded(self, x: Array) -> Array:
        """`x` within +-clip."""
        return x if self.clip is None else self.xp.clip(x, -self.clip, self.clip)

    def time_major(self, x: Array) -> Array:
        """The input as (time, batch, features)."""
        return x.swapaxes(0, 1) if self.layout else x

    def initial(self, state: Array | None, like: Array, hidden: int) -> Array:
        """An initial state as (directions, batch, hidden); `like` is time major."""
        if state is None:
            shape = (len(self.reversed), like.shape[1], hidden)
            return self.xp.zeros(shape, dtype=like.dtype)
        return state.swapaxes(0, 1) if self.layout else state

    def turned(self, x: Array) -> Array:
        """Each sequence backwards in time; what lies behind its end stays there."""
        if self.lengths is None:
            return x[::-1]
        time = self.xp.arange(x.shape[0])[:, None]
        source = self.xp.where(time < self.lengths, self.lengths - 1 - time, time)
        return x[source, self.xp.arange(x.shape[1])]

    def run(self, gates: Array, step: Step, states: tuple[Array, ...], backwards: bool) -> Any:
        """Run one direction: outputs (time, batch, hidden) and the last states.

        `step(gates[t], *states)` returns the new states, the output first. One step after a
        sequence's end it sees zeros: they count where a step quantises by the range of its input.
        """
        xp = self.xp
        gates = self.turned(gates) if backwards else gates
        outputs = xp.zeros((*gates.shape[:2], states[0].shape[-1]), dtype=gates.dtype)
        for time in range(gates.shape[0] if outputs.size else 0):
            if self.lengths is None:
                states = step(gates[time], *states)
                outputs[time] = states[0]
                continue
            alive = (time < self.lengths)[:, None]
            seen = (time <= self.lengths)[:, None]
            new = step(gates[time], *(xp.where(seen, s, xp.zeros_like(s)) for s in states))
            outputs[time] = xp.where(alive, new[0], xp.zeros_like(new[0]))
            states = tuple(xp.where(alive, a, b) for a, b in zip(new, states, strict=True))
        return (self.turned(outputs) if backwards else outputs), states

    def collect(self, runs: list[Any]) -> tuple[Array, ...]:
        """Y and the last states of all directions, in the layout asked for."""
        y = self.xp.stack([outputs for outputs, _ in runs], axis=1)
        last = [self.xp.stack(parts) for parts in zip(*(s for _, s in runs), strict=True)]
        if self.layout:
            y = y.transpose(2, 0, 1, 3)
            last = [state.swapaxes(0, 1) for state in last]
        return y, *last


def _biases(xp: Any, b: Array | None, direction: int, width: int, like: Array) -> list[Array]:
    """The biases of the input and of the recurrence, (width,) each."""
    if b is None:
        return [xp.zeros(width, dtype=like.dtype)] * 2
    return [b[direction, :width], b[direction, width:]]


@op("RNN", since=1)
def rnn(
    xp: Any,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Array, ...]:
    """H = f(X W' + H R' + b)."""
    frame = Recurrence(xp, direction, layout, sequence_lens, clip)
    functions = frame.functions(activations, activation_alpha, activation_beta, ("Tanh",))
    x, hidden = frame.time_major(x), r.shape[-1]
    h0, runs = frame.initial(initial_h, x, hidden), []
    for i, backwards in enumerate(frame.reversed):
        bias, recurrent_bias = _biases(xp, b, i, hidden, x)
        step = _rnn_step(frame, r[i].T, functions[i])
        runs.append(frame.run(x @ w[i].T + (bias + recurrent_bias), step, (h0[i],), backwards))
    return frame.collect(runs)


def _rnn_step(frame: Recurrence, r: Array, functions: list[Activation]) -> Step:
    def step(gates: Array, h: Array) -> tuple[Array]:
        return (functions[0](frame.xp, frame.bounded(gates + h @ r)),)

    return step


@op("GRU", since=1)
def gru(
    xp: Any,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Array, ...]:
    """Gates in the order update z, reset r, hidden h; H = (1 - z) h + z H."""
    frame = Recurrence(xp, direction, layout, sequence_lens, clip)
    default = ("Sigmoid", "Tanh")
    functions = frame.functions(activations, activation_alpha, activation_beta, default)
    x, hidden = frame.time_major(x), r.shape[-1]
    h0, runs = frame.initial(initial_h, x, hidden), []
    for i, backwards in enumerate(frame.reversed):
        bias, recurrent_bias = _biases(xp, b, i, 3 * hidden, x)
        inner = recurrent_bias[2 * hidden :]
        if not linear_before_reset:
            bias = bias + recurrent_bias
        else:
            bias = xp.concatenate([(bias + recurrent_bias)[: 2 * hidden], bias[2 * hidden :]])
        step = _gru_step(frame, r[i].T, inner, functions[i], bool(linear_before_reset))
        runs.append(frame.run(x @ w[i].T + bias, step, (h0[i],), backwards))
    return frame.collect(runs)


def _gru_step(
    frame: Recurrence, r: Array, inner: Array, functions: list[Activation], linear: bool
) -> Step:
    xp, hidden = frame.xp, r.shape[0]
    f, g = functions
    r_zr, r_h = r[:, : 2 * hidden], r[:, 2 * hidden :]

    def step(gates: Array, h: Array) -> tuple[Array]:
        zr = f(xp, frame.bounded(gates[:, : 2 * hidden] + h @ r_zr))
        z, reset = zr[:, :hidden], zr[:, hidden:]
        recurrent = reset * (h @ r_h + inner) if linear else (reset * h) @ r_h
        new = g(xp, frame.bounded(gates[:, 2 * hidden :] + recurrent))
        return ((1 - z) * new + z * h,)

    return step


@op("LSTM", since=1)
def lstm(
    xp: Any,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Array, ...]:
    """Gates in the order input i, output o, forget f, cell c; peepholes in the order i, o, f."""
    frame = Recurrence(xp, direction, layout, sequence_lens, clip)
    functions = frame.functions(activations, activation_alpha, activation_beta, LSTM_DEFAULT)
    x, hidden = frame.time_major(x), r.shape[-1]
    h0, c0 = frame.initial(initial_h, x, hidden), frame.initial(initial_c, x, hidden)
    runs = []
    for i, backwards in enumerate(frame.reversed):
        bias, recurrent_bias = _biases(xp, b, i, 4 * hidden, x)
        peepholes = None if p is None else p[i]
        step = lstm_step(frame, _times(r[i].T), peepholes, functions[i], bool(input_forget))
        gates = x @ w[i].T + (bias + recurrent_bias)
        runs.append(frame.run(gates, step, (h0[i], c0[i]), backwards))
    return frame.collect(runs)


def _times(matrix: Array) -> Callable[[Array], Array]:
    return lambda h: h @ matrix


def lstm_step(
    frame: Recurrence,
    recurrent: Callable[[Array], Array],
    peepholes: Array | None,
    functions: list[Activation],
    input_forget: bool,
) -> Step:
    """One step of an LSTM; `recurrent(h)` gives what the four gates get from the last output."""
    xp, (f, g, h_function) = frame.xp, functions

    def step(gates: Array, h: Array, c: Array) -> tuple[Array, Array]:
        hidden = h.shape[-1]
        i, o, forget, new = xp.split(gates + recurrent(h), 4, axis=-1)
        if peepholes is not None:
            i = i + peepholes[:hidden] * c
            forget = forget + peepholes[2 * hidden :] * c
        i = f(xp, frame.bounded(i))
        forget = 1 - i if input_forget else f(xp, frame.bounded(forget))
        c = forget * c + i * g(xp, frame.bounded(new))
        if peepholes is not None:
            o = o + peepholes[hidden : 2 * hidden] * c
        return f(xp, frame.bounded(o)) * h_function(xp, c), c

    return step


@shape("RNN", "GRU", "LSTM")
def recurrent_shape(
    x: Arg, w: Arg, r: Arg, *_: Arg | None, layout: int = 0, **__: Any
) -> list[tuple[int, ...]]:
    """Y, Y_h and for LSTM Y_c."""
    directions, hidden = r.shape[0], r.shape[-1]
    if layout:
        batch, time = x.shape[:2]
        state: tuple[int, ...] = (batch, directions, hidden)
        return [(batch, time, directions, hidden), state, state]
    time, batch = x.shape[:2]
    state = (directions, batch, hidden)
    return [(time, directions, batch, hidden), state, state]


@flops("RNN", "GRU", "LSTM")
def recurrent_flops(x: Arg, w: Arg, r: Arg, *_: Arg | None, **__: Any) -> int:
    """The two matrix products of every time step."""
    directions, gates, hidden = r.shape
    return 2 * x.shape[0] * x.shape[1] * directions * gates * (x.shape[2] + hidden)
