"""How long `debug locate` takes, in units of building, running the engine and the oracle.

    python scripts/bench_locate.py                       # OCR, a MiniLM-sized transformer, deep
    python scripts/bench_locate.py --only ppocr-rec

The mark: locating takes at most build + 6 x (engine run + oracle run).
"""

from __future__ import annotations

import argparse
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
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


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
    whole, found = seconds(
        lambda: locate(
            NativeRunner(source, precision="fp16", device="cpu"), NativeOracle(source), [feeds]
        )
    )
    allowed = build + parse + MARK * (engine + exact)
    print(
        f"{name:10} {len(found.findings):6} layers  locate {whole:6.2f} s  build {build:.2f}  "
        f"oracle's parse {parse:.2f}  engine {engine:.3f} (first {first:.2f})  oracle {exact:.3f} "
        f"(first {bind:.2f})  {(whole - build - parse) / (engine + exact):.1f} x (engine + oracle)",
        flush=True,
    )
    return bool(whole <= allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=CASES, action="append", help="this case; repeatable")
    chosen = parser.parse_args().only or list(CASES)
    return 0 if all([*map(measure, chosen)]) else 1


if __name__ == "__main__":
    sys.exit(main())
