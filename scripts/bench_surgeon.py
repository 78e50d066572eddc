"""Nodes, time, memory and validity of `surgeon sanitize`, beside polygraphy, onnxslim and onnxsim.

    python scripts/bench_surgeon.py                       # every model, 20,000 nodes included
    python scripts/bench_surgeon.py --only ppocr-det deep --tools polytool onnxslim
    python scripts/bench_surgeon.py --only heavy huge reads    # what copies and reads cost
    python scripts/bench_surgeon.py --tools-bin /path/to/venv/bin

The other tools are no dependencies: install them into an environment of their own (`pip install
polygraphy onnxslim onnxsim onnxruntime onnx-graphsurgeon`) and name its `bin` with --tools-bin.
Each tool runs in a process of its own, as its command, with default flags (polygraphy with those
that fold), on the same file, taking turns; the shortest time and the largest peak of memory count.
Where other jobs share the machine, look at `cpu`: seconds of processor, user and system.

`nodes` counts those of the graph, of bodies and of functions, but for Constant. A result is valid
if onnx.checker accepts it, onnxruntime loads it, and outputs equal those of the source.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fetch_models import FetchError, fetch
from made_models import bert, deep, heavy, transformer
from models import MODELS

from polytool.model import nodes

_BIN = Path(sys.executable).parent
TOOLS: dict[str, Callable[[str, str], list[str]]] = {
    "polytool": lambda a, b: ["polytool", "surgeon", "sanitize", a, "-o", b],
    "polygraphy": lambda a, b: [
        *("polygraphy", "surgeon", "sanitize", a, "-o", b),
        *("--fold-constants", "--cleanup"),
    ],
    "onnxslim": lambda a, b: ["onnxslim", a, b],
    "onnxsim": lambda a, b: ["onnxsim", a, b],
}
READS: dict[str, Callable[[str, str], list[str]]] = {
    "inspect": lambda a, b: ["polytool", "inspect", "model", a],
    "extract": lambda a, b: [
        *("polytool", "surgeon", "extract", a, "-o", b),
        *("--inputs", "h4:auto:auto", "--outputs", "h5:auto"),
    ],
}


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a model; `nodes` is None where it failed.

    Attributes:
        seconds: on the clock.
        cpu: of user and system time.
        peak: bytes of resident memory.
        nodes: what is left.
        fault: why the result is not valid; empty if it is.
    """

    seconds: float
    cpu: float
    peak: int
    nodes: int | None = None
    fault: str = ""


@dataclass(frozen=True)
class Subject:
    """A model to work on, and inputs for it."""

    name: str
    path: Path
    feeds: dict[str, Any]


def rounds(tools: list[str], subject: Subject, repeat: int) -> dict[str, Outcome]:
    """The best of several runs of every tool, taking turns."""
    best: dict[str, Outcome] = {}
    for _ in range(repeat):
        for tool in tools:
            if tool in best and best[tool].nodes is None:
                continue
            found = run(tool, subject, check=tool not in best)
            if tool in best:
                old = best[tool]
                found = replace(
                    old,
                    seconds=min(found.seconds, old.seconds),
                    cpu=min(found.cpu, old.cpu),
                    peak=max(found.peak, old.peak),
                )
            best[tool] = found
    return best


def run(tool: str, subject: Subject, check: bool) -> Outcome:
    """One run of one tool on one model."""
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        target = Path(folder) / "out.onnx"
        found, text = measured(TOOLS[tool](str(subject.path), str(target)))
        if not target.exists():
            return replace(found, fault=text or "it wrote nothing")
        if not check:
            return replace(found, nodes=0)
        proto = onnx.load(target, load_external_data=False)
        left = sum(n.op_type != "Constant" for n in nodes(proto.graph.node))
        left += sum(n.op_type != "Constant" for f in proto.functions for n in nodes(f.node))
        return replace(found, nodes=left, fault=fault(subject, target, Path(folder)))


def scratch() -> Path:
    """Where results go: a disk, as memory would hide what writing costs."""
    return Path(tempfile.gettempdir())


def measured(command: list[str]) -> tuple[Outcome, str]:
    """What a command costs, and its last line of output if it failed."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "t = time.perf_counter()\n"
        "p = subprocess.run(sys.argv[1:], stdout=-1, stderr=-2, text=True, errors='replace')\n"
        "s = time.perf_counter() - t\n"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([s, u.ru_utime + u.ru_stime, u.ru_maxrss * 1024, p.returncode,\n"
        "                  p.stdout.strip().splitlines()[-1:]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    seconds, cpu, peak, status, lines = json.loads(done.stdout)
    return Outcome(seconds, cpu, peak), (lines or [""])[0][:80] if status else ""


_CHECK = """
import sys, numpy as np, onnx, onnxruntime as ort
source, result, feeds = sys.argv[1:]
try:
    onnx.checker.check_model(result)
except onnx.checker.ValidationError as err:
    sys.exit("checker: " + str(err).strip().splitlines()[0])
