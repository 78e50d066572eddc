"""A GPU that is not there: CUDA kernels compiled for the host, a fibre a thread, behind the
driver's own interface, so that the whole engine runs with `device="cuda"` on any machine with g++.

    from scripts.emulated_gpu import emulated_gpu
    with emulated_gpu(folder):
        NativeRunner(model, device="cuda").infer(feeds)

It finds wrong numbers and, with `sanitize=True` in a process that preloads libasan, accesses
outside of what a kernel may touch; it says nothing about time or races.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from polytool.backends.native import memory
from polytool.backends.native.cuda import stretch, tuning
from polytool.backends.native.kernels import compiler, driver, launch
from polytool.backends.native.kernels.source import Buffer, Kernel, Plan, TensorMap

_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off")
_SANITIZE = ("-fsanitize=address", "--param=asan-stack=0")  # fibres have stacks of their own
_SHARED = ("-shared", "-fno-gnu-unique", "-Wl,-Bsymbolic")  # kernels must not share statics
_ENTRY = """
static void** arguments;
extern "C" int emulate(void** args, unsigned* size, int cluster, int bytes, int late) {
    arguments = args;
    return emu::launch({size[0], size[1], size[2]}, {size[3], size[4], size[5]}, cluster, bytes,
                       late, [] { emu::call(KERNEL, arguments); });
}
template <typename... A> int sizes_of(void (*)(A...), unsigned* to) {
    for (unsigned size : {(unsigned)sizeof(A)...}) *to++ = size;
    return sizeof...(A);
}
extern "C" int argument_sizes(unsigned* to) { return sizes_of(KERNEL, to); }
"""


class Emulator:
    """Compiles kernels with the host's C++ compiler and runs plans on NumPy arrays.

    Args:
        folder: where libraries are kept; those that lie there already are not compiled again.
        sanitize: check every access; the process must have loaded libasan first.
    """

    def __init__(self, folder: Path, *, sanitize: bool = False) -> None:
        self.folder = folder
        self.flags = (*_FLAGS, *(_SANITIZE if sanitize else ()))
        self.entries: dict[str, Any] = {}
        source = Path(__file__).with_name("emulator.h")
        header = folder / "emulator.h"
        if not header.exists() or header.read_bytes() != source.read_bytes():
            for old in folder.glob("*.so"):
                old.unlink()
            shutil.copy(source, header)
            self._compile("-x", "c++-header", str(header))

    def _compile(self, *arguments: str) -> None:
        done = subprocess.run(["g++", *self.flags, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:5000]

    def library(self, kernel: Kernel) -> Path:
        """The shared library of a kernel."""
        digest = hashlib.sha256((kernel.source + _ENTRY).encode()).hexdigest()[:16]
        library = self.folder / f"{digest}.so"
        if not library.exists():
            mine = (
                f"{digest}-{os.getpid()}-{threading.get_ident()}"  # several may compile it at once
            )
            source, fresh = self.folder / f"{mine}.cpp", self.folder / f"{mine}.new.so"
            # the emulated instructions need the types of the prelude, which stand before this line
            mark = "DEVICE float to_float(float v)"
            text = kernel.source.replace(mark, f"EMULATED_INSTRUCTIONS\n{mark}", 1)
            source.write_text(f'#include "emulator.h"\n{text}{_ENTRY}')
            self._compile(*_SHARED, str(source), "-o", str(fresh))
            fresh.rename(library)
        return library

    def entry(self, library: Path) -> Any:
        """Its entry point."""
        if library.name not in self.entries:
            self.entries[library.name] = ctypes.CDLL(str(library)).emulate
        return self.entries[library.name]

    def driver(self) -> ctypes.CDLL:
        """The driver that runs such libraries."""
        source = Path(__file__).with_name("emulated_driver.cpp")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        library = self.folder / f"driver-{digest}.so"
        if not library.exists():
            self._compile("-shared", str(source), "-o", str(library), "-ldl")
        return ctypes.CDLL(str(library))

    def run(self, plan: Plan, arrays: Sequence[np.ndarray], *, late: bool) -> None:
        """Run every launch; `arrays` are the plan's buffers, without the workspace."""
        held = [_aligned(a) for a in arrays]
        held.append(_aligned(np.full(plan.workspace + 16, 0xCD, np.uint8)))
        for call in plan.calls:
            values: list[Any] = []
            for arg in call.args:
                if isinstance(arg, Buffer):
                    values.append(ctypes.c_void_p(held[arg.index].ctypes.data + arg.offset))
                elif isinstance(arg, TensorMap):
                    values.append(_map(arg, held[arg.index].ctypes.data))
                else:
                    values.append(arg)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            size = (ctypes.c_uint * 6)(*call.grid, *call.block)
            entry = self.entry(self.library(call.kernel))
            status = entry(pointers, size, call.cluster, call.shared, int(late))
            assert status == 0, f"{call.kernel.name} deadlocks"
        for array, copy in zip(arrays, held, strict=False):
            array[...] = copy


