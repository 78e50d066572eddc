"""Trees of pointwise operators as C expressions: the bodies of fused kernels and of epilogues.

A tree is a list of `Step`s over numbered values: the inputs first, then the steps. Values of the
16-bit float types are float32 in registers and are rounded only where a Cast says so and where
the result is stored, which is the rule of the executor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polytool.backends.native.kernels.source import (
    C_TYPES,
    SMALL_FLOATS,
    SMALL_INTEGERS,
    compute_type,
)
from polytool.errors import UnsupportedError
from polytool.tensors import DType

REDUCED = frozenset({DType.FLOAT16, DType.BFLOAT16})


@dataclass(frozen=True)
class Step:
    """One operator of a tree.

    Attributes:
        op: the ONNX operator, or `Constant` with the attribute `value`.
        args: numbers of the values that it takes; None for an absent optional input.
        dtype: the element type of its result.
        attrs: ONNX attributes, sorted pairs.
    """

    op: str
    args: tuple[int | None, ...]
    dtype: DType
    attrs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, op: str, *args: int | None, dtype: DType, **attrs: Any) -> Step:
        """A step with attributes as keywords."""
        return cls(op, args, dtype, tuple(sorted(attrs.items())))


@dataclass(frozen=True)
class Tree:
    """Steps over `inputs` values; `results` are the numbers of what is stored."""

    inputs: tuple[DType, ...]
    steps: tuple[Step, ...] = ()
    results: tuple[int, ...] = field(default=())

    def dtype(self, number: int) -> DType:
        """The element type of value `number`."""
        n = len(self.inputs)
        return self.inputs[number] if number < n else self.steps[number - n].dtype

    @property
    def outputs(self) -> tuple[int, ...]:
        """The numbers of the results: the last value unless `results` says otherwise."""
        return self.results or (len(self.inputs) + len(self.steps) - 1,)

    @property
    def output_dtypes(self) -> tuple[DType, ...]:
        """The element types of the results."""
        return tuple(self.dtype(n) for n in self.outputs)


def literal(value: Any, ctype: str) -> str:
    """`value` as a C literal that is exactly it."""
    if ctype in ("float", "double"):
        number = float(value)
        if math.isnan(number):
            return f"({ctype})NAN"
        if math.isinf(number):
            return f"({'-' if number < 0 else ''}({ctype})INFINITY)"
        if ctype == "float":
            bits = struct.unpack("<I", struct.pack("<f", np.float32(number)))[0]
            return f"__uint_as_float(0x{bits:08x}u)"
        return f"({number.hex()})"
    if ctype == "bool":
        return "true" if value else "false"
    whole = int(value)
    if whole == -(1 << 63):
        return "((long long)0x8000000000000000ull)"
    suffix = "ull" if "unsigned" in ctype else "ll"
    return f"(({ctype}){whole}{suffix})"


def _unary(text: str) -> Callable[..., str]:
    return lambda a, **_: text.format(a=a)


def _call(single: str) -> Callable[..., str]:
    """A math function: `expf` for float, `exp` for double."""
    return lambda a, ctype, **_: f"{single}{'f' if ctype == 'float' else ''}({a})"


def _binary(text: str) -> Callable[..., str]:
    return lambda a, b, **_: text.format(a=a, b=b)


def _fold(function: Callable[[str, str, str], str]) -> Callable[..., str]:
    """A variadic operator: `Sum`, `Max`, `Min`, and the two-sided ones."""

    def emit(*args: str, ctype: str, **_: Any) -> str:
        result = args[0]
        for arg in args[1:]:
            result = function(result, arg, ctype)
        return result

    return emit


def _is_real(ctype: str) -> bool:
    return ctype in ("float", "double")


def _extreme(sign: str) -> Callable[[str, str, str], str]:
    name = "propagating_max" if sign == ">" else "propagating_min"

    def emit(a: str, b: str, ctype: str) -> str:
        return f"{name}({a}, {b})" if _is_real(ctype) else f"({a} {sign} {b} ? {a} : {b})"

    return emit


def _mod(a: str, b: str, *, ctype: str, fmod: int = 0, **_: Any) -> str:
    if _is_real(ctype):
        return (
            f"fmod{'f' if ctype == 'float' else ''}({a}, {b})" if fmod else f"floor_mod({a}, {b})"
        )
    return f"({a} % {b})" if fmod else f"floor_mod({a}, {b})"


def _pow(a: str, b: str, *, ctype: str, **_: Any) -> str:
    if not _is_real(ctype):
        return f"({ctype})pow((double){a}, (double){b})"
    return f"pow{'f' if ctype == 'float' else ''}({a}, ({ctype}){b})"


def _clip(a: str, low: str | None = None, high: str | None = None, *, ctype: str, **_: Any) -> str:
    result = a
    if low is not None:
        result = _extreme(">")(result, low, ctype)
    if high is not None:
        result = _extreme("<")(result, high, ctype)
    return result


def _scaled(text: str, **defaults: float) -> Callable[..., str]:
    """An activation with float attributes, ONNX's defaults given."""

    def emit(a: str, *, ctype: str, **attrs: Any) -> str:
        values = {k: literal(attrs.get(k, v), ctype) for k, v in defaults.items()}
        f = "f" if ctype == "float" else ""
        one, zero = literal(1, ctype), literal(0, ctype)
        return text.format(a=a, f=f, one=one, zero=zero, fast=attrs["fast"], **values)

    return emit


