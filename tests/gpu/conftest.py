"""Runs the generated CUDA kernels on the GPU, or without one: compiled for the host, with a fibre
for each thread."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polytool.backends.native.kernels import driver, launch
from polytool.backends.native.kernels.source import Buffer, Kernel, Plan, TensorMap

_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off")
_SHARED = ("-shared", "-fno-gnu-unique", "-Wl,-Bsymbolic")  # kernels must not share statics
_ENTRY = """
static void** arguments;
extern "C" int emulate(void** args, unsigned* size, int cluster, int bytes, int late) {
    arguments = args;
    return emu::launch({size[0], size[1], size[2]}, {size[3], size[4], size[5]}, cluster, bytes,
                       late, [] { emu::call(KERNEL, arguments); });
}
"""

RunPlan = Callable[[Plan, Sequence[np.ndarray]], None]


class Emulator:
    """Compiles kernels with the host's C++ compiler and runs plans on NumPy arrays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Any] = {}
        header = shutil.copy(Path(__file__).with_name("emulator.h"), folder)
        self._compile("-x", "c++-header", header)

    def _compile(self, *arguments: str) -> None:
        done = subprocess.run(["g++", *_FLAGS, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:5000]

    def entry(self, kernel: Kernel) -> Any:
        digest = hashlib.sha256(kernel.source.encode()).hexdigest()[:16]
        if digest not in self.entries:
            source, library = self.folder / f"{digest}.cpp", self.folder / f"{digest}.so"
            # the emulated instructions need the types of the prelude, which stand before this line
            mark = "DEVICE float to_float(float v)"
            text = kernel.source.replace(mark, f"EMULATED_INSTRUCTIONS\n{mark}", 1)
            source.write_text(f'#include "emulator.h"\n{text}{_ENTRY}')
            self._compile(*_SHARED, str(source), "-o", str(library))
            self.entries[digest] = ctypes.CDLL(str(library)).emulate
        return self.entries[digest]

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
                    item = arg.dtype.numpy.itemsize
                    words = (held[arg.index].ctypes.data, arg.rows, arg.columns, arg.pitch, item)
                    words += (arg.box_rows, arg.box_columns)
                    values.append((ctypes.c_ulonglong * 16)(*words))
                else:
                    values.append(arg)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            size = (ctypes.c_uint * 6)(*call.grid, *call.block)
            status = self.entry(call.kernel)(pointers, size, call.cluster, call.shared, int(late))
            assert status == 0, f"{call.kernel.name} deadlocks"
        for array, copy in zip(arrays, held, strict=False):
            array[...] = copy


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run_on_device(plan: Plan, arrays: Sequence[np.ndarray]) -> None:
    """Run a plan on the first GPU."""
    device = driver.device()
    device.activate()
    stream = driver.create_stream()
    held = [np.ascontiguousarray(a) for a in arrays]
    addresses = [driver.allocate(a.nbytes) for a in held]
    addresses.append(driver.allocate(plan.workspace))
    try:
        for address, array in zip(addresses, held, strict=False):
            driver.to_device(address, array.ctypes.data, array.nbytes, stream)
        driver.synchronize(stream)
        for run in launch.prepare_plan(plan, device, addresses):
            run(stream)
        driver.synchronize(stream)
        for address, array, result in zip(addresses, held, arrays, strict=False):
            driver.to_host(array.ctypes.data, address, array.nbytes, stream)
            driver.synchronize(stream)
            result[...] = array
    finally:
        for address in addresses:
            driver.free(address)
        driver.destroy_stream(stream)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++: generated kernels cannot be run on the host")
    return Emulator(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["early", "late", pytest.param("device", marks=pytest.mark.gpu)])
def run_plan(request: pytest.FixtureRequest) -> RunPlan:
    """Runs a plan: with threads in either order and copies landing early or late, or on the GPU."""
    if request.param == "device":
        return run_on_device
    emulator = request.getfixturevalue("emulator")
    late = request.param == "late"
    return lambda plan, arrays: emulator.run(plan, arrays, late=late)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
