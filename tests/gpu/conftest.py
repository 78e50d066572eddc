"""Runs the generated CUDA kernels on the GPU, or without one: compiled for the host, with a fibre
for each thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from polytool.backends.native.kernels import driver, launch
from polytool.backends.native.kernels.source import Plan
from scripts.emulated_gpu import EmulatedDriver, Emulator, emulated_gpu

RunPlan = Callable[..., None]


def run_on_device(plan: Plan, arrays: Sequence[np.ndarray], times: int = 1) -> None:
    """Run a plan on the first GPU; more than once as a graph, without a pause."""
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
        launches = launch.prepare_plan(plan, device, addresses)
        for run in launches:
            run(stream)
        driver.synchronize(stream)
        if times > 1:
            with driver.Graph.capture(stream) as graph:
                for run in launches:
                    run(stream)
            for _ in range(times - 1):
                graph.launch(stream)
            driver.synchronize(stream)
            graph.close()
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


@pytest.fixture
def software_gpu(emulator: Emulator) -> Iterator[EmulatedDriver]:
    """A GPU in software: engines for `cuda` can be built and run without one."""
    with emulated_gpu(emulator.folder, timing=True) as gpu:
        yield gpu


@pytest.fixture(params=["early", "late", pytest.param("device", marks=pytest.mark.gpu)])
def run_plan(request: pytest.FixtureRequest) -> RunPlan:
    """Runs a plan: with threads in either order and copies landing early or late, or on the GPU."""
    if request.param == "device":
        return run_on_device
    emulator = request.getfixturevalue("emulator")
    late = request.param == "late"
    return lambda plan, arrays: emulator.run(plan, arrays, late=late)


@pytest.fixture
def run_gpu() -> RunPlan:
    """Runs a plan on the GPU only: for what no emulation is quick enough, or disorderly enough."""
    return run_on_device


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
