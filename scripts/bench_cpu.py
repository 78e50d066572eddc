"""Time the native engine on CPU against ONNX Runtime on the real models of scripts/models.py.

    python scripts/bench_cpu.py                         # the models that come in packages
    python scripts/bench_cpu.py ppocr-rec silero        # some of them
    python scripts/bench_cpu.py --all --json            # the nine CNN classifiers too; JSON

`polytool bench` does the work: each runner has a process of its own, and the two take turns. Both
run with their own defaults. A round gives a median of each and their ratio; the table shows the
medians over the rounds. Only ratios mean something, and only on an otherwise idle machine: what
else runs is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from typing import Any

from models import MODELS, RealModel, get, names, with_random_weights

from polytool.agreement import Request
from polytool.benchmarking import Schedule, benchmark
from polytool.feeds import save_feeds

RUNNERS = ("onnxrt", "native")  # ratios are of the second to the first
# Load on the machine, beside ours, above which the figures are worth little.
_BUSY = 0.3


def measure(model: RealModel, rounds: int, seconds: float) -> dict[str, Any]:
    """Both runners on one model, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = os.path.join(folder, "inputs.npz")
        save_feeds([model.feeds()], inputs)
        request = Request(source(model, folder), RUNNERS, files=[inputs])
        found = benchmark(request, Schedule(seconds=rounds * seconds, iterations=5, turns=rounds))
    onnxrt, native = found.timings
    (ratio,) = found.ratios
    return {
        "model": model.name,
        "native_ms": round(1e3 * native.latency()["median"], 4),
        "onnxrt_ms": round(1e3 * onnxrt.latency()["median"], 4),
        "ratio": round(ratio.ratio, 3),
        "spread": [round(ratio.low, 3), round(ratio.high, 3)],
        "other_load": found.other_load or 0.0,
    }


def source(model: RealModel, folder: str) -> str:
    """What the runners load: the file, or a classifier with weights that are not all alike."""
    if model.package != "onnx":
        return str(model.path)
    import onnx

    path = os.path.join(folder, "model.onnx")
    onnx.save(with_random_weights(onnx.load(model.path)), path)
    return path


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and worst of the ratios."""
    ratios = {row["model"]: row["ratio"] for row in rows}
    worst = max(ratios, key=lambda name: ratios[name])
    return {
        "geomean": round(math.exp(statistics.fmean(math.log(r) for r in ratios.values())), 3),
        "worst": ratios[worst],
        "worst_model": worst,
    }


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
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(names()))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(names())}")
    chosen = options.models or [m.name for m in MODELS if options.all or m.package != "onnx"]
    for name in chosen:
        if not get(name).path.exists():
            parser.error(f"{get(name).path} is missing; run scripts/fetch_models.py first")
    rows = []
    for name in chosen:
        rows.append(measure(get(name), options.rounds, options.seconds))
        print(f"{name}: {rows[-1]['ratio']}", file=sys.stderr)
    load = round(statistics.fmean(row["other_load"] for row in rows), 2)
    result = {"models": rows, **summary(rows), "other_load": load}
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
