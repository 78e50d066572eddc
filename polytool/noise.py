"""The response of a model: its outputs on the native engine, with and without noise.

Noise is on every float input and weight, but for exponents and what decides shapes: scalars, since
exporters compute sizes with them, and the scales of Resize.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.comparators.response import SEEDS, Response, describe, perturb
from polytool.model import Model, nodes, tensors
from polytool.tensors import DType

if TYPE_CHECKING:
    import onnx

    from polytool.backends.base import Feeds

# Inputs that must stay exact: noise on them would change shapes, or make the square of a negative
# number undefined.
_EXACT: Mapping[str, Sequence[int]] = {
    "Resize": (1, 2),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Pow": (1,),
}


def measure_response(model: Model, feeds: Iterable[Feeds], times: float = 1.0) -> Response:
    """Run `model` on the native engine in fp32: once as it is, and with noise of three seeds.

    Args:
        model: the model.
        feeds: the inputs of each iteration; iterated once for each run.
        times: how many times 2^-22 the noise is.

    Raises:
        PolytoolError: the native engine cannot run it.
    """
    from polytool.backends.native.runner import NativeRunner

    def run(source: Model, seed: int | None) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        with NativeRunner(source, device="cpu") as runner:
            return [
                runner.infer(
                    feed if seed is None else {k: perturb(v, rng, times) for k, v in feed.items()}
                )
                for feed in feeds
            ]

    return Response(
        source=describe(times),
        clean=run(model, None),
        noisy=[run(with_noise(model, seed, times), seed) for seed in range(SEEDS)],
    )


def with_noise(model: Model, seed: int, times: float = 1.0) -> Model:
    """A copy of the model whose float weights have relative noise of 2^-22, or times that."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    noisy = model.derive(proto)
    rng = np.random.default_rng([seed, 1])
    exact = _exact_tensors(proto)
    for tensor in tensors(proto):
        if tensor.name not in exact and _is_noisy(tensor):
            tensor.CopyFrom(noisy.store(perturb(model.array(tensor), rng, times), tensor.name))
    return noisy


def _is_noisy(tensor: onnx.TensorProto) -> bool:
    wide = tensor.data_type in (DType.FLOAT, DType.DOUBLE)
    return wide and math.prod(tensor.dims) > 1


def _exact_tensors(proto: onnx.ModelProto) -> set[str]:
    """The weights that stay exact; tensors of Constant nodes get the names of their outputs."""
    every = [*nodes(proto.graph.node), *(n for f in proto.functions for n in nodes(f.node))]
    for node in every:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    attribute.t.name = node.output[0]
    return {
        node.input[index]
        for node in every
        for index in _EXACT.get(node.op_type, ())
        if index < len(node.input)
    }
