"""The native engine on the GPU against torch.compile, on networks with random weights.

    python scripts/bench_gpu.py [--only NAME ...] [--batch 1 32] [--precision fp16] [--json FILE]

Time is one synchronous inference with inputs on the device, median of 200 after warm-up; for the
engine `torch_ms`: torch tensors on the GPU to torch tensors on the GPU, `infer_ms`: NumPy to NumPy,
`graph_ms`: the CUDA graph alone, `two_graphs_ms`: two instances of it in turn, as outputs of two
inferences that are alive at once need them. Errors are relative L2 against the fp64 oracle, or,
for large batches, against torch in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
RUNS, WARM = 200, 20


def vision(name: str) -> Callable[[int], tuple[Any, tuple[Any, ...]]]:
    """A timm network."""

    def make(batch: int) -> tuple[Any, tuple[Any, ...]]:
        import timm
        import torch

        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        size = 224
        return model, (torch.randn(batch, 3, size, size),)

    return make


def bert(batch: int) -> tuple[Any, tuple[Any, ...]]:
    """BERT-base, 128 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(), add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.inner(input_ids=ids, attention_mask=mask).last_hidden_state

    ids = torch.randint(0, 30000, (batch, 128))
    return Hidden().eval(), (ids, torch.ones_like(ids))


NETWORKS: dict[str, Callable[[int], tuple[Any, tuple[Any, ...]]]] = {
    "resnet50": vision("resnet50"),
    "vit_b16": vision("vit_base_patch16_224"),
    "bert_base": bert,
    "mobilenetv2": vision("mobilenetv2_100"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "convnext_t": vision("convnext_tiny"),
    "deit_t": vision("deit_tiny_patch16_224"),
}


def export(model: Any, inputs: tuple[Any, ...], folder: Path) -> Path:
    """The ONNX file of a network, in float32."""
    import torch

    path = folder / "model.onnx"
    names = [f"input{i}" for i in range(len(inputs))]
    torch.onnx.export(
        model, inputs, str(path), input_names=names, output_names=["y"], dynamo=False,
        opset_version=17,
    )  # fmt: skip
    return path


def median(run: Callable[[], Any]) -> float:
    """Milliseconds."""
    for _ in range(WARM):
        run()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def torch_compiled(model: Any, inputs: tuple[Any, ...]) -> tuple[float, Any]:
    """torch.compile in its mode with CUDA graphs, float16: milliseconds and the result."""
    import copy

    import torch

    half = copy.deepcopy(model).cuda().half()
    given = [x.cuda().half() if x.is_floating_point() else x.cuda() for x in inputs]
    compiled = torch.compile(half, mode="reduce-overhead")

    def run() -> Any:
        with torch.no_grad():
            result = compiled(*given)
        torch.cuda.synchronize()
        return result

    took = median(run)
    return took, run().float().cpu().numpy()


def bench(name: str, batch: int, precision: str, peers: bool) -> dict[str, Any]:
    """One network at one batch size."""
    import torch

    from polytool import BuilderConfig, engine_from_onnx

    model, inputs = NETWORKS[name](batch)
    with torch.no_grad():
        expected = model.cuda().double()(
            *(x.cuda().double() if x.is_floating_point() else x.cuda() for x in inputs)
        )
        reference = expected.cpu().numpy()
    model = model.float().cpu()
    row: dict[str, Any] = {"network": name, "batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, inputs, Path(folder))
        feeds = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
        start = time.perf_counter()
        engine = engine_from_onnx(str(path), BuilderConfig(precision=precision, device="cuda"))
        context = engine.create_execution_context()
        (output,) = context.infer(feeds).values()
        row["build_s"] = round(time.perf_counter() - start, 1)
    row["error"] = error(output, reference)
    program: Any = context._program
    row["on_host"] = program.on_host
    row["layers"] = len(engine.network.layers)
    stretch = program.whole()
    if stretch is not None:
        row["launches"] = stretch.launches
        row["arena_mb"] = round(stretch.arena_size / 1e6, 1)
    row["memory"] = memory(context, model, inputs, precision)
    given = {n: torch.from_numpy(x).cuda() for n, x in feeds.items()}
    context.infer(given)
    found = context._replays.find(given) if context._replays is not None else None
    if found is not None:
        row["graph_ms"] = round(median(found[0].launcher(found[1])), 4)
        turns = itertools.cycle([found[0].launcher(found[1]) for _ in range(2)])
        row["two_graphs_ms"] = round(median(lambda: next(turns)()), 4)
    row["torch_ms"] = round(median(lambda: context.infer(given)), 4)
    (same,) = context.infer(given).values()
    row["torch_same"] = bool(np.array_equal(same.cpu().numpy(), output))
    row["infer_ms"] = round(median(lambda: context.infer(feeds)), 4)
    if peers:
        took, result = torch_compiled(model, inputs)
        row["compile_ms"], row["compile_error"] = round(took, 4), error(result, reference)
        if "graph_ms" in row:
            row["ratio"] = round(row["graph_ms"] / took, 3)
    context.close()
    return row


def memory(context: Any, model: Any, inputs: tuple[Any, ...], precision: str) -> dict[str, Any]:
    """MB on the GPU, and the arena without workspaces over the least that tensors take unfused."""
    from polytool import BuilderConfig, engine_from_onnx
    from polytool.backends.native.liveness import liveness_bound

    config = BuilderConfig(precision=precision, device="cpu", optimize=False)
    with tempfile.TemporaryDirectory() as folder:
        unfused = engine_from_onnx(str(export(model, inputs, Path(folder))), config).network
        shapes = {f"input{i}": tuple(x.shape) for i, x in enumerate(inputs)}
        bound = liveness_bound(unfused, shapes)
    held = context.device_memory()
    row: dict[str, Any] = {name: round(size / 1e6, 2) for name, size in held.items()}
    row["bound"] = round(bound / 1e6, 2)
    row["arena_over_bound"] = round((held["arena"] - held["workspace"]) / bound, 3)
    return row


def error(value: Any, reference: Any) -> float:
    """Relative L2."""
    a, r = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(f"{np.linalg.norm(a - r) / np.linalg.norm(r):.2e}")


def main() -> int:
    """Run what the command line asks for and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    for name in options.only:
        for batch in options.batch:
            try:
                row = bench(name, batch, options.precision, not options.no_peers)
            except Exception as err:
                traceback.print_exc()
                row = {
                    "network": name,
                    "batch": batch,
                    "failed": f"{type(err).__name__}: {err}"[:300],
                }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
