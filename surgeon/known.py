"""Which operators anybody defines."""

from __future__ import annotations

from collections import Counter
from functools import cache

import onnx

from polytool.errors import ModelError
from polytool.surgeon.graph import Node, Workspace

# Operators of ONNX's experimental days, which onnxruntime still runs.
_EXPERIMENTAL = frozenset(
    {"Affine", "Crop", "DynamicSlice", "ImageScaler", "ParametricSoftplus", "ScaledTanh"}
)
_DEFINED_ELSEWHERE = ("com.microsoft", "ai.onnx.")


@cache
def is_standard(op: str, version: int) -> bool:
    """Whether the standard domain has `op` at this opset version."""
    if op in _EXPERIMENTAL:
        return True
    try:
        onnx.defs.get_schema(op, max_inclusive_version=version, domain="")
    except onnx.defs.SchemaError:
        return False
    return True


def custom_operators(workspace: Workspace) -> Counter[str]:
    """Operators that neither ONNX, nor onnxruntime, nor the model itself defines, with counts.

    Raises:
        ModelError: some belong to the standard domain, so that no runtime can know them.
    """
    functions = {(f.proto.domain, f.name) for f in workspace.functions}
    custom: Counter[str] = Counter()
    unknown: dict[str, None] = {}
    for graph in workspace.graphs:
        for node in graph.nodes:
            if (node.proto.domain, node.op) in functions:
                continue
            if not node.domain:
                # Without a version nobody can tell; runtimes assume the newest.
                if not is_standard(node.op, node.version or onnx.defs.onnx_opset_version()):
                    unknown[_described(node)] = None
            elif not node.domain.startswith(_DEFINED_ELSEWHERE):
                custom[f"{node.domain}.{node.op}"] += 1
    if unknown:
        shown = "; ".join(list(unknown)[:10]) + (" ..." if len(unknown) > 10 else "")
        raise ModelError(
            f"ONNX defines no such operator: {shown}; custom operators need a domain of their own"
        )
    return custom


def _described(node: Node) -> str:
    return f"{node.op} in opset {node.version} (node {node.label!r})"
