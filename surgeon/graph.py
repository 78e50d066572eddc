"""The working graph: a thin index over the protobuf, in which values are objects and not names.

A `Value` knows its producer and its users, also those inside bodies of If, Loop and Scan, so that
scopes, shadowed names and shared tensors need no care in a pass. Protos of the source model are
never changed: `Workspace.to_model` writes a new one, in which untouched nodes are the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto

from polytool.errors import ModelError
from polytool.model import Model
from polytool.surgeon.types import Type
from polytool.tensors import DType
from polytool.validation import has_attribute


class Value:
    """A tensor, sequence or optional: what a graph input, an initializer or a node defines.

    Attributes:
        name: unique among everything visible where the value is.
        graph: the graph that defines it; None when nothing does.
        producer: the node that computes it, or None.
        users: the nodes that read it, and the graphs that return it, with how often.
        tensor: the content, for an initializer.
        is_input: whether it is an input of `graph`; with a `tensor`, callers may override that.
        type: what inference found, or what the model declares where inference cannot tell.
    """

    __slots__ = ("graph", "is_input", "name", "producer", "tensor", "type", "users")

    def __init__(self, name: str, graph: Graph | None, producer: Node | None = None) -> None:
        self.name, self.graph, self.producer = name, graph, producer
        self.users: dict[Node | Graph, int] = {}
        self.tensor: TensorProto | None = None
        self.is_input = False
        self.type: Type | None = None

    def __repr__(self) -> str:
        return f"<Value {self.name}>"

    @property
    def constant(self) -> TensorProto | None:
        """The content, if it is there and no caller can override it."""
        if self.is_input or self.tensor is None or self.graph is None:
            return None
        return self.tensor if self.graph.workspace.model.has_content(self.tensor) else None

    @property
    def dtype(self) -> DType | None:
        """The element type, where it is known."""
        if self.tensor is not None:
            return DType(self.tensor.data_type) if self.tensor.data_type else None
        return self.type.dtype if self.type is not None else None

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """The shape, where the rank is known."""
        if self.tensor is not None:
            return tuple(self.tensor.dims)
        return self.type.shape if self.type is not None else None

    @property
    def is_tensor(self) -> bool:
        """False for sequences, optionals and maps, and where that is not known."""
        return self.tensor is not None or (self.type is not None and self.type.kind == "tensor")

    @property
    def is_output(self) -> bool:
        """Whether a graph returns it."""
        return any(isinstance(user, Graph) for user in self.users)

    def used_by(self) -> list[Node]:
        """The nodes that read it."""
        return [user for user in self.users if isinstance(user, Node)]

    def add_user(self, user: Node | Graph) -> None:
        """Count one more use."""
        self.users[user] = self.users.get(user, 0) + 1

    def drop_user(self, user: Node | Graph) -> None:
        """Count one use less."""
        left = self.users[user] - 1
        if left:
            self.users[user] = left
        else:
            del self.users[user]


class Node:
    """One operation. Inputs and outputs that are left out are None.

    Attributes:
        graph: where it stands; None once it has been removed.
        proto: where name, attributes, documentation and metadata come from; not to be changed.
        bodies: attribute name to graph; `name/i` for the items of a list of graphs.
    """

    __slots__ = ("_attributes", "bodies", "domain", "graph", "inputs", "op", "outputs", "proto")

    def __init__(self, proto: NodeProto, graph: Graph) -> None:
        self.proto = proto
        self.op = proto.op_type
        domain = proto.domain
        self.domain = "" if domain == "ai.onnx" else domain
        self.graph: Graph | None = graph
        self.inputs: list[Value | None] = []
        self.outputs: list[Value | None] = []
        self.bodies: dict[str, Graph] = {}
        self._attributes: dict[str, AttributeProto] | None = None

    def __repr__(self) -> str:
        return f"<Node {self.label}>"

    @property
    def label(self) -> str:
        """How messages call it: its name, else its operator and first output."""
        first = next((v.name for v in self.outputs if v is not None), "")
        return self.proto.name or f"{self.op}:{first}"

    @property
    def where(self) -> Graph:
        """Its graph; the node has not been removed."""
        assert self.graph is not None
        return self.graph

    @property
    def version(self) -> int:
        """The opset version of its domain; 0 where the model imports none."""
        return self.where.opsets.get(self.domain, 0)

    @property
    def attributes(self) -> dict[str, AttributeProto]:
        """Name to attribute, without bodies."""
        if self._attributes is None:
            self._attributes = {
                a.name: a
                for a in self.proto.attribute
                if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
            }
        return self._attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute: a number, str, list of those, or TensorProto.

        What ONNX does not give the operator is not looked at: it may be of any type.
        """
        found = self.attributes.get(name)
        version = 0 if self.graph is None else self.version
        if found is None or not has_attribute(self.op, self.domain, version, found):
            return default
        return value_of(found)

    @property
    def has_references(self) -> bool:
        """Whether an attribute is a parameter of the surrounding function."""
        return any(a.ref_attr_name for a in self.attributes.values())

    def set_attributes(self, **values: Any) -> None:
        """Set attributes; None removes one."""
        proto = NodeProto()
        proto.CopyFrom(self.proto)
        kept = [a for a in proto.attribute if a.name not in values]
        new = [onnx.helper.make_attribute(k, v) for k, v in values.items() if v is not None]
        proto.ClearField("attribute")
        proto.attribute.extend(kept + new)
        self.proto, self._attributes = proto, None

    def input(self, index: int) -> Value | None:
        """The input at `index`, None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def set_input(self, index: int, value: Value | None) -> None:
        """Read another value; trailing absent inputs are cut off."""
        self.inputs.extend([None] * (index + 1 - len(self.inputs)))
        old = self.inputs[index]
        if old is not None:
            old.drop_user(self)
        self.inputs[index] = value
        if value is not None:
            value.add_user(self)
        while self.inputs and self.inputs[-1] is None:
            self.inputs.pop()

    @property
    def output(self) -> Value:
        """The first output."""
        value = self.outputs[0]
        assert value is not None
        return value

    def captured(self) -> Iterator[Value]:
        """The outer values that its bodies read, with repetitions."""
        inside = set(self.bodies.values())
        for body in self.bodies.values():
            for value in body.reads():
                graph = value.graph
                while graph is not None and graph not in inside:
                    graph = graph.parent
                if graph is None:
                    yield value

    def reads(self) -> Iterator[Value]:
        """Every value it needs, those that its bodies capture included."""
        for value in self.inputs:
            if value is not None:
                yield value
        if self.bodies:
            yield from self.captured()


def value_of(attribute: AttributeProto) -> Any:
    """The value of an attribute: a number, str, list of those, or what ONNX has for the others.

    Raises:
        ValueError: it has no type.
    """
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if attribute.type == AttributeProto.STRINGS:
        return [v.decode("utf-8", "surrogateescape") for v in value]
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


class Graph:
    """The main graph, a body, or a function.

    Attributes:
        parent: the graph around a body; None for the main graph and for functions.
        outputs: what it returns; may repeat a value.
        constants: its initializers (and, in functions, the Constant nodes).
        nodes: in the order of the model; new ones at the end until `sort`.
        opsets: domain to version.
        sparse: the sparse initializers, which are left alone.
        infos: what the model says of inputs and intermediate values.
        pinned: values that quantisation annotations name; they stay as they are.
        output_infos: what it says of its outputs, in order.
        proto: the GraphProto or FunctionProto it was read from.
    """

    def __init__(
        self, workspace: Workspace, parent: Graph | None, opsets: dict[str, int], name: str
    ) -> None:
        self.workspace, self.parent, self.opsets, self.name = workspace, parent, opsets, name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.constants: dict[Value, None] = {}
        self.nodes: list[Node] = []
        self.sparse: dict[Value, onnx.SparseTensorProto] = {}
        self.infos: dict[Value, ValueInfoProto] = {}
        self.pinned: set[Value] = set()
        self.output_infos: list[ValueInfoProto] = []
        self.proto: Any = None

    @property
    def is_body(self) -> bool:
        """Whether this is a body of a node."""
        return self.parent is not None

    @property
    def is_function(self) -> bool:
        """Whether this is a function of the model, which can have no initializers."""
        return isinstance(self.proto, onnx.FunctionProto)

    def walk(self) -> Iterator[Graph]:
        """This graph and every body inside, outer ones first."""
        yield self
        for node in self.nodes:
            for body in node.bodies.values():
                yield from body.walk()

    def reads(self) -> Iterator[Value]:
        """Every value that nodes and outputs in here, at any depth, refer to."""
        for node in self.nodes:
            yield from (v for v in node.inputs if v is not None)
            for body in node.bodies.values():
                yield from body.reads()
        yield from self.outputs

    # --- edits

    def add_constant(self, tensor: TensorProto, base: str) -> Value:
        """A new initializer; its name begins with `base`."""
        value = Value(self.workspace.fresh(base), self)
        value.tensor = tensor
        self.constants[value] = None
        return value

    def add_array(self, array: Any, base: str, dtype: DType | None = None) -> Value:
        """A new initializer with the content of `array`."""
        return self.add_constant(self.workspace.model.store(array, "", dtype), base)

    def add_node(
        self,
        op: str,
        inputs: Iterable[Value | None],
        outputs: Iterable[str] = ("",),
        *,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> Node:
        """A new node at the end; `outputs` are the beginnings of the new values' names."""
        given = {k: v for k, v in attributes.items() if v is not None}
        node = Node(onnx.helper.make_node(op, [], [], name=name, domain=domain, **given), self)
        for value in inputs:
            node.inputs.append(value)
            if value is not None:
                value.add_user(node)
        for base in outputs:
            node.outputs.append(Value(self.workspace.fresh(base or f"{op}_output"), self, node))
        self.nodes.append(node)
        return node

    def remove(self, node: Node) -> None:
        """Take out a node whose outputs nobody uses; call `sort` or `compact` afterwards."""
        for value in node.inputs:
            if value is not None:
                value.drop_user(node)
        for body in node.bodies.values():
            body.clear()
        node.graph = None

    def clear(self) -> None:
        """Let go of everything that the nodes and outputs in here refer to."""
        for value in self.outputs:
            value.drop_user(self)
        self.outputs = []
        for node in self.nodes:
            if node.graph is not None:  # not one that was removed before
                self.remove(node)
        self.nodes = []

    def compact(self) -> None:
        """Forget removed nodes."""
        self.nodes = [n for n in self.nodes if n.graph is not None]

    def set_output(self, index: int, value: Value) -> None:
        """Return another value at `index`."""
        self.outputs[index].drop_user(self)
        self.outputs[index] = value
        value.add_user(self)

    def redirect(self, old: Value, new: Value) -> bool:
        """Let everything that uses `old` use `new`, which is equal.

        Where `old` is an output of the graph, `new` takes over its name. That is impossible when
        `new` is an input, a constant, an output already, or stands in another graph.

        Returns:
            Whether nothing uses `old` any more.
        """
        for node in old.used_by():
            for index, value in enumerate(node.inputs):
                if value is old:
                    node.set_input(index, new)
        returning = [user for user in old.users if isinstance(user, Graph)]
        if returning and self._can_return(old, new):
            for index, value in enumerate(self.outputs):
                if value is old:
                    self.set_output(index, new)
            new.name, old.name = old.name, new.name
            if new.type is None:
                new.type = old.type
        return not old.users

    def substitute(self, old: Value, new: Value) -> None:
        """Like `redirect`, and removes the producer of `old`, which nothing else may need.

        Where the graph has to return `old` itself, an Identity computes it from `new`.
        """
        producer = old.producer
        gone = self.redirect(old, new)
        if producer is not None and all(
            v is None or not v.users or v is old for v in producer.outputs
        ):
            self.remove(producer)
        if not gone:
            identity = self.add_node("Identity", [new])
            identity.outputs[0] = old
            old.producer = identity

    def _can_return(self, old: Value, new: Value) -> bool:
        return (
            new.producer is not None
            and new.graph is old.graph is self
            and not new.is_output
            and all(user is self or isinstance(user, Node) for user in old.users)
        )

    def sort(self) -> bool:
        """Put the nodes, here and in bodies, into topological order; stable.

        Returns:
            Whether the order changed.

        Raises:
            ModelError: the nodes form a cycle.
        """
        from polytool.surgeon.order import sort

        return sort(self)


