"""How long `debug locate` takes, in units of building, running the engine and the oracle.

    python scripts/bench_locate.py                       # OCR, a MiniLM-sized transformer, deep
    python scripts/bench_locate.py --only ppocr-rec --cpu
    python scripts/bench_locate.py --memory

The marks: locating takes at most build + 6 x (engine run + oracle run), where what engine and
oracle do once, binding their layers to kernels, is part of building; and at most 1.15 times the
sum of the peaks of both runs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import made_models  # noqa: E402  # after the path is set
from models import get  # noqa: E402

MARK = 6.0
MEMORY_MARK = 1.15
CPU = False


def ppocr_rec() -> tuple[Any, dict[str, Any]]:
    model = get("ppocr-rec")
    return str(model.path), model.feeds()


def minilm() -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(0)
    feeds = {"ids": rng.integers(0, 3000, (1, 64)), "mask": np.ones((1, 64), np.int64)}
    return made_models.transformer(), feeds


def deep() -> tuple[Any, dict[str, Any]]:
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 16), np.float32)}
    return made_models.deep(), feeds


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "ppocr-rec": ppocr_rec,
    "minilm": minilm,
    "deep": deep,
}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time() if CPU else time.perf_counter()
    value = call()
    return (time.process_time() if CPU else time.perf_counter()) - start, value


def measure(name: str) -> bool:
    """Print one line; whether the mark is met."""
    from polytool import NativeRunner
    from polytool.backends.native.oracle import NativeOracle
    from polytool.comparators.locate import locate

    source, feeds = CASES[name]()
    build, runner = seconds(lambda: NativeRunner(source, precision="fp16", device="cpu"))
    first, _ = seconds(lambda: runner.infer(feeds))
    engine = min(seconds(lambda: runner.infer(feeds))[0] for _ in range(3))
    parse, oracle = seconds(lambda: NativeOracle(source))
    outputs = [spec.name for spec in runner.outputs]
    bind, _ = seconds(lambda: oracle.evaluate(feeds, outputs))
    exact = min(seconds(lambda: oracle.evaluate(feeds, outputs))[0] for _ in range(3))
    looking, found = seconds(lambda: locate(runner, oracle, [feeds]))
    ready = build + (first - engine) + parse + (bind - exact)
    times = looking / (engine + exact)
    print(
        f"{name:10} {len(found.findings):6} layers  locate {ready + looking:6.2f} s  build "
        f"{build:.2f} + {first - engine:.2f}  oracle's {parse:.2f} + {bind - exact:.2f}  looking "
        f"{looking:.2f}  engine {engine:.3f}  oracle {exact:.3f}  {times:.1f} x (engine + oracle)",
        flush=True,
    )
    return times <= MARK


def peak(name: str, what: str) -> int:
    """Peak resident bytes of a process that does one thing with the model of that name."""
    words = [sys.executable, __file__, "--only", name, "--alone", what]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def alone(name: str, what: str) -> None:
    """Do one thing and print this process's peak resident bytes."""
    from polytool import NativeRunner
    from polytool.backends.native.oracle import NativeOracle
    from polytool.comparators.locate import locate

    source, feeds = CASES[name]()
    if what in ("engine", "locate"):
        runner = NativeRunner(source, precision="fp16", device="cpu")
    if what in ("oracle", "locate"):
        oracle = NativeOracle(source)
    if what == "engine":
        runner.infer(feeds)
    elif what == "oracle":
        oracle.evaluate(feeds, [tensor.name for tensor in oracle.network.outputs])
    elif what == "locate":
        locate(runner, oracle, [feeds])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def memory(name: str) -> bool:
    """Print one line; whether the mark is met."""
    engine, oracle, whole = (peak(name, what) for what in ("engine", "oracle", "locate"))
    share = whole / (engine + oracle)
    print(
        f"{name:10} peak: engine {engine >> 20} MiB  oracle {oracle >> 20} MiB  "
        f"locate {whole >> 20} MiB  {share:.2f} of their sum",
        flush=True,
    )
    return share <= MEMORY_MARK


def main() -> int:
    global CPU
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=CASES, action="append", help="this case; repeatable")
    parser.add_argument("--cpu", action="store_true", help="processor time, for a shared machine")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--alone", choices=("engine", "oracle", "locate"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    CPU = given.cpu
    chosen = given.only or list(CASES)
    if given.alone:
        alone(chosen[0], given.alone)
        return 0
    return 0 if all([*map(memory if given.memory else measure, chosen)]) else 1


if __name__ == "__main__":
    sys.exit(main())
