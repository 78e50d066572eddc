"""From an ONNX model in float32 to one in float16 or bfloat16.

Which node computes in which type is decided by the engine's own pass, so that the result is what
`run --native --fp16` runs; it is written out as Casts and weights in the reduced type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytool.arrays import Array, largest, overflows
from polytool.errors import ModelError, PolytoolError, UnsupportedError, UsageError
from polytool.files import StrPath
from polytool.tensors import DType

if TYPE_CHECKING:
    from polytool.backends.native.config import BuilderConfig
    from polytool.backends.native.network import Network, Tensor
    from polytool.backends.native.network import Node as EngineNode
    from polytool.model import Model, Source
    from polytool.surgeon.graph import Node, Workspace
    from polytool.value_ranges import Extents, Masks

PRECISIONS = {"fp16": DType.FLOAT16, "bf16": DType.BFLOAT16}
_SHOWN = 4  # nodes that a summary names for each reason
HEADROOM = 2.0  # other inputs may reach twice what the measured ones do


@dataclass(frozen=True)
class Kept:
    """A node that stays in float32 although it was to be lowered.

    Attributes:
        node: its label, with the path to it inside of bodies.
        reason: why.
        reaches: the number that does not fit, where that is the reason.
    """

    node: str
    reason: str
    reaches: float | None = None

    def __str__(self) -> str:
        return self.node if self.reaches is None else f"{self.node} ({self.reaches:.3g})"


@dataclass(frozen=True)
class Reduced:
    """A model in reduced precision.

    Attributes:
        model: the result.
        precision: `fp16` or `bf16`.
        done: counts of what was done.
        kept: what stays in float32 although it was to be lowered.
        measured: where the ranges of values come from: `given inputs`, `made inputs`, or why
            none were measured.
        notes: what the user should hear.
    """

    model: Model
    precision: str
    done: Mapping[str, int]
    kept: tuple[Kept, ...]
    measured: str
    notes: tuple[str, ...] = field(default=())

    def save(self, path: StrPath, **options: Any) -> None:
        """Write the model; options as for `Model.save`."""
        self.model.save(path, **options)

    def summary(self) -> str:
        """What was done, for people."""
        lines = [f"{count:6d}  {what}" for what, count in sorted(self.done.items())]
        reasons: dict[str, list[Kept]] = {}
        for node in self.kept:
            reasons.setdefault(node.reason, []).append(node)
        for reason, some in reasons.items():
            shown = ", ".join(map(str, some[:_SHOWN]))
            more = f" and {len(some) - _SHOWN} more (--json)" if some[_SHOWN:] else ""
            lines.append(f"stays in float32, {reason}: {shown}{more}")
        lines.append(f"ranges of values: {self.measured}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same facts as plain JSON."""
        return {
            "precision": self.precision,
            "done": dict(sorted(self.done.items())),
            "kept": [{"node": k.node, "reason": k.reason, "reaches": k.reaches} for k in self.kept],
            "ranges": self.measured,
            "notes": list(self.notes),
        }


