"""Fuzz model and engine files: a result or a clear error, in bounded time and memory, no crash.

    python scripts/fuzz.py --seconds 60                 # models, random nodes and engines
    python scripts/fuzz.py --seconds 3600 --seed 7 --saved finds
    python scripts/fuzz.py --kind engine --seed 3 --first 1200 --count 1
    python scripts/fuzz.py --replay finds/*             # files instead of new ones

Every file is a mutation of a conformance case or small network (see fuzz_mutations.py), or a model
of random nodes (fuzz_nodes.py), decided by seed and number alone; a worker process with limited
memory inspects, lints, operates on, builds and runs it (fuzz_worker.py). A find is an exception
that is no PolytoolError, a process that dies, one that takes too much time, or too much memory
before the model runs. One file of each distinct find is saved. Exits with 1 if there is a find.
Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.fuzz_engines import mutated_engine
from scripts.fuzz_graphs import Corpus, Feeds, Seed
from scripts.fuzz_mutations import mutated_model
from scripts.fuzz_nodes import random_nodes

CPU_SECONDS = 30.0  # for a file of no size
CPU_SECONDS_PER_MIB = 30.0  # a file of nested bodies holds 25,000 nodes in one
WALL_SECONDS = 240.0
MAX_SEED = 50_000  # bytes of a model that mutations start from
_DRIVERS = ("in drive", "in _sweep")  # a loop with a hostile number of trips is valid, and endless


class Worker:
    """A process that exercises files, replaced when it dies or has to be ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the worker

    def exercise(self, path: Path) -> dict[str, Any]:
        """The worker's answer; `defect` when it died or took too long."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        self.log.truncate(self.log.seek(0))
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        limit = _cpu(process.pid) + CPU_SECONDS + CPU_SECONDS_PER_MIB * path.stat().st_size / 2**20
        deadline = time.monotonic() + WALL_SECONDS
        while not select.select([process.stdout], [], [], 0.5)[0]:
            if _cpu(process.pid) > limit or time.monotonic() > deadline:
                return self._too_long(process)
        line = process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()
        trace = self._logged()
        self.process = None
        return {"defect": f"died ({code}) {_innermost(trace)}", "traceback": trace}

    def _too_long(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        trace = self._logged()
        self.close()
        if any(driver in trace for driver in _DRIVERS):
            return {"stages": {"run": "endless"}}
        return {"defect": f"too long {_innermost(trace)}", "traceback": trace}

    def _logged(self) -> str:
        self.log.seek(0)
        return self.log.read()[-6000:]

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.fuzz_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                cwd=Path(__file__).parent.parent,
                env=os.environ | one_thread | {"PYTHONWARNINGS": "ignore"},
            )
        return self.process

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _innermost(trace: str) -> str:
    """The first frame of ours in what faulthandler wrote."""
    for line in trace.splitlines():
        if 'File "' in line and not any(s in line for s in ("site-packages", "/lib/python")):
            file, function = line.split('"')[1], line.rpartition(" in ")[2]
            return f"{Path(file).name}:{function}"
    return ""


def corpus() -> Corpus:
    """The conformance cases of the installed onnx package, and networks, which passes rewrite."""
    from scripts import made_models as made
    from scripts.conformance import cases

    networks = [
        *(made.deep(2, 4), made.transformer(1, 8, 2, 10), made.bert(1, 8, 2, 10)),
        *(made.gpt2(1, 8, 2, 10), made.gpt2(1, 8, 2, 10, (1, 4)), made.vit(1, 8, 2, 8, 4, 3)),
    ]
    found: list[Seed] = [(model, {}) for model in networks] * 30  # about every tenth
    for case in cases(["node", "simple"]):
        model, sets = case.load()
        if sets and model.ByteSize() < MAX_SEED:
            names = [i.name for i in model.graph.input]
            feeds: Feeds = dict(zip(names, sets[0][0], strict=False))
            found.append((model, feeds))
    return Corpus(found)


def engines(seeds: Corpus, count: int = 60) -> list[bytes]:
    """Engine files of some models."""
    from polytool.backends.native.builder import engine_from_onnx
    from polytool.backends.native.config import BuilderConfig
    from polytool.errors import PolytoolError

    rng, made = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seed.engine")
        while len(made) < count:
            try:
                config = BuilderConfig.of(device="cpu", precision=rng.choice(["fp32", "fp16"]))
                engine_from_onnx(seeds.draw(rng)[0], config).save(path)
            except PolytoolError:
                continue
            made.append(path.read_bytes())
    return made


def files(kind: str, seed: int, first: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Endlessly many mutated files, each with the number that makes it again."""
    seeds = corpus()
    made = engines(seeds) if kind in ("all", "engine") else []
    index = first
    while True:
        rng = random.Random(f"{seed}/{index}")
        if kind == "engine" or (kind == "all" and index % 4 == 3):
            path = folder / "fuzz.engine"
            path.write_bytes(mutated_engine(rng, made))
        else:
            path = folder / "fuzz.onnx"
            nodes = kind == "nodes" or (kind == "all" and index % 4 == 1)
            path.write_bytes(random_nodes(rng) if nodes else mutated_model(rng, seeds))
        yield f"{kind}-{seed}-{index}", path
        index += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so long [60]")
    parser.add_argument("--count", type=int, default=1 << 60, help="stop after so many files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file [0]")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations [0]")
    parser.add_argument("--kind", choices=("all", "model", "nodes", "engine"), default="all")
    parser.add_argument("--saved", type=Path, help="folder for one file of each find")
    parser.add_argument("--replay", type=Path, nargs="+", help="files to exercise instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    worker, outcomes, finds = Worker(), Counter[str](), Counter[str]()
    done, end = 0, time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        replayed = ((p.name, p.resolve()) for p in args.replay or ())
        made = replayed if args.replay else files(args.kind, args.seed, args.first, Path(folder))
        for name, path in made:
            answer = worker.exercise(path)
            done += 1
            for stage, outcome in answer.get("stages", {}).items():
                outcomes[f"{stage} {outcome if outcome in ('ok', 'endless') else 'refused'}"] += 1
            if "defect" in answer:
                finds[answer["defect"]] += 1
                if finds[answer["defect"]] == 1:
                    print(f"{name}: {answer['defect']}", flush=True)
                    _save(args.saved, name, path, answer["traceback"])
            if done >= args.count or (time.monotonic() > end and not args.replay):
                break
    worker.close()
    print(f"{done} files; " + ", ".join(f"{k}: {n}" for k, n in sorted(outcomes.items())))
    for defect, times in finds.most_common():
        print(f"{times:6} x {defect}")
    print(f"{len(finds)} distinct finds")
    return 1 if finds else 0


def _save(folder: Path | None, name: str, path: Path, trace: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}{path.suffix}").write_bytes(path.read_bytes())
        (folder / f"{name}.txt").write_text(trace)


if __name__ == "__main__":
    sys.exit(main())
