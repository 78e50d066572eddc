"""The emulated error of each layer against the GPU's, in float16 and bfloat16.

    python scripts/bench_gpu_emulation.py [--only NAME ...] [--precision fp16 bf16] [--layers]

The same plan runs on the GPU and, emulated, on the CPU. The own error of a layer is the relative L2
distance between what it stores and what float64 makes of that engine's own inputs of the layer. The
mark: a ratio between 0.5 and 2 in at least 90 % of the layers. Exits with 1 where it is not met.
Networks have random weights: torchvision-like ones from timm, BERT from transformers, and the light
classifiers of the onnx package.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import get, with_random_weights

from polytool import NativeRunner
from polytool.backends.native.builder import Prepared, prepared
from polytool.backends.native.oracle import NativeOracle
from polytool.comparators.judge import relative_l2
from polytool.comparators.rows import RowOracle
from polytool.comparators.slices import plan_slices
from scripts import gpu_networks, made_models

MARK = 0.9
Case = tuple[Any, dict[str, Any]]
LIGHT = ("squeezenet", "shufflenet", "densenet121", "inception_v1", "resnet50")
DEVICE = "cuda"


def light(name: str) -> Case:
    """A classifier of the onnx package."""
    model = get(name)
    return with_random_weights(onnx.load(model.path)), model.feeds()


def exported(name: str) -> Case:
    """A network of `gpu_networks.py`."""
    network, make = gpu_networks.NETWORKS[name](1)
    inputs = make(0)
    with tempfile.TemporaryDirectory() as folder:
        proto = onnx.load(gpu_networks.export(network, inputs, Path(folder) / "model.onnx"))
    return proto, {f"input{i}": x.numpy() for i, x in enumerate(inputs)}


def small() -> Case:
    """Two encoder layers; needs nothing but numpy."""
    rng = np.random.default_rng(0)
    feeds = {"ids": rng.integers(0, 500, (2, 16)), "mask": np.ones((2, 16), np.int64)}
    return made_models.transformer(layers=2, width=64, heads=4, vocabulary=500), feeds


def bert() -> Case:
    """Six encoder layers of MiniLM's size, as torch writes them; 64 tokens, some masked."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 3000, (1, 64))
    mask = np.ones_like(ids)
    mask[:, 50:] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return made_models.bert(), feeds


CASES: dict[str, Callable[[], Case]] = {
    "transformer": small,
    "bert": bert,
    **{name: partial(light, name) for name in LIGHT},
    **{name: partial(exported, name) for name in ("deit_t", "bert_base")},
}


def stored(model: Prepared, feeds: dict[str, Any], precision: str, device: str) -> dict[str, Any]:
    """Everything that the engine stores, by ONNX tensor, and its taps under ``."""
    values: dict[str, Any] = dict(feeds)
    with NativeRunner(model, precision=precision, device=device) as runner:
        runner.infer(feeds, observe=lambda tap, value: values.update({tap.tensor: np.array(value)}))
        values[""] = runner.taps()
    return values


def own_errors(oracle: NativeOracle, values: dict[str, Any], inputs: list[str]) -> dict[str, float]:
    """The own error of every stored float tensor."""
    taps = values[""]
    slices, _ = plan_slices(taps, inputs, oracle)
    rows = RowOracle(oracle, taps)
    errors: dict[str, float] = {}
    for index, found in slices.items():
        tensor, dtype = taps[index].tensor, taps[index].spec.dtype
        if taps[index].depth or tensor not in values or dtype is None or not dtype.is_float:
            continue
        given = {name: values[name] for name in found.inputs}
        error = relative_l2(values[tensor], rows.evaluate(given, [tensor])[tensor])
        if error is not None:
            errors[tensor] = error
    return errors


def compared(name: str, precisions: list[str], layers: bool) -> Iterator[tuple[str, int, int]]:
    """Precision, layers within the mark, and all layers of one network."""
    proto, feeds = CASES[name]()
    model, oracle = prepared(proto), NativeOracle(proto)
    for precision in precisions:
        start = time.perf_counter()
        pair = []
        for device in (DEVICE, "cpu"):
            values = stored(model, feeds, precision, device)
            pair.append(own_errors(oracle, values, list(feeds)))
        gpu, cpu = pair
        rows = [(t, gpu[t], cpu[t]) for t in gpu if t in cpu and (gpu[t] or cpu[t])]
        ratios = np.array([c / g if g else np.inf for _, g, c in rows])
        within = int(((ratios >= 0.5) & (ratios <= 2)).sum())
        low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
        exact = len(gpu.keys() & cpu.keys()) - len(rows)
        print(
            f"{name:14} {precision}: {within} of {len(rows)} layers within 2x; emulated/GPU median "
            f"{middle:.2f}, 5-95 % {low:.2f} .. {high:.2f}; exact on both {exact}, on one side "
            f"only {len(gpu.keys() ^ cpu.keys())}; {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        for (tensor, g, c), ratio in zip(rows, ratios, strict=True):
            if layers or not 0.5 <= ratio <= 2:
                print(f"    {tensor}: GPU {g:.2e}, emulated {c:.2e}, ratio {ratio:.2f}")
        yield precision, within, len(rows)


def main() -> int:
    """Compare what the command line asks for."""
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precision", nargs="*", default=["fp16", "bf16"])
    parser.add_argument("--layers", action="store_true", help="print every layer")
    parser.add_argument("--device", default=DEVICE, help="what to hold the emulation against")
    options = parser.parse_args()
    DEVICE = options.device
    counts: dict[str, list[int]] = {}
    for name in options.only:
        for precision, within, total in compared(name, options.precision, options.layers):
            pair = counts.setdefault(precision, [0, 0])
            pair[0] += within
            pair[1] += total
    for precision, (within, total) in counts.items():
        print(
            f"{precision}: {within} of {total} layers within 2x: {within / total:.1%} (mark 90 %)"
        )
    return int(any(within < MARK * total for within, total in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