def _gelu(a: str, *, approximate: str = "none", fast: str, **_: Any) -> str:
    return f"{'gelu_tanh' if approximate == 'tanh' else 'gelu_erf'}{fast}({a})"


def _round(a: str, *, ctype: str, **_: Any) -> str:
    return f"rint{'f' if ctype == 'float' else ''}({a})"


def _shift(a: str, b: str, *, direction: str, **_: Any) -> str:
    return f"{'shift_left' if direction == 'LEFT' else 'shift_right'}({a}, {b})"


def _is_inf(a: str, *, detect_positive: int = 1, detect_negative: int = 1, **_: Any) -> str:
    sides = [f"{a} == INFINITY"] * bool(detect_positive)
    sides += [f"{a} == -INFINITY"] * bool(detect_negative)
    return f"({' || '.join(sides)})" if sides else "false"


_EMIT: dict[str, Callable[..., str]] = {
    "Abs": lambda a, ctype, **_: (
        f"fabs{'f' if ctype == 'float' else ''}({a})" if _is_real(ctype) else f"absolute({a})"
    ),
    "Acos": _call("acos"),
    "Acosh": _call("acosh"),
    "Add": _binary("({a} + {b})"),
    "And": _binary("({a} && {b})"),
    "Asin": _call("asin"),
    "Asinh": _call("asinh"),
    "Atan": _call("atan"),
    "Atanh": _call("atanh"),
    "BiasAdd": lambda a, b, c, **_: f"({a} + {b} + {c})",
    "BiasGelu": lambda a, b, fast, **_: f"gelu_erf{fast}({a} + {b})",
    "BitShift": _shift,
    "BitwiseAnd": _binary("({a} & {b})"),
    "BitwiseNot": _unary("(~{a})"),
    "BitwiseOr": _binary("({a} | {b})"),
    "BitwiseXor": _binary("({a} ^ {b})"),
    "Ceil": _call("ceil"),
    "Celu": _scaled(
        "(fmax{f}({zero}, {a}) + fmin{f}({zero}, {alpha} * expm1{f}({a} / {alpha})))", alpha=1.0
    ),
    "Clip": _clip,
    "Cos": _call("cos"),
    "Cosh": _call("cosh"),
    "Div": lambda a, b, ctype, **_: f"({a} / {b})" if _is_real(ctype) else f"safe_divide({a}, {b})",
    "Elu": _scaled("({a} < {zero} ? {alpha} * expm1{f}({a}) : {a})", alpha=1.0),
    "Equal": _binary("({a} == {b})"),
    "Erf": _call("erf"),
    "Exp": lambda a, ctype, fast, **_: f"exp_fast({a})" if fast else _call("exp")(a, ctype=ctype),
    "FastGelu": lambda a, b=None, *, fast, **_: (
        f"gelu_tanh{fast}({a if b is None else f'{a} + {b}'})"
    ),
    "Floor": _call("floor"),
    "Gelu": _gelu,
    "Greater": _binary("({a} > {b})"),
    "GreaterOrEqual": _binary("({a} >= {b})"),
    "HardSigmoid": _scaled(
        "fmax{f}({zero}, fmin{f}({one}, {alpha} * {a} + {beta}))", alpha=0.2, beta=0.5
    ),
    "HardSwish": _scaled(
        "({a} * fmax{f}({zero}, fmin{f}({one}, {a} * {sixth} + {half})))", sixth=1 / 6, half=0.5
    ),
    "Identity": _unary("{a}"),
    "IsInf": _is_inf,
    "IsNaN": _unary("({a} != {a})"),
    "LeakyRelu": _scaled("({a} < {zero} ? {alpha} * {a} : {a})", alpha=0.01),
    "Less": _binary("({a} < {b})"),
    "LessOrEqual": _binary("({a} <= {b})"),
    "Log": _call("log"),
    "Max": _fold(_extreme(">")),
    "Mean": lambda *args, ctype, **_: f"(({' + '.join(args)}) / {literal(len(args), ctype)})",
    "Min": _fold(_extreme("<")),
    "Mish": lambda a, ctype, **_: f"({a} * {_tanh(ctype)}(softplus({a})))",
    "Mod": _mod,
    "Mul": _binary("({a} * {b})"),
    "Neg": _unary("(-{a})"),
    "Not": _unary("(!{a})"),
    "Or": _binary("({a} || {b})"),
    "PRelu": lambda a, b, ctype, **_: f"({a} < {literal(0, ctype)} ? {b} * {a} : {a})",
    "Pow": _pow,
    "QuickGelu": _scaled("({a} * sigmoid{fast}({alpha} * {a}))", alpha=1.702),
    "Reciprocal": lambda a, ctype, **_: f"({literal(1, ctype)} / {a})",
    "Relu": lambda a, ctype, **_: _extreme(">")(a, literal(0, ctype), ctype),
    "Round": _round,
    "Rsqrt": lambda a, ctype, **_: f"({literal(1, ctype)} / {_root(ctype)}({a}))",
    "Selu": _scaled(
        "({gamma} * ({a} > {zero} ? {a} : {alpha} * expm1{f}({a})))",
        alpha=1.67326319217681884765625,
        gamma=1.05070102214813232421875,
    ),
    "Shrink": _scaled(
        "({a} < -{lambd} ? {a} + {bias} : ({a} > {lambd} ? {a} - {bias} : {zero}))",
        bias=0.0,
        lambd=0.5,
    ),
    "Sigmoid": lambda a, fast, **_: f"sigmoid{fast}({a})",
    "Sign": lambda a, ctype, **_: f"({a} != {a} ? {a} : ({ctype})(({a} > 0) - ({a} < 0)))",
    "Sin": _call("sin"),
    "Sinh": _call("sinh"),
    "Softplus": _unary("softplus({a})"),
    "Softsign": lambda a, ctype, **_: (
        f"({a} / ({literal(1, ctype)} + fabs{'f' if ctype == 'float' else ''}({a})))"
    ),
    "Sqrt": _call("sqrt"),
    "Sub": _binary("({a} - {b})"),
    "Sum": _fold(lambda a, b, _: f"({a} + {b})"),
    "Swish": _scaled("({a} * sigmoid{fast}({alpha} * {a}))", alpha=1.0),
    "SwiGLU": lambda a, b, *, ctype, fast, alpha=1.0, **_: (
        f"({a} * sigmoid{fast}({literal(alpha, ctype)} * {a}) * {b})"
    ),
    "Tan": _call("tan"),
    "Tanh": _call("tanh"),
    "ThresholdedRelu": _scaled("({a} > {alpha} ? {a} : {zero})", alpha=1.0),
    "Where": lambda c, a, b, **_: f"({c} ? {a} : {b})",
    "Xor": _binary("({a} != {b})"),
}


