"""LSTM, GRU and DynamicQuantizeLSTM with constant weights and the default activations.

One product makes all time steps' inputs. The steps then run over preallocated buffers, both
directions at once while they are small, on two threads when the recurrent matrices are large.
sigmoid(x) is computed as tanh(x / 2) / 2 + 1/2: the half is in the weights, which is exact, and
one tanh serves all gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node
from polytool.backends.native.tactics.base import Launch, Mode, Tactic
from polytool.backends.native.tactics.gemm_plans import ConstantMatrix
from polytool.backends.native.tactics.lowering import EXACT, FLOAT, clip, stored_as
from polytool.backends.native.tactics.numpy_generic import Generic, stored_constant
from polytool.backends.native.tactics.numpy_integer import byte_range, column_bound
from polytool.backends.native.tactics.pool import parallel

Array = np.ndarray[Any, Any]
Product = Callable[[Array, Array], None]
"""`product(h, out)`: what the gates get from the last output, for some lanes."""
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_DEFAULTS = {
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "DynamicQuantizeLSTM": ("sigmoid", "tanh", "tanh"),
    "GRU": ("sigmoid", "tanh"),
}
_GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3}
# Multiply-adds of one step above which each direction gets a thread.
_LARGE = 1 << 17
_LENGTHS, _H0, _C0, _P = 4, 5, 6, 7


class Recurrent(Tactic):
    """A whole sequence in one layer."""

    name = "numpy.rnn"
    priority = 10

    def supports(self, layer: Layer, mode: Mode) -> bool:
        (node, *rest) = layer.nodes
        known = ("", "LSTM"), ("", "GRU"), ("com.microsoft", "DynamicQuantizeLSTM")
        if rest or mode.wide or (node.domain, node.op) not in known:
            return False
        return node.precision != "tf32" and _plain_attributes(node) and _plain_inputs(node)

    def compile(self, layer: Layer, mode: Mode) -> Launch:
        node = layer.nodes[0]
        cell = _quantized_cell(node, mode) if node.domain else _float_cell(node, mode)
        if cell is None:
            return Generic().compile(layer, mode)
        fallback = Generic().compile(layer, mode)
        positions = [
            layer.inputs.index(t) if t is not None and t.constant is None else -1
            for t in (*node.inputs, *[None] * (8 - len(node.inputs)))[:8]
        ]
        constants = [
            stored_constant(t, mode) if t is not None and t.constant is not None else None
            for t in (*node.inputs, *[None] * (8 - len(node.inputs)))[:8]
        ]
        wanted = [i for i, t in enumerate(node.outputs) if t is not None]
        n_states = 1 if node.op == "GRU" else 2

        def launch(*args: Any) -> Sequence[Any]:
            def given(index: int) -> Any:
                return args[positions[index]] if positions[index] >= 0 else constants[index]

            x, lengths = given(0), given(_LENGTHS)
            if x.size == 0 or (lengths is not None and (lengths != x.shape[0]).any()):
                return fallback(*args)
            states = []
            for index in (_H0, _C0)[:n_states]:
                start, shape = given(index), (cell.lanes, x.shape[1], cell.hidden)
                states.append(np.zeros(shape, np.float32) if start is None else start.copy())
            results = _run(cell, x, states)
            return [results[i] for i in wanted]

        return launch


def _plain_attributes(node: Node) -> bool:
    attrs = node.attrs
    direction = attrs.get("direction", "forward")
    if direction not in _DIRECTIONS or attrs.get("layout", 0) or attrs.get("clip"):
        return False
    default = _DEFAULTS[node.op] * _DIRECTIONS[direction]
    names = tuple(str(a).lower() for a in attrs.get("activations") or default)
    return names == default and not attrs.get("input_forget", 0)


def _plain_inputs(node: Node) -> bool:
    inputs = [*node.inputs, *[None] * (12 - len(node.inputs))]
    x, w, r, bias = inputs[:4]
    if x is None or w is None or r is None or stored_as(x) != FLOAT:
        return False
    if node.op != "GRU" and inputs[_P] is not None:
        return False
    weights = [w, r, bias, *(inputs[8:12] if node.domain else ())]
    return all(t is None or t.constant is not None for t in weights)


@dataclass(frozen=True)
class Cell:
    """A recurrent layer's weights, ready to run.

    Attributes:
        backwards: one flag a lane; a lane is a direction.
        project: `project(x, lane)`: the gates' input part, (time, batch, gates hidden).
        products: one a lane: what the gates get from the last output.
        together: all lanes at once, gate by gate: `h` (lanes, batch, hidden), out (gates, lanes,
            batch, hidden). None where they must not be mixed.
        inner: GRU: the recurrent bias of the new state, (lanes, 1, hidden).
        linear: GRU: the reset gate applies after the recurrent product; None for LSTM.
        late: GRU without `linear`: the recurrent product of the new state, one a lane.
    """

    hidden: int
    backwards: tuple[bool, ...]
    project: Callable[[Array, int], Array]
    products: tuple[Product, ...]
    together: Product | None
    inner: Array | None = None
    linear: bool | None = None
    late: tuple[Product, ...] = ()

    @property
    def lanes(self) -> int:
        """How many directions there are."""
        return len(self.backwards)


def _backwards(node: Node) -> tuple[bool, ...]:
    direction = node.attrs.get("direction", "forward")
    return {"forward": (False,), "reverse": (True,)}.get(direction, (False, True))


def _halved(node: Node, hidden: int) -> Array:
    """A factor for each gate's column: a half where the gate is a sigmoid."""
    sigmoids = (3 if node.op != "GRU" else 2) * hidden
    factor = np.ones(_GATES[node.op] * hidden, np.float32)
    factor[:sigmoids] = 0.5
    return factor


