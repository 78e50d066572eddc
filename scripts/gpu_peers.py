"""What people run on a GPU today, ready to be timed: torch.compile and ONNX Runtime, in float16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytool.precision_conversion import convert_precision
from scripts.gpu_networks import Inputs, export


@dataclass
class Peer:
    """A network that runs on the tensors `given`, which may be overwritten, and waits."""

    given: Inputs
    run: Callable[[], Any]

    def on(self, inputs: Inputs) -> Any:
        """The result for other inputs, in float32 on the host."""
        for held, new in zip(self.given, inputs, strict=True):
            held.copy_(new)
        return self.run().float().cpu().numpy()


def _halves(model: Any, inputs: Inputs) -> tuple[Any, Inputs]:
    half = copy.deepcopy(model).cuda().half()
    return half, tuple(x.cuda().half() if x.is_floating_point() else x.cuda() for x in inputs)


def torch_compile(model: Any, inputs: Inputs) -> Peer:
    """torch.compile in its mode with CUDA graphs."""
    import torch

    half, given = _halves(model, inputs)
    compiled = torch.compile(half, mode="reduce-overhead")

    def run() -> Any:
        with torch.no_grad():
            result = compiled(*given)
        torch.cuda.synchronize()
        return result

    return Peer(given, run)


def onnxruntime_cuda(model: Any, inputs: Inputs, folder: Path) -> Peer:
    """ONNX Runtime's CUDA provider with IO binding and a CUDA graph, on the float16 network."""
    import onnxruntime as ort
    import torch

    half, given = _halves(model, inputs)
    with torch.no_grad():
        output = half(*given)
    result = torch.empty_like(output.contiguous())
    providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
    try:
        path = export(half, given, folder / "half.onnx")
        session = ort.InferenceSession(str(path), providers=providers)
    except Exception:  # some exports in float16 mix types, which ONNX Runtime refuses
        path = export(model, inputs, folder / "float.onnx")
        convert_precision(str(path), keep_io_types=False).model.save(folder / "half.onnx")
        session = ort.InferenceSession(str(folder / "half.onnx"), providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("onnxruntime has no CUDA provider here: install onnxruntime-gpu")
    binding = session.io_binding()
    for i, tensor in enumerate(given):
        kind = str(tensor.dtype).removeprefix("torch.")
        binding.bind_input(f"input{i}", "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
    binding.bind_output("y", "cuda", 0, "float16", tuple(result.shape), result.data_ptr())

    def run() -> Any:
        session.run_with_iobinding(binding)
        torch.cuda.synchronize()
        return result

    return Peer(given, run)
