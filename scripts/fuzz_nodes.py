"""Models of one to three random nodes, for the fuzzer: any operator and version, any attributes.

Mutations of sound models keep most of a node as it was; here nothing was ever sound. Types of
inputs, numbers of outputs and names of attributes follow the operator's schema, their values do
not: sizes, axes and counts are small ones, or hostile. What a node reads is a constant, an input,
or what an earlier node made, of whatever type.
"""

from __future__ import annotations

import random
from functools import cache

import onnx
from onnx import AttributeProto, TensorProto, helper
from onnx.defs import OpSchema

from scripts.fuzz_values import SHAPES, TYPES, any_attribute, any_tensor

SIZES = [0, 1, 1, 2, 2, 3, 3, 4, 5]
HOSTILE_SIZES = [-1, -2, -(2**62), 10**9]
_BODIES = ("If", "Loop", "Scan", "SequenceMap")  # mutations nest these


@cache
def _operators() -> dict[str, list[str]]:
    """Domain to the names of its operators that have no bodies."""
    found: dict[str, set[str]] = {"": set(), "ai.onnx.ml": set()}
    for schema in onnx.defs.get_all_schemas():
        if schema.domain in found and schema.name not in _BODIES:
            found[schema.domain].add(schema.name)
    return {domain: sorted(names) for domain, names in found.items()}


def random_nodes(rng: random.Random) -> bytes:
    """A model file."""
    return _Maker(rng).model().SerializeToString()


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.versions = {"": rng.randint(1, onnx.defs.onnx_opset_version())}
        self.versions["ai.onnx.ml"] = rng.randint(1, 5)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[TensorProto] = []
        self.made: list[str] = []
        self.count = 0
        self.hostile = rng.choice([0.0, 0.1, 0.3, 0.6])  # of numbers and sizes
        self.constant = rng.choice([0.2, 0.7])  # of what nodes read

    def model(self) -> onnx.ModelProto:
        wanted = self.rng.choice([1, 1, 2, 3])
        found = (self._node() for _ in range(50))
        nodes = [node for _, node in zip(range(wanted), filter(None, found), strict=False)]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.made[-3:]]
        graph = helper.make_graph(nodes, "g", self.inputs, outputs, self.constants)
        if self.rng.random() < 0.1:  # what they are may have come later, or be gone
            self.versions[""] = self.rng.randint(1, onnx.defs.onnx_opset_version())
        opsets = [helper.make_opsetid(d, v) for d, v in self.versions.items()]
        return helper.make_model(graph, opset_imports=opsets)

    def _node(self) -> onnx.NodeProto | None:
        domain = "" if self.rng.random() < 0.85 else "ai.onnx.ml"
        name = self.rng.choice(_operators()[domain])
        try:
            schema = onnx.defs.get_schema(name, self.versions[domain], domain)
        except onnx.defs.SchemaError:  # younger than the model
            return None
        if schema.deprecated:
            return None
        node = helper.make_node(name, self._reads(schema), self._writes(schema), domain=domain)
        node.attribute.extend(self._attributes(schema))
        self.made += node.output
        return node

    def _name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def _reads(self, schema: OpSchema) -> list[str]:
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        found = []
        for formal in schema.inputs:
            names = allowed.get(formal.type_str, [formal.type_str])
            types = [TYPES[t] for t in names if t in TYPES]
            if formal.option == OpSchema.FormalParameterOption.Optional and self.rng.random() < 0.4:
                found.append("")
            elif formal.option == OpSchema.FormalParameterOption.Variadic:
                found += [self._operand(types) for _ in range(self.rng.randint(1, 3))]
            else:
                found.append(self._operand(types))
        if found and self.rng.random() < 0.05:
            found.pop()
        return found

    def _operand(self, types: list[int]) -> str:
        if self.made and (not types or self.rng.random() < 0.5):
            return self.rng.choice(self.made)
        kind = self.rng.choice(types or list(TYPES.values()))
        if set(types) <= {TensorProto.INT32, TensorProto.INT64} and self.rng.random() < 0.6:
            self.constants.append(self._tensor(kind, [self.rng.randrange(5)]))
            return self.constants[-1].name
        if self.rng.random() < self.constant:
            self.constants.append(self._tensor(kind, self.rng.choice(SHAPES)))
            return self.constants[-1].name
        dims = [self._size() for _ in range(self.rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 5]))]
        known = dims if self.rng.random() < 0.93 else None
        self.inputs.append(helper.make_tensor_value_info(self._name(), kind, known))
        return self.inputs[-1].name

    def _size(self) -> int | str | None:
        if self.rng.random() < 0.1:
            return self.rng.choice(["N", "M", None])
        return self.rng.choice(HOSTILE_SIZES if self.rng.random() < self.hostile / 5 else SIZES)

    def _writes(self, schema: OpSchema) -> list[str]:
        found = []
        for formal in schema.outputs:
            variadic = formal.option == OpSchema.FormalParameterOption.Variadic
            found += [self._name() for _ in range(self.rng.randint(1, 3) if variadic else 1)]
        if len(found) > schema.min_output and self.rng.random() < 0.3:
            del found[max(1, schema.min_output) :]
        return found

    def _attributes(self, schema: OpSchema) -> list[AttributeProto]:
        found = []
        for name, attribute in schema.attributes.items():
            if attribute.required or self.rng.random() < 0.5:
                value = any_attribute(self.rng, self.hostile, name, int(attribute.type))
                if value is not None:
                    found.append(value)
        return found[:1] if schema.name == "Constant" else found

    def _tensor(self, kind: int, dims: list[int]) -> TensorProto:
        return any_tensor(self.rng, self.hostile, kind, dims, self._name())
