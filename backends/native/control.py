"""If, Loop and Scan: drivers of the programs of their bodies, wherever their values lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polytool.backends.native.network import Layer, Network, Node, Tensor
from polytool.backends.native.numerics import storage
from polytool.backends.native.program import Program, Watch
from polytool.backends.native.tactics.base import Mode
from polytool.backends.native.tactics.numpy_generic import stored_constant
from polytool.errors import RunnerError, UnsupportedError
from polytool.tensors import DType

Driver = Callable[["dict[Tensor, Any]", "Watch | None"], Sequence[Any]]
Launches = tuple[Callable[..., Sequence[Any]], Callable[..., Sequence[Any]]]


class Body(Protocol):
    """The program of a body: its inputs, then its captures, to its outputs."""

    network: Network

    def run(self, inputs: Sequence[Any], watch: Watch | None = None) -> list[Any]:
        """Run once."""


class Arrays(Protocol):
    """What control flow does with values by itself."""

    def scalar(self, value: Any) -> Any:
        """The only element, on the host."""

    def parts(self, value: Any, axis: int) -> Sequence[Any]:
        """The slices along an axis, which is dropped."""

    def stack(self, parts: Sequence[Any], axis: int) -> Any:
        """Parts of one shape joined along a new axis."""

    def zeros(self, shape: Sequence[int], dtype: DType | None) -> Any:
        """What no iteration has written."""


@dataclass(frozen=True)
class HostArrays:
    """NumPy arrays as the CPU engine stores them."""

    mode: Mode

    def scalar(self, value: Any) -> Any:
        """The only element."""
        return np.asarray(value).reshape(-1)[0]

    def parts(self, value: Any, axis: int) -> Sequence[Any]:
        """Dense slices; 0-d stays 0-d."""
        return [np.asarray(v, order="C") for v in np.moveaxis(value, axis, 0)]

    def stack(self, parts: Sequence[Any], axis: int) -> Any:
        """Joined along a new axis."""
        return np.stack(parts, axis)

    def zeros(self, shape: Sequence[int], dtype: DType | None) -> Any:
        """An empty result."""
        kind = storage(dtype, wide=self.mode.wide) if dtype is not None else np.float32
        return np.zeros(shape, kind)


def compile_control(layer: Layer, mode: Mode) -> Launches:
    """Launch functions without and with a watch: `launch(*inputs)`, `watched(watch, *inputs)`."""
    (node,) = layer.nodes
    programs = {name: Program(body, mode, body=True) for name, body in node.bodies.items()}
    constants = {t: stored_constant(t, mode) for t in node.reads() if t.constant is not None}
    return drive_bodies(layer, programs, constants, HostArrays(mode))


def drive_bodies(
    layer: Layer, programs: Mapping[str, Body], constants: Mapping[Tensor, Any], arrays: Arrays
) -> Launches:
    """The same for any programs of the bodies and any kind of array."""
    (node,) = layer.nodes
    builders = {"If": _if, "Loop": _loop, "Scan": _scan8 if node.version < 9 else _scan}
    drive = builders[node.op](node, programs, arrays)
    inputs = layer.inputs
    wanted = [i for i, t in enumerate(node.outputs) if t is not None]

    def run(watch: Watch | None, args: Sequence[Any]) -> Sequence[Any]:
        values = dict(constants)
        values.update(zip(inputs, args, strict=True))
        results = drive(values, watch)
        return [results[i] for i in wanted]

    return lambda *args: run(None, args), lambda watch, *args: run(watch, args)


def _captures(program: Body, values: dict[Tensor, Any]) -> list[Any]:
    return [values[t] for t in program.network.captures]


def _if(node: Node, programs: Mapping[str, Body], arrays: Arrays) -> Driver:
    (condition,) = node.inputs
    assert condition is not None

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        taken = bool(arrays.scalar(values[condition]))
        program = programs["then_branch" if taken else "else_branch"]
        return program.run(_captures(program, values), watch)

    return drive


def _loop(node: Node, programs: Mapping[str, Body], arrays: Arrays) -> Driver:
    program = programs["body"]
    limit_in, condition_in, *carried_in = [*node.inputs, None, None][: max(2, len(node.inputs))]
    n_carried = len(carried_in)
    scanned = program.network.outputs[1 + n_carried :]

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        limit = None if limit_in is None else arrays.scalar(values[limit_in])
        going = True if condition_in is None else bool(arrays.scalar(values[condition_in]))
        carried = [values[t] if t is not None else None for t in carried_in]
        captures = _captures(program, values)
        rows: list[list[Any]] = [[] for _ in scanned]
        iteration = 0
        while going and (limit is None or iteration < limit):
            results = program.run(
                [np.asarray(iteration, np.int64), np.asarray(going), *carried, *captures], watch
            )
            going = bool(arrays.scalar(results[0]))
            carried = results[1 : 1 + n_carried]
            for row, value in zip(rows, results[1 + n_carried :], strict=True):
                row.append(value)
            iteration += 1
        return [*carried, *(_stack(r, t, arrays, 0) for r, t in zip(rows, scanned, strict=True))]

    return drive


def _stack(rows: list[Any], tensor: Tensor, arrays: Arrays, axis: int) -> Any:
    if rows:
        if any(isinstance(row, list) for row in rows):
            raise RunnerError(
                f"scan output {tensor.name!r} is a sequence; ONNX stacks tensors only"
            )
        shapes = {tuple(r.shape) for r in rows}
        if len(shapes) > 1:
            raise RunnerError(
                f"scan output {tensor.name!r} changes its shape between iterations "
                f"({', '.join(str(list(s)) for s in sorted(shapes))}), which ONNX does not allow"
            )
        return arrays.stack(rows, axis)
    dims = [d if isinstance(d, int) else 0 for d in tensor.shape or ()]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, 0)
    return arrays.zeros(dims, tensor.dtype)


def _scan(node: Node, programs: Mapping[str, Body], arrays: Arrays) -> Driver:
    program = programs["body"]
    attrs = node.attrs
    n_scan = int(attrs["num_scan_inputs"])
    n_state = len(node.inputs) - n_scan
    n_out = len(program.network.outputs) - n_state
    in_axes = attrs.get("scan_input_axes") or [0] * n_scan
    in_back = attrs.get("scan_input_directions") or [0] * n_scan
    out_axes = attrs.get("scan_output_axes") or [0] * n_out
    out_back = attrs.get("scan_output_directions") or [0] * n_out
    scanned = program.network.outputs[n_state:]

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        given = [values[t] for t in node.inputs if t is not None]
        state, sequences = given[:n_state], given[n_state:]
        slices = [
            arrays.parts(s, axis)[:: -1 if back else 1]
            for s, axis, back in zip(sequences, in_axes, in_back, strict=True)
        ]
        state, rows = _sweep(program, state, slices, _captures(program, values), watch)
        outputs = [
            _stack(r[::-1] if back else r, t, arrays, axis)
            for r, t, axis, back in zip(rows, scanned, out_axes, out_back, strict=True)
        ]
        return [*state, *outputs]

    return drive


def _sweep(
    program: Body,
    state: list[Any],
    sequences: Sequence[Sequence[Any]],
    captures: list[Any],
    watch: Watch | None,
    length: int | None = None,
) -> tuple[list[Any], list[list[Any]]]:
    """One pass of a Scan body over the slices of its `sequences`."""
    n_state = len(state)
    rows: list[list[Any]] = [[] for _ in program.network.outputs[n_state:]]
    for index in range(len(sequences[0]) if length is None else length):
        slices = [s[index] for s in sequences]
        results = program.run([*state, *slices, *captures], watch)
        state = results[:n_state]
        for row, value in zip(rows, results[n_state:], strict=True):
            row.append(value)
    return state, rows


def _scan8(node: Node, programs: Mapping[str, Body], arrays: Arrays) -> Driver:
    """Scan-8: a batch axis first, sequence lengths as the first (optional) input."""
    if not isinstance(arrays, HostArrays):
        raise UnsupportedError("the Scan of opset 8 runs on the host")
    program = programs["body"]
    n_scan = int(node.attrs["num_scan_inputs"])
    back = node.attrs.get("directions") or [0] * n_scan
    lengths_in, *rest = node.inputs
    n_state = len(rest) - n_scan
    scanned = program.network.outputs[n_state:]

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        given = [values[t] for t in rest if t is not None]
        batch, longest = given[n_state].shape[:2]
        lengths = values[lengths_in] if lengths_in is not None else [longest] * batch
        states: list[list[Any]] = [[] for _ in range(n_state)]
        columns: list[list[Any]] = [[] for _ in scanned]
        for b in range(batch):
            length = int(lengths[b])
            sequences = [
                arrays.parts(s[b][:length], 0)[:: -1 if reverse else 1]
                for s, reverse in zip(given[n_state:], back, strict=True)
            ]
            state, rows = _sweep(
                program,
                [s[b] for s in given[:n_state]],
                sequences,
                _captures(program, values),
                watch,
                length,
            )
            for collected, value in zip(states, state, strict=True):
                collected.append(value)
            for collected, row, tensor in zip(columns, rows, scanned, strict=True):
                stacked = _stack(row, tensor, arrays, 0)
                short = [(0, longest - length)] + [(0, 0)] * (stacked.ndim - 1)
                collected.append(np.pad(stacked, short))
        return [np.stack(c) for c in (*states, *columns)]

    return drive
