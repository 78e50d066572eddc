"""The interfaces between polytool and whatever can run a model."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.errors import UsageError
from polytool.tensors import DType, TensorSpec

Feeds = Mapping[str, Any]
Outputs = dict[str, Any]


class Runner(abc.ABC):
    """Runs one model: `with SomeRunner(model) as runner: outputs = runner.infer(feeds)`.

    Attributes:
        name: how results and messages call this runner; stable from run to run.
        inputs: what `infer` expects, in the model's order.
        outputs: what `infer` returns, in the model's order.
    """

    name: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def activate(self) -> None:  # noqa: B027  (nothing to acquire is the common case)
        """Acquire what inference needs (sessions, device memory). Idempotent."""

    def deactivate(self) -> None:  # noqa: B027
        """Release what `activate` acquired. Idempotent."""

    def __enter__(self) -> Runner:
        self.activate()
        return self

    def __exit__(self, *_: object) -> None:
        self.deactivate()

    @abc.abstractmethod
    def infer(self, feeds: Feeds) -> Outputs:
        """Run once.

        Args:
            feeds: input name to array. NumPy arrays give NumPy arrays; CuPy arrays, torch tensors
                and anything else with DLPack give arrays of the same device. Sequences are lists.

        Returns:
            Output name to array, in the model's order. The arrays belong to the caller.

        Raises:
            UsageError: a name, dtype, rank or dimension does not fit the model.
            RunnerError: the backend failed.
        """

    @abc.abstractmethod
    def last_inference_time(self) -> float:
        """Seconds that the last `infer` took."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes numbers: precision, TF32, providers, library versions, device."""
        return {}

    # What `bench` asks; a runner overrides what it can tell.

    def resident(self, feeds: Feeds) -> Feeds:
        """The same inputs where the runner computes, so that `infer` need not move them."""
        return feeds

    def phases(self, feeds: Feeds) -> dict[str, float]:
        """Run once, and tell the seconds of its parts; empty where they are not known.

        Returns:
            `h2d`, `compute` and `d2h` (inputs to the device, work there, outputs to the host; by
            the device's clock) and `enqueue` (the host's part in starting the work).
        """
        return {}

    def profile(self, feeds: Feeds, iterations: int) -> tuple[LayerTime, ...]:
        """Run several times, and tell how long each layer took, in execution order.

        Raises:
            UsageError: this runner cannot tell.
        """
        raise UsageError(f"the runner {self.name} does not tell how long its layers take")

    def another(self) -> Runner:
        """One more runner of the same model, which may run at the same time in another thread.

        It shares what is read-only.

        Raises:
            UsageError: this runner has no such thing.
        """
        raise UsageError(f"the runner {self.name} cannot run several inferences at once")

    def device_memory(self) -> dict[str, int]:
        """Bytes held on a device, by purpose, as `weights`; empty without a device."""
        return {}


@dataclass(frozen=True)
class LayerTime:
    """How long one layer took.

    Attributes:
        layer: the runner's name of it.
        kind: what it is, as an operator's name.
        nodes: the ONNX nodes that it computes, by display name, where that is known.
        kernels: names of the kernels, or of the tactic, that compute it, where that is known.
        spans: start (as `time.perf_counter` tells it) and seconds of each of its runs; in a Loop
            there may be several an inference.
    """

    layer: str
    kind: str
    nodes: tuple[str, ...]
    kernels: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        """Of all its runs together."""
        return sum(seconds for _, seconds in self.spans)


@dataclass(frozen=True)
class Tap:
    """A place where a running model can be observed.

    Attributes:
        tensor: the ONNX tensor whose value is seen; unique in the model (bodies of If, Loop, Scan
            and functions are prefixed with the path to them).
        layer: the runner's name of the layer that stores it.
        nodes: the ONNX nodes that the layer computes, by display name.
            Empty for what a body of If, Loop or Scan is given: seen, but computed elsewhere.
        spec: dtype and shape as the runner stores it.
        precision: the grid of the layer's operands: `fp32`, `tf32`, `fp16`, `bf16`, `fp64`.
        depth: how many If, Loop or Scan it lies in; above 0 it is seen once an iteration, or not
            at all.
        rows: `(axis, index)` for each axis of which the runner only computes one element; that axis
            has length one in what is seen. Index is 0 or -1.
    """

    tensor: str
    layer: str
    nodes: tuple[str, ...]
    spec: TensorSpec
    precision: str = "fp32"
    depth: int = 0
    rows: tuple[tuple[int, int], ...] = ()


Observer = Callable[[Tap, Any], None]


class Observable(Runner):
    """A runner whose intermediate tensors can be seen without changing what it computes.

    Attributes:
        keeps_taps: whether the arrays given to an observer stay valid after its call.
    """

    keeps_taps = False

    @abc.abstractmethod
    def taps(self) -> tuple[Tap, ...]:
        """Every place that can be observed, in execution order."""

    @abc.abstractmethod
    def infer(self, feeds: Feeds, observe: Observer | None = None) -> Outputs:
        """Run once, calling `observe(tap, array)` in execution order.

        The array is only valid during the call. In a Loop or Scan a tap is seen once an iteration.
        """

    def infer_until(self, feeds: Feeds, tap: Tap) -> Any:
        """Run as an unobserved inference runs, on memory where nothing of earlier ones is left.

        It ends with the layer that stores `tap`, which is not in a body.

        Returns:
            What `tap` holds then; None where observing and not observing are the same work.
        """
        return None


@dataclass(frozen=True)
class Trace:
    """How one tensor is computed from others.

    Attributes:
        inputs: the tensors that it is computed from.
        operators: those between them and it, in execution order: `("MatMul", "Add")`.
        nodes: display names of the ONNX nodes through which it depends on the inputs, in order;
            where it depends on none of them, all nodes that it is computed by.
    """

    inputs: tuple[str, ...]
    operators: tuple[str, ...]
    nodes: tuple[str, ...]


class LayerOracle(abc.ABC):
    """Evaluates any slice of the original model on any values."""

    @abc.abstractmethod
    def trace(self, wanted: str, available: Collection[str]) -> Trace:
        """How `wanted` is computed from the nearest of the `available` tensors.

        Raises:
            UsageError: there is no such tensor, or it also depends on one that is not available.
        """

    @abc.abstractmethod
    def evaluate(
        self, inputs: Feeds, wanted: Iterable[str], *, noise: float = 0.0, seed: int = 0
    ) -> Outputs:
        """Compute the tensors `wanted` from the tensors `inputs`, both named as in the model.

        Args:
            inputs: values that stand for the model's own.
            wanted: what to compute.
            noise: relative size of independent noise on every element of the float inputs and,
                where the oracle can, of biases and of every result on the way.
            seed: of that noise.

        Raises:
            UsageError: `wanted` cannot be computed from `inputs` and the model's weights.
            RunnerError: the backend failed.
        """


def with_noise(value: Any, noise: float, rng: np.random.Generator) -> Any:
    """`value` with relative noise of that size and random sign on every element, in float64.

    What is not an array of floats of at least 16 bits comes back as it is.
    """
    if not isinstance(value, np.ndarray) or value.dtype == object or not value.size:
        return value
    dtype = DType.of(value)
    if not dtype.is_float or dtype.bits < 16:
        return value
    signs = rng.integers(0, 2, value.shape, dtype=np.int8) * 2 - 1
    return value.astype(np.float64) * (1.0 + noise * signs)
