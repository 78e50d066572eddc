"""Turning layers into launches for one set of shapes; nothing here touches a device.

A lowering is a function in a module of this package, found by the kind of a fused layer, else by
the operator that its layer begins with:

    @lowering("Softmax")
    def softmax(rec: Recorder, layer: Layer) -> None: ...

It asks the recorder for its inputs as views, records plans of kernels, and defines its outputs.
What it cannot do it refuses with `UnsupportedError`; the layer then runs on the host.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from polytool.backends.native.cuda.buffers import Dims, Storage, View
from polytool.backends.native.kernels.pointwise import copy
from polytool.backends.native.kernels.source import C_TYPES, Candidate, LibraryRequest
from polytool.backends.native.kernels.transpose import Transpose
from polytool.backends.native.network import Layer, Node, Tensor
from polytool.backends.native.shapes import ShapePass
from polytool.errors import UnsupportedError
from polytool.tensors import DType

Lowering = Callable[["Recorder", Layer], None]
Expansion = Callable[[Node], "list[Layer] | None"]
_lowerings: dict[str, Lowering] = {}
_general: dict[str, Lowering] = {}
_expansions: dict[str, Expansion] = {}
_reads: dict[str, tuple[int, ...]] = {}


def lowering(
    *ops: str, domain: str = "", reads: tuple[int, ...] | None = None, general: bool = False
) -> Callable[[Lowering], Lowering]:
    """Register how layers that begin with one of `ops` run on the GPU.

    Args:
        ops: names of operators, or a kind of fused layers.
        domain: of the operators; those of com.microsoft are found without it.
        reads: inputs whose values it must know; what the operator itself declares by default.
        general: a slower form, for what the other lowering of the operator refuses.
    """
    names = [f"{domain}:{op}" if domain else op for op in ops]

    def register(function: Lowering) -> Lowering:
        (_general if general else _lowerings).update(dict.fromkeys(names, function))
        if reads is not None:
            _reads.update(dict.fromkeys(names, reads))
        return function

    return register


def given(node: Node, index: int) -> Tensor:
    """An input that must be there."""
    tensor = node.inputs[index]
    assert tensor is not None
    return tensor


def alone(layer: Layer, what: str) -> tuple[Node, Tensor]:
    """The node and the output of a layer whose kernel takes nothing else in.

    Raises:
        UnsupportedError: there are more nodes; `what` names the kernel.
    """
    if len(layer.nodes) > 1:
        raise UnsupportedError(f"{what} has no epilogue")
    (output,) = layer.outputs
    return layer.nodes[0], output


def expansion(*ops: str) -> Callable[[Expansion], Expansion]:
    """Register what layers stand for a node of one of `ops`; None leaves it as it is.

    That is how an operator runs whose result has a size that data decides: one layer counts, the
    next reads the count.
    """

    def register(function: Expansion) -> Expansion:
        _expansions.update(dict.fromkeys(ops, function))
        return function

    return register


def expand(layer: Layer) -> list[Layer]:
    """The layers that the device runs in place of `layer`."""
    _load()
    (node, *more) = layer.nodes
    function = _expansions.get(_key(node))
    parts = function(node) if function is not None and not more else None
    return [layer] if parts is None else parts


def host_reads(layer: Layer) -> list[Tensor]:
    """The inputs, constants left out, whose values are needed to record a layer."""
    found: list[Tensor] = []
    for node in layer.nodes:
        operator = node.operator
        default = operator.host if operator is not None else ()
        places = _reads.get(_key(node), default)
        chosen = (node.inputs[i] for i in places if i < len(node.inputs))
        found += [t for t in chosen if t is not None and t.constant is None]
    return found


_OTHERWISE = frozenset({"Attention", "QLinearConv", "RotaryEmbedding"})
"""Operators that com.microsoft defines with another signature than ONNX."""


def _key(node: Node) -> str:
    same = not node.domain or (node.domain == "com.microsoft" and node.op not in _OTHERWISE)
    return node.op if same else f"{node.domain}:{node.op}"


@cache
def _load() -> None:
    package = importlib.import_module("polytool.backends.native.cuda")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("lower_"):
            importlib.import_module(f"{package.__name__}.{module.name}")


def find_lowering(layer: Layer) -> Lowering | None:
    """How `layer` runs on the GPU, if it does."""
    _load()
    node = layer.nodes[0]
    if node.bodies:
        return None
    found = _lowerings.get(layer.kind) if len(layer.nodes) > 1 else None
    found = found or _lowerings.get(_key(node)) or _general.get(_key(node))
    operator = node.operator
    if found is None and operator is not None and operator.pointwise:
        return _lowerings.get("pointwise")
    return found


def _attempts(function: Lowering, layer: Layer) -> list[Lowering]:
    """How a layer may be recorded, the best way first."""
    general = _general.get(_key(layer.nodes[0]))
    found = [function] if general in (None, function) else [function, general]
    return [*found, _one_by_one] if len(layer.nodes) > 1 else found


def _one_by_one(rec: Recorder, layer: Layer) -> None:
    """The nodes of a fused layer as layers; nothing is rounded to 16 bits between them."""
    held: dict[Tensor, Tensor] = {}
    read = {t for node in layer.nodes for t in node.inputs}
    for node in layer.nodes:
        rec.shapes.node(node)
        for tensor in node.writes():
            reduced = tensor.dtype in _REDUCED and node.op != "Cast"
            if tensor not in layer.outputs or (reduced and tensor in read):
                dtype = DType.FLOAT if reduced else tensor.dtype
                held[tensor] = rec.temporary(dtype, rec.shape(tensor), tensor.name)
        changed = replace(
            node,
            inputs=[t if t is None else held.get(t, t) for t in node.inputs],
            outputs=[t if t is None else held.get(t, t) for t in node.outputs],
        )
        rec.lower(Layer.single(changed))
    for tensor in layer.outputs:
        if tensor in held and tensor.dtype is not None:
            to = {"to": int(tensor.dtype)}
            rec.lower(Layer.single(Node("Cast", "", 25, [held[tensor]], [tensor], to)))


_REDUCED = (DType.FLOAT16, DType.BFLOAT16)


@dataclass
class Step:
    """Launches of one layer: alternatives of which the fastest is taken.

    Attributes:
        views: what the plans' buffers are: inputs, then outputs.
        writes: how many of them, at the end, are outputs.
        signature: equal for steps whose timing is the same; None when there is one plan.
        libraries: what to ask libraries for once there is a device; their answers join `plans`.
    """

    layer: Layer
    plans: tuple[Candidate, ...]
    views: tuple[View, ...]
    writes: int = 1
    signature: str | None = None
    libraries: tuple[LibraryRequest, ...] = ()


@dataclass
class Recorder:
    """Collects the steps of a straight line of layers.

    Attributes:
        shapes: concrete shapes, and host values.
        line: all layers that will be lowered, for those that are done together.
        views: where each tensor lies by now.
        moments: where those of a tensor's rows lie (see row_moments.py).
    """

    shapes: ShapePass
    line: Sequence[Layer] = ()
    steps: list[Step] = field(default_factory=list)
    views: dict[Tensor, View] = field(default_factory=dict)
    moments: dict[Tensor, View] = field(default_factory=dict)
    _layer: Layer | None = None
    _depth: int = 0
    _copies: dict[tuple[View, tuple[int, ...]], View] = field(default_factory=dict)
    _families: dict[Lowering, dict[Hashable, list[Layer]]] = field(default_factory=dict)

    def lower(self, layer: Layer) -> None:
        """Record `layer`.

        Raises:
            UnsupportedError: it does not run on the GPU with these types and shapes.
        """
        if all(t in self.views for t in layer.outputs):
            return  # done together with an earlier one
        function = find_lowering(layer)
        if function is None:
            raise UnsupportedError(f"{layer.nodes[0].op} has no GPU kernel")
        if not self._depth:
            self._layer = layer
        self._depth += 1
        refused: list[UnsupportedError] = []
        try:
            for way in _attempts(function, layer):
                try:
                    with self.attempt():
                        way(self, layer)
                    return
                except UnsupportedError as err:
                    refused.append(err)
            raise refused[-1]
        finally:
            self._depth -= 1
            refused.clear()  # errors refer to frames, this one included, and those to arrays

    def temporary(self, dtype: DType | None, shape: Dims, name: str = "") -> Tensor:
        """A tensor between the kernels of one layer."""
        tensor = Tensor(name, dtype, shape)
        self.shapes.shapes[tensor] = tuple(shape)
        return tensor

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Forget what the body recorded when it refuses."""
        before, views, copies = len(self.steps), dict(self.views), dict(self._copies)
        moments = dict(self.moments)
        try:
            yield
        except UnsupportedError:
            del self.steps[before:]
            self.views, self._copies, self.moments = views, copies, moments
            raise

    def siblings(self, layer: Layer, family: Callable[[Layer], Hashable]) -> list[Layer]:
        """The layers of the line with the same lowering and the same family, `layer` first.

        `family` is None for layers that are done alone.
        """
        function = find_lowering(layer)
        assert function is not None
        if function not in self._families:
            families: dict[Hashable, list[Layer]] = {}
            for other in self.line:
                if find_lowering(other) is function and (key := family(other)) is not None:
                    families.setdefault(key, []).append(other)
            self._families[function] = families
        found = self._families[function].get(family(layer), [])
        return found[found.index(layer) :] if layer in found else [layer]

    def view(self, tensor: Tensor) -> View:
        """Where `tensor` lies; constants and host values become constants on the device."""
        if tensor not in self.views:
            if tensor.constant is not None:
                constant = tensor.constant
                self.views[tensor] = self.constant(
                    constant.array, constant.shape, constant.dtype, constant
                )
            elif (value := self.shapes.value(tensor)) is not None:
                array = np.asarray(value)
                key = ("host", array.dtype.str, array.shape, array.tobytes())
                self.views[tensor] = self.constant(lambda: array, array.shape, DType.of(array), key)
            else:
                raise UnsupportedError(f"{tensor.name!r} is not on the device")
        return self.views[tensor]

    def shape(self, tensor: Tensor) -> Dims:
        """The concrete shape of a tensor."""
        found = self.shapes.shape(tensor)
        if found is None:
            raise UnsupportedError(f"the shape of {tensor.name!r} depends on data")
        return found

    def constant(
        self, make: Callable[[], np.ndarray], shape: Dims, dtype: DType, key: object
    ) -> View:
        """A dense constant; `key` tells equal ones apart from others."""
        if dtype not in C_TYPES:
            raise UnsupportedError(f"{dtype.label} has no GPU kernels")
        view = View.new(dtype, tuple(shape))
        view.storage.make, view.storage.key = make, key
        return view

    def define(self, tensor: Tensor, view: View) -> None:
        """`tensor` lies in `view`."""
        if view.dtype is not tensor.dtype:
            raise UnsupportedError(f"{tensor.name!r} is {tensor.dtype}, not {view.dtype}")
        self.views[tensor] = view

    def output(self, tensor: Tensor, order: Sequence[int] | None = None) -> View:
        """New memory for `tensor`, dense in the given order of dimensions."""
        if tensor.dtype is None or tensor.dtype not in C_TYPES:
            raise UnsupportedError(f"{tensor.name!r} has a type without GPU kernels")
        view = View.new(tensor.dtype, self.shape(tensor), order)
        self.define(tensor, view)
        return view

    def launch(
        self,
        plans: Sequence[Candidate],
        views: Sequence[View],
        *,
        writes: int = 1,
        signature: str | None = None,
        libraries: Sequence[LibraryRequest] = (),
    ) -> None:
        """Record one of several ways to do the same; the last `writes` views are written."""
        assert self._layer is not None
        assert len({p.name for p in plans}) == len(plans), "two candidates have one name"
        self.steps.append(
            Step(
                self._layer,
                tuple(plans),
                tuple(views),
                writes,
                signature if len(plans) > 1 or libraries else None,
                tuple(libraries),
            )
        )

    def dense(self, view: View, order: Sequence[int] | None = None) -> View:
        """`view` without gaps in this order of dimensions, copied where it lies otherwise."""
        order = tuple(range(len(view.shape)) if order is None else order)
        if view.lies_like(order) and not view.offset:
            return view
        key = (view, order)
        if key not in self._copies:
            target = View.new(view.dtype, view.shape, order)
            self._copy(view, target, order)
            self._copies[key] = target
        return self._copies[key]

    def _copy(self, view: View, target: View, order: tuple[int, ...]) -> None:
        """By tiles where the source is a transposed dense tensor, else in its own order."""
        moved = view.permuted(order)
        source = moved.order
        along = moved.steps[-1] == 1 and moved.shape[-1] % 8 == 0  # rows stay rows
        if view.is_packed and not view.offset and not along:
            stored = tuple(moved.shape[d] for d in source)
            back = tuple(source.index(d) for d in range(len(source)))
            plan = Transpose(view.dtype).plan(stored, back)
        else:
            kernel, operands = copy(view.dtype), [moved.operand]
            plan = kernel.plan(moved.shape, operands, pattern=kernel.pattern(moved.shape, operands))
        self.launch([plan], [view.whole, target])

    def attribute(self, tensor: Tensor | None) -> Any:
        """The value of an input that must be known on the host."""
        if tensor is None:
            return None
        value = self.shapes.value(tensor)
        if value is None:
            raise UnsupportedError(f"{tensor.name!r} is not known on the host")
        return np.asarray(value)


def storages(steps: Sequence[Step]) -> dict[Storage, tuple[int, int]]:
    """The first and the last step that touches each storage."""
    found: dict[Storage, tuple[int, int]] = {}
    for index, step in enumerate(steps):
        for view in step.views:
            first, _ = found.get(view.storage, (index, index))
            found[view.storage] = (first, index)
    return found