def _float_cell(node: Node, mode: Mode) -> Cell:
    w, r, *rest = (stored_constant(t, mode) for t in node.inputs[1:4] if t is not None)
    hidden, factor = r.shape[2], _halved(node, r.shape[2])
    bias = rest[0] if rest else np.zeros((len(w), 2 * len(factor)), np.float32)
    width = len(factor)
    linear: bool | None = None
    inner = None
    shared = bias[:, :width] + bias[:, width:]
    if node.op == "GRU":
        linear = bool(node.attrs.get("linear_before_reset", 0))
        if linear:
            shared[:, 2 * hidden :] = bias[:, 2 * hidden : width]
            inner = np.ascontiguousarray(bias[:, None, width + 2 * hidden :])
    inputs = [ConstantMatrix(np.ascontiguousarray((m * factor[:, None]).T)) for m in w]
    recurrent = np.ascontiguousarray((r * factor[:, None]).transpose(0, 2, 1))
    late: tuple[Product, ...] = ()
    if linear is False:
        new = np.ascontiguousarray(recurrent[:, :, 2 * hidden :])
        late = tuple(_product(new[i : i + 1]) for i in range(len(w)))
        recurrent = np.ascontiguousarray(recurrent[:, :, : 2 * hidden])

    def project(x: Array, lane: int) -> Array:
        time, batch, depth = x.shape
        gates = np.empty((time * batch, width), np.float32)
        inputs[lane].multiply(x.reshape(-1, depth), gates, None)
        gates += shared[lane] * factor
        return gates.reshape(time, batch, width)

    together: Product | None = None
    if r[0].size <= _LARGE and linear is not False:
        gate_by_gate = recurrent.reshape(len(w), hidden, -1, hidden).transpose(2, 0, 1, 3)
        matrices = np.ascontiguousarray(gate_by_gate)

        def together(h: Array, out: Array) -> None:
            np.matmul(h, matrices, out=out)

    return Cell(
        hidden,
        _backwards(node),
        project,
        tuple(_product(recurrent[i : i + 1]) for i in range(len(w))),
        together,
        inner,
        linear,
        late,
    )


