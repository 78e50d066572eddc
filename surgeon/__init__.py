"""Graph surgery: ONNX in, ONNX out. Each name is imported from its home on first use."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "simplify": "polytool.surgeon.pipeline",
    "Report": "polytool.surgeon.report",
    "Choice": "polytool.surgeon.pipeline",
    "Port": "polytool.surgeon.extraction",
    "extract": "polytool.surgeon.extraction",
    "insert": "polytool.surgeon.extraction",
    "bound_shapes": "polytool.surgeon.bounding",
    "fold_constants": "polytool.surgeon.constant_folding",
    "from_gs": "polytool.surgeon.gs_graph",
    "to_gs": "polytool.surgeon.gs_graph",
    "list_dds": "polytool.surgeon.bounding",
    "inspect_sparsity": "polytool.surgeon.sparsity",
    "Lint": "polytool.surgeon.linting",
    "lint": "polytool.surgeon.linting",
    "prune": "polytool.surgeon.sparsity",
    "reconstruct_weights": "polytool.surgeon.stripping",
    "strip_weights": "polytool.surgeon.stripping",
    "sanitize": "polytool.surgeon.sanitizing",
    "Sanitized": "polytool.surgeon.sanitizing",
    "Workspace": "polytool.surgeon.graph",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polytool.surgeon' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
