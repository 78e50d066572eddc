"""How large the error of a sound layer may be.

A layer that computes in a type with unit roundoff u makes, in relative L2, about

    budget = sqrt( store(u_out)^2 + (kappa * operand(u_op))^2 + (kappa * GROWTH * 2^-24)^2 )

* `store`: its result is rounded once to the stored type; rounding to nearest leaves a relative
  error that is uniform over half an ulp, in root mean square 0.41 u.
* `operand`: weights, and inputs that the layer casts, are rounded to the operands' type; kappa,
  the layer's condition for independent relative noise on its inputs, is measured with the oracle
  and carries cancellation.
* accumulation happens in float32; GROWTH covers its length and the few-ulp errors of exp, erf ...

Expected is up to 4 times that, suspicious up to 16 times, beyond that a layer is broken.
"""

from __future__ import annotations

import math

from polytool.tensors import DType

EXPECTED_UP_TO = 4.0
SUSPICIOUS_UP_TO = 16.0
GROWTH = 4.0

_MANTISSA = {
    DType.FLOAT: 24,
    DType.FLOAT16: 11,
    DType.BFLOAT16: 8,
    DType.DOUBLE: 53,
    DType.FLOAT8E4M3FN: 4,
    DType.FLOAT8E4M3FNUZ: 4,
    DType.FLOAT8E5M2: 3,
    DType.FLOAT8E5M2FNUZ: 3,
    DType.FLOAT4E2M1: 2,
}
_OPERAND_BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "fp64": 53}
_ROUNDING_RMS = 0.41

LIMITS = {
    DType.FLOAT: (3.4028234663852886e38, 2.0**-126),
    DType.FLOAT16: (65504.0, 2.0**-14),
    DType.BFLOAT16: (3.3895313892515355e38, 2.0**-126),
    DType.FLOAT8E4M3FN: (448.0, 2.0**-6),
    DType.FLOAT8E5M2: (57344.0, 2.0**-14),
}
"""Largest finite and smallest normal number of the types whose range matters."""


def unit_roundoff(dtype: DType | None) -> float:
    """Half the distance from 1 to the next number; 0 for types that do not round."""
    return 2.0 ** -_MANTISSA[dtype] if dtype in _MANTISSA else 0.0


def operand_roundoff(precision: str) -> float:
    """Unit roundoff of the operands of a layer that computes in `precision`."""
    return 2.0 ** -_OPERAND_BITS.get(precision, 24)


def budget(dtype: DType | None, precision: str, condition: float, quantises: bool = False) -> float:
    """The relative L2 error to expect of a sound layer.

    Args:
        dtype: what the layer stores.
        precision: the grid of its operands.
        condition: measured amplification of relative noise on its inputs.
        quantises: it quantises to 8 bits inside, where one step is a tie that may fall either way.
    """
    wide = dtype is DType.DOUBLE or precision == "fp64"
    accumulate = 2.0**-53 if wide else 2.0**-24
    store = _ROUNDING_RMS * unit_roundoff(dtype)
    operand = condition * _ROUNDING_RMS * operand_roundoff(precision)
    step = _ROUNDING_RMS * 2.0**-8 if quantises else 0.0
    grown = (1 + condition) * GROWTH * accumulate
    return math.sqrt(store**2 + operand**2 + grown**2 + step**2)


def verdict(excess: float | None) -> str:
    """`expected`, `suspicious` or `broken`; an error that is not finite is broken."""
    if excess is None or excess > SUSPICIOUS_UP_TO:
        return "broken"
    return "suspicious" if excess > EXPECTED_UP_TO else "expected"
