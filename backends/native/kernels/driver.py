"""The CUDA driver through ctypes: devices, memory, streams, events, graphs.

It works in the device's primary context, so CuPy, torch and the CUDA libraries share everything.
Addresses, streams and events are plain integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from polytool.collection import paused_collection
from polytool.errors import RunnerError

_COUNT, _L2, _MAJOR, _MINOR = 16, 38, 75, 76
_THREAD_LOCAL_CAPTURE = 1
_TIMED, _UNTIMED = 0, 2
_EXTERNAL = 1
_PORTABLE, _MAPPED = 1, 2


@cache
def _cuda() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise RunnerError(
            "there is no NVIDIA driver on this machine (libcuda.so.1); use --device cpu"
        ) from err
    _check_with(lib, lib.cuInit(0), "cuInit")
    return lib


def _check_with(lib: ctypes.CDLL, status: int, call: str) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    lib.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode() if text.value else f"error {status}"
    raise RunnerError(f"the CUDA driver refuses {call}: {reason}")


def call(name: str, *args: Any) -> None:
    """Call a driver function and raise on a status other than success.

    Integers are passed as 64-bit values: wrap what the function takes as `int` in `c_int`.
    """
    lib = _cuda()
    wide = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]
    _check_with(lib, getattr(lib, name)(*wide), name)


def available() -> bool:
    """Whether there is a driver and at least one device."""
    try:
        count = ctypes.c_int()
        call("cuDeviceGetCount", ctypes.byref(count))
    except RunnerError:
        return False
    return count.value > 0


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        arch: what its kernels are compiled for, such as `sm_90a`.
        l2: bytes of its second-level cache.
        driver: the driver's CUDA version, 13000 for 13.0.
    """

    ordinal: int
    name: str
    multiprocessors: int
    capability: tuple[int, int]
    l2: int
    driver: int

    @property
    def arch(self) -> str:
        """What its kernels are compiled for, such as `sm_90a`."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    @property
    def stamp(self) -> dict[str, str | int]:
        """What compiled kernels and chosen tactics are for."""
        capability = ".".join(map(str, self.capability))
        return {"device": self.name, "capability": capability, "driver": self.driver}

    @property
    def context(self) -> int:
        """Its primary context."""
        return _primary(self.ordinal)

    def activate(self) -> None:
        """Make its primary context current in the calling thread."""
        call("cuCtxSetCurrent", self.context)


@cache
def _primary(ordinal: int) -> int:
    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(ordinal))
    assert context.value is not None
    return context.value


@cache
def device(ordinal: int = 0) -> Device:
    """Describe a device and retain its context."""
    handle, name, version = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(ordinal))
    call("cuDeviceGetName", name, ctypes.c_int(256), handle)
    call("cuDriverGetVersion", ctypes.byref(version))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), handle)
        return value.value

    found = Device(
        ordinal,
        name.value.decode(),
        attribute(_COUNT),
        (attribute(_MAJOR), attribute(_MINOR)),
        attribute(_L2),
        version.value,
    )
    found.activate()
    return found


def allocate(size: int) -> int:
    """Device memory; at least 256 bytes, aligned to 256."""
    address = ctypes.c_void_p()
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 256)))
    assert address.value is not None
    return address.value


def free(address: int) -> None:
    """Give device memory back; waits for the device."""
    call("cuMemFree_v2", address)


def fill(address: int, size: int, value: int = 0, stream: int = 0) -> None:
    """Set every byte."""
    call("cuMemsetD8Async", address, ctypes.c_ubyte(value), ctypes.c_size_t(size), stream)


def to_device(address: int, host: int, size: int, stream: int = 0) -> None:
    """Copy from host memory; returns before it is done if the memory is page-locked."""
    call("cuMemcpyHtoDAsync_v2", address, host, ctypes.c_size_t(size), stream)


def to_host(host: int, address: int, size: int, stream: int = 0) -> None:
    """Copy to host memory; returns before it is done if the memory is page-locked."""
    call("cuMemcpyDtoHAsync_v2", host, address, ctypes.c_size_t(size), stream)


def copy(target: int, source: int, size: int, stream: int = 0) -> None:
    """Copy within the device."""
    call("cuMemcpyDtoDAsync_v2", target, source, ctypes.c_size_t(size), stream)


def memory() -> tuple[int, int]:
    """Bytes of device memory that are free, and that there are."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def pin(size: int) -> int:
    """Page-locked host memory, which kernels may use under the same address."""
    address = ctypes.c_void_p()
    flags = ctypes.c_uint(_PORTABLE | _MAPPED)
    call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)), flags)
    assert address.value is not None
    return address.value


def host_bytes(address: int, size: int) -> Any:
    """Host memory as a buffer that can be written to."""
    return (ctypes.c_ubyte * size).from_address(address)


def unpin(address: int) -> None:
    """Give page-locked memory back."""
    call("cuMemFreeHost", address)


def create_stream() -> int:
    """A stream that does not wait for the default one."""
    stream = ctypes.c_void_p()
    call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))
    assert stream.value is not None
    return stream.value


