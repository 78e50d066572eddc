"""polytool: graph surgery and precision debugging for ONNX models, with an engine of its own.

The names below are the public API; each is imported from its home on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if not os.path.isdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "backends")):
    __path__.append(_checkout)  # an uninstalled checkout keeps backends/ beside this package

_HOMES = {
    "NativeRunner": "polytool.backends.native.runner",
    "OnnxrtRunner": "polytool.backends.onnxrt.runner",
    "runner": "polytool.backends.registry",
    "BuilderConfig": "polytool.backends.native.config",
    "Engine": "polytool.backends.native.engine",
    "engine_from_onnx": "polytool.backends.native.builder",
    "convert_precision": "polytool.precision_conversion",
    "run": "polytool.results",
    "RunResults": "polytool.results",
    "compare": "polytool.comparators.compare",
    "Comparison": "polytool.comparators.compare",
    "TensorSpec": "polytool.tensors",
    "DType": "polytool.tensors",
    "PolytoolError": "polytool.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'polytool' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
