"""Where onnxruntime can be observed, in terms of the original model."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from polytool.backends.base import Tap
from polytool.backends.native.protos import display, read_type
from polytool.backends.onnxrt.cut import Cutter
from polytool.tensors import TensorSpec


def find_taps(original: onnx.ModelProto, executed: onnx.ModelProto) -> tuple[Tap, ...]:
    """The tensors of the original model that the executed one stores, in execution order.

    onnxruntime keeps the name of a tensor as long as it keeps the tensor.

    Args:
        original: the model as the user knows it.
        executed: the model as onnxruntime rewrote it.
    """
    source = Cutter(original)
    stored: dict[str, str] = {}
    for node in Cutter(executed).nodes:
        for name in node.output:
            if name in source.producer and name not in source.constants:
                stored[name] = display(node)
    specs = specs_of(original)
    return tuple(
        Tap(
            tensor=name,
            layer=layer,
            nodes=tuple(display(source.nodes[i]) for i in _origin(source, name, stored)),
            spec=specs.get(name) or TensorSpec(name, None, None),
        )
        for name, layer in stored.items()
    )


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
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    return {info.name: TensorSpec(info.name, *read_type(info.type)) for info in infos}
