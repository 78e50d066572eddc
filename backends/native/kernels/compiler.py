"""CUDA source to cubin by NVRTC, which needs no GPU.

NVRTC is called directly: CuPy's RawKernel adds `-ftz=true`, which breaks float32 parity.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from polytool.backends.native.kernels import libraries
from polytool.backends.native.kernels.source import Kernel
from polytool.errors import RunnerError

_OPTIONS = ("--std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-w")
_cubins: dict[str, bytes] = {}
_lock = threading.Lock()


@cache
def _nvrtc() -> ctypes.CDLL:
    lib = libraries.load("libnvrtc.so.13", "nvidia-cuda-nvrtc", "compiling CUDA kernels")
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p
    return lib


def version() -> tuple[int, int]:
    """NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


def _check(status: int, call: str) -> None:
    if status:
        reason = _nvrtc().nvrtcGetErrorString(status).decode()
        raise RunnerError(f"{call} failed: {reason}")


def options(kernel: Kernel, arch: str) -> tuple[str, ...]:
    """Every compiler option of a kernel."""
    fmad = "true" if kernel.contract else "false"
    return (f"--gpu-architecture={arch}", f"-fmad={fmad}", *_OPTIONS)


def key(kernel: Kernel, arch: str) -> str:
    """What a cubin is made of, as one digest; computed without NVRTC."""
    text = "\0".join((*options(kernel, arch), kernel.source))
    return hashlib.sha256(text.encode()).hexdigest()


def compile_kernel(kernel: Kernel, arch: str) -> bytes:
    """The cubin of `kernel` for `arch` (`sm_90a`, ...), from memory where it was compiled before.

    Raises:
        RunnerError: NVRTC refuses the source; the message holds its log.
    """
    digest = key(kernel, arch)
    cubin = _cubins.get(digest)
    if cubin is None:
        cubin = _compile(kernel, options(kernel, arch))
        with _lock:
            _cubins[digest] = cubin
    return cubin


def compile_all(kernels: Iterable[Kernel], arch: str, threads: int = 8) -> None:
    """Compile many kernels at once; NVRTC runs without the interpreter lock.

    Raises:
        RunnerError: NVRTC refuses one of them.
    """
    for error in refused(kernels, arch, threads).values():
        raise error


def refused(kernels: Iterable[Kernel], arch: str, threads: int = 8) -> dict[Kernel, RunnerError]:
    """Compile many kernels at once, and tell which of them NVRTC refuses for `arch`, and why."""
    todo = {key(k, arch): k for k in kernels}

    def attempt(kernel: Kernel) -> RunnerError | None:
        try:
            compile_kernel(kernel, arch)
        except RunnerError as err:
            return err
        return None

    with ThreadPoolExecutor(threads) as pool:
        errors = pool.map(attempt, todo.values())
    return {k: e for k, e in zip(todo.values(), errors, strict=True) if e is not None}


def adopt(cubins: Mapping[str, bytes]) -> None:
    """Take in stored cubins by their `key`, so that loading an engine compiles nothing."""
    with _lock:
        _cubins.update(cubins)


def _compile(kernel: Kernel, arguments: tuple[str, ...]) -> bytes:
    lib, program = _nvrtc(), ctypes.c_void_p()
    source, name = kernel.source.encode(), f"{kernel.name}.cu".encode()
    _check(
        lib.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None),
        "nvrtcCreateProgram",
    )
    try:
        argv = (ctypes.c_char_p * len(arguments))(*(a.encode() for a in arguments))
        status = lib.nvrtcCompileProgram(program, len(arguments), argv)
        if status:
            log = _text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode()
            log = log.strip("\0 \n")
            raise RunnerError(f"NVRTC refuses kernel {kernel.name}: {log}")
        return _text(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, size_call: str, call: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_nvrtc(), size_call)(program, ctypes.byref(size)), size_call)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_nvrtc(), call)(program, buffer), call)
    return buffer.raw
