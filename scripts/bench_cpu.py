"""Time the native engine on CPU against ONNX Runtime on the real models of scripts/models.py.

    python scripts/bench_cpu.py                         # the models that come in packages
    python scripts/bench_cpu.py ppocr-rec silero        # some of them
    python scripts/bench_cpu.py --all --json            # the nine CNN classifiers too; JSON

Each model is loaded once in a process of either runner, and the two take turns: while one is timed
the other waits for its next command. Both run with their defaults; every turn begins with a warm-up
run. A round gives a median of each and their ratio; the table shows medians over the rounds.
Only ratios mean something, and only on an otherwise idle machine: what else runs is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from models import MODELS, RealModel, get, names, with_random_weights

RUNNERS = ("native", "onnxrt")
# Load on the machine, beside ours, above which the figures are worth little.
_BUSY = 0.3


class Child:
    """A process that holds one model in one runner and times it on command."""

    def __init__(self, runner: str, model: str) -> None:
        self.runner, self.model = runner, model
        command = [sys.executable, os.path.abspath(__file__), "--child", runner, model]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer()

    def time(self, seconds: float) -> float:
        """The median time of one inference, in seconds, over about `seconds` of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._answer()["median"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the {self.runner} process for {self.model} ended with exit code "
                f"{self._process.wait()}; its message stands above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def child(runner: str, name: str) -> None:
    """Answer commands on stdin, a line each, until it ends."""
    import polytool

    model = get(name)
    feeds = model.feeds()
    with polytool.runner(runner, source(model)) as held:
        for _ in range(3):
            held.infer(feeds)
        print(json.dumps({"ready": name}), flush=True)
        for line in sys.stdin:
            held.infer(feeds)
            times: list[float] = []
            end = time.perf_counter() + float(line)
            while len(times) < 5 or time.perf_counter() < end:
                start = time.perf_counter()
                held.infer(feeds)
                times.append(time.perf_counter() - start)
            print(json.dumps({"median": statistics.median(times), "runs": len(times)}), flush=True)


def source(model: RealModel) -> Any:
    """What the runners load: the file, or a classifier with weights that are not all alike."""
    if model.package != "onnx":
        return str(model.path)
    import onnx

    return with_random_weights(onnx.load(model.path)).SerializeToString()


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Both runners on one model, in turns."""
    children = [Child(runner, name) for runner in RUNNERS]
    times: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
    for turn in range(rounds):
        for held in children if turn % 2 == 0 else children[::-1]:
            times[held.runner].append(held.time(seconds))
            time.sleep(0.02)  # threads of the one that ran may still be spinning
    for held in children:
        held.close()
    native, onnxrt = (times[runner] for runner in RUNNERS)
    ratios = [a / b for a, b in zip(native, onnxrt, strict=True)]
    return {
        "model": name,
        "native_ms": round(1e3 * statistics.median(native), 4),
        "onnxrt_ms": round(1e3 * statistics.median(onnxrt), 4),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and worst of the ratios."""
    ratios = {row["model"]: row["ratio"] for row in rows}
    worst = max(ratios, key=lambda name: ratios[name])
    return {
        "geomean": round(math.exp(statistics.fmean(math.log(r) for r in ratios.values())), 3),
        "worst": ratios[worst],
        "worst_model": worst,
    }


def other_load() -> float:
    """Processors' worth of other work during half a second in which we sleep."""

    def busy() -> tuple[float, float]:
        with open("/proc/stat", encoding="ascii") as stat:
            ticks = [float(t) for t in stat.readline().split()[1:]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    if not os.path.exists("/proc/stat"):
        return 0.0
    before = busy()
    time.sleep(0.5)
    after = busy()
    return (os.cpu_count() or 1) * (after[0] - before[0]) / max(1.0, after[1] - before[1])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of scripts/models.py")
    parser.add_argument("--all", action="store_true", help="the CNN classifiers of onnx too")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each runner (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn (default 0.5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--child", choices=RUNNERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.models[0])
        return
    unknown = sorted(set(options.models) - set(names()))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(names())}")
    chosen = options.models or [m.name for m in MODELS if options.all or m.package != "onnx"]
    loads, rows = [], []
    for name in chosen:
        if not get(name).path.exists():
            parser.error(f"{get(name).path} is missing; run scripts/fetch_models.py first")
    for name in chosen:
        loads.append(other_load())
        rows.append(measure(name, options.rounds, options.seconds))
        print(f"{name}: {rows[-1]['ratio']}", file=sys.stderr)
    result = {"models": rows, **summary(rows), "other_load": round(statistics.fmean(loads), 2)}
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


def show(result: dict[str, Any]) -> None:
    """A table and a line."""
    from tabulate import tabulate

    rows = [
        [r["model"], r["native_ms"], r["onnxrt_ms"], r["ratio"], "{} .. {}".format(*r["spread"])]
        for r in result["models"]
    ]
    head = ["model", "native ms", "onnxruntime ms", "ratio", "rounds"]
    print(tabulate(rows, head, floatfmt=".2f"))
    print(
        f"\ngeometric mean {result['geomean']:.2f}, worst {result['worst']:.2f} "
        f"({result['worst_model']})"
    )
    if result["other_load"] > _BUSY:
        print(
            f"other processes kept {result['other_load']:.1f} processors busy: "
            "measure again on an idle machine"
        )


if __name__ == "__main__":
    main()
