"""How long engines take to build on a GPU, without and with a timing cache, and to load.

    python scripts/bench_gpu_build.py [--only NAME ...] [--batch N] [--precision fp16]

Each build is a process of its own, so that nothing is compiled or loaded already. Marks for
ResNet-50: cold under 4 minutes, warm under 15 s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.gpu_networks import NETWORKS, export

_BUILD = """
import json, sys, time
import numpy as np
start = time.perf_counter()
from polytool import BuilderConfig, Engine, NativeRunner, engine_from_onnx
from polytool.backends.native.timing_cache import TimingCache
from polytool.backends.native.kernels import compiler
from polytool.tactic_files import save_decisions
kind, model, precision, folder = sys.argv[1:]
if kind == "load":
    engine = Engine.load(folder + "/m.engine", device="cuda", retune=False)
else:
    cache = TimingCache.load(folder + "/t.cache") if kind == "warm" else TimingCache()
    config = BuilderConfig.of(precision=precision, device="cuda", timing_cache=cache)
    engine = engine_from_onnx(model, config)
    built = time.perf_counter() - start
    save_decisions(engine, timing_cache=folder + "/t.cache", tactics=folder + "/" + kind + ".json")
    engine.save(folder + "/m.engine")
ready = time.perf_counter() - start
feeds = dict(np.load(folder + "/feeds.npz"))
runner = NativeRunner(engine)
start_first = time.perf_counter()
runner.infer(feeds)
first = time.perf_counter() - start_first
print(json.dumps({"kind": kind, "ready_s": round(ready, 2), "first_infer_s": round(first, 2),
    "timed": engine.tuning.cache.timed, "kernels_compiled_or_loaded": len(compiler._cubins),
    "choices": len(engine.tactics().choices), "notes": engine.notes}))
"""


def main() -> int:
    """Print one line for each build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["resnet50"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="fp16")
    options = parser.parse_args()
    failed = 0
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            import numpy as np

            model, make = NETWORKS[name](options.batch)
            inputs = make(0)
            path = export(model, inputs, Path(folder) / "model.onnx")
            feeds = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
            np.savez(Path(folder) / "feeds.npz", **feeds)
            for kind in ("cold", "warm", "load"):
                arguments = [kind, str(path), options.precision, folder]
                command = [sys.executable, "-c", _BUILD, *arguments]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                failed += done.returncode != 0
                text = done.stdout.strip() or json.dumps({"kind": kind, "failed": done.stderr})
                print(name, text[-3000:], flush=True)
            if not failed:
                pair = [Path(folder, f"{k}.json").read_text() for k in ("cold", "warm")]
                print(name, "same tactics, cold and warm:", pair[0] == pair[1], flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
