"""To `onnx_graphsurgeon.Graph` and back, with what its import and export lose.

    graph = to_gs("model.onnx")
    ...                              # any surgery
    model = from_gs(graph)           # a polytool Model
    model.save("changed.onnx")

GraphSurgeon drops metadata, doc strings, quantisation annotations, denotations, and that an
initializer is also an input. Here these come back for everything that is still in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from polytool.errors import ModelError
from polytool.model import Model, Source, load
from polytool.validation import validate

_ATTRIBUTE = "_polytool_source"


def is_gs(source: Any) -> bool:
    """Whether `source` is a GraphSurgeon graph, without importing GraphSurgeon."""
    return type(source).__module__.startswith("onnx_graphsurgeon.")


def open_model(source: Source | Any) -> Model:
    """What `polytool.model.load` takes, or a GraphSurgeon graph."""
    return from_gs(source) if is_gs(source) else load(source)


def open_sound(source: Source | Any) -> Model:
    """The same, of a model whose nodes are as ONNX says.

    Raises:
        ModelError: some are not.
    """
    model = open_model(source)
    validate(model.proto)
    return model


def to_gs(source: Source) -> Any:
    """An `onnx_graphsurgeon.Graph`, which remembers where it comes from.

    Raises:
        ModelError: the model with all weights would pass 2 GB, which GraphSurgeon cannot hold.
    """
    import onnx_graphsurgeon as gs

    model = load(source)
    graph = gs.import_onnx(model.to_proto())
    setattr(graph, _ATTRIBUTE, model.proto)
    return graph


def from_gs(graph: Any, original: Source | None = None) -> Model:
    """The model that `graph` is.

    Args:
        graph: an `onnx_graphsurgeon.Graph`.
        original: the model that it was imported from; known by itself for graphs of `to_gs`.

    Raises:
        ModelError: GraphSurgeon cannot export it.
    """
    import onnx_graphsurgeon as gs

    try:
        proto = gs.export_onnx(graph)
    except Exception as err:  # GraphSurgeon raises whatever went wrong inside
        raise ModelError(f"GraphSurgeon cannot export the graph: {err}") from err
    source = load(original).proto if original is not None else getattr(graph, _ATTRIBUTE, None)
    if source is not None:
        _restore(source, proto)
    return load(proto)


def _restore(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        if source.HasField(field) and not getattr(target, field):
            setattr(target, field, getattr(source, field))
    target.ir_version = max(target.ir_version, source.ir_version)
    _add_missing(source.metadata_props, target.metadata_props)
    _restore_graph(source.graph, target.graph)


def _add_missing(source: Any, target: Any) -> None:
    known = {p.key for p in target}
    target.extend(p for p in source if p.key not in known)


def _restore_graph(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    if source.doc_string and not target.doc_string:
        target.doc_string = source.doc_string
    _add_missing(source.metadata_props, target.metadata_props)
    _restore_infos(source, target)
    defined = _defined(target)
    known = {a.tensor_name for a in target.quantization_annotation}
    target.quantization_annotation.extend(
        a for a in source.quantization_annotation
        if a.tensor_name in defined and a.tensor_name not in known
    )  # fmt: skip
    _restore_overridable(source, target)
    nodes = {tuple(n.output): n for n in source.node}
    for node in target.node:
        old = nodes.get(tuple(node.output))
        if old is not None and old.op_type == node.op_type:
            _restore_node(old, node)


def _restore_infos(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Doc strings, metadata and denotations of inputs and outputs whose type is the same."""
    infos = {i.name: i for i in (*source.input, *source.output, *source.value_info)}
    for info in (*target.input, *target.output, *target.value_info):
        old = infos.get(info.name)
        if old is None:
            continue
        if old.doc_string and not info.doc_string:
            info.doc_string = old.doc_string
        _add_missing(old.metadata_props, info.metadata_props)
        if _plain(old.type) == _plain(info.type):
            info.type.CopyFrom(old.type)


def _plain(kind: onnx.TypeProto) -> bytes:
    """A type without denotations."""
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    copy.ClearField("denotation")
    for dim in copy.tensor_type.shape.dim if copy.HasField("tensor_type") else ():
        dim.ClearField("denotation")
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def _restore_overridable(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    inputs = {i.name: i for i in source.input}
    was = {t.name for t in source.initializer} & set(inputs)
    now = {i.name for i in target.input}
    for tensor in target.initializer:
        if tensor.name in was and tensor.name not in now:
            target.input.append(inputs[tensor.name])


def _restore_node(source: onnx.NodeProto, target: onnx.NodeProto) -> None:
    if source.doc_string and not target.doc_string:
        target.doc_string = source.doc_string
    _add_missing(source.metadata_props, target.metadata_props)
    bodies = {a.name: a.g for a in source.attribute if a.HasField("g")}
    for attribute in target.attribute:
        if attribute.name in bodies and attribute.HasField("g"):
            _restore_graph(bodies[attribute.name], attribute.g)


def _defined(graph: onnx.GraphProto) -> set[str]:
    def names() -> Iterable[str]:
        yield from (i.name for i in graph.input)
        yield from (t.name for t in graph.initializer)
        for node in graph.node:
            yield from node.output

    return set(names())
