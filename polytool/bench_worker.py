"""The process in which `polytool.benchmarking` times one runner.

Each runner has one of its own, so that threads, caches and memory of one do not disturb another,
and a peak of memory is one runner's. A message in is `(method, arguments)`, pickled; a message out
is `("ok", result)`, `("error", sentence, class)` or `("defect", traceback)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, BinaryIO

from polytool import errors
from polytool.errors import PolytoolError, RunnerError

# In a process of its own onnxruntime runs as it does by itself: its threads spin while they wait.
_OWN_DEFAULTS = {
    "onnxrt": {
        "session_options": {
            "session.intra_op.allow_spinning": "1",
            "session.inter_op.allow_spinning": "1",
        }
    }
}


@dataclass(frozen=True)
class Ready:
    """What loading came to.

    Attributes:
        name: the runner's.
        build_seconds, first_seconds: until it was ready, and of its first inference.
        inputs: input name to its type and shape, as text.
        settings: the runner's.
        notes: what the user should know.
    """

    name: str
    build_seconds: float
    first_seconds: float
    inputs: dict[str, str]
    settings: dict[str, Any]
    notes: tuple[str, ...]


class Service:
    """What the process does for its parent.

    Args:
        request: a `polytool.agreement.Request` with one runner.
        streams: how many inferences run at once.
        batch: what an open batch dimension is; None leaves it to the feeds.
        resident: keep inputs where the runner computes.
    """

    def __init__(self, request: Any, streams: int, batch: int | None, resident: bool) -> None:
        self._request, self._streams, self._batch, self._resident = (
            request, streams, batch, resident,
        )  # fmt: skip
        self._peak = 0

    def load(self) -> Ready:
        """Build or load, and infer once."""
        from polytool.agreement import make_data, make_runners, open_model
        from polytool.stopwatch import Stopwatch

        request = self._request = _with_defaults(self._request)
        before, notes = _resident_bytes(), list[str]()
        start = time.perf_counter()
        model = open_model(request, notes)
        (self._runner,) = make_runners(request, model, notes)
        self._runner.activate()
        build = time.perf_counter() - start
        if self._batch is not None:
            request = _with_batch(request, self._runner, self._batch)
        data = make_data(request, model, [self._runner], notes)
        feeds: list[Any] = list(data)
        if self._resident:
            moved = [self._runner.resident(feed) for feed in feeds]
            if all(a[k] is b[k] for a, b in zip(feeds, moved, strict=True) for k in a):
                notes.append(
                    f"--noDataTransfers has no effect on {self._runner.name}: its inputs are "
                    "where it computes"
                )
            feeds = moved
        self._watch = Stopwatch(self._runner, feeds, streams=self._streams)
        first = self._watch.first()
        self._model_bytes = max(_resident_bytes() - before, 0)
        shown = {n: _describe(v) for n, v in next(iter(data)).items()}
        notes += data.notes
        return Ready(
            self._runner.name, build, first, shown, self._runner.settings, tuple(notes)
        )  # fmt: skip

    def warm_up(self, seconds: float) -> None:
        """See `Stopwatch.warm_up`."""
        self._watch.warm_up(seconds)
        self._peak = self._peak or _peak_bytes()  # later the times themselves take memory

    def turn(self, seconds: float, iterations: int) -> Any:
        """See `Stopwatch.turn`."""
        return self._watch.turn(seconds, iterations)

    def phases(self, count: int) -> Any:
        """See `Stopwatch.phases`."""
        return self._watch.phases(count)

    def profile(self, count: int) -> Any:
        """See `Stopwatch.profile`."""
        return self._watch.profile(count)

    def memory(self) -> dict[str, int]:
        """Bytes: see `polytool.timings.Timing.memory`."""
        device = self._runner.device_memory()
        return {
            "host_peak": self._peak,
            "host_model": self._model_bytes,
            **{f"device_{name}": size for name, size in device.items()},
        }

    def close(self) -> list[str]:
        """Save what tuning has found, let go of the runner, and say what had no effect."""
        saves = {
            "timing_cache": self._request.save_timing_cache,
            "tactics": self._request.save_tactics,
        }
        notes: list[str] = []
        if any(saves.values()):
            from polytool.tactic_files import save_decisions

            engine: Any = getattr(self._runner, "engine", None)  # `check` wants a native runner
            notes += save_decisions(engine, **saves)
        self._watch.close()
        self._runner.deactivate()
        return notes


def _with_defaults(request: Any) -> Any:
    (name,) = request.runners
    options = {**_OWN_DEFAULTS.get(name, {}), **request.options.get(name, {})}
    return dataclasses.replace(request, options={**request.options, name: options})


def _with_batch(request: Any, runner: Any, batch: int) -> Any:
    from polytool.feed_shapes import resolve_shapes

    shapes = resolve_shapes(runner.inputs, request.shapes, batch=batch)
    said = {sizes[0] for sizes in request.shapes.values() if sizes}
    if batch != 1 and said != {batch} and shapes == resolve_shapes(runner.inputs, request.shapes):
        raise errors.UsageError(
            f"--batch {batch} has no effect: no input leaves its batch open; give --input-shapes, "
            "or change the model with surgeon sanitize --override-input-shapes"
        )
    return dataclasses.replace(request, shapes=shapes)


def _describe(value: Any) -> str:
    from polytool.tensors import DType, format_shape

    if not hasattr(value, "shape"):
        return f"sequence of {len(value)}" if isinstance(value, list) else type(value).__name__
    return f"{DType.of(value).label}{format_shape(value.shape)}"


def _resident_bytes() -> int:
    """Memory of this process that is present; its peak where the system tells no more."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    """The most memory of this process that was present at once; 0 where that is not told."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(x.split()[1]) << 10 for x in file if x.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    """The parent's end: calls methods of the `Service` in a process of its own.

    `with Worker(request, streams=1, batch=None, resident=False) as worker: worker.call("load")`
    """

    def __init__(self, request: Any, **options: Any) -> None:
        (self.name,) = request.runners
        level = logging.getLogger("polytool").getEffectiveLevel()
        code = (
            f"import json, sys; sys.path[:] = json.loads({json.dumps(json.dumps(sys.path))}); "
            f"from polytool.bench_worker import serve; serve({level})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send((request, options))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._process.kill()  # it may be at work for a long time
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended by itself, and that was said
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the service and wait for its result.

        Raises:
            PolytoolError: what the service raised.
            RunnerError: the process ended.
            RuntimeError: a defect; the message is the traceback there.
        """
        self._send((method, arguments))
        assert self._process.stdout is not None
        try:
            kind, *rest = pickle.load(self._process.stdout)
        except EOFError:
            raise self._ended() from None
        if kind == "ok":
            return rest[0]
        if kind == "error":
            text, name = rest
            raised = getattr(errors, name, RunnerError)
            raise (raised if raised is not errors.MissingDependencyError else RunnerError)(text)
        raise RuntimeError(f"in the process that times {self.name}:\n{rest[0]}")

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> RunnerError:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = ": there may not be enough memory" if code == -signal.SIGKILL else ""
        return RunnerError(f"the process that times {self.name} {how}{hint}")


def serve(level: int) -> None:
    """Answer the parent's messages until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    logging.basicConfig(format="%(message)s")
    logging.getLogger("polytool").setLevel(level)
    replies: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library or a script prints
    sys.stdout = sys.stderr
    try:
        request, options = pickle.load(sys.stdin.buffer)
    except EOFError:
        return
    service = Service(request, **options)
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_answer(service, method, arguments), replies)
        replies.flush()


def _answer(service: Service, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        return "ok", getattr(service, method)(*arguments)
    except PolytoolError as err:
        return "error", str(err), type(err).__name__
    except MemoryError as err:
        text = f"there is not enough memory: {err or 'an allocation failed'}; use smaller inputs"
        return "error", text, "RunnerError"
    except Exception:
        return "defect", traceback.format_exc()