def _tanh(ctype: str) -> str:
    return "tanhf" if ctype == "float" else "tanh"


def _root(ctype: str) -> str:
    return "sqrtf" if ctype == "float" else "sqrt"


def supported(op: str, dtypes: Sequence[DType | None]) -> bool:
    """Whether an operator with operands and results of these types can stand in a tree."""
    known = op in _EMIT or op in ("Cast", "Constant")
    return known and all(d is None or d in C_TYPES for d in dtypes)


_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def emit(tree: Tree, names: Sequence[str], indent: str = "    ") -> tuple[list[str], list[str]]:
    """The C statements of a tree.

    Args:
        names: C expressions of the inputs, already in their register types.

    Returns:
        The statements, and the C names of the results, in their register types.

    Raises:
        UnsupportedError: an operator cannot stand in a tree.
    """
    values, lines = list(names), []
    for step in tree.steps:
        number = len(values)
        ctype = compute_type(step.dtype)
        lines.append(f"{indent}{ctype} t{number} = {_expression(tree, step, values)};")
        values.append(f"t{number}")
    return lines, [values[n] for n in tree.outputs]


def _expression(tree: Tree, step: Step, values: Sequence[str]) -> str:
    ctype, attrs = compute_type(step.dtype), dict(step.attrs)
    if step.op == "Constant":
        return literal(attrs["value"], ctype)
    args = [None if a is None else values[a] for a in step.args]
    if step.op == "Cast":
        (source,) = step.args
        assert source is not None
        how = {k: v for k, v in _plain(attrs).items() if k in ("saturate", "round_mode")}
        return _cast(values[source], tree.dtype(source), step.dtype, **how)
    if step.op not in _EMIT:
        raise UnsupportedError(
            f"{step.op} cannot stand in a generated pointwise kernel; run it as a layer of its own"
        )
    operand = next(tree.dtype(a) for a in step.args if a is not None)
    compared = compute_type(operand) if step.op in _COMPARISONS else ctype
    if step.op in ("IsInf", "IsNaN"):
        compared = compute_type(operand)
    while args and args[-1] is None:
        args.pop()
    fast = "_fast" if step.dtype in REDUCED else ""
    text = _EMIT[step.op](*args, ctype=compared, fast=fast, **_plain(attrs))
    return text if _is_real(ctype) or ctype == "bool" else f"({ctype})({text})"


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}


