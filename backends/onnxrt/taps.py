"""Where onnxruntime can be observed, in terms of the original model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import onnx

from polytool.backends.base import Tap
from polytool.backends.native.inference import infer_shapes
from polytool.backends.native.protos import display, read_type
from polytool.backends.onnxrt.cut import Cutter
from polytool.tensors import DType, TensorSpec

# Where onnxruntime has no kernel for a reduced type it computes in float32; names then begin so.
_WIDENED = "InsertedPrecisionFreeCast_"
_PRECISIONS = {DType.FLOAT16: "fp16", DType.BFLOAT16: "bf16", DType.DOUBLE: "fp64"}


def find_taps(original: onnx.ModelProto, executed: onnx.ModelProto) -> dict[str, Tap]:
    """The tensors of the original model that the executed one stores, in execution order.

    onnxruntime keeps the name of a tensor as long as it keeps the tensor.

    Args:
        original: the model as the user knows it.
        executed: the model as onnxruntime rewrote it.

    Returns:
        Taps by the names that their tensors have in the executed model.
    """
    source = Cutter(original)
    stored: dict[str, tuple[str, str]] = {}  # tensor -> (its name when executed, layer)
    for node in Cutter(executed).nodes:
        for output in node.output:
            name = output if output in source.producer else output.removeprefix(_WIDENED)
            known = name in source.producer and name not in source.constants
            if known and (name not in stored or output == name):
                stored[name] = output, display(node)
    specs = specs_of(original)
    return {
        output: Tap(
            tensor=name,
            layer=layer,
            nodes=tuple(display(source.nodes[i]) for i in _origin(source, name, stored)),
            spec=(spec := _stored_spec(specs.get(name), name, output)),
            precision=_PRECISIONS.get(spec.dtype, "fp32") if spec.dtype else "fp32",
        )
        for name, (output, layer) in stored.items()
    }


def _stored_spec(spec: TensorSpec | None, name: str, output: str) -> TensorSpec:
    spec = spec or TensorSpec(name, None, None)
    return spec if output == name else replace(spec, dtype=DType.FLOAT)


def _origin(source: Cutter, name: str, stored: Iterable[str]) -> list[int]:
    """The nodes between tensor `name` and the nearest stored tensors before it."""
    chosen: set[int] = set()
    pending = [source.producer[name]]
    while pending:
        index = pending.pop()
        if index in chosen:
            continue
        chosen.add(index)
        for read in source.reads[index]:
            producer = source.producer.get(read)
            if producer is not None and read not in stored and read not in source.constants:
                pending.append(producer)
    return sorted(chosen)


def specs_of(proto: onnx.ModelProto) -> dict[str, TensorSpec]:
    """What the model and ONNX's inference tell of the tensors of the main graph."""
    try:
        inferred = infer_shapes(proto).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = proto.graph  # onnxruntime may run what ONNX cannot infer
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    return {info.name: TensorSpec(info.name, *read_type(info.type)) for info in infos}
