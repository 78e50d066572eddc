"""Time the native engine on CPU against ONNX Runtime, or an emulated precision against fp32.

    python scripts/bench_cpu.py                         # the models that come in packages
    python scripts/bench_cpu.py ppocr-rec silero        # some of them
    python scripts/bench_cpu.py --all --json            # the nine CNN classifiers too; JSON
    python scripts/bench_cpu.py --precision fp16        # emulated fp16 over fp32 (mark: 3)

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


def measure(model: RealModel, rounds: int, seconds: float, precision: str) -> dict[str, Any]:
    """Both runners on one model, in turns: ONNX Runtime and ours, or fp32 and `precision`."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = os.path.join(folder, "inputs.npz")
        save_feeds([model.feeds()], inputs)
        path = source(model, folder)
        runners = two_precisions(folder, precision) if precision else RUNNERS
        request = Request(path, runners, files=[inputs])
        found = benchmark(request, Schedule(seconds=rounds * seconds, iterations=5, turns=rounds))
    base, timed = found.timings
    names = (precision, "fp32") if precision else ("native", "onnxrt")
    (ratio,) = found.ratios
    return {
        "model": model.name,
        f"{names[0]}_ms": round(1e3 * timed.latency()["median"], 4),
        f"{names[1]}_ms": round(1e3 * base.latency()["median"], 4),
        "ratio": round(ratio.ratio, 3),
        "spread": [round(ratio.low, 3), round(ratio.high, 3)],
        "other_load": found.other_load or 0.0,
    }


def two_precisions(folder: str, precision: str) -> tuple[str, str]:
    """Two runners from a script: the native engine in fp32, and in `precision`."""
    script = os.path.join(folder, "runners.py")
    text = "from polytool import NativeRunner\n" + "".join(
        f"def {name}(model):\n    return NativeRunner(model, precision={name!r})\n"
        for name in ("fp32", precision)
    )
    with open(script, "w", encoding="utf-8") as file:
        file.write(text)
    return f"{script}:fp32", f"{script}:{precision}"


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
    parser.add_argument("--precision", default="", help="time this against fp32 instead")
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
        rows.append(measure(get(name), options.rounds, options.seconds, options.precision))
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

    times = [key for key in result["models"][0] if key.endswith("_ms")]
    rows = [
        [r["model"], *(r[t] for t in times), r["ratio"], "{} .. {}".format(*r["spread"])]
        for r in result["models"]
    ]
    head = ["model", *(t.replace("_", " ") for t in times), "ratio", "rounds"]
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
