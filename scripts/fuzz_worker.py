"""What the fuzzer does with one file; as a program, a worker that does it for one path a line.

from scripts.fuzz_worker import exercise
exercise(Path("mutated.onnx"))      # raises what a user would call a defect
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polytool.errors import PolytoolError

MEMORY = 4 << 30  # bytes of address space
# What looking at a file, or building it, may take beyond a multiple of the file's size, in bytes.
GROWTH, GROWTH_FACTOR = 500 << 20, 200
MAX_MESSAGE = 3000
# What an operator that was given nonsense should not end in: the message would explain nothing.
BLUNDERS = (AttributeError, AssertionError, NameError, NotImplementedError, RecursionError)


class Defect(Exception):
    """What must not happen, where no exception tells of it."""


def exercise(path: Path) -> dict[str, str]:
    """Load, inspect, lint, operate on, build and run a file; an engine if it is called so.

    Returns:
        Stage to the error that ended it, or "ok".

    Raises:
        Exception: anything but a clear PolytoolError; `Defect` for too much memory, or for a
            message that says nothing.
    """
    stages = _engine_stages(path) if path.suffix == ".engine" else _model_stages(path)
    allowed = GROWTH + GROWTH_FACTOR * (path.stat().st_size if path.exists() else 0)
    return {name: _outcome(name, stage, allowed) for name, stage in stages}


def _outcome(name: str, stage: Any, allowed: int) -> str:
    before = _reset_peak()
    try:
        stage()
    except PolytoolError as err:
        text = str(err)
        if not text.strip() or len(text) > MAX_MESSAGE or "Traceback" in text:
            raise Defect(f"{name}: a message of {len(text)} characters: {text[:100]!r}") from err
        if name == "run" and isinstance(err.__cause__, BLUNDERS):
            raise err.__cause__ from err
        return text
    except MemoryError:
        if name != "run":
            raise
        return "MemoryError"
    finally:
        grown = _peak() - before
    if name != "run" and grown > allowed:
        raise Defect(f"{name}: took {grown >> 20} MiB")
    return "ok"


def _model_stages(path: Path) -> Iterator[tuple[str, Any]]:
    from polytool.backends.native.builder import engine_from_onnx
    from polytool.backends.native.config import BuilderConfig
    from polytool.backends.native.runner import NativeRunner
    from polytool.capability import capability
    from polytool.feeds import make_feeds
    from polytool.inspection import inspect_model
    from polytool.surgeon import bound_shapes, prune, strip_weights
    from polytool.surgeon.linting import lint

    config = BuilderConfig.of(device="cpu")
    built: list[Any] = []

    def run() -> None:
        feeds = next(iter(make_feeds(path)))
        with NativeRunner(built[0]) as runner:
            runner.infer(feeds)

    yield "inspect", lambda: inspect_model(path, statistics=True)
    yield "lint", lambda: lint(path)
    yield "capability", lambda: capability(path)
    yield "bound", lambda: bound_shapes(path, {"": 16}, auto=True)
    yield "prune", lambda: prune(path)
    yield "strip", lambda: strip_weights(path)
    yield "build", lambda: built.append(engine_from_onnx(path, config))
    if built:
        yield "run", run
    yield "parse", lambda: engine_from_onnx(path, BuilderConfig.of(device="cpu", optimize=False))


def _engine_stages(path: Path) -> Iterator[tuple[str, Any]]:
    from polytool.backends.native.engine import Engine
    from polytool.backends.native.engine_file import verify
    from polytool.backends.native.runner import NativeRunner
    from polytool.engine_inspection import inspect_engine
    from polytool.feeds import make_feeds

    loaded: list[Any] = []

    def run() -> None:
        with NativeRunner(loaded[0]) as runner:
            runner.infer(next(iter(make_feeds(inputs=runner.inputs))))

    yield "load", lambda: loaded.append(Engine.load(path, device="cpu"))
    yield "inspect", lambda: inspect_engine(path)
    yield "verify", lambda: list(verify(path))
    if loaded:
        yield "run", run


def signature(err: BaseException) -> str:
    """What tells one defect from another: its type and where in polytool it was raised."""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [f for f in frames if "fuzz_worker" not in f.filename and "/site-packages/" not in f[0]]
    last = (ours or list(frames))[-1]
    shown = f" {err}" if isinstance(err, Defect) else ""
    return f"{type(err).__name__}{shown[:60]} in {Path(last.filename).name}:{last.name}"


def _reset_peak() -> int:
    """Start measuring the peak of resident memory anew; bytes that are resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    """Answer every path on stdin with one JSON object a line on stdout."""
    # onnxruntime is not what is tested, and it crashes on some of these files
    sys.modules["onnxruntime"] = None  # type: ignore[assignment]  # so that importing it fails
    answers, sys.stdout = sys.stdout, sys.stderr
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"stages": exercise(Path(line.rstrip("\n")))}
        except Exception as err:  # whatever it is, it is what the fuzzer looks for
            answer = {"defect": signature(err), "traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
