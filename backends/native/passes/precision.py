"""Lower float32 nodes to the precisions that the configuration asks for, with explicit casts.

`x(float32) -> Op -> y(float32)  =>  x -> Cast(float16) -> Op -> y(float16) [-> Cast(float32)]`

Types that the model declares otherwise (float64, its own float16 ...) are honoured. What stays in
float32: the network's own inputs and outputs and those of If, Loop and Scan, values on the host
(shape arithmetic), inputs whose ONNX type is float32 only (Resize's scales, NonMaxSuppression),
quantising operators, sequences and optionals, Casts and BitCasts that the model itself contains.
Runs before any fusion.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from polytool import arrays
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.network import Constant, Layer, Network, Node, Tensor, ValueOf
from polytool.backends.native.numerics import PRECISIONS
from polytool.backends.native.passes.result import PassResult
from polytool.backends.native.types import lowerable
from polytool.tensors import DType

_KEPT = frozenset(
    {
        *("Cast", "CastLike", "BitCast", "Range"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)
_LOOKED_AT = 1 << 16  # elements of a constant up to which the builder reads it


def lower_precision(network: Network, config: BuilderConfig) -> PassResult:
    """Lower every node that `config` asks for."""
    result = PassResult()
    if config.precision == "fp64":
        return result
    used: set[str] = set()
    for graph in (network, *network.bodies()):
        _Lowering(graph, config, result, used).run()
    for pattern, precision in config.layer_precisions:
        if pattern not in used:
            ops = {n.op for g in (network, *network.bodies()) for x in g.layers for n in x.nodes}
            hint = f"; for every {pattern} write op:{pattern}" if pattern in ops else ""
            result.notes.append(f"layer precision {pattern}:{precision} matches no node{hint}")
    return result


def precision_of(node: Node, config: BuilderConfig, used: set[str] | None = None) -> str:
    """The precision that the configuration gives a node; the last matching pattern wins."""
    chosen = config.precision
    for pattern, precision in config.layer_precisions:
        if matches(pattern, node):
            chosen = precision
            if used is not None:
                used.add(pattern)
    return chosen


def matches(pattern: str, node: Node) -> bool:
    """Whether `pattern` names the node: `op:Softmax`, or its name with wildcards."""
    if pattern.startswith("op:"):
        return fnmatchcase(node.op, pattern[3:])
    names = set(node.sources)
    names |= {t.value_of.tensor for t in node.writes() if t.value_of is not None}
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


class _Lowering:
    """One graph: walks its nodes in order and rewrites them to the types that they compute in."""

    def __init__(
        self, graph: Network, config: BuilderConfig, result: PassResult, used: set[str]
    ) -> None:
        self.graph, self.config, self.result, self.used = graph, config, result, used
        self.lowered: dict[Tensor, Tensor] = {}  # an ONNX tensor to what is computed for it
        self.casts: dict[tuple[Tensor, DType], Tensor] = {}
        self.layers: list[Layer] = []
        self.scales: set[Tensor] = set()  # of dynamically quantised tensors
        self.products: set[Tensor] = set()  # of quantised tensors, before they are scaled

    def run(self) -> None:
        for layer in self.graph.layers:
            self.node(layer)
        self.graph.outputs = [self.as_type(t, t.dtype) for t in self.graph.outputs]
        self.graph.replace_layers(self.layers)

    def node(self, layer: Layer) -> None:
        (node,) = layer.nodes
        precision = precision_of(node, self.config, self.used)
        target = PRECISIONS[precision]
        if node.bodies:
            for body in node.bodies.values():  # captured tensors keep the model's types
                for tensor in body.captures:
                    self.restore(tensor)
        if self.stays(node, layer) or target is DType.FLOAT:
            node.precision = precision if target is DType.FLOAT else "fp32"
            if node.op in ("Shape", "Size"):  # of which type does not matter
                node.inputs = [t and self.lowered.get(t, t) for t in node.inputs]
            else:
                node.inputs = [t and self.as_type(t, t.dtype) for t in node.inputs]
            self.layers.append(layer)
            return
        names = lowerable(node)
        if names is None:
            self.result.refused.append(f"{node.sources[0]}: {node.op} has no {precision} form")
            node.inputs = [t and self.as_type(t, t.dtype) for t in node.inputs]
            self.layers.append(layer)
            return
        inputs, outputs = names
        node.precision = precision
        value = np.asarray(node.attrs.get("value", 0))
        if node.op == "ConstantOfShape" and value.dtype == np.float32:
            filled = arrays.saturated(value, target)
            node.attrs["value"] = filled.astype(value.dtype)
        node.inputs = [
            t and self.as_type(t, target if i in inputs and t.dtype is DType.FLOAT else t.dtype)
            for i, t in enumerate(node.inputs)
        ]
        node.outputs = [
            self.produced(t, target) if t and i in outputs and t.dtype is DType.FLOAT else t
            for i, t in enumerate(node.outputs)
        ]
        layer.outputs = list(node.writes())
        self.layers.append(layer)
        self.result.changed += 1

    def stays(self, node: Node, layer: Layer) -> bool:
        if self.dequantises(node) or node.bodies or node.op in _KEPT or not node.sources:
            return True
        if layer.outputs and all(t.place == "host" for t in layer.outputs):
            return True
        tensors = [t for t in (*node.inputs, *node.outputs) if t is not None]
        if any(t.container != "tensor" for t in tensors):
            return True
        return not any(t.dtype is DType.FLOAT for t in tensors)

    def dequantises(self, node: Node) -> bool:
        """Whether the node turns an integer product into floats, or multiplies scales.

        `Mul(Add(Cast(MatMulInteger), bias), Mul(scale_a, scale_b))`: before it is scaled, the
        product passes the range of float16, and the scales are below it.
        """
        given = [t for t in node.inputs if t is not None]
        scaled = self.products.intersection(given)
        if node.op in ("MatMulInteger", "ConvInteger") or (node.op in ("Cast", "Add") and scaled):
            self.products.update(node.writes())
        elif node.op == "DynamicQuantizeLinear":
            self.scales.update(t for t in node.writes() if t.dtype is DType.FLOAT)
        elif node.op == "Mul" and not scaled and self.scales.intersection(given):
            scaled = {t for t in given if t in self.scales or t.constant is not None}
            if len(scaled) < len(given):
                return False
            self.scales.update(node.writes())
        return node.op in ("Mul", "Add") and bool(scaled)

    def produced(self, tensor: Tensor, dtype: DType) -> Tensor:
        """The tensor of another type that a node now writes in place of `tensor`."""
        new = Tensor(
            f"{tensor.name}:{dtype.label}",
            dtype,
            tensor.shape,
            tensor.container,
            tensor.value_of,
            place=tensor.place,
        )
        self.lowered[tensor] = new
        return new

    def as_type(self, tensor: Tensor, dtype: DType | None) -> Tensor:
        """`tensor` (as the model names it) in `dtype`, through a cast where that is needed."""
        current = self.lowered.get(tensor, tensor)
        if dtype is None or current.dtype is dtype or current.dtype is None:
            return current
        if current.container != "tensor":
            return current
        if (tensor, dtype) not in self.casts:
            self.casts[tensor, dtype] = self.cast(tensor, current, dtype)
        return self.casts[tensor, dtype]

    def cast(self, tensor: Tensor, current: Tensor, dtype: DType) -> Tensor:
        value_of = current.value_of and ValueOf(
            current.value_of.tensor, (*current.value_of.map, ("cast", dtype.label))
        )
        new = Tensor(
            f"{tensor.name}:{dtype.label}",
            dtype,
            current.shape,
            value_of=value_of,
            place=current.place,
        )
        if current.constant is not None:
            if overflows(current.constant, dtype):
                self.result.notes.append(
                    f"constant {tensor.name!r} has values beyond {dtype.label}, which become its "
                    f"largest number"
                )
            new.constant = _cast_constant(current.constant, dtype)
            return new
        node = Node("Cast", "", 19, [current], [new], {"to": int(dtype)})
        self.layers.append(Layer.single(node))
        return new

    def restore(self, tensor: Tensor) -> None:
        """Make a tensor that a body captures exist in the model's own type again."""
        if tensor not in self.lowered:
            return
        assert tensor.dtype is not None
        if self.casts.get((tensor, tensor.dtype)) is tensor:
            return
        current = self.lowered[tensor]
        node = Node("Cast", "", 19, [current], [tensor], {"to": int(tensor.dtype)})
        tensor.value_of = None
        self.layers.append(Layer.single(node))
        self.casts[tensor, tensor.dtype] = tensor


def _cast_constant(constant: Constant, dtype: DType) -> Constant:
    def convert() -> np.ndarray:
        return arrays.saturated(constant.array(), dtype)

    return Constant(dtype, constant.shape, convert)


def overflows(constant: Constant, dtype: DType) -> bool:
    """Whether a constant small enough to look at has finite values that `dtype` has not."""
    return constant.size <= _LOOKED_AT and arrays.overflows(constant.array(), dtype)
