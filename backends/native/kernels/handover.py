"""Copies between the caller's memory and an arena whose addresses change from launch to launch.

They are launches of a CUDA graph, which is much faster than copies around it: the copy engine and
the multiprocessors would wait for each other. Addresses come through a table in host memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from polytool.backends.native.kernels.source import Buffer, Call, Kernel, Plan, assemble

ROWS = 64
"""Launches that may be on their way at once."""
_MOST = 8
_THREADS = 256
_PER_THREAD = 64  # bytes
_BLOCKS = 264  # of one tensor: two a multiprocessor


class _Places(ctypes.Structure):
    """`struct places` of handover.cuh."""

    _fields_ = (("at", ctypes.c_uint64 * 8), ("bytes", ctypes.c_uint64 * 8))


@cache
def _kernel(deliver: bool) -> Kernel:
    name = "deliver" if deliver else "fetch"
    defines: dict[str, str | int] = {"ROWS": ROWS, "DELIVER": int(deliver)}
    return assemble(name, "handover", defines=defines, threads=_THREADS)


def kernels() -> tuple[Kernel, ...]:
    """Both kernels."""
    return _kernel(False), _kernel(True)


def _groups(places: Sequence[tuple[int, int]]) -> list[tuple[int, Sequence[tuple[int, int]]]]:
    return [(i, places[i : i + _MOST]) for i in range(0, len(places), _MOST)] or [(0, [(0, 0)])]


def _launch(deliver: bool, group: Sequence[tuple[int, int]], *arguments: object) -> Call:
    held = _Places()
    for i, (address, size) in enumerate(group):
        held.at[i], held.bytes[i] = address, size
    blocks = -(-max(size for _, size in group) // (_THREADS * _PER_THREAD))
    grid = (max(1, min(blocks, _BLOCKS)), len(group), 1)
    return Call(_kernel(deliver), grid, (_THREADS, 1, 1), (held, *arguments))


def fetch(inputs: Sequence[tuple[int, int]], outputs: int) -> Plan:
    """Bring the inputs in. Buffers: the table, the outputs' addresses on the device, the turn.

    Args:
        inputs: address in the arena and bytes of each.
        outputs: how many there are: their addresses follow in a row of the table.
    """
    first, columns = len(inputs), len(inputs) + outputs
    return Plan(
        tuple(
            _launch(
                False,
                group,
                ctypes.c_int(start),
                ctypes.c_int(first),
                ctypes.c_int(columns),
                Buffer(0),
                Buffer(1),
                Buffer(2),
            )
            for start, group in _groups(inputs)
        )
    )


def deliver(outputs: Sequence[tuple[int, int]]) -> Plan:
    """Hand the outputs over and count the launch. Buffers: the outputs' addresses, the turn.

    Args:
        outputs: address in the arena and bytes of each.
    """
    groups = _groups(outputs)
    return Plan(
        tuple(
            _launch(
                True,
                group,
                ctypes.c_int(start),
                ctypes.c_bool(start == groups[-1][0]),
                Buffer(0),
                Buffer(1),
            )
            for start, group in groups
        )
    )
