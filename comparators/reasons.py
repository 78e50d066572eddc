"""Why a layer is wrong, read off the error itself.

A reason is a sentence that begins with its cause and a colon; `findings.CAUSES` lists them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polytool.comparators.budget import LIMITS
from polytool.comparators.findings import Range
from polytool.tensors import DType

Array = np.ndarray[Any, Any]

_SUMS = frozenset(
    {"Attention", "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "CumSum", "Einsum"}
    | {"FusedMatMul", "GRU", "Gemm", "GlobalAveragePool", "LSTM", "MatMul", "MatMulInteger"}
    | {"RNN", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "Softmax"}
    | {"LogSoftmax", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum"}
    | {"ReduceSumSquare", "RMSNormalization", "SkipLayerNormalization"}
)
_GRIDS = {11: "float16 or tf32", 8: "bfloat16", 4: "float8 e4m3", 3: "float8 e5m2"}
_ROUNDING_RMS = 0.41  # of a unit of roundoff
_SEVERAL = 2.0  # times the error of one rounding
_GROSS = 3.0  # bits that are right, below which no rounding is to blame
_SUBNORMAL_SHARE = 0.1
_CONDITION = 50.0
_CONCENTRATED = 0.9
_FEW = 0.1
_MOVES = frozenset(
    {"Cast", "Constant", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)


def value_range(engine: Array, exact: Array, dtype: DType | None) -> Range:
    """The range of a stored tensor, by what the exact values would need."""
    size = np.abs(exact)
    absmax = float(size.max(initial=0.0))
    if not math.isfinite(absmax):
        size = size[np.isfinite(size)]
        absmax = float(size.max(initial=0.0))
    limit, smallest = LIMITS.get(dtype, (None, 0.0)) if dtype is not None else (None, 0.0)
    below = 0.0
    if smallest > 0 and size.size and not size.min() >= smallest:
        nonzero = size[size > 0]
        below = float(np.count_nonzero(nonzero < smallest) / nonzero.size) if nonzero.size else 0.0
    headroom = limit / absmax if limit is not None and absmax > 0 else None
    nan = inf = 0
    if not np.isfinite(engine).all():
        nan, inf = int(np.isnan(engine).sum()), int(np.isinf(engine).sum())
    return Range(absmax, headroom, below, nan, inf)


def why_not_finite(engine: Array, exact: Array, values: Range, dtype: DType | None) -> str:
    """Why the engine has NaN or Inf where the exact value is finite."""
    label = dtype.label if dtype is not None else "the stored type"
    wrong = ~np.isfinite(engine) & np.isfinite(exact)
    count = f"{int(wrong.sum())} of {engine.size} values"
    if values.headroom is not None and values.headroom < 1:
        limit = values.absmax * values.headroom
        return (
            f"overflow: the exact values reach {values.absmax:.4g}, {label} ends at {limit:.5g} "
            f"({count} are not finite)"
        )
    if np.isnan(engine[wrong]).any():
        return (
            f"not finite: NaN in {count} although the exact values are (largest "
            f"{values.absmax:.4g}): "
            f"an intermediate value overflows, or 0/0 or Inf-Inf inside the layer"
        )
    return (
        f"overflow: inside the layer, for {count} are Inf although the exact values reach only "
        f"{values.absmax:.4g}"
    )


def why(
    engine: Array,
    exact: Array,
    values: Range,
    dtype: DType | None,
    condition: float,
    excess: float,
    operators: tuple[str, ...],
) -> str:
    """Why a layer's own error is what it is; the arrays are finite float64 of one shape."""
    if excess <= 4:
        if condition > _CONDITION:
            return f"cancellation: amplifies the rounding of its inputs {condition:.3g} times"
        return "rounding, as its type allows"
    error = engine - exact
    label = dtype.label if dtype is not None else "its type"
    if values.headroom is not None and values.headroom < 1:
        limit = values.absmax * values.headroom
        return f"overflow: the exact values reach {values.absmax:.4g}, {label} ends at {limit:.5g}"
    if values.subnormal > _SUBNORMAL_SHARE:
        return f"underflow: {values.subnormal:.0%} of the values are below {label}'s normal range"
    quantises = any("Quantize" in op for op in operators)
    for look in (_misplaced, _scaled, _localised):
        found = look(engine, exact, error)
        if found:
            return f"{'quantisation' if quantises else 'wrong kernel'}: {found}"
    coarse = _coarser_grid(engine, dtype)
    if coarse is not None:
        return _on_a_grid(error, exact, coarse, operators)
    return _lost_bits(error, exact, dtype, operators, quantises=quantises)


