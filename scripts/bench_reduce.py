"""How long `debug reduce` takes on a real model of 860 nodes, comparing two runners in the process.

    python scripts/bench_reduce.py           # native against native, then against ONNX Runtime

The part fails when it holds both culprits, which lie far apart; the comparison is done all the
same, so that the time is what a comparison costs. The mark: 10 s, and the two culprits remain.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from models import get  # noqa: E402  # after the path is set

MARK = 10.0


def measure(first: str, second: str) -> bool:
    """Print one line; whether the mark is met."""
    from polytool.reduction import differ, reduce

    model = get("ppocr-rec")
    proto = onnx.load(model.path)
    culprits = {
        [n.name for n in proto.graph.node if n.op_type == op][i]
        for op, i in (("Conv", 3), ("MatMul", -1))
    }
    compare = differ(first, second)
    agreed = 0

    def outcome(part: onnx.ModelProto, feeds: Sequence[Any]) -> str:
        nonlocal agreed
        agreed += not compare(part, feeds)
        return "found" if culprits <= {n.name for n in part.graph.node} else ""

    wall, cpu = time.perf_counter(), time.process_time()
    found = reduce(str(model.path), [model.feeds()], outcome)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    right = set(found.nodes) == culprits
    print(
        f"{first:7} {second:7} {len(proto.graph.node)} nodes  {found.tests} tests  {wall:.1f} s, "
        f"{cpu:.1f} s of processor time  {agreed} agreed  {'exact' if right else found.nodes}",
        flush=True,
    )
    return right and wall <= MARK


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    return 0 if all([measure("native", "native"), measure("native", "onnxrt")]) else 1


if __name__ == "__main__":
    sys.exit(main())
