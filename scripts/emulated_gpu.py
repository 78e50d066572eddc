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
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from polytool.backends.native import memory
from polytool.backends.native.cuda import stretch
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
        digest = hashlib.sha256(kernel.source.encode()).hexdigest()[:16]
        library = self.folder / f"{digest}.so"
        if not library.exists():
            source, fresh = self.folder / f"{digest}.cpp", self.folder / f"{digest}.new.so"
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
    words = (address, arg.rows, arg.columns, arg.pitch, item, arg.box_rows, arg.box_columns)
    return (ctypes.c_ulonglong * 16)(*words)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


_DEVICE = driver.Device(0, "emulated H100", 132, (9, 0), 50 << 20, 13000)


class _Driver:
    """What the engine calls of libcuda, on host memory; every call has happened when it returns."""

    def __init__(self, emulator: Emulator, *, sanitize: bool) -> None:
        self.emulator, self.sanitize = emulator, sanitize
        self.libc = ctypes.CDLL(None)
        self.libc.aligned_alloc.restype = ctypes.c_void_p
        self.handles: dict[int, Any] = {}
        self.capturing: list[Any] | None = None
        self.gaps: list[tuple[int, int]] = []
        self.launched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *args: 0  # streams and events: nothing happens later

    def _handle(self, what: Any, target: Any) -> int:
        number = len(self.handles) + 1
        self.handles[number] = what
        target._obj.value = number
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        return self._handle("stream", stream)

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        return self._handle("event", event)

    def cuMemAlloc_v2(self, target: Any, size: Any) -> int:
        count = -(-size.value // 256) * 256
        target._obj.value = self.libc.aligned_alloc(256, ctypes.c_size_t(count))
        ctypes.memset(target._obj.value, 0xCD, size.value)
        for start, length in self.gaps:
            getattr(self.libc, "__asan_poison_memory_region")(
                ctypes.c_void_p(target._obj.value + start), ctypes.c_size_t(length)
            )
        self.gaps = []
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        if self.sanitize:
            return 0  # kept: what is used later would be another's memory
        self.libc.free(address)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, host: Any, size: Any, stream: Any) -> int:
        ctypes.memmove(to.value, host.value, size.value)
        return 0

    cuMemcpyDtoHAsync_v2 = cuMemcpyHtoDAsync_v2

    def cuMemcpyDtoDAsync_v2(self, to: Any, host: Any, size: Any, stream: Any) -> int:
        ctypes.memmove(to.value, host.value, size.value)
        return 0

    def cuMemsetD8Async(self, to: Any, value: Any, size: Any, stream: Any) -> int:
        ctypes.memset(to.value, value.value, size.value)
        return 0

    def cuModuleLoadData(self, module: Any, cubin: bytes) -> int:
        return self._handle(self.emulator.entry(Path(cubin.decode())), module)

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        entry = self.handles[module.value]
        return self._handle((name.decode(), entry), function)

    def cuTensorMapEncodeTiled(self, target: Any, *args: Any) -> int:
        kind, _, address, sizes, pitch, box = args[:6]
        item = {0: 1, 6: 2, 7: 4, 9: 2}[kind.value]
        words = (address.value, sizes[1], sizes[0], pitch[0] // item, item, box[1], box[0])
        target[:7] = words
        return 0

    def cuLaunchKernelEx(self, config: Any, function: Any, pointers: Any, _: Any) -> int:
        c = config._obj
        cluster = 1
        attributes = ctypes.cast(c.attributes, ctypes.POINTER(launch._Attribute))
        for i in range(c.count):
            if attributes[i].id == launch._CLUSTER:
                cluster = attributes[i].value[2]
        size = (ctypes.c_uint * 6)(*c.grid, *c.block)
        work = (self.handles[function.value], pointers, size, cluster, c.shared)
        if self.capturing is not None:
            self.capturing.append(work)
            return 0
        return self._run(work)

    def _run(self, work: Any) -> int:
        (name, entry), pointers, size, cluster, shared = work
        self.launched.append(name)
        return 719 if entry(pointers, size, cluster, shared, 0) else 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:
        self.capturing = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        work, self.capturing = self.capturing, None
        return self._handle(work, graph)

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        return self._handle(self.handles[graph.value], executable)

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        return next((s for w in self.handles[executable.value] if (s := self._run(w))), 0)


@contextmanager
def emulated_gpu(folder: Path, *, sanitize: bool = False) -> Iterator[_Driver]:
    """Until the end of the block, the engine finds one GPU, which is this machine's CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    emulator = Emulator(folder, sanitize=sanitize)
    fake = _Driver(emulator, sanitize=sanitize)

    def spread(lifetimes: Sequence[memory.Lifetime], **_: Any) -> memory.Arena:
        """No memory is used twice, and between any two stretches lies some that is forbidden."""
        offsets, fake.gaps, end = [], [], 0
        for life in lifetimes:
            offsets.append(end)
            stop = end + life.size
            end = -(-stop // 256) * 256 + 1024
            fake.gaps.append((-(-stop // 8) * 8, end - -(-stop // 8) * 8))
        return memory.Arena(tuple(offsets), end)

    changes = [
        mock.patch.object(driver, "_cuda", lambda: fake),
        mock.patch.object(driver, "available", lambda: True),
        mock.patch.object(driver, "device", lambda ordinal=0: _DEVICE),
        mock.patch.object(driver, "_primary", lambda ordinal: 1),
        mock.patch.object(compiler, "key", lambda k, a: str(emulator.library(k))),
        mock.patch.object(
            compiler, "compile_kernel", lambda k, a: str(emulator.library(k)).encode()
        ),
        mock.patch.object(launch, "_functions", {}),
        mock.patch.object(stretch, "fastest", lambda *_: 0),  # times mean nothing here
    ]
    if sanitize:
        changes.append(mock.patch.object(stretch, "plan_arena", spread))
    for change in changes:
        change.start()
    try:
        yield fake
    finally:
        for change in changes:
            change.stop()