def destroy_stream(stream: int) -> None:
    """Destroy a stream once its work is done."""
    call("cuStreamDestroy_v2", stream)


def synchronize(stream: int) -> None:
    """Wait for a stream; errors of its kernels are raised here."""
    call("cuStreamSynchronize", stream)


def create_event(timed: bool = True) -> int:
    """An event."""
    event = ctypes.c_void_p()
    call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_TIMED if timed else _UNTIMED))
    assert event.value is not None
    return event.value


def destroy_event(event: int) -> None:
    """Destroy an event."""
    call("cuEventDestroy_v2", event)


def record(event: int, stream: int) -> None:
    """Mark the present end of a stream's work."""
    call("cuEventRecord", event, stream)


def record_in_graph(event: int, stream: int) -> None:
    """The same for a stream that is being captured: the graph records the event when it runs."""
    call("cuEventRecordWithFlags", event, stream, ctypes.c_uint(_EXTERNAL))


def follow(stream: int, other: int) -> None:
    """What is put on `stream` from now on waits for what is on `other` by now."""
    event = create_event(timed=False)
    record(event, other)
    call("cuStreamWaitEvent", stream, event, ctypes.c_uint(0))
    destroy_event(event)


def elapsed(start: int, end: int) -> float:
    """Milliseconds between two events that have happened."""
    milliseconds = ctypes.c_float()
    call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
    return milliseconds.value


class Raw:
    """What an inference calls, as fast as ctypes can: plain integers in, a status out.

    Check statuses with `raise_status`.
    """

    def __init__(self) -> None:
        lib, address = _cuda(), ctypes.c_void_p

        def function(name: str, *types: Any) -> Any:
            found = lib[name]  # a function object of our own, whose types nobody else sets
            found.argtypes = types
            return found

        self.activate = function("cuCtxSetCurrent", address)
        size = ctypes.c_size_t
        self.to_device = function("cuMemcpyHtoDAsync_v2", address, address, size, address)
        self.to_host = function("cuMemcpyDtoHAsync_v2", address, address, size, address)
        self.launch = function("cuGraphLaunch", address, address)
        self.record = function("cuEventRecord", address, address)
        self.wait = function("cuStreamWaitEvent", address, address, ctypes.c_uint)
        self.query = function("cuStreamQuery", address)
        self.synchronize = function("cuStreamSynchronize", address)


class Graph:
    """Captured work that runs with one call.

    Memory, modules and library workspaces that it uses must outlive it.
    """

    def __init__(self) -> None:
        self._captured = ctypes.c_void_p()
        self._executables: list[int] = []
        self.nodes = 0

    @classmethod
    @contextmanager
    def capture(cls, stream: int) -> Iterator[Graph]:
        """Record what the body puts on `stream`; the graph is ready after the body.

        Raises:
            RunnerError: something in the body cannot be captured.
        """
        graph = cls()
        call("cuStreamBeginCapture_v2", stream, ctypes.c_int(_THREAD_LOCAL_CAPTURE))
        try:
            with paused_collection():  # what it frees cannot be freed during a capture
                yield graph
        except BaseException:
            _cuda().cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph._captured))
            graph.close()
            raise
        call("cuStreamEndCapture", stream, ctypes.byref(graph._captured))
        count = ctypes.c_size_t()
        call("cuGraphGetNodes", graph._captured, None, ctypes.byref(count))
        graph.nodes = count.value
        graph.instantiate()

    def last_node(self, stream: int) -> int:
        """The node of what was put on the stream last; in the body of `capture` only.

        Raises:
            RunnerError: it is not one node.
        """
        status, number, count = ctypes.c_int(), ctypes.c_uint64(), ctypes.c_size_t()
        graph, edges = ctypes.c_void_p(), ctypes.c_void_p()
        nodes = ctypes.POINTER(ctypes.c_void_p)()
        call(
            "cuStreamGetCaptureInfo_v3",
            stream,
            *(ctypes.byref(x) for x in (status, number, graph, nodes, edges, count)),
        )
        if count.value != 1 or not nodes[0]:
            raise RunnerError(f"a captured launch became {count.value} nodes")
        return int(nodes[0])

    def instantiate(self) -> int:
        """One more executable of the graph, whose nodes can be changed by themselves."""
        made = ctypes.c_void_p()
        call(
            "cuGraphInstantiateWithFlags", ctypes.byref(made), self._captured, ctypes.c_ulonglong(0)
        )
        assert made.value is not None
        self._executables.append(made.value)
        return made.value

    @property
    def executable(self) -> int:
        """The first executable: what `Raw.launch` takes."""
        return self._executables[0]

    def launch(self, stream: int) -> None:
        """Run it once."""
        call("cuGraphLaunch", self.executable, stream)

    def close(self) -> None:
        """Destroy it; idempotent."""
        for executable in self._executables:
            call("cuGraphExecDestroy", executable)
        self._executables.clear()
        if self._captured:
            call("cuGraphDestroy", self._captured)
            self._captured = ctypes.c_void_p()


def raise_status(status: int, name: str) -> None:
    """Raise for a status that a raw call returned."""
    _check_with(_cuda(), status, name)
