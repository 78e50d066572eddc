"""The response of a model: its outputs on the native engine, with and without noise.

Noise is on every float input and weight, but for exponents and what decides shapes: scalars, since
exporters compute sizes with them, and the scales of Resize.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.native.builder import engine_from_onnx
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.engine import Engine
from polytool.backends.native.network import Constant, Tensor
from polytool.backends.native.oracle import EXACT_INPUTS
from polytool.backends.native.program import LazyProgram
from polytool.comparators.response import SEEDS, Response, describe, perturb
from polytool.tensors import DType

if TYPE_CHECKING:
    from polytool.backends.base import Feeds
    from polytool.model import Source

_RESIDENT = 1 << 26  # elements up to which all noisy weights are in memory together


class NoiseMeter:
    """Measures the response of one model on the native engine in fp32, on the CPU.

    The engine is built once; noise goes on its weights, as they are after folding.

    Args:
        model: the model.
        feeds: the inputs of each iteration; iterated once for each run.

    Raises:
        PolytoolError: the native engine cannot run it.
    """

    def __init__(self, model: Source, feeds: Iterable[Feeds]) -> None:
        self._feeds = feeds
        self._engine = engine_from_onnx(model, BuilderConfig(device="cpu"))
        self._weights = list(_weights(self._engine))

    def measure(self, times: float = 1.0) -> Response:
        """Outputs without noise, and with that many times 2^-22, with three seeds.

        Raises:
            RunnerError: the engine failed.
        """
        noisy = []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            with self.noise(seed, times):
                noisy.append(self._run(lambda v, rng=rng: perturb(v, rng, times)))  # type: ignore[misc]
        return Response(source=describe(times), clean=self._clean, noisy=noisy)

    @cached_property
    def _clean(self) -> list[dict[str, Any]]:
        return self._run(lambda value: value)

    def _run(self, change: Callable[[Any], Any]) -> list[dict[str, Any]]:
        """The outputs of each iteration, with the weights as they are now."""
        engine = self._engine
        fresh = Engine(engine.name, engine.network, engine.config, engine.device)
        if sum(t.constant.size for t in self._weights if t.constant is not None) > _RESIDENT:
            fresh.program = LazyProgram(engine.network, engine.mode)
        context = fresh.create_execution_context()
        return [context.infer({k: change(v) for k, v in feed.items()}) for feed in self._feeds]

    @contextmanager
    def noise(self, seed: int, times: float) -> Iterator[None]:
        """Noise on the weights while the block runs; it is made when a weight is read."""
        clean = [tensor.constant for tensor in self._weights]
        for index, (tensor, constant) in enumerate(zip(self._weights, clean, strict=True)):
            assert constant is not None
            tensor.constant = _noisy(constant, (seed, 1, index), times)
        try:
            yield
        finally:
            for tensor, constant in zip(self._weights, clean, strict=True):
                tensor.constant = constant


def _nothing() -> Any:
    return None


def _noisy(constant: Constant, seed: tuple[int, ...], times: float) -> Constant:
    kept = _nothing  # a layer may read its weight more than once while it is bound

    def load() -> Any:
        nonlocal kept
        moved = kept()
        if moved is None:
            moved = perturb(constant.array(), np.random.default_rng(seed), times)
            kept = weakref.ref(moved)
        return moved

    return Constant(constant.dtype, constant.shape, load)


def _weights(engine: Engine) -> Iterator[Tensor]:
    """The float weights that get noise, each once."""
    nodes = [node for _, layer in engine.network.walk() for node in layer.nodes]
    exact = {
        id(node.inputs[index])
        for node in nodes
        for index in EXACT_INPUTS.get(node.op, ())
        if index < len(node.inputs)
    }
    read = dict.fromkeys(t for node in nodes for t in node.inputs if t is not None)
    for tensor in read:
        constant = tensor.constant
        if constant is not None and id(tensor) not in exact and constant.size > 1 and (
            constant.dtype in (DType.FLOAT, DType.DOUBLE)
        ):  # fmt: skip
            yield tensor
