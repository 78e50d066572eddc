"""Looking inside of onnxruntime: the model in segments, whose tensors are all outputs.

onnxruntime rewrites the model once, as it does for a plain run, and writes the result down. What
its kernels store are the tensors of *that* graph; its segments, run one after the other without
any further rewriting, execute the same kernels on the same values. So observing changes nothing,
and shows what is really computed: a tensor inside of a fused kernel does not exist and has no tap.
To see every tensor of the original model, switch the rewriting off (level `disable`).

Segments keep memory bounded, and weights are references into files, so they are never copied.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from polytool.arrays import packed_size
from polytool.backends.onnxrt.cut import Cutter
from polytool.backends.onnxrt.session import SessionConfig, clean, open_session
from polytool.backends.onnxrt.source import Source
from polytool.backends.onnxrt.values import nbytes_of, parse_type, view_ort
from polytool.errors import RunnerError
from polytool.model import nodes, tensors
from polytool.tensors import DType

See = Callable[[str, Any], None]

_FIRST_NODES = 16  # nodes of the first segment, before anything is known of sizes
_MOST_NODES = 512
_OUTPUT_BUDGET = 64 << 20  # bytes of a segment's outputs at which segments stop growing
_WEIGHT_BUDGET = 256 << 20  # bytes of weights in one segment, and in all sessions that are kept


def rewritten(source: Source, config: SessionConfig, who: str) -> Source:
    """The model as onnxruntime executes it."""
    if config.level == "disable" and not _has_reduced_types(source.proto):
        return source
    with tempfile.TemporaryDirectory(prefix="polytool-") as folder:
        path = os.path.join(folder, "optimized.onnx")
        open_session(
            source,
            config,
            who=who,
            save_optimized=path,
            entries={"session.disable_prepacking": "1"},  # this session never runs
        )
        if not os.path.exists(path):
            raise RunnerError(
                f"{', '.join(name for name, _ in config.providers)} compiles {who} as a whole: "
                "its intermediate tensors cannot be seen; choose another provider"
            )
        proto = onnx.load_model(path, load_external_data=False)
    return Source(proto, source.folder)


def _has_reduced_types(proto: onnx.ModelProto) -> bool:
    """Whether onnxruntime may compute in another type than the model says, at every level."""
    reduced = {DType.FLOAT16, DType.BFLOAT16}
    kinds = {i.type.tensor_type.elem_type for i in proto.graph.input}
    kinds |= {t.data_type for t in tensors(proto)}
    every = [*nodes(proto.graph.node), *(n for f in proto.functions for n in nodes(f.node))]
    kinds |= {a.i for n in every if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return not reduced.isdisjoint(kinds)


@dataclass
class Segment:
    """Consecutive nodes that run as one session.

    Attributes:
        start: the first node.
        stop: the node after the last.
        inputs: the tensors that are fed.
        outputs: every tensor that is shown or needed later, in the order in which it is made.
        weights: bytes of its weights.
        session: None until it runs, and after that where weights are too large to keep it.
    """

    start: int
    stop: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: int
    session: Any = field(default=None, repr=False)


class Segments:
    """Runs a model segment by segment.

    Args:
        source: the model as it is executed.
        config: how sessions are made.
        shown: the tensors that are shown.
        who: what messages call the model.
        overridden: the initializers that are fed as inputs.
    """

    def __init__(
        self,
        source: Source,
        config: SessionConfig,
        shown: set[str],
        who: str,
        overridden: Iterable[str] = (),
    ) -> None:
        self._source, self._config, self._who = source, config, who
        self._shown = shown
        self._cutter = Cutter(source.proto, who)
        for name in overridden:
            self._cutter.weights.pop(name, None)
        self._outputs = [o.name for o in source.proto.graph.output]
        self._last_use = self._find_last_uses()
        self._plan: list[Segment] = []
        self._kept_weights = 0
        self._size = _FIRST_NODES
        self._coarse = False

    def _find_last_uses(self) -> dict[str, int]:
        last = {name: i for i, reads in enumerate(self._cutter.reads) for name in reads}
        return last | dict.fromkeys(self._outputs, len(self._cutter.nodes))

    def run(self, feeds: Mapping[str, Any], see: See) -> dict[str, Any]:
        """Run once, calling `see(name, array)` for every tensor that is shown.

        Args:
            feeds: input name to OrtValue.
            see: the array is valid during the call only.

        Returns:
            Output name to OrtValue.
        """
        if self._coarse:
            self._plan, self._kept_weights = [], 0
            self._size, self._coarse = _FIRST_NODES, False
        live = dict(feeds)
        position = index = 0
        while position < len(self._cutter.nodes):
            if index == len(self._plan):
                self._plan.append(self._next(position))
            segment = self._plan[index]
            nbytes = self._run_segment(segment, live, see)
            self._adapt(segment, nbytes)
            position, index = segment.stop, index + 1
        return {name: live[name] if name in live else self._weight(name) for name in self._outputs}

    def _run_segment(self, segment: Segment, live: dict[str, Any], see: See) -> int:
        """Run a segment on the `live` values, update them, and return the bytes of its outputs."""
        if not segment.outputs:
            return 0
        feeds = {name: live[name] for name in segment.inputs}
        session = segment.session or self._open(segment, feeds)
        try:
            made = session.run_with_ort_values(list(segment.outputs), feeds)
        except Exception as err:
            raise RunnerError(f"onnxruntime failed in {self._who}: {clean(err)}") from err
        del feeds
        for name in segment.inputs:
            if self._last_use[name] < segment.stop:
                del live[name]
        nbytes = 0
        for name in segment.outputs:
            value = made.pop(0)
            nbytes += nbytes_of(value)
            if name in self._shown:
                see(name, view_ort(value))
            if self._last_use.get(name, -1) >= segment.stop:
                live[name] = value
        return nbytes

    def _open(self, segment: Segment, feeds: Mapping[str, Any]) -> Any:
        """The segment's session; its inputs have the types of the values that come in."""
        types = {name: _type_proto(value.data_type()) for name, value in feeds.items()}
        indices = range(segment.start, segment.stop)
        proto = self._cutter.model(indices, types, segment.outputs)
        session = open_session(
            Source(proto, self._source.folder),
            self._config,
            who=f"nodes {segment.start} to {segment.stop - 1} of {self._who}",
            level="disable",
            arena=False,  # each session would keep its own
        )
        if self._kept_weights + segment.weights <= _WEIGHT_BUDGET:
            segment.session = session
            self._kept_weights += segment.weights
        return session

    def _weight(self, name: str) -> Any:
        """An output that is a weight of the model."""
        proto = self._cutter.model([], {}, [name])
        session = open_session(Source(proto, self._source.folder), self._config, who=self._who)
        return session.run_with_ort_values([name], {})[0]

    def _adapt(self, segment: Segment, nbytes: int) -> None:
        """Choose the next segment's size, or plan the next run anew where values grew."""
        count = segment.stop - segment.start
        if segment is self._plan[-1]:
            fits = count * _OUTPUT_BUDGET // nbytes if nbytes else _MOST_NODES
            self._size = max(1, min(2 * self._size, fits, _MOST_NODES))
        self._coarse |= nbytes > 4 * _OUTPUT_BUDGET and count > 1

    def _next(self, start: int) -> Segment:
        cutter = self._cutter
        stop, weights, counted = start, 0, set[str]()
        while stop < len(cutter.nodes) and stop - start < self._size:
            new = {n for n in cutter.reads[stop] if n in cutter.weights} - counted
            size = sum(_nbytes(cutter.weights[n]) for n in new)
            if stop > start and size and weights + size > _WEIGHT_BUDGET:
                break
            counted |= new
            weights += size
            stop += 1
        made = [o for node in cutter.nodes[start:stop] for o in node.output if o]
        reads = dict.fromkeys(n for i in range(start, stop) for n in cutter.reads[i])
        inside = set(made)
        inputs = tuple(n for n in reads if n not in inside and not cutter.is_weight(n))
        outputs = tuple(n for n in made if n in self._shown or self._last_use.get(n, -1) >= stop)
        return Segment(start, stop, inputs, outputs, weights)


def _nbytes(tensor: onnx.TensorProto) -> int:
    try:
        return packed_size(DType(tensor.data_type), tuple(tensor.dims))
    except ValueError:
        return 0  # a type that polytool does not know; onnxruntime will say what it thinks of it


def _type_proto(text: str) -> onnx.TypeProto:
    """The type that onnxruntime writes as `seq(tensor(float))`; shapes are unknown."""
    for prefix, make in (
        ("optional(", onnx.helper.make_optional_type_proto),
        ("seq(", onnx.helper.make_sequence_type_proto),
    ):
        if text.startswith(prefix):
            return make(_type_proto(text[len(prefix) : -1]))
    dtype, container = parse_type(text)
    if dtype is None or container != "tensor":
        raise RunnerError(f"a value of type {text} cannot be handed from segment to segment")
    return onnx.helper.make_tensor_type_proto(int(dtype), None)
