"""What a faulty kernel does to the values of its layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytool.backends.native.network import Layer

Launch = Callable[..., Any]
Spoil = Callable[[Any, Launch, tuple[Any, ...], np.random.Generator], Any]

VISIBLE = 6.0  # units of roundoff that the fault must change, in relative L2
_AFFINE = frozenset({"MatMul", "Gemm", "Conv", "Add"})


@dataclass(frozen=True)
class Fault:
    """How the values are spoiled, and in which layers that can happen."""

    spoil: Spoil
    fits: Callable[[Layer], bool] = lambda layer: True


def rounded_to(bits: int) -> Spoil:
    """Rounded to a grid of `bits` significant bits."""

    def spoil(value: Any, *_: Any) -> Any:
        mantissa, exponent = np.frexp(value)
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(value.dtype)

    return spoil


def accumulated_in_fp16(value: Any, launch: Launch, arguments: tuple[Any, ...], _: Any) -> Any:
    """The products of four inputs at a time are added up in float16.

    The layer is affine in its one input, so that parts of the input give parts of the sum.
    """
    (x,) = arguments
    axis = 1 if x.ndim == 4 else -1
    (constant,) = launch(np.zeros_like(x))
    whole = np.array(constant)
    for start in range(0, x.shape[axis], 4):
        part = np.zeros_like(x)
        chosen = [slice(None)] * x.ndim
        chosen[axis] = slice(start, start + 4)
        part[tuple(chosen)] = x[tuple(chosen)]
        (product,) = launch(part)
        whole = (whole + (product - constant)).astype(np.float16).astype(value.dtype)
    return whole


def _is_affine(layer: Layer) -> bool:
    return (
        all(node.op in _AFFINE for node in layer.nodes)
        and any(node.op != "Add" for node in layer.nodes)
        and len(layer.inputs) == 1
    )


def transposed_tile(value: Any, launch: Launch, arguments: Any, rng: np.random.Generator) -> Any:
    """One square tile of a matrix is stored transposed."""
    if value.ndim < 2 or min(value.shape[-2:]) < 4:
        return value
    size = min(8, *value.shape[-2:])
    top, left = (int(rng.integers(n - size + 1)) for n in value.shape[-2:])
    tile = value[..., top : top + size, left : left + size]
    tile[...] = tile.swapaxes(-1, -2).copy()
    return value


def not_a_number(value: Any, launch: Launch, arguments: Any, rng: np.random.Generator) -> Any:
    """0/0 in one place."""
    if value.size:
        value.reshape(-1)[int(rng.integers(value.size))] = np.nan
    return value


def stale_corner(value: Any, launch: Launch, arguments: Any, rng: np.random.Generator) -> Any:
    """The last corner is never written: what was there before, values of a like size, remains."""
    if value.size < 64:
        return value
    old = rng.permutation(value.reshape(-1))
    corner = value[tuple(slice(-max(1, n // 4), None) for n in value.shape)]
    corner[...] = old[: corner.size].reshape(corner.shape)
    return value


FAULTS: dict[str, Fault] = {
    "bf16": Fault(rounded_to(8)),
    "fp8": Fault(rounded_to(4)),
    "fp16-accumulation": Fault(accumulated_in_fp16, _is_affine),
    "tile": Fault(transposed_tile),
    "nan": Fault(not_a_number),
    "stale": Fault(stale_corner),
}
