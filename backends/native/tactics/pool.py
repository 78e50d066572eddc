"""Threads for the NumPy kernels: NumPy releases the GIL, so blocks of one layer run side by side.

A kernel hands over a function and a number of blocks; blocks write disjoint memory, so results do
not depend on who computes which. OpenBLAS's own threads are switched off meanwhile
(`single_threaded_blas`): waiting for them costs milliseconds as soon as another thread is busy.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

# Elements that NumPy's iterator buffers. With the default it copies every operand of an inner loop
# that is not contiguous, which triples the time of pointwise steps on long rows of blocks.
_BUFFER = 16
BUFFERED = 8192
"""NumPy's default, which is the better one where rows are short: see `buffer_for`."""


def cpu_count() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class _Job:
    """One call of `Pool.run`: whoever is free takes the next block."""

    def __init__(self, function: Callable[[int], Any], count: int, buffer: int) -> None:
        self.function, self.count, self.buffer = function, count, buffer
        self.counter = itertools.count()
        self.error: BaseException | None = None

    def work(self) -> None:
        function, count, take = self.function, self.count, self.counter.__next__
        try:
            while (index := take()) < count and self.error is None:
                function(index)
        except BaseException as err:
            self.error = err


class _Worker(threading.Thread):
    """Sleeps on a lock between jobs."""

    def __init__(self) -> None:
        super().__init__(name="polytool-kernel", daemon=True)
        self.job: _Job | None = None
        self.go, self.done = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.done.acquire()

    def run(self) -> None:
        np.seterr(all="ignore")  # the executor's errstate is the calling thread's only
        while True:
            self.go.acquire()
            job, self.job = self.job, None
            if job is not None:
                np.setbufsize(job.buffer)
                job.work()
            del job
            self.done.release()


class Pool:
    """A fixed number of threads, the caller's included; several callers may use it at once."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or cpu_count()
        self._idle = [_Worker() for _ in range(self.size - 1)]
        self._started = False
        self._lock = threading.Lock()

    def run(self, function: Callable[[int], Any], count: int, buffer: int = _BUFFER) -> None:
        """Call `function(0)` ... `function(count - 1)`, each once, in any order, on any thread.

        A caller that finds every worker busy computes all blocks itself. The first exception is
        raised here after all threads have stopped.
        """
        if count == 1:
            function(0)
            return
        before = np.setbufsize(buffer)
        try:
            if self._idle:
                self._run(_Job(function, count, buffer))
            else:
                for index in range(count):
                    function(index)
        finally:
            np.setbufsize(before)

    def _run(self, job: _Job) -> None:
        if not self._started:
            self._start()
        helpers = []
        for _ in range(min(job.count, self.size) - 1):
            try:
                helpers.append(self._idle.pop())
            except IndexError:  # other callers have them
                break
        for worker in helpers:
            worker.job = job
            worker.go.release()
        job.work()
        for worker in helpers:
            # A worker that has not woken up yet need not: its lock is taken back.
            if worker.go.acquire(blocking=False):
                worker.job = None
            else:
                worker.done.acquire()
            self._idle.append(worker)
        if job.error is not None:
            raise job.error

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                for worker in self._idle:
                    worker.start()
                self._started = True


def buffer_for(row: int) -> int:
    """The iterator's buffer for steps on rows of so many elements that are not contiguous."""
    return _BUFFER if row >= 128 else BUFFERED


_pools: dict[int, Pool] = {}


def pool() -> Pool:
    """The pool of this process; a forked child gets one of its own."""
    found = _pools.get(os.getpid())
    if found is None:
        found = _pools.setdefault(os.getpid(), Pool())
    return found


def parallel(function: Callable[[int], Any], count: int, buffer: int = _BUFFER) -> None:
    """`Pool.run` on the process's pool."""
    pool().run(function, count, buffer)


def blocks_of(total: int, target: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut `range(total)` into equal parts of about `target`, at least one a thread if possible.

    Args:
        total: how many.
        target: the size a part should have for its data to stay in cache.
        multiple: parts start at multiples of it.
    """
    if total <= 0:
        return []
    threads = pool().size
    count = max(1, math.ceil(total / max(1, target)))
    if count > 1:
        count = math.ceil(count / threads) * threads
    size = max(1, math.ceil(total / count / multiple)) * multiple
    return [(start, min(start + size, total)) for start in range(0, total, size)]


_KEPT = 1 << 22
_local = threading.local()


def scratch(slot: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """This thread's float32 buffer `slot`, uninitialised, valid until its next use.

    Pages that were touched before stay mapped, which is what makes it cheaper than `np.empty`.
    What is larger than `_KEPT` elements is not kept.
    """
    size = math.prod(shape)
    if size > _KEPT:
        return np.empty(shape, np.float32)
    buffers: dict[str, np.ndarray[Any, Any]] | None = getattr(_local, "buffers", None)
    if buffers is None:
        buffers = _local.buffers = {}
    held = buffers.get(slot)
    if held is None or held.size < size:
        held = buffers[slot] = np.empty(max(size, 1 << 14), np.float32)
    return held[:size].reshape(shape)


@cache
def _blas() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


class _BlasLimit:
    """Counts who wants BLAS on one thread; the last to leave restores the former numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before: list[Any] = []

    def enter(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._before = [lib.get_num_threads() for lib in _blas()]
                for lib in _blas():
                    lib.set_num_threads(1)

    def leave(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                for lib, count in zip(_blas(), self._before, strict=True):
                    lib.set_num_threads(count)


_limit = _BlasLimit()


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """BLAS computes in the calling thread only; nests, and works across threads."""
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()
