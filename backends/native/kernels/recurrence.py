"""RNN, GRU and LSTM: the steps through time, all in one launch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from polytool.backends.native.kernels.expr import Step, Tree, emit, literal
from polytool.backends.native.kernels.source import (
    C_TYPES,
    Argument,
    Buffer,
    Call,
    Kernel,
    Plan,
    assemble,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

KINDS = {"RNN": (0, 1), "GRU": (1, 3), "LSTM": (2, 4)}
"""The number of each kind in the template, and how many gates it has."""
_MOST_SHARED = 200 << 10

Activation = tuple[str, tuple[tuple[str, float], ...]]
"""A name in lower case, and its parameters."""


@dataclass(frozen=True)
class Layout:
    """Sizes, and where outputs and states lie.

    Attributes:
        backwards: for each direction, whether it runs from the end.
        y: strides of the outputs along time, direction, batch, in elements.
        state: strides of the states along direction and batch.
    """

    time: int
    batch: int
    hidden: int
    backwards: tuple[bool, ...]
    y: tuple[int, int, int]
    state: tuple[int, int]


@dataclass(frozen=True)
class Recurrence:
    """One kind of recurrence.

    Buffers, of which those that `present` lacks are null: gates of the input [time, batch,
    directions, gates, hidden], weights [directions, from, gates, to], GRU's inner bias [directions,
    hidden], peepholes [directions, 3, hidden], lengths (int32), first states, outputs, last states.

    Attributes:
        real: float32 or float64: that of gates and weights.
        stored: the type of states and outputs.
        activations: one list a direction, all alike.
        linear: GRU: the reset gate multiplies after the product.
        input_forget: LSTM: the input gate decides what is forgotten.
    """

    op: str
    real: DType
    stored: DType
    activations: tuple[Activation, ...]
    present: frozenset[str]
    linear: bool = False
    input_forget: bool = False

    def plan(self, layout: Layout, clip: float = 0.0) -> Plan:
        """The launch.

        Raises:
            UnsupportedError: the state does not fit into shared memory.
        """
        number = ctypes.c_double if self.real is DType.DOUBLE else ctypes.c_float
        shared = 4 * layout.hidden * ctypes.sizeof(number)
        if shared > _MOST_SHARED:
            raise UnsupportedError(f"a recurrence of {layout.hidden} hidden units")
        directions = len(layout.backwards)

        class Shape(ctypes.Structure):
            _fields_ = (
                *((n, ctypes.c_int) for n in ("time", "batch", "hidden", "directions", "back")),
                *((f"s{i}", ctypes.c_longlong) for i in range(5)),
                ("clip", number),
            )

        back = sum(1 << i for i, b in enumerate(layout.backwards) if b)
        shape = Shape(
            layout.time,
            layout.batch,
            layout.hidden,
            directions,
            back,
            *layout.y,
            *layout.state,
            clip,
        )
        args: list[Argument] = [shape]
        index = 0
        for name in BUFFERS:
            if name in self.present:
                args.append(Buffer(index))
                index += 1
            else:
                args.append(ctypes.c_void_p(None))
        threads = min(512, max(32, -(-layout.hidden // 32) * 32))
        grid = (layout.batch, directions, 1)
        call = Call(_kernel(self, threads), grid, (threads, 1, 1), tuple(args), shared)
        return Plan((call,) if layout.batch and layout.hidden else ())


BUFFERS = (
    *("gates", "weights", "inner", "peepholes", "lengths", "h0", "c0"),
    *("y", "last_h", "last_c"),
)


@cache
def _kernel(op: Recurrence, threads: int) -> Kernel:
    number, gates = KINDS[op.op]
    real = C_TYPES[op.real]
    functions = "\n".join(
        _function(f"f{i}", name, dict(parameters), op.real)
        for i, (name, parameters) in enumerate(op.activations)
    )
    defines: dict[str, str | int] = {
        "REAL": real,
        "T": C_TYPES[op.stored],
        "GATES": gates,
        "KIND": number,
        "LINEAR": int(op.linear),
        "FORGET": int(op.input_forget),
        "PEEPHOLES": int("peepholes" in op.present),
    }
    return assemble("recurrence", "recurrence", defines=defines, code=functions, threads=threads)


_TREES = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "leakyrelu": "LeakyRelu",
    "thresholdedrelu": "ThresholdedRelu",
    "elu": "Elu",
    "hardsigmoid": "HardSigmoid",
}


def _function(name: str, activation: str, parameters: dict[str, float], real: DType) -> str:
    ctype = C_TYPES[real]
    alpha, beta = (literal(parameters.get(k, d), ctype) for k, d in (("alpha", 1.0), ("beta", 1.0)))
    lines: Sequence[str] = ()
    if activation == "scaledtanh":
        result = f"{alpha} * {'tanhf' if ctype == 'float' else 'tanh'}({beta} * v)"
    elif activation == "affine":
        result = f"{alpha} * v + {literal(parameters.get('beta', 0.0), ctype)}"
    else:
        step = Step.of(_TREES[activation], 0, dtype=real, **parameters)
        lines, (result,) = emit(Tree((real,), (step,)), ["v"])
    return "\n".join((f"DEVICE {ctype} {name}({ctype} v) {{", *lines, f"    return {result};", "}"))
