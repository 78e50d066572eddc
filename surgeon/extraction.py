"""Cut a model out of a model, and put a node into one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from polytool.errors import UsageError
from polytool.model import Model, Source
from polytool.patterns import check_used
from polytool.surgeon.dead import remove_dead
from polytool.surgeon.graph import Value, Workspace
from polytool.surgeon.gs_graph import open_model
from polytool.surgeon.infer import infer
from polytool.surgeon.known import is_standard
from polytool.surgeon.outputs import set_outputs, values_by_name
from polytool.surgeon.report import Report
from polytool.surgeon.types import Type, read_type, type_proto
from polytool.tensors import DType, Shape


@dataclass(frozen=True)
class Port:
    """An input or output of the model to cut out; None means: as it is in the model.

    `parse("x:[1,3,N]:float32")`, `parse("x:auto:auto")`, `parse("x")`.
    """

    name: str
    shape: Shape | None = None
    dtype: DType | None = None

    @classmethod
    def parse(cls, text: str, *, has_shape: bool = True) -> Port:
        """Read `name[:shape][:dtype]`; names may contain colons.

        Args:
            text: what the user wrote.
            has_shape: whether a shape may stand there; outputs have none.

        Raises:
            UsageError: a shape or type cannot be read.
        """
        name, dtype, shape = text, None, None
        head, colon, last = name.rpartition(":")
        if colon and _is_dtype(last):
            name, dtype = head, None if last == "auto" else DType.of(last)
            head, colon, last = name.rpartition(":")
        if colon and has_shape and (last == "auto" or re.fullmatch(r"\[.*\]|\d+(x\d+)*", last)):
            name, shape = head, None if last == "auto" else _read_shape(last)
        return cls(name, shape, dtype)


def _is_dtype(text: str) -> bool:
    if text == "auto":
        return True
    if len(text) < 3:  # NumPy takes single letters for types
        return False
    try:
        DType.of(text)
    except UsageError:
        return False
    return True


def _read_shape(text: str) -> Shape:
    inner = text.strip("[] ")
    items = (
        [i.strip() for i in re.split(r"[,x]" if text[0] != "[" else ",", inner)] if inner else []
    )
    return tuple(int(i) if re.fullmatch(r"-?\d+", i) and int(i) >= 0 else _symbol(i) for i in items)


def _symbol(text: str) -> str | None:
    return None if text in ("-1", "?", "") else text.strip("'\"")


def extract(
    source: Source,
    inputs: Sequence[Port | str] | None = None,
    outputs: Sequence[Port | str] | None = None,
) -> Model:
    """The part of a model between some tensors. Weights that it does not need are not read.

    Args:
        source: what `polytool.model.load` takes.
        inputs: tensors that become inputs; the model's own by default, where they are needed.
        outputs: tensors that it returns; the model's own by default.

    Raises:
        UsageError: a tensor does not exist, the outputs need an input that is not named, or a
            type is neither given nor known.
    """
    workspace = Workspace(open_model(source))
    workspace.sort()
    infer(workspace, Report())
    given = [p if isinstance(p, Port) else Port.parse(p) for p in inputs or ()]
    wanted = [p if isinstance(p, Port) else Port.parse(p, has_shape=False) for p in outputs or ()]
    values = values_by_name(workspace)
    check_used({p.name: p for p in (*given, *wanted)}, values, "an input or output")
    if wanted:
        set_outputs(workspace, [p.name for p in wanted])
        for port, value in zip(wanted, workspace.main.outputs, strict=True):
            _declare_output(workspace, port, value)
    old_inputs = list(workspace.main.inputs)
    if given:
        _cut(workspace, given, values)
    remove_dead(workspace, Report())
    graph = workspace.main
    if given:
        missing = [v.name for v in old_inputs if v not in graph.inputs and v.users]
        if missing:
            raise UsageError(
                f"the outputs also depend on {', '.join(map(repr, missing))}: "
                "name these as inputs too, or tensors that lie in between"
            )
    else:
        graph.inputs = [v for v in graph.inputs if v.users]
    return workspace.to_model()


def _cut(workspace: Workspace, ports: Sequence[Port], values: Mapping[str, Value]) -> None:
    graph = workspace.main
    graph.inputs = []
    for port in ports:
        value = values[port.name]
        dtype = port.dtype or value.dtype
        if dtype is None:
            raise UsageError(
                f"the type of {port.name!r} is not known: write {port.name}:shape:dtype"
            )
        if value.is_tensor or value.type is None or port.dtype is not None:
            shape = port.shape if port.shape is not None else value.shape
            value.type = Type("tensor", dtype, shape, type_proto(dtype, shape))
        if value.producer is not None:
            producer = value.producer
            producer.outputs[producer.outputs.index(value)] = None
            value.producer = None
            if not any(v is not None for v in producer.outputs):
                graph.remove(producer)
        graph.constants.pop(value, None)
        value.tensor, value.is_input = None, True
        graph.inputs.append(value)
        assert value.type is not None
        graph.infos[value] = onnx.ValueInfoProto(name=value.name, type=value.type.proto)
    graph.compact()


def _declare_output(workspace: Workspace, port: Port, value: Value) -> None:
    graph = workspace.main
    index = graph.outputs.index(value)
    dtype = port.dtype or value.dtype
    if value.type is None and dtype is None:
        raise UsageError(f"the type of {port.name!r} is not known: write {port.name}:dtype")
    if value.is_tensor or value.type is None:
        assert dtype is not None
        proto = type_proto(dtype, value.shape)
        graph.output_infos[index] = onnx.ValueInfoProto(name=value.name, type=proto)


def insert(
    source: Source,
    *,
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str = "",
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
) -> Model:
    """Put a node into a model; what computed its outputs before, goes.

    Where an output is also an input, the node stands between that tensor and all its readers.

    Args:
        source: what `polytool.model.load` takes, or a GraphSurgeon graph.
        op: the operator.
        inputs: tensors that it reads.
        outputs: tensors that it computes from now on.
        name: of the node.
        domain: of the operator; one that the model does not import yet is imported at version 1.
        attributes: ints, floats, strings, or lists of them, by name.

    Raises:
        UsageError: a tensor does not exist, or ONNX has no such operator.
    """
    workspace = Workspace(open_model(source))
    workspace.sort()
    infer(workspace, Report())
    graph, values = workspace.main, values_by_name(workspace)
    check_used(dict.fromkeys((*inputs, *outputs)), values, "an input or output of the new node")
    opset = graph.opsets.get("", onnx.defs.onnx_opset_version())
    if domain in ("", "ai.onnx") and not is_standard(op, opset):
        raise UsageError(
            f"ONNX defines no operator {op!r} in opset {opset}; one of your own needs a domain "
            "(--domain my.domain)"
        )
    node = graph.add_node(
        op,
        [values[n] for n in inputs],
        outputs,
        domain=domain,
        name=name,
        **dict(attributes or {}),
    )
    for index, text in enumerate(outputs):
        old, new = values[text], node.outputs[index]
        assert new is not None
        new.type = _type_after(old)
        for user in old.used_by():
            if text in inputs and user is node:
                continue
            for at, value in enumerate(user.inputs):
                if value is old:
                    user.set_input(at, new)
        for at, value in enumerate(graph.outputs):
            if value is old:
                graph.set_output(at, new)
        if text not in inputs or graph.outputs.count(new):
            old.name, new.name = new.name, old.name
    if domain and domain not in graph.opsets:
        graph.opsets[domain] = 1
        workspace.extra_opsets[domain] = 1
    workspace.sort()
    remove_dead(workspace, Report())
    return workspace.to_model()


def _type_after(old: Value) -> Type | None:
    """The new node may give another shape, but readers expect the type."""
    if old.type is None or old.type.kind != "tensor" or old.type.dtype is None:
        return old.type
    return read_type(type_proto(old.type.dtype, None))


def parse_attributes(texts: Sequence[str]) -> dict[str, Any]:
    """`["axis=1", "alpha=0.5", "mode=linear", "axes=[0,1]"]` as ints, floats, strings and lists.

    Raises:
        UsageError: there is no `=`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{text!r} is no attribute: write name=value")
        found[name] = _read_value(value)
    return found


def _read_value(text: str) -> Any:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_read_value(item) for item in text[1:-1].split(",") if item.strip()]
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")
