"""The smallest part of a model that still fails: `debug reduce` for scripts.

    small = reduce("model.onnx", feeds, differ("native", "onnxrt", native={"precision": "fp16"}))
    onnx.save(small.model, "small.onnx")

Any subset of the nodes is a candidate, connected or not. What a candidate reads from nodes that
it lacks becomes an input, and gets the value that the whole model has there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.backends.base import Feeds
from polytool.errors import PolytoolError, UsageError

if TYPE_CHECKING:
    import onnx

    from polytool.model import Model, Source

Outcome = Callable[["onnx.ModelProto", Sequence[Feeds]], str]
"""Tests a model on inputs: "" when all is well, else how it fails."""

MODES = ("bisect", "linear")


@dataclass
class Reduced:
    """What remains.

    Attributes:
        model: the reduced model.
        feeds: its inputs, one dict a sample: real intermediate values.
        nodes: display names of the nodes that it holds.
        failure: how the whole model and the reduced one fail.
        tests: how many models were tested.
        largest_good: the largest tested model that does not fail, with its inputs, if any.
    """

    model: onnx.ModelProto
    feeds: list[dict[str, Any]]
    nodes: tuple[str, ...]
    failure: str
    tests: int
    largest_good: tuple[onnx.ModelProto, list[dict[str, Any]]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "nodes": list(self.nodes),
            "failure": self.failure,
            "tests": self.tests,
            "inputs": list(self.feeds[0]) if self.feeds else [],
            "outputs": [o.name for o in self.model.graph.output],
        }


def reduce(
    model: Source,
    feeds: Iterable[Feeds],
    outcome: Outcome,
    *,
    mode: str = "bisect",
    known: dict[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Reduced:
    """Find a smallest failing part.

    Args:
        model: the model that fails.
        feeds: its inputs, one dict a sample; every candidate is tested with all of them.
        outcome: the test.
        mode: `bisect` (delta debugging) or `linear` (one node after the other).
        known: outcomes of earlier candidates, by their key; new ones are added, so that a search
            that was interrupted goes on where it was.
        progress: called with a line of text for each candidate.

    Raises:
        UsageError: the whole model does not fail, or no sample was given.
    """
    from polytool.comparators.delta import ddmin, linear

    if mode not in MODES:
        raise UsageError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    search = _Search(model, list(feeds), outcome, known if known is not None else {}, progress)
    everything = range(len(search.cutter.nodes))
    search.failure = search.test(everything)
    if not search.failure:
        raise UsageError(
            f"{search.name} does not fail as a whole, so nothing can be reduced; check the command "
            f"or the tolerance on the whole model first"
        )
    kept = (linear if mode == "linear" else ddmin)(everything, search.fails)
    proto, inputs = search.candidate(kept)
    nodes = tuple(search.names[i] for i in kept)
    return Reduced(proto, inputs, nodes, search.failure, search.tests, search.largest_good())


@dataclass
class _Search:
    """The model, its real values, and what is known of its parts."""

    model: Source
    feeds: list[Feeds]
    outcome: Outcome
    known: dict[str, str]
    progress: Callable[[str], None] | None
    failure: str = ""
    tests: int = 0
    values: list[dict[str, Any]] = field(default_factory=list)
    good: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        from polytool.backends.native.protos import display
        from polytool.backends.onnxrt.cut import Cutter
        from polytool.model import load

        if not self.feeds:
            raise UsageError("reduce needs at least one sample of inputs")
        opened = _without_constants(load(self.model))
        self.name = opened.name
        self.cutter = Cutter(opened.to_proto(), self.name)
        self.names = [display(node) for node in self.cutter.nodes]
        self.values = [_all_values(opened, feed) for feed in self.feeds]
        self.readers: dict[str, list[int]] = {}
        for index, reads in enumerate(self.cutter.reads):
            for tensor in reads:
                self.readers.setdefault(tensor, []).append(index)
        self.outputs = {o.name for o in opened.proto.graph.output}

    def fails(self, indices: Sequence[int]) -> bool:
        return self.test(indices) == self.failure

    def test(self, indices: Sequence[int]) -> str:
        """How the part of these nodes fails; "" when it does not."""
        key = hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()[:16]
        if key not in self.known:
            if self.progress is not None:
                self.progress(f"test {self.tests + 1}: {len(indices)} nodes")
            proto, inputs = self.candidate(indices)
            self.tests += 1
            self.known[key] = self.outcome(proto, inputs)
        if self.known[key] != self.failure and len(indices) > len(self.good):
            self.good = tuple(indices)
        return self.known[key]

    def largest_good(self) -> tuple[onnx.ModelProto, list[dict[str, Any]]] | None:
        return self.candidate(self.good) if self.good else None

    def candidate(self, indices: Sequence[int]) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
        """The sub-model of some nodes, and the inputs that it had in the whole model."""
        chosen = set(indices)
        made = {o for i in indices for o in self.cutter.nodes[i].output if o}
        reads = dict.fromkeys(r for i in indices for r in self.cutter.reads[i])
        given = [r for r in reads if r not in made and not self.cutter.is_weight(r)]
        outputs = [
            o
            for i in indices
            for o in self.cutter.nodes[i].output
            if o and (o in self.outputs or not chosen.issuperset(self.readers.get(o, (-1,))))
        ]
        types = {name: _type(self.values[0][name]) for name in given}
        feeds = [{name: values[name] for name in given} for values in self.values]
        proto = self.cutter.model(list(indices), types, outputs)
        for output in proto.graph.output:
            if output.name in self.values[0]:
                output.type.CopyFrom(_type(self.values[0][output.name]))
        return proto, feeds


def _without_constants(model: Model) -> Model:
    """The model with initializers in place of Constant nodes, which no part can do without."""
    from polytool.surgeon.constants import lift_constants
    from polytool.surgeon.graph import Workspace
    from polytool.surgeon.report import Report

    workspace = Workspace(model)
    lift_constants(workspace, Report())
    return workspace.to_model()


def _all_values(model: Any, feed: Feeds) -> dict[str, Any]:
    """Every top-level tensor of the model, computed node by node in the model's own types."""
    from polytool.backends.native.runner import NativeRunner

    values: dict[str, Any] = dict(feed)

    def keep(tap: Any, value: Any) -> None:
        if tap.depth == 0:
            values[tap.tensor] = np.array(value) if isinstance(value, np.ndarray) else value

    NativeRunner(model, optimize=False, device="cpu").infer(feed, observe=keep)
    return values


def _type(value: Any) -> onnx.TypeProto:
    import onnx

    from polytool.tensors import DType

    if isinstance(value, list):
        inner = _type(value[0]) if value else onnx.helper.make_tensor_type_proto(1, None)
        return onnx.helper.make_sequence_type_proto(inner)
    shape = [None] * np.ndim(value)
    return onnx.helper.make_tensor_type_proto(int(DType.of(value)), shape)


def differ(
    first: str,
    second: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **tolerances: Any,
) -> Outcome:
    """An outcome: two runners disagree, or one of them fails.

    Args:
        first, second: names of runners.
        options: of each runner, by name.
        tolerances: those of `polytool.compare`.
    """
    import polytool

    def outcome(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> str:
        try:
            results = []
            for name in (first, second):
                with polytool.runner(name, model, **(options or {}).get(name, {})) as runner:
                    results.append([runner.infer(feed) for feed in feeds])
        except PolytoolError as err:
            return type(err).__name__
        return "" if polytool.compare(*results, **tolerances).agreed else "differs"

    return outcome
