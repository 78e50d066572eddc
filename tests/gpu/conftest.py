"""Runs the generated CUDA kernels without a GPU: compiled for the host, a fibre a thread."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polytool.backends.native.kernels.source import Buffer, Kernel, Plan

FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing")
_STRICT = ("-ffp-contract=off", "-fno-gnu-unique", "-Wl,-Bsymbolic")  # no statics shared


class Emulator:
    """Compiles kernels with the host's C++ compiler and runs plans on NumPy arrays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Any] = {}

    def entry(self, kernel: Kernel) -> Any:
        digest = hashlib.sha256(kernel.source.encode()).hexdigest()[:16]
        if digest not in self.entries:
            source, library = self.folder / f"{digest}.cpp", self.folder / f"{digest}.so"
            # the instructions need the types of the prelude, which stand above this comment
            text = kernel.source.replace(
                "DEVICE float to_float(float v)",
                "EMULATED_INSTRUCTIONS\nDEVICE float to_float(float v)",
                1,
            )
            source.write_text(
                f'#include "{FOLDER}/emulator.h"\n{text}\nstatic void** arguments;\n'
                'extern "C" int emulate(void** args, unsigned* size, int cluster, int bytes,'
                " int late) {\n    arguments = args;\n    return emu::launch({size[0], size[1],"
                " size[2]}, {size[3], size[4], size[5]}, cluster, bytes, late,\n"
                f"        [] {{ emu::call({kernel.name}, arguments); }});\n}}\n"
            )
            done = subprocess.run(
                ["g++", *_FLAGS, *_STRICT, str(source), "-o", str(library)],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[:5000]
            self.entries[digest] = ctypes.CDLL(str(library)).emulate
        return self.entries[digest]

    def run(self, plan: Plan, arrays: Sequence[np.ndarray], *, late: bool = False) -> None:
        """Run every launch; `arrays` are the plan's buffers, without the workspace."""
        workspace = np.full(plan.workspace + 16, 0xCD, np.uint8)
        held = [*arrays, workspace]
        for call in plan.calls:
            values: list[Any] = []
            for arg in call.args:
                if isinstance(arg, Buffer):
                    assert held[arg.index].flags.c_contiguous
                    address = held[arg.index].ctypes.data
                    if arg.index == len(arrays):
                        address = (address + 15) // 16 * 16
                    values.append(ctypes.c_void_p(address + arg.offset))
                else:
                    values.append(arg)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            size = (ctypes.c_uint * 6)(*call.grid, *call.block)
            status = self.entry(call.kernel)(pointers, size, call.cluster, call.shared, int(late))
            assert status == 0, f"{call.kernel.name} deadlocks"


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=[False, True], ids=["early", "late"])
def emulate(request: pytest.FixtureRequest, emulator: Emulator) -> Callable[..., None]:
    """Runs a plan with threads in both orders, copies landing early and late."""

    def run(plan: Plan, arrays: Sequence[np.ndarray]) -> None:
        emulator.run(plan, arrays, late=request.param)

    return run


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes, as device memory does."""
    raw = np.zeros(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
