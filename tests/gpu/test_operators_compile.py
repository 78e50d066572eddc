"""NVRTC takes every kernel that the conformance suite asks for, whichever operator generates it."""

import pytest

from polytool import NativeRunner
from polytool.backends.native.kernels import compiler
from scripts.conformance import cases, run
from scripts.emulated_gpu import emulated_gpu

_SHARE = 150
CHUNKS = [pytest.param(i, marks=[pytest.mark.slow] if i else []) for i in range(_SHARE)]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_kernels_of_operators_compile(tmp_path, chunk, precision):
    with emulated_gpu(tmp_path) as fake:
        fake.kernels = False  # nothing runs: the host's compiler is not needed
        for case in cases(("node", "simple", "pytorch-operator", "pytorch-converted"))[
            chunk::_SHARE
        ]:
            run(case, lambda m: NativeRunner(m, device="cuda", precision=precision))
        kernels = {k.source: k for k in fake.requested}.values()
    assert len(kernels) > 3
    compiler.compile_all(kernels, "sm_90a")