def _map(arg: TensorMap, address: int) -> ctypes.Array[ctypes.c_ulonglong]:
    item = arg.dtype.numpy.itemsize
    steps = (step for _, step in arg.outer)
    words = (address, arg.rows, arg.columns, arg.pitch, item, arg.box_rows, arg.box_columns, *steps)
    return (ctypes.c_ulonglong * 16)(*words)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class EmulatedDriver:
    """The driver in place of libcuda; see emulated_driver.cpp.

    Attributes:
        kernels: whether kernels run; otherwise they do nothing, and need no compiler.
        compiled: names of the kernels that were compiled.
        requested: the kernels themselves.
    """

    def __init__(self, emulator: Emulator, *, sanitize: bool) -> None:
        self.emulator, self.sanitize = emulator, sanitize
        self.library = emulator.driver()
        self.library.emulated_sanitize(sanitize)
        self.library.emulated_in_use.restype = ctypes.c_size_t
        self.library.emulated_launched.restype = ctypes.c_char_p
        self.kernels = True
        self.compiled: list[str] = []
        self.requested: list[Kernel] = []
        self.launched  # noqa: B018  (forgets what ran before)

    @property
    def launched(self) -> list[str]:
        """The kernels that have run since this was last asked."""
        return self.library.emulated_launched().decode().split()  # type: ignore[no-any-return]  # ctypes is untyped

    @property
    def in_use(self) -> int:
        """Bytes of device memory."""
        return int(self.library.emulated_in_use())

    def count(self, what: str) -> int:
        """How often the driver was asked to `allocate`, `copy`, `launch`, `graph`, `wait`, ..."""
        return int(self.library.emulated_count(what.encode()))

    def compile(self, kernel: Kernel, _: Any) -> bytes:
        """What takes NVRTC's place."""
        self.compiled.append(kernel.name)
        self.requested.append(kernel)
        return (str(self.emulator.library(kernel)) if self.kernels else "nothing").encode() + b"\0"

    def forbid(self, start: int, size: int) -> None:
        """A part of the next allocation that nothing may touch."""
        self.library.emulated_gap(ctypes.c_size_t(start), ctypes.c_size_t(size))


@contextmanager
def emulated_gpu(
    folder: Path, *, sanitize: bool = False, timing: bool = False
) -> Iterator[EmulatedDriver]:
    """Until the end of the block, the engine finds one GPU, which is this machine's CPU.

    Args:
        folder: see `Emulator`.
        sanitize: see `Emulator`.
        timing: let the engine time candidates, although the times mean nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fake = EmulatedDriver(Emulator(folder, sanitize=sanitize), sanitize=sanitize)

    largest = 0

    def spread(lifetimes: Sequence[memory.Lifetime], **_: Any) -> memory.Arena:
        """No memory is used twice, and between any two stretches lies some that is forbidden."""
        nonlocal largest
        offsets, end = [], 0
        for life in lifetimes:
            offsets.append(end)
            stop = end + life.size
            end = -(-stop // 256) * 256 + 1024
            fake.forbid(-(-stop // 8) * 8, end - -(-stop // 8) * 8)
        largest = max(end, largest + 256)  # larger than what is there: it is allocated anew
        return memory.Arena(tuple(offsets), largest)

    changes = [
        mock.patch.object(driver, "_cuda", lambda: fake.library),
        mock.patch.object(compiler, "_compile", fake.compile),
        mock.patch.object(compiler, "_cubins", {}),
        mock.patch.object(compiler, "version", lambda: (0, 0)),
        mock.patch.object(launch, "_functions", {}),
    ]
    if not timing:
        times = lambda step, *_: {p.name: float(i) for i, p in enumerate(step.plans)}  # noqa: E731  (one line)
        changes.append(mock.patch.object(tuning, "time_candidates", times))
    if sanitize:
        changes.append(mock.patch.object(stretch, "plan_arena", spread))
    for change in changes:
        change.start()
    driver.device.cache_clear()
    driver._primary.cache_clear()
    try:
        yield fake
    finally:
        gc.collect()  # what is dropped later would be freed by a driver that is not there
        for change in changes:
            change.stop()
        driver.device.cache_clear()
        driver._primary.cache_clear()