def convert_precision(
    source: Source | Any,
    precision: str = "fp16",
    *,
    layer_precisions: Mapping[str, str] | str | Path | None = None,
    keep_io_types: bool = True,
    simplify: bool = True,
    feeds: Iterable[Mapping[str, Any]] | None = None,
    measure: bool | None = None,
) -> Reduced:
    """Let the float32 nodes of a model compute in float16 or bfloat16.

    Args:
        source: what `polytool.model.load` takes, or a GraphSurgeon graph.
        precision: `fp16` or `bf16`.
        layer_precisions: precisions by node name or `op:` and an operator, with wildcards, as the
            engine takes them; a mapping, or a JSON file such as `debug locate --fix` writes.
        keep_io_types: leave the model's inputs and outputs in float32.
        simplify: do the rewrites that the engine does first (see `surgeon.simplify`).
        feeds: real inputs; a node whose values leave the range of float16 on them, or come within
            a factor of 2 of that, stays in float32.
        measure: whether to look at ranges; by default on `feeds`, and without them on made
            inputs where the weights have less than 200 MB.

    Returns:
        The new model; nothing is written. Local functions are expanded in it.

    Raises:
        UsageError: an unknown precision or an unreadable file of layer precisions.
        UnsupportedError: the model's opset has no bfloat16.
        ModelError: the model is broken, or the result would be.
    """
    from polytool.backends.native.config import BuilderConfig
    from polytool.backends.native.parser import parse
    from polytool.backends.native.passes.placement import place_on_host
    from polytool.backends.native.passes.precision import lower_precision
    from polytool.surgeon.functions import expand_functions
    from polytool.surgeon.gs_graph import open_model
    from polytool.surgeon.precision import write_precisions
    from polytool.surgeon.report import Report

    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is neither fp16 nor bf16")
    config = BuilderConfig.of(precision=precision, layer_precisions=layer_precisions)
    original = expand_functions(open_model(source))
    _check_opset(original, config)
    workspace = _opened(original, simplify)
    base = workspace.to_model()
    network = parse(base, strict=False)
    place_on_host(network, config)
    _complete_types(workspace, network)
    extents, measured = _extents(base, precision, feeds, measure)
    kept = _out_of_range(network, config, extents, _Weights(base))
    result = lower_precision(network, config)
    notes = [n for n in result.notes if n.startswith("layer precision")]
    kept.update((k.node, k) for k in _refusals(result.refused))
    types = _chosen(workspace, network, kept)
    report = Report()
    notes += write_precisions(
        workspace, types, report, keep_io_types=keep_io_types, io_type=PRECISIONS[precision]
    )
    kept.update((r.node, Kept(r.node, r.reason)) for r in report.refused)
    if not any(what.startswith("nodes in") for what in report.done):
        notes.append(f"no node is lowered: nothing in float32 is left that {precision} could do")
    loads = DType.BFLOAT16 not in types.values()  # onnxruntime has few kernels for it on a CPU
    model = _checked(original, workspace, loads)
    done = {**report.done, "nodes in float32": _others(workspace, types)}
    return Reduced(model, precision, done, tuple(kept.values()), measured, tuple(notes))


def _opened(model: Model, simplify: bool) -> Workspace:
    from polytool.collection import paused_collection
    from polytool.surgeon.constants import lift_constants
    from polytool.surgeon.graph import Workspace
    from polytool.surgeon.infer import infer
    from polytool.surgeon.pipeline import simplify_workspace
    from polytool.surgeon.report import Report

    with paused_collection():
        workspace = Workspace(model)
        if simplify:
            simplify_workspace(workspace, Report())
        else:
            workspace.sort()
            lift_constants(workspace, Report())
        infer(workspace)
    return workspace


def _labelled(workspace: Workspace) -> Iterator[tuple[Node, str]]:
    """Every node, and the path that the engine puts before its names."""
    from polytool.surgeon.order import named_graphs

    return ((node, path) for graph, path in named_graphs(workspace) for node in graph.nodes)


def _complete_types(workspace: Workspace, network: Network) -> None:
    """ONNX infers no types behind operators that it does not define; the engine's parser does."""
    from polytool.surgeon.types import Type, type_proto

    known = {
        t.value_of.tensor: t
        for _, layer in network.walk()
        for t in layer.outputs
        if t.value_of is not None and t.dtype is not None and t.container == "tensor"
    }
    for node, path in _labelled(workspace):
        for value in node.outputs:
            if value is not None and value.type is None and (path + value.name) in known:
                dtype = known[path + value.name].dtype
                assert dtype is not None
                value.type = Type("tensor", dtype, None, type_proto(dtype, None))


