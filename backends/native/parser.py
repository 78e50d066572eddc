"""ONNX to `Network`: one layer a node, in its newest form, every tensor typed.

Local functions, and operators that ONNX defines as functions and that have no kernel here, are
expanded in place. Bodies of If, Loop and Scan become Networks that name the outer tensors they
capture. Nothing is optimised here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from polytool.backends.native.network import (
    CONTROL,
    Constant,
    Layer,
    Network,
    Node,
    Tensor,
    ValueOf,
    captured,
)
from polytool.backends.native.ops import registry
from polytool.backends.native.protos import (
    constant_value,
    display,
    function_of_schema,
    normal_domain,
    read_type,
    sort_nodes,
    without_inputs,
)
from polytool.backends.native.types import misfit, output_container, output_dtypes
from polytool.backends.native.unsupported import Unsupported, refusal
from polytool.errors import ModelError, UnsupportedError
from polytool.model import Model
from polytool.tensors import DType
from polytool.validation import validate

_MAX_DEPTH = 64


def parse(model: Model, *, strict: bool = True) -> Network:
    """The network of `model`.

    Args:
        model: what to parse.
        strict: refuse what cannot run; else such nodes have no `operator`.

    Raises:
        UnsupportedError: the engine has no operator for some nodes, and `strict`; all of them are
            named.
        ModelError: the graph is not valid (a cycle, an undefined tensor, no opset import).
    """
    network, unsupported = read_network(model)
    if strict and unsupported:
        raise refusal(model.name, unsupported)
    return network


def read_network(model: Model) -> tuple[Network, list[Unsupported]]:
    """The network of `model`, and the nodes in it that the engine cannot run.

    Raises:
        ModelError: the graph is not valid (a cycle, an undefined tensor, no opset import).
    """
    validate(model.proto)
    parser = _Parser(model)
    scope = _Scope({}, None, "", parser.opsets, {})
    return parser.graph(model.proto.graph, scope, ""), parser.unsupported


class _Scope:
    """Names visible at one place, and how attributes and opsets read there."""

    def __init__(
        self,
        names: dict[str, Tensor],
        outer: _Scope | None,
        path: str,
        opsets: Mapping[str, int],
        attributes: Mapping[str, AttributeProto],
        depth: int = 0,
    ) -> None:
        self.names, self.outer, self.path = names, outer, path
        self.opsets, self.attributes, self.depth = opsets, attributes, depth

    def find(self, name: str) -> Tensor | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None


class _Parser:
    def __init__(self, model: Model) -> None:
        self.model, self.name = model, model.name
        self.functions = {
            (f.domain, f.name, getattr(f, "overload", "")): f for f in model.proto.functions
        }
        self.opsets = {normal_domain(o.domain): o.version for o in model.proto.opset_import}
        self.newest = onnx.defs.onnx_opset_version()
        self.unsupported: list[Unsupported] = []
        self.top: tuple[str, ...] = ()
        self.used: set[str] = set()

    # --- graphs

    def graph(
        self,
        graph: onnx.GraphProto,
        scope: _Scope,
        name: str,
        given: Sequence[DType | None] = (),
    ) -> Network:
        shapes = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}
        for tensor in graph.initializer:
            self.initializer(tensor.name, self.constant(tensor), scope)
        for sparse in graph.sparse_initializer:
            self.initializer(sparse.values.name, Constant.of(self.dense(sparse)), scope)
        inputs: list[Tensor] = []
        for info in graph.input:
            if not name and info.name in scope.names:
                continue  # an initializer repeated as input: a constant unless overridden
            tensor = self.declare(info.name, info, scope)
            if tensor.dtype is None and len(inputs) < len(given):
                tensor.dtype = given[len(inputs)]  # bodies of functions declare no types
            scope.names[info.name] = tensor
            inputs.append(tensor)
        layers = self.nodes(graph.node, scope, shapes)
        outputs = []
        for info in graph.output:
            found = scope.find(info.name)
            if found is None:
                raise ModelError(
                    f"output {info.name!r} of graph {graph.name!r} is computed by no node; "
                    f"the model is broken: re-export it"
                )
            outputs.append(found)
        names = tuple(info.name for info in graph.output)
        captures = captured(layers, inputs, outputs)
        return Network(name, inputs, outputs, layers, captures, names)

    def declare(self, name: str, info: onnx.ValueInfoProto | None, scope: _Scope) -> Tensor:
        dtype, shape, container = (
            read_type(info.type) if info is not None else (None, None, "tensor")
        )
        return Tensor(
            self.unique(scope.path + name), dtype, shape, container, ValueOf(scope.path + name)
        )

    def unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self.used:
            candidate, n = f"{name}.{n}", n + 1
        self.used.add(candidate)
        return candidate

    def initializer(self, name: str, constant: Constant, scope: _Scope) -> None:
        path = scope.path + name
        scope.names[name] = Tensor(
            self.unique(path),
            constant.dtype,
            constant.shape,
            value_of=ValueOf(path),
            constant=constant,
            place="host",
        )

    def constant(self, tensor: onnx.TensorProto) -> Constant:
        return Constant(
            DType.of(tensor.data_type), tuple(tensor.dims), lambda: self.model.array(tensor)
        )

    def dense(self, sparse: onnx.SparseTensorProto) -> np.ndarray:
        values, indices = self.model.array(sparse.values), self.model.array(sparse.indices)
        try:
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (ValueError, IndexError, MemoryError) as err:
            raise ModelError(
                f"sparse weight {sparse.values.name!r} of shape {list(sparse.dims)} cannot be "
                f"made dense: {err}; re-export the model"
            ) from err
        return dense

    # --- nodes

    def nodes(
        self,
        nodes: Iterable[NodeProto],
        scope: _Scope,
        shapes: Mapping[str, onnx.ValueInfoProto],
    ) -> list[Layer]:
        layers: list[Layer] = []
        for proto in sort_nodes(list(nodes), self.name):
            if not scope.path:
                self.top = tuple(proto.output)
            layers += self.node(proto, scope, shapes)
        return layers

    def node(
        self, proto: NodeProto, scope: _Scope, shapes: Mapping[str, onnx.ValueInfoProto]
    ) -> list[Layer]:
        domain = normal_domain(proto.domain)
        if (function := self.function(proto)) is not None:
            return self.expand(function, proto, scope, shapes)
        version = scope.opsets.get(domain, 1 if domain else None)
        if version is None:
            raise ModelError(f"{self.name} imports no opset for domain {domain or 'ai.onnx'!r}")
        if not any(proto.output):
            shown = display(proto)
            raise ModelError(f"node {shown} ({proto.op_type}) names none of its outputs")
        attrs, graphs = self.attributes(proto, scope)
        node = registry.Node(
            proto.op_type,
            domain,
            version,
            [name or None for name in proto.input],
            list(proto.output),
            attrs,
            proto.name,
        )
        if domain == "" and node.op == "Constant" and len(attrs) == 1:
            self.initializer(node.outputs[0], Constant.of(constant_value(attrs)), scope)
            return []
        if domain == "" and node.op in CONTROL:
            return [self.control(node, graphs, scope, shapes)]
        if not domain and version > self.newest:
            why = (
                f"the model has opset {version}, and onnx {onnx.__version__} knows none above "
                f"{self.newest}: upgrade onnx, or export the model with an older opset"
            )
            return [self.layer(node, scope, shapes, why)]
        try:
            raised = registry.raise_node(node)
        except UnsupportedError as err:
            return [self.layer(node, scope, shapes, str(err))]
        newest = raised[0]
        if len(raised) == 1 and registry.find(newest.domain, newest.op, newest.version) is None:
            return self.definition(proto, node, scope, shapes)
        return [self.layer(r, scope, shapes) for r in raised]

    def inputs(self, node: registry.Node, scope: _Scope) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for name in node.inputs:
            if name is None:
                found.append(None)
            elif isinstance(name, str):
                tensor = scope.find(name)
                if tensor is None:
                    raise ModelError(
                        f"node {display(node)} reads {name!r}, which nothing produces; "
                        f"the model is broken: re-export it"
                    )
                found.append(tensor)
            else:
                found.append(self.inline(np.asarray(name), node, scope))
        while found and found[-1] is None:
            found.pop()
        return found

    def inline(self, value: np.ndarray, node: registry.Node, scope: _Scope) -> Tensor:
        constant = Constant.of(value)
        name = self.unique(f"{scope.path}{next((o for o in node.outputs if o), node.op)}/constant")
        return Tensor(name, constant.dtype, constant.shape, constant=constant, place="host")

    def layer(
        self,
        node: registry.Node,
        scope: _Scope,
        shapes: Mapping[str, onnx.ValueInfoProto],
        why_not: str = "",
    ) -> Layer:
        inputs = self.inputs(node, scope)
        operator = None if why_not else registry.find(node.domain, node.op, node.version)
        why = operator.misfit(inputs, node.attrs) if operator is not None else None
        if operator is not None and "out_dtypes" in operator.wants and not node.outputs[0]:
            why = "it leaves out its first output"
        if why is not None:
            raise ModelError(f"node {display(node)} ({node.op}) is not as it should be: {why}")
        for index, tensor in enumerate(inputs):
            if tensor is not None:
                self.check_kind(node, index, tensor)
        dtypes: list[DType | None] = [None] * len(node.outputs)
        if operator is not None:
            dtypes = output_dtypes(
                node.domain,
                node.op,
                node.version,
                [t.dtype if t is not None else None for t in inputs],
                len(node.outputs),
                {k: v for k, v in node.attrs.items() if k in operator.attributes},
            )
        container = output_container(node.op, [t.container for t in inputs if t is not None])
        outputs: list[Tensor | None] = []
        for name, dtype in zip(node.outputs, dtypes, strict=True):
            if not name:
                outputs.append(None)
                continue
            tensor = self.declare(name, shapes.get(name), scope)
            tensor.dtype = dtype if dtype is not None else tensor.dtype
            if container != "tensor":
                tensor.container = container
            scope.names[name] = tensor
            outputs.append(tensor)
        while outputs and outputs[-1] is None:
            outputs.pop()
        if why := why_not or self.why_not(operator, node, inputs):
            op = f"{node.domain}.{node.op}" if node.domain else node.op
            shown, where = display(node), scope.path.rstrip("/")
            self.unsupported.append(Unsupported(shown, op, node.version, where, why, self.top))
        built = Node(
            node.op,
            node.domain,
            node.version,
            inputs,
            outputs,
            dict(node.attrs),
            sources=(scope.path + display(node),),
        )
        return Layer.single(built)

    def check_kind(self, node: registry.Node, index: int, tensor: Tensor) -> None:
        if why := misfit(node, index, tensor.container, tensor.dtype):
            given = why.format(f"its input {index} ({tensor.name!r})")
            raise ModelError(f"node {display(node)} ({node.op}) {given}; re-export the model")

    def why_not(
        self, operator: registry.Operator | None, node: registry.Node, inputs: list[Tensor | None]
    ) -> str | None:
        """Why the engine cannot run a node; None if it can."""
        if operator is None:
            return "the engine has no such operator, and ONNX no definition of it"
        if unknown := sorted(set(node.attrs) - operator.attributes):
            return f"the engine knows no attribute {', '.join(unknown)} of it"
        limits = registry.limits_function(node.domain, node.op)
        if limits is None:
            return None
        reason: str | None = limits([t is not None for t in inputs], **node.attrs)
        return reason

    def attributes(
        self, proto: NodeProto, scope: _Scope
    ) -> tuple[dict[str, Any], dict[str, onnx.GraphProto]]:
        attrs: dict[str, Any] = {}
        graphs: dict[str, onnx.GraphProto] = {}
        for attribute in proto.attribute:
            name = attribute.name
            if attribute.ref_attr_name:
                if attribute.ref_attr_name not in scope.attributes:
                    continue  # the function's caller leaves it at its default
                attribute = scope.attributes[attribute.ref_attr_name]
            if attribute.type == AttributeProto.GRAPH:
                graphs[name] = attribute.g
            else:
                attrs[name] = self.attribute(attribute)
        return attrs, graphs

    def attribute(self, attribute: AttributeProto) -> Any:
        if attribute.type == AttributeProto.TENSOR:
            return self.model.array(attribute.t)
        if attribute.type == AttributeProto.TENSORS:
            return [self.model.array(t) for t in attribute.tensors]
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            return self.dense(attribute.sparse_tensor)
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.STRING:
            return value.decode("utf-8", "surrogateescape")
        if attribute.type == AttributeProto.STRINGS:
            return [v.decode("utf-8", "surrogateescape") for v in value]
        if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
            return list(value)
        return value

    # --- control flow and functions

    def control(
        self,
        node: registry.Node,
        graphs: Mapping[str, onnx.GraphProto],
        scope: _Scope,
        shapes: Mapping[str, onnx.ValueInfoProto],
    ) -> Layer:
        shown = display(node)
        inputs = self.inputs(node, scope)
        given = _types_of_body_inputs(node, inputs)
        bodies = {
            name: self.graph(graph, self.inner(scope, f"{scope.path}{shown}/{name}/"), name, given)
            for name, graph in graphs.items()
        }
        outputs: list[Tensor | None] = []
        for index, name in enumerate(node.outputs):
            tensor = self.declare(name, shapes.get(name), scope) if name else None
            if tensor is not None:
                _type_from_body(tensor, node.op, index, bodies, node.attrs, len(inputs))
                scope.names[name] = tensor
            outputs.append(tensor)
        built = Node(node.op, "", node.version, inputs, outputs, dict(node.attrs), bodies)
        built.sources = (scope.path + shown,)
        return Layer(node.op, [built], list(built.writes()))

    def inner(self, scope: _Scope, path: str) -> _Scope:
        if scope.depth >= _MAX_DEPTH:
            raise ModelError(f"{self.name} nests graphs deeper than {_MAX_DEPTH} at {path}")
        return _Scope({}, scope, path, scope.opsets, scope.attributes, scope.depth + 1)

    def function(self, proto: NodeProto) -> onnx.FunctionProto | None:
        return self.functions.get((proto.domain, proto.op_type, getattr(proto, "overload", "")))

    def definition(
        self,
        proto: NodeProto,
        node: registry.Node,
        scope: _Scope,
        shapes: Mapping[str, onnx.ValueInfoProto],
    ) -> list[Layer]:
        """Expand an operator by the function that ONNX defines it with."""
        specs = [t.spec if t is not None else None for t in self.inputs(node, scope)]
        function = function_of_schema(proto, node, specs)
        if function is None:
            return [self.layer(node, scope, shapes)]
        return self.expand(function, proto, scope, shapes, outer=scope)  # SequenceMap captures

    def expand(
        self,
        function: onnx.FunctionProto,
        proto: NodeProto,
        scope: _Scope,
        shapes: Mapping[str, onnx.ValueInfoProto],
        outer: _Scope | None = None,
    ) -> list[Layer]:
        if scope.depth >= _MAX_DEPTH:
            raise ModelError(f"function {function.name!r} of {self.name} calls itself")
        shown = next((o for o in proto.output if o), proto.op_type)
        given = dict(zip(function.input, proto.input, strict=False))
        names = {}
        for formal, actual in given.items():
            tensor = scope.find(actual) if actual else None
            if tensor is not None:
                names[formal] = tensor
        attributes = {a.name: a for a in function.attribute_proto}
        for attribute in proto.attribute:
            given_value = scope.attributes.get(attribute.ref_attr_name, attribute)
            if not given_value.ref_attr_name:  # else left at its default
                attributes[attribute.name] = given_value
        opsets = {**scope.opsets}
        opsets |= {normal_domain(o.domain): o.version for o in function.opset_import}
        path = f"{scope.path}{shown}/{function.name}/"
        inner = _Scope(names, outer, path, opsets, attributes, scope.depth + 1)
        absent = {name for name in function.input if name not in names}
        nodes = [without_inputs(n, absent) for n in function.node]
        layers = self.nodes(nodes, inner, {v.name: v for v in function.value_info})
        for formal, actual in zip(function.output, proto.output, strict=False):
            found = inner.find(formal)
            if actual and found is not None:
                if found.value_of is not None and formal not in given:
                    found.value_of = ValueOf(scope.path + actual)
                scope.names[actual] = found
        return layers


def _types_of_body_inputs(
    node: registry.Node, inputs: Sequence[Tensor | None]
) -> list[DType | None]:
    """What the inputs of a Loop's or Scan's body are by what the node is given."""
    dtypes = [None if t is None else t.dtype for t in inputs]
    if node.op == "Loop":
        return [DType.INT64, DType.BOOL, *dtypes[2:]]
    return dtypes[1:] if node.op == "Scan" and node.version < 9 else dtypes


def _type_from_body(
    tensor: Tensor,
    op: str,
    index: int,
    bodies: Mapping[str, Network],
    attrs: Mapping[str, Any],
    n_inputs: int,
) -> None:
    body = next(iter(bodies.values()))
    position = index + 1 if op == "Loop" else index
    if position < len(body.outputs):
        source = body.outputs[position]
        tensor.dtype = source.dtype if source.dtype is not None else tensor.dtype
        if op != "Scan":
            carried = op == "If" or index < n_inputs - 2
            tensor.container = source.container if carried else "tensor"
    if op == "If":
        tensor.shape = None