class Workspace:
    """A model taken apart: its main graph, its functions, and every name in use.

    Attributes:
        problems: what is wrong with a broken model: where, and what.
        extra_opsets: domains that the model did not import.
        refined: values of which more is known than ONNX's inference finds by itself.
        refinements: how often something was found out about them.
    """

    def __init__(self, model: Model, *, strict: bool = True) -> None:
        """Take `model` apart.

        Raises:
            ModelError: it is broken, and `strict`; else `problems` says how.
        """
        from polytool.surgeon.reading import read

        self.model = model
        self.names: dict[str, int] = {}
        self._suffix: dict[str, int] = {}
        self.extra_opsets: dict[str, int] = {}
        self.refined: dict[Value, None] = {}
        self.refinements = 0
        self.main: Graph
        self.functions: list[Graph] = []
        self.problems = read(self)
        if strict and self.problems:
            shown = "; ".join(f"{where}: {what}" for where, what in self.problems[:10])
            more = len(self.problems) - 10
            raise ModelError(
                f"the model is broken: {shown}" + (f"; and {more} more" if more > 0 else "")
            )

    @property
    def graphs(self) -> Iterator[Graph]:
        """Every graph: the main one, the functions, and all bodies."""
        for top in (self.main, *self.functions):
            yield from top.walk()

    def define(self, name: str) -> None:
        """Count a definition of `name`; branches of one If may share names."""
        self.names[name] = self.names.get(name, 0) + 1

    def is_unique(self, name: str) -> bool:
        """Whether only one value of the whole model has been called `name`."""
        return self.names.get(name, 0) <= 1

    def fresh(self, base: str) -> str:
        """A name that nothing has; `base` itself where that is free."""
        name = base
        while name in self.names:
            self._suffix[base] = self._suffix.get(base, 0) + 1
            name = f"{base}_{self._suffix[base]}"
        self.define(name)
        return name

    def sort(self) -> int:
        """Sort every graph; returns how many changed."""
        return sum(top.sort() for top in (self.main, *self.functions))

    def to_model(self) -> Model:
        """The model as it is now; the weights stay where they are."""
        from polytool.surgeon.writing import write

        return self.model.derive(write(self))