SATURATED = {
    DType.FLOAT8E4M3FN: 448.0,
    DType.FLOAT8E4M3FNUZ: 240.0,
    DType.FLOAT8E5M2: 57344.0,
    DType.FLOAT8E5M2FNUZ: 57344.0,
}
_E8M0_MODES = {"up": 0, "nearest": 1, "down": 2}


def _cast(
    value: str, source: DType, target: DType, saturate: int = 1, round_mode: str = "up"
) -> str:
    """ONNX Cast: float to integer truncates, anything to bool compares, to 16 bits rounds."""
    ctype, kind = compute_type(target), C_TYPES[target]
    if target in REDUCED or target in SMALL_FLOATS:
        if source.is_integer and source.bits >= 32:
            value = f"(double){value}"  # rounded once
        if target is DType.FLOAT8E8M0:
            mode, sure = _E8M0_MODES[round_mode], "true" if saturate else "false"
            return f"widen(to_e8m0<{mode}, {sure}>({value}))"
        limit = SATURATED.get(target)
        if saturate and limit is not None:
            value = f"saturated((double){value}, {limit})"
        return f"widen(narrow<{kind}>({value}))"
    if target is DType.BOOL:
        return f"({value} != 0)"
    if target in SMALL_INTEGERS:
        whole = f"float_to_integer<i64>({value})" if source.is_float else value
        return f"widen(narrow<{kind}>({whole}))"
    if source.is_float and target.is_integer:
        return f"float_to_integer<{ctype}>({value})"
    return f"({ctype}){value}"