def _product(matrix: Array) -> Product:
    """Lanes of `h` times lanes of `matrix` (lanes, hidden, columns)."""
    packed = [ConstantMatrix(m) for m in matrix]

    def product(h: Array, out: Array) -> None:
        if h.shape[1] * matrix.shape[1] * matrix.shape[2] <= _LARGE or h.shape[1] == 1:
            np.matmul(h, matrix, out=out)
            return
        for lane, part in enumerate(packed):
            part.multiply(h[lane], out[lane], None)

    return product


def _quantized_cell(node: Node, mode: Mode) -> Cell | None:
    """DynamicQuantizeLSTM: weights (lanes, features, 4 hidden) in 8 bits."""
    inputs = [
        None if t is None or t.constant is None else stored_constant(t, mode)
        for t in (*node.inputs, *[None] * (12 - len(node.inputs)))
    ]
    w, r, bias = inputs[1:4]
    assert w is not None and r is not None
    hidden = r.shape[1]
    factor = _halved(node, hidden)
    matrices = []
    for values, scale, zero in ((w, *inputs[8:10]), (r, *inputs[10:12])):
        assert scale is not None
        centred = values.astype(np.float32)
        if zero is not None:
            centred -= zero.astype(np.float32).reshape(len(values), 1, -1)
        if any(column_bound(m) >= EXACT for m in centred):
            return None
        scales = np.broadcast_to(scale.reshape(len(values), -1), (len(values), len(factor)))
        matrices.append(
            [(ConstantMatrix(m), s * factor) for m, s in zip(centred, scales, strict=True)]
        )
    shared = np.zeros((len(w), len(factor)), np.float32)
    if bias is not None:
        shared = (bias[:, : len(factor)] + bias[:, len(factor) :]) * factor

    def project(x: Array, lane: int) -> Array:
        time, batch, depth = x.shape
        gates = np.empty((time * batch, len(factor)), np.float32)
        _dynamic_product(x.reshape(-1, depth), *matrices[0][lane], gates)
        gates += shared[lane]
        return gates.reshape(time, batch, -1)

    def recurrent(lane: int) -> Product:
        matrix, scales = matrices[1][lane]
        return lambda h, out: _dynamic_product(h[0], matrix, scales, out[0])

    products = tuple(recurrent(i) for i in range(len(w)))
    return Cell(hidden, _backwards(node), project, products, None)


def _dynamic_product(x: Array, matrix: ConstantMatrix, scales: Array, out: Array) -> None:
    """`x`, quantised by its own range, times integer weights, times both scales."""
    scale, zero = byte_range(x)
    values = np.divide(x, scale)
    np.rint(values, out=values)
    clip(values, -zero, np.float32(255) - zero, values)
    matrix.multiply(values, out, None)
    out *= scales * scale


def _run(cell: Cell, x: Array, states: list[Array]) -> list[Array]:
    """Y (time, lanes, batch, hidden) and the last states (lanes, batch, hidden)."""
    time, batch = x.shape[:2]
    x = np.ascontiguousarray(x)
    y = np.empty((time, cell.lanes, batch, cell.hidden), np.float32)
    if cell.together is not None and cell.lanes > 1:
        gates = [_in_order(cell.project(x, i), b) for i, b in enumerate(cell.backwards)]
        stacked = np.stack(gates, axis=1).reshape(*y.shape[:3], -1, cell.hidden)
        stacked = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2, 4))
        outputs = _steps(cell, _Gates(stacked, cell.hidden, apart=True), states, cell.together)
        for lane, back in enumerate(cell.backwards):
            y[:, lane] = outputs[::-1, lane] if back else outputs[:, lane]
        return [y, *states]

    def lane_of(index: int) -> None:
        back, lane = cell.backwards[index], slice(index, index + 1)
        gates = _Gates(_in_order(cell.project(x, index), back)[:, None], cell.hidden, apart=False)
        own = [state[lane] for state in states]
        outputs = _steps(cell, gates, own, cell.products[index], index)
        y[:, index] = outputs[::-1, 0] if back else outputs[:, 0]

    if cell.lanes > 1 and time * batch * cell.hidden**2 > 1 << 20:
        parallel(lane_of, cell.lanes)
    else:
        for index in range(cell.lanes):
            lane_of(index)
    return [y, *states]


