"""What a model costs for given input shapes: operations, bytes, the peak of activations.

Counted on the unfused network of the native engine, one layer a node, each run once; what runs
inside of If, Loop and Scan is left open, because data decides how often it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polytool.arrays import packed_size
from polytool.errors import ModelError, UsageError
from polytool.model import Model
from polytool.patterns import check_used, lookup
from polytool.tensors import DType

if TYPE_CHECKING:
    import onnx

    from polytool.backends.native.network import Layer, Network, Tensor
    from polytool.backends.native.shapes import ShapePass

_VIEWS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Dropout"}
)


@dataclass(frozen=True)
class Cost:
    """For one set of input shapes.

    Attributes:
        flops: tensor to the operations of the node that makes it; a multiply-add counts two.
        bytes_moved: tensor to the bytes that this node reads and writes, weights included.
        peak: bytes of activations that are needed at the same time; None where a shape is open.
        open: tensors whose cost is not known.
        reason: why nothing is known at all; empty otherwise.
        shapes: tensor to its shape, where the input shapes decide it.
    """

    flops: Mapping[str, int] = field(default_factory=dict)
    bytes_moved: Mapping[str, int] = field(default_factory=dict)
    peak: int | None = None
    open: tuple[str, ...] = ()
    reason: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def total_flops(self) -> int:
        """Of all nodes that are known."""
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> int:
        """Of all nodes that are known."""
        return sum(self.bytes_moved.values())


def measure(model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Cost:
    """What the nodes of a model cost.

    Args:
        model: the model.
        input_shapes: shapes of the inputs that the model leaves open; names may be patterns.

    Raises:
        UsageError: a shape is given for what is no input, or has another rank.
    """
    from polytool.backends.native.config import BuilderConfig
    from polytool.backends.native.parser import parse
    from polytool.backends.native.passes.placement import place_on_host

    given, inputs = input_shapes or {}, model.proto.graph.input
    check_used(given, [i.name for i in inputs], "an input shape")
    open_inputs = [i.name for i in inputs if _is_open(i, model, given)]
    if open_inputs:
        return _open(open_inputs)
    try:
        network = parse(model)
    except ModelError as err:
        return Cost(reason=str(err))
    place_on_host(network, BuilderConfig())
    return _of(network, given)


def measure_network(
    network: Network, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> Cost:
    """The same of a network, layer by layer; what is fused does not move between its nodes.

    Raises:
        UsageError: a shape is given for what is no input, or has another rank.
    """
    given = input_shapes or {}
    check_used(given, [t.name for t in network.inputs], "an input shape")
    tensors = [t for t in network.inputs if t.container == "tensor"]
    open_inputs = [t.name for t in tensors if _shape(t, given) is None]
    return _open(open_inputs) if open_inputs else _of(network, given)


def _open(names: Sequence[str]) -> Cost:
    return Cost(reason=f"the shapes of {', '.join(names)} are open: give them with --input-shapes")


def _of(network: Network, given: Mapping[str, Sequence[int]]) -> Cost:
    from polytool.backends.native.flops import layer_flops
    from polytool.backends.native.shapes import ShapePass

    known = {t.name: _shape(t, given) for t in network.inputs}
    shapes = {name: shape for name, shape in known.items() if shape}
    walker = ShapePass({t: shapes.get(t.name, ()) for t in network.inputs})
    walker.run(network.layers)
    flops = {layer.name: count for layer, count in layer_flops(network, shapes).items()}
    counted = {layer.name: _moved(layer, walker) for layer in network.layers}
    moved = {name: count for name, count in counted.items() if count is not None}
    unknown = tuple(layer.name for layer in network.layers if layer.name not in flops)
    made = {t.name: walker.shape(t) for layer in network.layers for t in layer.outputs}
    sizes = {name: shape for name, shape in made.items() if shape is not None}
    peak = None if unknown else _peak(network, walker)
    return Cost(flops, moved, peak, unknown, shapes=shapes | sizes)


def _is_open(info: onnx.ValueInfoProto, model: Model, given: Mapping[str, Sequence[int]]) -> bool:
    kind = info.type.tensor_type
    if lookup(given, info.name) is not None or not info.type.HasField("tensor_type"):
        return False
    if any(info.name == t.name for t in model.proto.graph.initializer):
        return False
    return not kind.HasField("shape") or any(d.dim_value < 1 for d in kind.shape.dim)


def _shape(tensor: Tensor, given: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    shape = lookup(given, tensor.name)
    if shape is not None:
        if tensor.shape is not None and len(tensor.shape) != len(shape):
            raise UsageError(
                f"input {tensor.name!r} has {len(tensor.shape)} dimensions, "
                f"but {list(shape)} has {len(shape)}"
            )
        return tuple(shape)
    if tensor.shape is None or not all(isinstance(d, int) for d in tensor.shape):
        return None
    return tuple(d for d in tensor.shape if isinstance(d, int))


def _bytes(tensor: Tensor, walker: ShapePass) -> int | None:
    shape = walker.shape(tensor)
    if shape is None or tensor.dtype is None or tensor.dtype is DType.STRING:
        return None
    return packed_size(tensor.dtype, shape)


def _moved(layer: Layer, walker: ShapePass) -> int | None:
    if layer.kind in _VIEWS:
        return 0
    touched = {t for node in layer.nodes for t in (*node.reads(), *node.writes())}
    inside = {t for node in layer.nodes for t in node.writes()} - set(layer.outputs)
    sizes = [_bytes(t, walker) for t in touched - inside]
    known = [s for s in sizes if s is not None]
    return sum(known) if len(known) == len(sizes) else None


def _peak(network: Network, walker: ShapePass) -> int:
    """The largest sum of live activations, in the order of the layers; views take no memory."""
    last: dict[Tensor, int] = {}
    for index, layer in enumerate(network.layers):
        last.update(dict.fromkeys(layer.inputs, index))
    last.update(dict.fromkeys(network.outputs, len(network.layers)))
    live = sum(_bytes(t, walker) or 0 for t in network.inputs)
    peak = live
    for index, layer in enumerate(network.layers):
        live += sum(_bytes(t, walker) or 0 for t in layer.outputs)
        peak = max(peak, live)
        ended = {*layer.inputs, *layer.outputs}
        live -= sum(_bytes(t, walker) or 0 for t in ended if last.get(t, index) == index)
    return peak