def _extents(
    model: Model,
    precision: str,
    feeds: Iterable[Mapping[str, Any]] | None,
    wanted: bool | None,
) -> tuple[Extents, str]:
    """What was measured, and on what."""
    from polytool.surgeon.sanitizing import COMPARED_UP_TO
    from polytool.surgeon.verify import made_feeds, total_weight
    from polytool.value_ranges import measure

    if precision == "bf16":
        return {}, "not measured: bfloat16 has the range of float32"
    if wanted is False:
        return {}, "not measured, as asked"
    if feeds is not None:
        return measure(model, feeds), "measured on the given inputs"
    if wanted is None and total_weight(model) >= COMPARED_UP_TO:
        return {}, "not measured: the weights have 200 MB or more; give inputs (--load-inputs)"
    reason = "no inputs can be made"
    for feed in made_feeds(model):
        try:
            return measure(model, [feed]), "measured on made inputs; give real ones (--load-inputs)"
        except PolytoolError as err:
            reason = str(err)
    return {}, f"not measured: {reason}"


class _Weights:
    """The values of constants: large ones are read when they are looked at, and let go of then."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tensors = {t.name: t for t in model.proto.graph.initializer}
        self._known: dict[tuple[Tensor, DType], bool] = {}

    def overflow(self, tensor: Tensor, dtype: DType) -> bool:
        """Whether a constant has finite numbers beyond the range of `dtype`."""
        if (tensor, dtype) not in self._known:
            self._known[tensor, dtype] = overflows(self._array(tensor), dtype)
        return self._known[tensor, dtype]

    def _array(self, tensor: Tensor) -> Array:
        name = tensor.value_of.tensor if tensor.value_of is not None else ""
        if name in self._tensors:
            from polytool.surgeon.precision import read

            return read(self._model, self._tensors[name])
        assert tensor.constant is not None
        return tensor.constant.array()


def _out_of_range(
    network: Network, config: BuilderConfig, extents: Extents, weights: _Weights
) -> dict[str, Kept]:
    """By label the nodes that would read or compute numbers beyond their type."""
    from polytool.backends.native.numerics import PRECISIONS as TYPES
    from polytool.backends.native.passes.precision import precision_of
    from polytool.value_ranges import Masks

    masks: dict[DType, Masks] = {}
    kept: dict[str, Kept] = {}
    for _, layer in network.walk():
        for node in layer.nodes:
            dtype = TYPES[precision_of(node, config)]
            if node.bodies or not node.sources or dtype not in PRECISIONS.values():
                continue
            if dtype not in masks:
                masks[dtype] = Masks(network, extents, largest(dtype))
            if reason := _beyond(node, dtype, masks[dtype], weights):
                kept[node.sources[0]] = reason
    return kept


def _beyond(node: EngineNode, dtype: DType, masks: Masks, weights: _Weights) -> Kept | None:
    """Why `node` must not be lowered to `dtype`; None where nothing speaks against it."""
    for tensor in chain(node.inputs, node.outputs):
        if tensor is None or tensor.dtype is not DType.FLOAT:
            continue
        if tensor.constant is not None:
            if weights.overflow(tensor, dtype) and not _masks(node, tensor, masks):
                value = tensor.constant.array()
                reason = f"because a constant does not fit {dtype.label}"
                return Kept(node.sources[0], reason, float(abs(value).max()))
        elif reach := _reach(tensor, masks):
            reason = f"because its values pass or come near {masks.limit:.5g}"
            return Kept(node.sources[0], reason, reach)
    return None


def _reach(tensor: Tensor, masks: Masks) -> float:
    """The number with which `tensor` comes too near to the end of the range; 0 for none."""
    extent = masks.extents.get(tensor.value_of.tensor) if tensor.value_of is not None else None
    if extent is None:
        return 0.0
    limit = masks.limit / HEADROOM
    if extent.high > limit and not masks.harmless(tensor, 1):
        return extent.high
    if extent.low < -limit and not masks.harmless(tensor, -1):
        return extent.low
    return 0.0


def _masks(node: EngineNode, constant: Tensor, masks: Masks) -> bool:
    """Whether a constant beyond the range is there to mask, so that it may saturate."""
    assert constant.constant is not None
    value = constant.constant.array()
    beyond = value[abs(value) > masks.limit]
    if (beyond > 0).any() and (beyond < 0).any():
        return False
    sign = 1 if (beyond > 0).any() else -1
    if node.op == "Mul":  # (1 - mask) * -3.4e38
        return all(masks.harmless(t, sign) for t in node.writes())
    return masks.passes(node, constant, sign)


def _refusals(refused: Iterable[str]) -> Iterator[Kept]:
    for text in refused:
        label, _, reason = text.rpartition(": ")
        yield Kept(label, f"because {reason}")


def _chosen(workspace: Workspace, network: Network, kept: dict[str, Kept]) -> dict[Node, DType]:
    """The type of each node that is lowered, by the outputs that the engine's nodes have."""
    from polytool.backends.native.numerics import PRECISIONS as TYPES
    from polytool.surgeon.precision import fails_in_onnxruntime, first_version, parameters

    made = {
        tensor.value_of.tensor: node
        for _, layer in network.walk()
        for node in layer.nodes
        for tensor in node.writes()
        if node.sources and tensor.value_of is not None and not tensor.value_of.map
    }
    called = {f.name for f in workspace.functions}  # functions that could not be expanded
    types: dict[Node, DType] = {}
    for node, path in _labelled(workspace):
        first = next((v.name for v in node.outputs if v is not None), "")
        engine = made.get(path + first)
        if engine is None or TYPES[engine.precision] is DType.FLOAT or node.op in called:
            continue
        label, dtype = engine.sources[0], TYPES[engine.precision]
        if label in kept:
            continue
        inputs, outputs = parameters(node, dtype)
        if engine.operator is None:
            reason = f"because nothing is known of {node.domain}.{node.op}"
        elif fails_in_onnxruntime(node):
            reason = f"because onnxruntime does not run this {node.op} in {dtype.label}"
        elif not inputs and not outputs:
            since = first_version(node, dtype)
            later = f"; from opset {since} on it does" if since else ""
            reason = f"because {node.op} takes no {dtype.label} at opset {node.version}{later}"
        else:
            types[node] = dtype
            continue
        kept[label] = Kept(label, reason)
    return types