def _lost_bits(
    error: Array,
    exact: Array,
    dtype: DType | None,
    operators: tuple[str, ...],
    *,
    quantises: bool,
) -> str:
    """What is left to say where the error has no shape of its own."""
    bits = -np.log2(np.linalg.norm(error) / np.linalg.norm(exact) / 0.41)
    named = tuple(dict.fromkeys(op for op in operators if op not in _MOVES)) or operators
    done = "+".join(named[:4]) or "the layer"
    if bits < _GROSS:
        share = np.linalg.norm(error) / np.linalg.norm(exact)
        return f"wrong kernel: {done} computes something else; the error is {share:.2g} of the size"
    kept = f"{done} keeps about {bits:.0f} bits where {_bits(dtype)} are expected"
    if quantises:
        return f"quantisation: {kept}: a wrong scale, zero point or rounding"
    if _SUMS.intersection(operators):
        return f"accumulation: {kept}: partial sums or weights in a smaller type"
    return f"wrong kernel: {kept}: an approximation, or a smaller type inside"


def _bits(dtype: DType | None) -> str:
    return {DType.FLOAT: "24", DType.FLOAT16: "11", DType.BFLOAT16: "8"}.get(
        dtype or DType.FLOAT, "its type's"
    )


def _misplaced(engine: Array, exact: Array, error: Array) -> str | None:
    """The right values in the wrong places."""
    if engine.size < 8:
        return None
    sorted_error = np.linalg.norm(np.sort(engine.ravel()) - np.sort(exact.ravel()))
    if sorted_error < 0.02 * np.linalg.norm(error):
        return "the values are right but in the wrong places: a transposed tile, axis or index"
    return None


def _scaled(engine: Array, exact: Array, error: Array) -> str | None:
    """One factor, or one offset, off."""
    power = float(np.vdot(exact, exact))
    factor = float(np.vdot(engine, exact)) / power if power else 1.0
    if np.linalg.norm(engine - factor * exact) < 0.1 * np.linalg.norm(error):
        return f"every value is {factor:.6g} times the exact one: a scale is wrong"
    offset = float(error.mean())
    if np.linalg.norm(error - offset) < 0.1 * np.linalg.norm(error):
        return f"every value is off by {offset:.4g}: a bias is wrong"
    return None


def _localised(engine: Array, exact: Array, error: Array) -> str | None:
    """Nearly all of the error in few slices along one axis, or in few elements."""
    power = error**2
    whole = float(power.sum())
    for axis in range(error.ndim):
        size = error.shape[axis]
        if size < 4:
            continue
        along = power.sum(axis=tuple(i for i in range(error.ndim) if i != axis))
        order = np.argsort(along)[::-1]
        count = int(np.searchsorted(np.cumsum(along[order]), _CONCENTRATED * whole)) + 1
        if count <= max(1, int(_FEW * size)):
            shown = ", ".join(map(str, sorted(order[:count])[:4]))
            more = " ..." if count > 4 else ""
            return (
                f"the error lies in {count} of {size} slices along axis {axis} ({shown}{more}): a "
                f"wrong weight, border or tile there"
            )
    flat = np.sort(power.ravel())[::-1]
    few = max(1, flat.size // 100)
    if flat.size >= 200 and flat[:few].sum() > _CONCENTRATED * whole:
        worst = np.unravel_index(int(np.argmax(power)), error.shape)
        return f"1 % of the elements hold the error, the worst at {list(map(int, worst))}"
    return None


def _coarser_grid(engine: Array, dtype: DType | None) -> int | None:
    """The significant bits of the values, where they are fewer than their type has."""
    if dtype not in (DType.FLOAT, DType.FLOAT16):
        return None
    bits = engine.astype(np.float32).view(np.uint32)
    bits = bits[engine != 0]
    if bits.size < 16:
        return None
    used = int(np.bitwise_or.reduce(bits)) | 1 << 23
    kept = 25 - (used & -used).bit_length()
    return kept if kept < (23 if dtype is DType.FLOAT else 10) else None


def _on_a_grid(error: Array, exact: Array, kept: int, operators: tuple[str, ...]) -> str:
    """Rounded to few bits once, at the end, or in every partial sum."""
    grid = _GRIDS.get(kept, f"{kept}-bit")
    once = _ROUNDING_RMS * 2.0**-kept * np.linalg.norm(exact)
    if _SUMS.intersection(operators) and np.linalg.norm(error) > _SEVERAL * once:
        return f"accumulation: partial sums are rounded to the {grid} grid"
    return (
        f"wrong kernel: every stored value lies on the {grid} grid: the layer rounds to {kept} bits"
    )