def _in_order(gates: Array, backwards: bool) -> Array:
    return gates[::-1] if backwards else gates


class _Gates:
    """The input part of all gates, step by step.

    Either (time, lanes, batch, gates hidden), or `apart`: (time, gates, lanes, batch, hidden), so
    that every gate is contiguous whatever the number of lanes.
    """

    def __init__(self, values: Array, hidden: int, *, apart: bool) -> None:
        self.values, self._hidden, self._apart = values, hidden, apart
        lanes, batch = values.shape[2:4] if apart else values.shape[1:3]
        self.state = (lanes, batch, hidden)

    def buffer(self, gates: int) -> Array:
        """Memory for `gates` gates of one step."""
        lanes, batch, hidden = self.state
        shape = (gates, *self.state) if self._apart else (lanes, batch, gates * hidden)
        return np.empty(shape, np.float32)

    def one(self, step: Array, index: int) -> Array:
        """Gate `index` of a step, (lanes, batch, hidden)."""
        part: Array = step[index] if self._apart else self.several(step, index, index + 1)
        return part

    def several(self, step: Array, first: int, last: int) -> Array:
        """Gates `first` up to `last` of a step."""
        if self._apart:
            return step[first:last]
        return step[..., first * self._hidden : last * self._hidden]


def _steps(
    cell: Cell, gates: _Gates, states: list[Array], product: Product, lane: int = 0
) -> Array:
    """Outputs (time, lanes, batch, hidden) in the order of the steps; updates `states`."""
    outputs = np.empty((len(gates.values), *gates.state), np.float32)
    if cell.linear is None:
        _lstm_steps(gates, states[0], states[1], outputs, product)
    else:
        _gru_steps(cell, gates, states[0], outputs, product, lane)
    return outputs


def _lstm_steps(gates: _Gates, h: Array, c: Array, outputs: Array, product: Product) -> None:
    """`h` and `c` (lanes, batch, hidden) are updated in place."""
    g, part = gates.buffer(4), np.empty_like(c)
    sigmoids = gates.several(g, 0, 3)
    i, o, forget, new = (gates.one(g, k) for k in range(4))
    last = h
    for step, following in zip(gates.values, outputs, strict=True):
        product(last, g)
        np.add(g, step, out=g)
        np.tanh(g, out=g)
        np.multiply(sigmoids, 0.5, out=sigmoids)
        np.add(sigmoids, 0.5, out=sigmoids)
        np.multiply(c, forget, out=c)
        np.multiply(i, new, out=part)
        np.add(c, part, out=c)
        np.tanh(c, out=part)
        last = following
        np.multiply(o, part, out=last)
    h[...] = last


def _gru_steps(
    cell: Cell, gates: _Gates, h: Array, outputs: Array, product: Product, lane: int
) -> None:
    """`h` (lanes, batch, hidden) is updated in place."""
    g, new = gates.buffer(3 if cell.linear else 2), np.empty_like(h)
    zr = gates.several(g, 0, 2)
    z, reset = gates.one(g, 0), gates.one(g, 1)
    inner = None if cell.inner is None else cell.inner[lane : lane + len(h)]
    last = h
    for step, following in zip(gates.values, outputs, strict=True):
        product(last, g)
        np.add(zr, gates.several(step, 0, 2), out=zr)
        np.tanh(zr, out=zr)
        np.multiply(zr, 0.5, out=zr)
        np.add(zr, 0.5, out=zr)
        if inner is not None:
            np.add(gates.one(g, 2), inner, out=new)
            np.multiply(new, reset, out=new)
        else:
            cell.late[lane](np.multiply(reset, last), new)
        np.add(new, gates.one(step, 2), out=new)
        np.tanh(new, out=new)
        np.subtract(last, new, out=following)
        np.multiply(following, z, out=following)
        np.add(following, new, out=following)
        last = following
    h[...] = last