def _others(workspace: Workspace, types: Mapping[Node, DType]) -> int:
    """Nodes that read or compute float32 still, Casts aside."""
    count = 0
    for graph in workspace.graphs:
        for node in graph.nodes:
            values = chain(node.inputs, node.outputs)
            if node.op != "Cast" and any(v and v.dtype is DType.FLOAT for v in values):
                count += node not in types
    return count


def _check_opset(model: Model, config: BuilderConfig) -> None:
    """Refuse a model whose Cast does not know a type that is asked for."""
    from polytool.backends.native.numerics import PRECISIONS as TYPES
    from polytool.surgeon.precision import first_opset

    opset = model.opsets.get("", 13)
    for precision in (config.precision, *(p for _, p in config.layer_precisions)):
        dtype = TYPES[precision]
        if opset < first_opset(dtype):
            raise UnsupportedError(
                f"{dtype.label} needs opset {first_opset(dtype)}, the model has {opset}: raise it "
                "with onnx.version_converter.convert_version, or convert to fp16"
            )


def _checked(original: Model, workspace: Workspace, loads: bool) -> Model:
    """The result, once it is known to be valid, and that onnxruntime `loads` it."""
    from polytool.surgeon.dead import remove_dead
    from polytool.surgeon.report import Report
    from polytool.surgeon.verify import check_structure, load_failure

    remove_dead(workspace, Report())
    model = workspace.to_model()
    complaint = check_structure(model)
    if complaint and check_structure(original):
        complaint = ""
    if not complaint and loads:
        complaint = load_failure(original, model)
    if complaint:
        raise ModelError(
            f"the result is not valid ({complaint}), so nothing is returned; that is a defect: "
            "please report it with the model"
        )
    return model