feeds = dict(np.load(feeds))
def outputs(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
before = outputs(source)
try:
    after = outputs(result)
except Exception as err:
    sys.exit("onnxruntime: " + str(err).strip().splitlines()[0])
for i, (a, b) in enumerate(zip(before, after, strict=True)):
    if a.shape != b.shape or a.dtype != b.dtype:
        sys.exit(f"output {i} has another type")
    if a.dtype.kind != "f":
        if (a != b).any():
            sys.exit(f"output {i} differs")
        continue
    error, scale = np.abs(a - b).max(initial=0), np.abs(a).max(initial=0)
    if not error <= 2e-3 * scale:
        sys.exit(f"output {i} differs by {error / scale:.1g} of its largest value")
"""


def fault(subject: Subject, result: Path, folder: Path) -> str:
    """Why the result is not the model, found in a process of its own; empty if it is."""
    np.savez(folder / "feeds.npz", **subject.feeds)
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, str(subject.path), str(result), str(folder / "feeds.npz")],
        capture_output=True,
        text=True,
    )
    return (done.stderr.strip().splitlines() or ["it crashes"])[-1][:90] if done.returncode else ""


def copy_seconds(path: Path) -> float:
    """How long a plain copy of a model's data takes, which bounds saving it."""
    start = time.perf_counter()
    data = max(path.parent.iterdir(), key=lambda file: file.stat().st_size)
    shutil.copyfile(data, path.with_suffix(".copy"))
    path.with_suffix(".copy").unlink()
    return time.perf_counter() - start


def subjects(folder: Path, only: list[str] | None) -> Iterator[Subject]:
    """The models to run on, each in a folder of its own."""
    wanted = [m for m in MODELS if not only or m.name in only]
    try:
        fetch(wanted)
    except FetchError as err:
        print(err)
        wanted = [m for m in wanted if m.path.exists()]
    for model in wanted:
        yield Subject(model.name, model.path, model.feeds())
    for name, make in (("transformer", transformer), ("minilm", bert), ("deep", deep)):
        if not only or name in only:
            onnx.save(make(), folder / f"{name}.onnx")
            yield Subject(name, folder / f"{name}.onnx", _feeds(name))
    for name, layers in (("heavy", 23), ("huge", 90)):
        if only and (name in only or (name == "heavy" and "reads" in only)):
            (folder / name).mkdir()
            yield Subject(name, heavy(folder / name / "m.onnx", layers), _feeds(name))
            shutil.rmtree(folder / name)


def _feeds(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids, ones = rng.integers(0, 3000, (2, 17)), np.ones((2, 17), np.int64)
    if name == "transformer":
        return {"ids": ids, "mask": ones}
    if name == "minilm":
        return {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones}
    width = 16 if name == "deep" else 4096
    return {"x": rng.standard_normal((3, width)).astype(np.float32)}


def report(name: str, found: dict[str, Outcome]) -> None:
    """One line a tool."""
    for tool, o in found.items():
        nodes_left = o.nodes if o.nodes is not None else "-"
        said = f"INVALID {o.fault}" if o.fault else "valid"
        print(
            f"{name:16} {tool:11} {o.seconds:8.2f} {o.cpu:8.2f} {o.peak / 1e6:8.0f} "
            f"{nodes_left:>6}  {said}",
            flush=True,
        )


def verdict(name: str, found: dict[str, Outcome]) -> str:
    """How polytool stands to the best of the others; empty where they are not there."""
    ours = found.get("polytool")
    others = [o for tool, o in found.items() if tool != "polytool" and o.nodes is not None]
    if ours is None or not others:
        return ""
    sound = [o.nodes for o in others if not o.fault and o.nodes is not None]
    return (
        f"{name:16} time {ours.seconds / min(o.seconds for o in others):5.2f}   "
        f"cpu {ours.cpu / min(o.cpu for o in others):5.2f}   "
        f"memory {ours.peak / min(o.peak for o in others):5.2f}   "
        f"nodes {ours.nodes} / {min(sound, default='-')}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        help="of scripts/models.py, transformer, minilm, deep, heavy (1.5 GB), huge (6 GB), reads",
    )
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--tools-bin", type=Path, help="where the other tools are installed")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args(argv)
    paths = [*([str(args.tools_bin)] if args.tools_bin else []), str(_BIN), os.environ["PATH"]]
    os.environ["PATH"] = os.pathsep.join(paths)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the others are installed, so compiled
    tools = [t for t in args.tools if shutil.which(t)]
    missing = [t for t in args.tools if t not in tools]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")
    print(f"{'model':16} {'tool':11} {'seconds':>8} {'cpu':>8} {'peak MB':>8} {'nodes':>6}  result")
    ratios = []
    with tempfile.TemporaryDirectory(prefix="bench-surgeon-") as folder:
        for subject in subjects(Path(folder), args.only):
            if subject.name in ("heavy", "huge"):
                print(f"{subject.name:16} {'plain copy':11} {copy_seconds(subject.path):8.2f}")
            if args.only and "reads" in args.only and subject.name == "heavy":
                report("heavy", {kind: _read(kind, subject.path) for kind in READS})
            found = rounds(tools if subject.name != "huge" else ["polytool"], subject, args.repeat)
            report(subject.name, found)
            ratios.append(verdict(subject.name, found))
    if any(ratios):
        print("\npolytool / the best of the others (nodes: ours / the fewest of a valid result)")
        print("\n".join(r for r in ratios if r))
    return 0


def _read(kind: str, path: Path) -> Outcome:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        runs = [measured(READS[kind](str(path), f"{folder}/out.onnx")) for _ in range(3)]
    failed = next((text for _, text in runs if text), "")
    return replace(min((o for o, _ in runs), key=lambda o: o.seconds), fault=failed)


if __name__ == "__main__":
    os.environ.setdefault("ORT_LOGGING_LEVEL", "4")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
