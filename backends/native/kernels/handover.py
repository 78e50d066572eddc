"""Copies between the caller's memory and an arena, as launches of a CUDA graph.

They are much faster than copies around it: the copy engine and the multiprocessors would wait for
each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

from polytool.backends.native.kernels.source import Call, Kernel, assemble

MOST = 8
"""Tensors a launch."""
_THREADS = 256
_PER_THREAD = 64  # bytes
_BLOCKS = 264  # of one tensor: two a multiprocessor


class Moves(ctypes.Structure):
    """`struct moves` of handover.cuh."""

    _fields_ = tuple((name, ctypes.c_uint64 * MOST) for name in ("source", "target", "bytes"))


@cache
def kernel() -> Kernel:
    """The kernel, for every size."""
    return assemble("handover", "handover", threads=_THREADS)


def move(sizes: Sequence[int]) -> tuple[Call, Moves]:
    """One launch for at most `MOST` tensors.

    Returns:
        The launch, and its argument, into which addresses are still to be written.
    """
    moves = Moves()
    moves.bytes[: len(sizes)] = list(sizes)
    blocks = -(-max(sizes) // (_THREADS * _PER_THREAD))
    grid = (max(1, min(blocks, _BLOCKS)), len(sizes), 1)
    return Call(kernel(), grid, (_THREADS, 1, 1), (moves,)), moves
