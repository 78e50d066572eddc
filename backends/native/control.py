"""If, Loop and Scan on the CPU: drivers of the programs of their bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.numerics import storage
from polytool.backends.native.program import Program, Watch
from polytool.backends.native.tactics.base import Mode
from polytool.backends.native.tactics.numpy_generic import stored_constant
from polytool.errors import RunnerError

Driver = Callable[["dict[Tensor, Any]", "Watch | None"], Sequence[Any]]


def compile_control(
    layer: Layer, mode: Mode
) -> tuple[Callable[..., Sequence[Any]], Callable[..., Sequence[Any]]]:
    """Launch functions without and with a watch: `launch(*inputs)`, `watched(watch, *inputs)`."""
    (node,) = layer.nodes
    programs = {name: Program(body, mode, body=True) for name, body in node.bodies.items()}
    builders = {"If": _if, "Loop": _loop, "Scan": _scan8 if node.version < 9 else _scan}
    drive = builders[node.op](node, programs, mode)
    inputs = layer.inputs
    constants = {t: stored_constant(t, mode) for t in node.reads() if t.constant is not None}
    wanted = [i for i, t in enumerate(node.outputs) if t is not None]

    def run(watch: Watch | None, args: Sequence[Any]) -> Sequence[Any]:
        values = dict(constants)
        values.update(zip(inputs, args, strict=True))
        results = drive(values, watch)
        return [results[i] for i in wanted]

    return lambda *args: run(None, args), lambda watch, *args: run(watch, args)


def _captures(program: Program, values: dict[Tensor, Any]) -> list[Any]:
    return [values[t] for t in program.network.captures]


def _scalar(tensor: Tensor | None, values: dict[Tensor, Any], default: Any) -> Any:
    return default if tensor is None else np.asarray(values[tensor]).reshape(-1)[0]


def _if(node: Node, programs: dict[str, Program], mode: Mode) -> Driver:
    (condition,) = node.inputs
    assert condition is not None

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        taken = bool(np.asarray(values[condition]).reshape(-1)[0])
        program = programs["then_branch" if taken else "else_branch"]
        return program.run(_captures(program, values), watch)

    return drive


def _loop(node: Node, programs: dict[str, Program], mode: Mode) -> Driver:
    program = programs["body"]
    limit_in, condition_in, *carried_in = [*node.inputs, None, None][: max(2, len(node.inputs))]
    n_carried = len(carried_in)
    scanned = program.network.outputs[1 + n_carried :]

    def drive(values: dict[Tensor, Any], watch: Watch | None) -> Sequence[Any]:
        limit = _scalar(limit_in, values, None)
        going = bool(_scalar(condition_in, values, True))
        carried = [values[t] if t is not None else None for t in carried_in]
        captures = _captures(program, values)
        rows: list[list[Any]] = [[] for _ in scanned]
        iteration = 0
        while going and (limit is None or iteration < limit):
            results = program.run(
                [np.asarray(iteration, np.int64), np.asarray(going), *carried, *captures], watch
            )
            going = bool(np.asarray(results[0]).reshape(-1)[0])
            carried = results[1 : 1 + n_carried]
            for row, value in zip(rows, results[1 + n_carried :], strict=True):
                row.append(value)
            iteration += 1
        return [*carried, *(_stack(r, t, mode, 0) for r, t in zip(rows, scanned, strict=True))]

    return drive


def _stack(rows: list[Any], tensor: Tensor, mode: Mode, axis: int) -> Any:
    if rows:
        shapes = {np.shape(r) for r in rows}
        if len(shapes) > 1:
            raise RunnerError(
                f"scan output {tensor.name!r} changes its shape between iterations "
                f"({', '.join(str(list(s)) for s in sorted(shapes))}), which ONNX does not allow"
            )
        return np.stack(rows, axis)
    dims = [d if isinstance(d, int) else 0 for d in tensor.shape or ()]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, 0)
    kind = storage(tensor.dtype, wide=mode.wide) if tensor.dtype is not None else np.float32
    return np.zeros(dims, kind)


def _scan(node: Node, programs: dict[str, Program], mode: Mode) -> Driver:
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
        moved = [
            np.moveaxis(s, axis, 0)[:: -1 if back else 1]
            for s, axis, back in zip(sequences, in_axes, in_back, strict=True)
        ]
        state, rows = _sweep(program, state, moved, _captures(program, values), watch)
        outputs = [
            _stack(r[::-1] if back else r, t, mode, axis)
            for r, t, axis, back in zip(rows, scanned, out_axes, out_back, strict=True)
        ]
        return [*state, *outputs]

    return drive


def _sweep(
    program: Program,
    state: list[Any],
    sequences: Sequence[Any],
    captures: list[Any],
    watch: Watch | None,
    length: int | None = None,
) -> tuple[list[Any], list[list[Any]]]:
    """One pass of a Scan body along the leading axis of `sequences`."""
    n_state = len(state)
    rows: list[list[Any]] = [[] for _ in program.network.outputs[n_state:]]
    for index in range(len(sequences[0]) if length is None else length):
        slices = [np.asarray(s[index], order="C") for s in sequences]  # 0-d stays 0-d
        results = program.run([*state, *slices, *captures], watch)
        state = results[:n_state]
        for row, value in zip(rows, results[n_state:], strict=True):
            row.append(value)
    return state, rows


def _scan8(node: Node, programs: dict[str, Program], mode: Mode) -> Driver:
    """Scan-8: a batch axis first, sequence lengths as the first (optional) input."""
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
                s[b][:length][:: -1 if reverse else 1]
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
                stacked = _stack(row, tensor, mode, 0)
                short = [(0, longest - length)] + [(0, 0)] * (stacked.ndim - 1)
                collected.append(np.pad(stacked, short))
        return [np.stack(c) for c in (*states, *columns)]

    return drive
