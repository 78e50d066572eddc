"""Whether a layer rounds its inputs to a smaller type: tried by doing the same with the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polytool.backends.base import LayerOracle
from polytool.tensors import DType

Array = np.ndarray[Any, Any]

_GRIDS = {11: "float16 or tf32", 8: "bfloat16", 4: "float8 e4m3"}
_EXPLAINS = 0.8  # of the error that must not be left; rounded weights are not imitated


def rounded_operands(
    oracle: LayerOracle, tensor: str, given: Mapping[str, Any], engine: Array, exact: Array
) -> str | None:
    """The reason, where rounding the inputs to some grid explains a good part of the error.

    Args:
        oracle: evaluates the layer.
        tensor: what it stores.
        given: its inputs, as the engine had them.
        engine: what the engine stored, in float64 and finite.
        exact: what the oracle makes of the inputs.
    """
    error = float(np.linalg.norm(engine - exact))
    left = {}
    for bits in _GRIDS:
        rounded = {name: _rounded(value, bits) for name, value in given.items()}
        if all(rounded[name] is given[name] for name in given):
            continue
        made = np.asarray(oracle.evaluate(rounded, [tensor])[tensor], np.float64)
        if made.shape == engine.shape and np.isfinite(made).all():
            left[bits] = float(np.linalg.norm(engine - made))
    best = min(left, key=left.__getitem__, default=None)
    if best is None or left[best] > _EXPLAINS * error:
        return None
    return (
        f"operands: its inputs are rounded to {_GRIDS[best]}, which explains "
        f"{1 - left[best] / error:.0%} of the error"
    )


def _rounded(value: Any, bits: int) -> Any:
    """Floats with so many significant bits; the same object where nothing changes."""
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return value
    if not DType.of(value).is_float:
        return value
    mantissa, exponent = np.frexp(value.astype(np.float64))
    moved = np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)
    return value if np.array_equal(moved, value, equal_nan=True) else moved
