"""Which nodes of a model onnxruntime cannot run: all of them, not just the first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from polytool.backends.native.protos import display, normal_domain
from polytool.model import nodes

_SHOWN = 20


def lacking(proto: onnx.ModelProto, *, kernels: bool) -> list[str]:
    """The operators that onnxruntime lacks, each as `my.Foo of node a, node b`.

    Args:
        proto: the model.
        kernels: also those that it knows but has no CPU implementation of, of any type.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    versions: dict[tuple[str, str], list[int]] = {}
    for schema in state.get_all_operator_schema():
        versions.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    implemented: dict[tuple[str, str], list[tuple[int, int]]] = {}
    if kernels:
        for kernel in state.get_all_opkernel_def():
            key = (normal_domain(kernel.domain), kernel.op_name)
            implemented.setdefault(key, []).append(kernel.version_range)
    opsets = {normal_domain(o.domain): o.version for o in proto.opset_import}
    functions = {(normal_domain(f.domain), f.name) for f in proto.functions}
    culprits: dict[str, list[str]] = {}
    for node in _all_nodes(proto):
        key = (normal_domain(node.domain), node.op_type)
        if key in functions:
            continue
        opset = opsets.get(key[0], 1)
        since = max((v for v in versions.get(key, []) if v <= opset), default=None)
        if since is None:
            reason = "no such operator" if key not in versions else f"not in opset {opset}"
            culprits.setdefault(f"{_shown(key)} ({reason})", []).append(display(node))
        elif kernels and not _implemented(key, since, implemented):
            culprits.setdefault(f"{_shown(key)}-{since} (not implemented)", []).append(
                display(node)
            )
    return [f"{op} of {_listed(names)}" for op, names in culprits.items()]


def _all_nodes(proto: onnx.ModelProto) -> Iterable[onnx.NodeProto]:
    yield from nodes(proto.graph.node)
    for function in proto.functions:
        yield from nodes(function.node)


def _implemented(
    key: tuple[str, str], since: int, kernels: dict[Any, list[tuple[int, int]]]
) -> bool:
    if any(first <= since <= last for first, last in kernels.get(key, [])):
        return True
    try:  # an operator that the standard defines by others needs no kernel
        schema: Any = onnx.defs.get_schema(key[1], max_inclusive_version=since, domain=key[0])
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _shown(key: tuple[str, str]) -> str:
    return f"{key[0]}.{key[1]}" if key[0] else key[1]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"node{'s' if len(names) > 1 else ''} {shown}{more}"
