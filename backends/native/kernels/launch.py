"""Compiled kernels on a device, and launches that are ready to go."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from polytool.backends.native.kernels import compiler, driver
from polytool.backends.native.kernels.source import (
    Buffer,
    Call,
    Candidate,
    Kernel,
    Plan,
    TensorMap,
)
from polytool.errors import RunnerError
from polytool.tensors import DType

_CLUSTER, _PROGRAMMATIC = 4, 6
_MAX_DYNAMIC_SHARED = 8
_PLAIN_SHARED = 48 * 1024

Launchable = Callable[[int], None]
"""Puts work on a stream; `Launch`, or what a library prepares."""

_functions: dict[tuple[int, str], ctypes.c_void_p] = {}
_lock = threading.Lock()


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


def function(kernel: Kernel, device: driver.Device) -> ctypes.c_void_p:
    """The loaded function of a kernel; compiled and loaded where that was not done before."""
    key = (device.ordinal, compiler.key(kernel, device.arch))
    found = _functions.get(key)
    if found is not None:
        return found
    cubin = compiler.compile_kernel(kernel, device.arch)
    with _lock:
        if key not in _functions:
            module, handle = ctypes.c_void_p(), ctypes.c_void_p()
            driver.call("cuModuleLoadData", ctypes.byref(module), cubin)
            driver.call("cuModuleGetFunction", ctypes.byref(handle), module, kernel.name.encode())
            _functions[key] = handle
        return _functions[key]


@dataclass(eq=False)
class Launch:
    """One kernel launch with all arguments in place; call it with a stream.

    A launch may be recorded into a graph any number of times. Not for two threads at once.
    """

    name: str
    _function: ctypes.c_void_p
    _config: _Config
    _values: tuple[Any, ...]
    _pointers: Any
    _attributes: Any

    def __call__(self, stream: int) -> None:
        self._config.stream = stream
        driver.call(
            "cuLaunchKernelEx",
            ctypes.byref(self._config),
            self._function,
            self._pointers,
            None,
        )

    def copy(self, positions: Collection[int]) -> Launch:
        """The same launch with arguments of its own at these positions; see `point`."""
        values = tuple(
            ctypes.c_void_p(v.value) if i in positions else v for i, v in enumerate(self._values)
        )
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        return dataclasses.replace(self, _values=values, _pointers=pointers)

    def point(self, position: int, address: int) -> None:
        """Put another address among the arguments."""
        self._values[position].value = address

    def update(self, executable: int, node: int) -> None:
        """Let a captured launch take the present values of the arguments from the next run on."""
        wanted = _NodeParameters(
            self._function,
            self._config.grid,
            self._config.block,
            self._config.shared,
            ctypes.addressof(self._pointers),
        )
        driver.call("cuGraphExecKernelNodeSetParams_v2", executable, node, ctypes.byref(wanted))


class _NodeParameters(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("values", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


def prepare(
    call: Call,
    device: driver.Device,
    addresses: Sequence[int],
    *,
    overlap: bool = True,
) -> Launch:
    """Fill in the addresses of a call.

    Args:
        call: the launch.
        device: where it will run.
        addresses: of the operation's buffers: inputs, outputs, then the workspace.
        overlap: allow it to start before its predecessor has finished.

    Raises:
        RunnerError: the call refers to a buffer that is not given.
    """
    handle = function(call.kernel, device)
    if call.shared > _PLAIN_SHARED:
        driver.call(
            "cuFuncSetAttribute",
            handle,
            ctypes.c_int(_MAX_DYNAMIC_SHARED),
            ctypes.c_int(call.shared),
        )
    values: list[Any] = []
    for arg in call.args:
        if not isinstance(arg, Buffer | TensorMap):
            values.append(arg)
            continue
        if arg.index >= len(addresses):
            raise RunnerError(
                f"kernel {call.kernel.name} wants buffer {arg.index}, {len(addresses)} are given"
            )
        if isinstance(arg, TensorMap):
            values.append(_encode(arg, addresses[arg.index]))
        else:
            values.append(ctypes.c_void_p(addresses[arg.index] + arg.offset))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    wanted = []
    if call.cluster > 1:
        wanted.append(_Attribute(_CLUSTER, 0, (ctypes.c_uint * 16)(1, 1, call.cluster)))
    if overlap and call.overlap and device.capability >= (9, 0):
        wanted.append(_Attribute(_PROGRAMMATIC, 0, (ctypes.c_uint * 16)(1)))
    attributes = (_Attribute * max(1, len(wanted)))(*wanted)
    config = _Config(
        call.grid,
        call.block,
        call.shared,
        None,
        ctypes.addressof(attributes) if wanted else None,
        len(wanted),
    )
    return Launch(call.kernel.name, handle, config, tuple(values), pointers, attributes)


_MAP_TYPES = {DType.INT8: 0, DType.FLOAT16: 6, DType.FLOAT: 7, DType.BFLOAT16: 9}
_SWIZZLE_128, _PROMOTE_256 = 3, 3


def _encode(arg: TensorMap, address: int) -> ctypes.Array[ctypes.c_ulonglong]:
    """The 128 bytes that the hardware reads."""
    raw = (ctypes.c_ulonglong * 32)()
    skip = -ctypes.addressof(raw) % 64 // 8
    aligned = (ctypes.c_ulonglong * 16).from_buffer(raw, skip * 8)
    item = arg.dtype.numpy.itemsize
    rank, ones = 2 + len(arg.outer), (1,) * len(arg.outer)
    driver.call(
        "cuTensorMapEncodeTiled",
        aligned,
        ctypes.c_int(_MAP_TYPES[arg.dtype]),
        ctypes.c_uint(rank),
        address,
        (ctypes.c_ulonglong * rank)(arg.columns, arg.rows, *(size for size, _ in arg.outer)),
        (ctypes.c_ulonglong * (rank - 1))(
            *(s * item for s in (arg.pitch, *(s for _, s in arg.outer)))
        ),
        (ctypes.c_uint * rank)(arg.box_columns, arg.box_rows, *ones),
        (ctypes.c_uint * rank)(1, 1, *ones),
        ctypes.c_int(0),
        ctypes.c_int(_SWIZZLE_128),
        ctypes.c_int(_PROMOTE_256),
        ctypes.c_int(0),
    )
    return aligned


def prepare_plan(
    plan: Candidate,
    device: driver.Device,
    addresses: Sequence[int],
    *,
    overlap: bool = True,
) -> tuple[Launchable, ...]:
    """Every launch of a plan; `addresses` end with the workspace if the plan wants one."""
    if isinstance(plan, Plan):
        return tuple(prepare(c, device, addresses, overlap=overlap) for c in plan.calls)
    return tuple(plan.prepare(addresses))
