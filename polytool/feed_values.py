"""Made input data: a plan for each input, drawn from a seeded generator."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polytool.arrays import MAX_RANK
from polytool.errors import ModelError, UsageError
from polytool.feed_meaning import Meanings, Use
from polytool.feed_shapes import Sizes, is_lengths, resolve_shapes
from polytool.patterns import check_used, lookup, parse_named
from polytool.tensors import DType, TensorSpec
from polytool.validation import validate

if TYPE_CHECKING:
    from polytool.model import Model

Range = tuple[float, float]
Draw = Callable[[np.random.Generator], Any]

_MAX_ELEMENTS = 1 << 44
_MASK = re.compile(r"mask", re.I)
_POSITIONS = re.compile(r"pos(ition)?_?ids?$", re.I)
_BATCH_INDEX = re.compile(r"(^|[_./])batch(_?(idx|index|ids?|vec))?$", re.I)
_RATE = re.compile(r"(^|[_./])(sr|fs|(sample|sampling)_?rate)$", re.I)
_WORDS = ("alpha", "beta", "gamma", "delta", "a", "", "42", "ünï")


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """`["[-1,1]", "ids:[2,50]"]` as ranges by name, both ends included.

    Raises:
        UsageError: a text has another form.
    """
    return parse_named(texts, _range, "a range such as [0,1]")


def _range(text: str) -> Range:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    low, high = map(float, text[1:-1].split(","))
    if not low <= high:
        raise ValueError(text)
    return low, high


@dataclass(frozen=True)
class Choice:
    """How one input is made, and why."""

    draw: Draw
    why: str


@dataclass(frozen=True)
class Plan:
    """How every input is made."""

    choices: Mapping[str, Choice]
    notes: tuple[str, ...]

    def draw(self, seed: int, index: int) -> dict[str, Any]:
        """The inputs of iteration `index`."""
        return {
            name: choice.draw(np.random.default_rng([seed, index, zlib.crc32(name.encode())]))
            for name, choice in self.choices.items()
        }


def plan_inputs(
    model: Model | None,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, Range],
) -> Plan:
    """Choose shape and values of every input; see `polytool.feeds.make_feeds`."""
    sizes = resolve_shapes(inputs, shapes)
    for name, shape in sizes.items():
        if len(shape) > MAX_RANK or math.prod(max(d, 1) for d in shape) > _MAX_ELEMENTS:
            raise UsageError(
                f"input {name!r} of shape {list(shape)} is too large to be made: give a smaller "
                f"shape with --input-shapes"
            )
    check_used(ranges, (s.name for s in inputs), "a range")
    integers = {s.name for s in inputs if s.dtype is not None and s.dtype.is_integer}
    told = model is not None and bool(integers) and _is_sound(model)
    meanings = Meanings(model, sizes) if model is not None and told else None
    choices = {}
    for spec in inputs:
        uses = meanings.uses(spec.name) if meanings and spec.name in integers else []
        one = _choose(spec, sizes, uses, ranges)
        choices[spec.name] = one if spec.container != "sequence" else _in_list(one)
    notes = tuple(
        f"{s.name}: {'?' if s.dtype is None else s.dtype.label}{list(sizes[s.name])}, "
        f"{choices[s.name].why}"
        for s in inputs
    )
    return Plan(choices, notes)


def _is_sound(model: Model) -> bool:
    """A broken model tells nothing: what runs it says what is wrong with it."""
    try:
        validate(model.proto)
    except ModelError:
        return False
    return True


def _in_list(choice: Choice) -> Choice:
    """A sequence of two."""
    return Choice(lambda rng: [choice.draw(rng), choice.draw(rng)], f"two of {choice.why}")


def _choose(
    spec: TensorSpec, sizes: Mapping[str, Sizes], uses: Sequence[Use], ranges: Mapping[str, Range]
) -> Choice:
    shape, dtype = sizes[spec.name], spec.dtype
    if dtype is None:
        raise UsageError(
            f"input {spec.name!r} ({spec.container}) declares no element type, so no data can be "
            "made for it: give them with --load-inputs"
        )
    asked = lookup(ranges, spec.name)
    own = asked is not None and lookup({**ranges, "": None}, spec.name) is not None
    if own and asked is not None:
        return _uniform(dtype, shape, asked, f"in [{asked[0]:g}, {asked[1]:g}], as asked")
    if dtype is DType.STRING:
        return Choice(lambda rng: _words(rng, shape), "words")
    if _MASK.search(spec.name) and not dtype.name.startswith("COMPLEX"):
        return _full(dtype, shape, 1, "ones: its name says it is a mask")
    if dtype.is_integer:
        chosen = _integers(spec, dtype, sizes, uses)
        if chosen is not None:
            return chosen
    if asked is not None:
        return _uniform(dtype, shape, asked, f"in [{asked[0]:g}, {asked[1]:g}], as asked")
    if dtype.is_integer and shape == ():
        return _full(dtype, shape, 1, "1: the model does not show what it means")
    if dtype.is_integer or dtype is DType.BOOL:
        return _uniform(dtype, shape, (0, 1), "0 or 1: the model does not show what it means")
    return _uniform(dtype, shape, (0.0, 1.0), "uniform in [0, 1)")


def _integers(
    spec: TensorSpec, dtype: DType, sizes: Mapping[str, Sizes], uses: Sequence[Use]
) -> Choice | None:
    """What name and use say of an integer input."""
    shape = sizes[spec.name]
    bounds = [u.bound for u in uses if u.bound is not None]
    compared = [u for u in uses if u.values]
    if int(np.prod(shape)) == 1 and compared and not bounds:
        value = compared[0].values[-1]
        return _full(dtype, shape, value, f"{value}: the model compares it with that")
    if is_lengths(spec):
        others = (s for n, s in sizes.items() if n != spec.name and len(s) > 1)
        length = next((s[1] for s in others), 1)
        return _full(dtype, shape, length, f"{length}: the whole length, as its name says")
    if _RATE.search(spec.name) and int(np.prod(shape)) == 1:
        return _full(dtype, shape, 16000, "16000: a sample rate, as its name says")
    if bounds:
        return _indices(spec, dtype, shape, min(bounds), uses)
    if any(u.bound is None and not u.values for u in uses):
        return _full(dtype, shape, 0, "zeros: they index a tensor of unknown size")
    if compared:
        values = compared[0].values
        return _uniform(
            dtype,
            shape,
            (values[0], values[-1]),
            f"in [{values[0]}, {values[-1]}]: the model compares them with these",
        )
    if _POSITIONS.search(spec.name):
        return _ramp(dtype, shape, None, "0, 1, 2 ...: positions, as the name says")
    return None


def _indices(
    spec: TensorSpec, dtype: DType, shape: Sizes, bound: int, uses: Sequence[Use]
) -> Choice:
    use = next(u for u in uses if u.bound == bound)
    what = "rows of the embedding" if use.weight else "indices of"
    why = f"in [0, {bound}): {what} {use.table!r}"
    if _POSITIONS.search(spec.name):
        return _ramp(dtype, shape, bound, f"0, 1, 2 ...: positions, {why}")
    draw = _uniform(dtype, shape, (0, max(bound - 1, 0)), why).draw
    if _BATCH_INDEX.search(spec.name) and len(shape) == 1:
        return Choice(lambda rng: np.sort(draw(rng)), f"sorted, {why}")
    return Choice(draw, why)


def _full(dtype: DType, shape: Sizes, value: float, why: str) -> Choice:
    return Choice(lambda rng: np.full(shape, value).astype(dtype.numpy), why)


def _ramp(dtype: DType, shape: Sizes, bound: int | None, why: str) -> Choice:
    steps = np.arange(shape[-1] if shape else 1)
    if bound is not None:
        steps = np.minimum(steps, bound - 1)
    values = np.broadcast_to(steps if shape else steps[0], shape).astype(dtype.numpy)
    return Choice(lambda rng: values.copy(), why)


def _uniform(dtype: DType, shape: Sizes, limits: Range, why: str) -> Choice:
    low, high = limits
    if dtype is DType.STRING:
        raise UsageError("a range has no meaning for an input of strings")
    if dtype is DType.BOOL or dtype.is_integer:
        least, most = _limits(dtype)
        if low < least or high > most or low != int(low) or high != int(high):
            raise UsageError(
                f"{dtype.label} has no range [{low:g}, {high:g}]: it holds integers "
                f"from {least} to {most}"
            )
        return Choice(lambda rng: _draw_integers(rng, dtype, shape, int(low), int(high)), why)
    if dtype.name.startswith("COMPLEX"):
        return Choice(
            lambda rng: (
                _draw_floats(rng, shape, low, high) + 1j * _draw_floats(rng, shape, low, high)
            ).astype(dtype.numpy),
            why,
        )
    return Choice(lambda rng: _draw_floats(rng, shape, low, high).astype(dtype.numpy), why)


def _limits(dtype: DType) -> tuple[int, int]:
    if dtype is DType.BOOL:
        return 0, 1
    lowest = -(1 << (dtype.bits - 1)) if not dtype.name.startswith("U") else 0
    return lowest, lowest + (1 << dtype.bits) - 1


def _draw_integers(
    rng: np.random.Generator, dtype: DType, shape: Sizes, low: int, high: int
) -> Any:
    kind = np.uint64 if high > np.iinfo(np.int64).max else np.int64
    return rng.integers(low, high, shape, kind, endpoint=True).astype(dtype.numpy)


def _draw_floats(rng: np.random.Generator, shape: Sizes, low: float, high: float) -> Any:
    return low + (high - low) * rng.random(shape)


def _words(rng: np.random.Generator, shape: Sizes) -> Any:
    texts = np.empty(int(np.prod(shape)), np.object_)
    texts[:] = [_WORDS[i] for i in rng.integers(0, len(_WORDS), texts.size)]
    return texts.reshape(shape)
