"""Cutting sub-models out of a model: some nodes, the weights they read, new inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import onnx

from polytool.backends.native.protos import sort_nodes
from polytool.model import graphs


class Cutter:
    """The top-level graph of a model, indexed for cutting.

    Attributes:
        nodes: the nodes in topological order.
        reads: for each node the tensors it needs, those that its bodies capture included.
        producer: tensor to the index of the node that makes it.
        weights: the initializers.
    """

    def __init__(self, proto: onnx.ModelProto, who: str = "the model") -> None:
        self.proto = proto
        self.nodes: list[onnx.NodeProto] = sort_nodes(list(proto.graph.node), who)
        self.reads = [tuple(dict.fromkeys(needs(node))) for node in self.nodes]
        self.producer = {o: i for i, node in enumerate(self.nodes) for o in node.output if o}
        self.weights = {t.name: t for t in proto.graph.initializer}
        self._sparse = {t.values.name: t for t in proto.graph.sparse_initializer}

    @cached_property
    def constants(self) -> frozenset[str]:
        """The tensors that depend on no input: initializers and what is computed from them."""
        known = {*self.weights, *self._sparse}
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if known.issuperset(reads) and node.op_type not in _RANDOM:
                known.update(o for o in node.output if o)
        return frozenset(known)

    def is_weight(self, name: str) -> bool:
        """Whether the model holds the value of tensor `name`."""
        return name in self.weights or name in self._sparse

    def slice(self, wanted: Iterable[str], given: Iterable[str]) -> tuple[list[int], list[str]]:
        """The nodes that compute `wanted` from `given`.

        Returns:
            The indices of the nodes in order, and the tensors that remain to be known: neither
            given, nor weights, nor produced.
        """
        given = set(given)
        pending = [name for name in wanted if name not in given]
        chosen: set[int] = set()
        lacking: list[str] = []
        seen = set(pending)
        while pending:
            name = pending.pop()
            index = self.producer.get(name)
            if index is None:
                if not self.is_weight(name):
                    lacking.append(name)
                continue
            if index in chosen:
                continue
            chosen.add(index)
            for read in self.reads[index]:
                if read not in given and read not in seen:
                    seen.add(read)
                    pending.append(read)
        return sorted(chosen), lacking

    def model(
        self, indices: Sequence[int], inputs: Mapping[str, onnx.TypeProto], outputs: Iterable[str]
    ) -> onnx.ModelProto:
        """The sub-model of some nodes.

        Args:
            indices: the nodes, in order.
            inputs: the tensors that are fed, and their types.
            outputs: the tensors that it returns; types of what nodes make are left to be inferred.
        """
        source = self.proto
        proto = onnx.ModelProto(ir_version=source.ir_version)
        proto.opset_import.extend(source.opset_import)
        if source.functions:
            proto.functions.extend(source.functions)
        graph = proto.graph
        graph.name = source.graph.name or "graph"
        graph.node.extend(self.nodes[i] for i in indices)
        outputs = list(outputs)
        reads = dict.fromkeys(name for i in indices for name in self.reads[i])
        for name in (*reads, *outputs):
            if name in inputs:
                continue
            if name in self.weights:
                graph.initializer.append(self.weights[name])
            elif name in self._sparse:
                graph.sparse_initializer.append(self._sparse[name])
        for name, type_ in inputs.items():
            graph.input.add(name=name).type.CopyFrom(type_)
        for name in outputs:
            output = graph.output.add(name=name)
            if name in self.weights:
                output.type.tensor_type.elem_type = self.weights[name].data_type
        return proto


# Operators without inputs whose result is nevertheless no constant.
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
    | {"Multinomial", "Dropout"}
)


def needs(node: onnx.NodeProto) -> Iterable[str]:
    """The tensors that a node reads: its inputs, and what its bodies take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type in (attribute.GRAPH, attribute.GRAPHS):
            for body in graphs(node):
                yield from captures(body)
            return


def captures(body: onnx.GraphProto) -> Iterable[str]:
    """The tensors that a body reads but neither receives nor holds nor makes."""
    inside = {i.name for i in body.input} | {t.name for t in body.initializer}
    inside |= {t.values.name for t in body.sparse_initializer}
    inside |= {o for node in body.node for o in node.output}
    reads = [n for node in body.node for n in needs(node)] + [o.name for o in body.output]
    return (name for name in dict.fromkeys(reads) if name not in inside)
