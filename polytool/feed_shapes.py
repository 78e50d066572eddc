"""Which shapes input data have: what the model says, what the user says, what follows from both.

A dynamic dimension takes, in this order: the size the user gave for this input; the size that a
dimension of the same name got elsewhere; the size of the batch, by default 1, where it is that.
Anything else is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from polytool.errors import UsageError
from polytool.patterns import check_used, lookup, parse_named
from polytool.tensors import Dim, TensorSpec, format_shape

Sizes = tuple[int, ...]

# Names that exporters put where they know none: equal names then mean nothing.
_ANONYMOUS = re.compile(r"^(|\?|-1|None|unk__\d+|(p2o\.)?DynamicDimension\.\d+|dynamic.*)$", re.I)
_BATCH = re.compile(r"^(n|b|bs|bsz|batch|(.*_)?batch(_?size)?(_\d+)?)$", re.I)
_LENGTHS = re.compile(r"(^|[_./])(seq_?)?(len|lens|length|lengths)$", re.I)
_SEVERAL = re.compile(r"(?<=\d),(?=[^,\[\]]*:\d+(?:x\d+)*(?:,|$))")  # trtexec's comma
_EXAMPLES = {4: (1, 3, 224, 224), 5: (1, 3, 16, 224, 224)}


def parse_shapes(texts: Sequence[str]) -> dict[str, Sizes]:
    """`["x:[1,3,224,224]", "ids:1x16", "sr:[]"]` as a mapping of names or patterns to shapes.

    trtexec's `"x:1x3x224x224,ids:1x16"` does as well.

    Raises:
        UsageError: a text has another form.
    """
    what = "a shape such as [1,3,224,224] or 1x3x224x224"
    single = [part for text in texts for part in _SEVERAL.split(text)]
    return parse_named(single, _sizes, what, need_name=True)


def _sizes(text: str) -> Sizes:
    inner = text.strip()
    if inner[:1] == "[" and inner[-1:] == "]":
        parts = inner[1:-1].split(",")
    else:
        parts = inner.lower().split("x")
    sizes = tuple(int(p) for p in parts if p.strip())
    if any(s < 0 for s in sizes) or (not sizes and inner != "[]"):
        raise ValueError(text)
    return sizes


def resolve_shapes(
    inputs: Sequence[TensorSpec],
    given: Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int = 1,
) -> dict[str, Sizes]:
    """A concrete shape for every input.

    Args:
        inputs: the inputs of the model.
        given: shapes by input name or pattern. A static dimension may be overridden: models often
            declare sizes that they do not need.
        batch: size of the batch where that is left open.

    Raises:
        UsageError: a shape is given for no input or has another rank, two shapes contradict each
            other in a dimension of one name, or a dimension cannot be known; all such inputs are
            named.
    """
    given = given or {}
    check_used(given, (s.name for s in inputs), "a shape")
    chosen = {s.name: lookup(given, s.name) for s in inputs}
    named = _named_sizes(inputs, chosen)
    shapes: dict[str, Sizes] = {}
    open_: list[TensorSpec] = []
    for spec in inputs:
        sizes = chosen[spec.name]
        if sizes is None:
            sizes = _follow(spec, named, batch)
        if sizes is None:
            open_.append(spec)
        else:
            shapes[spec.name] = tuple(sizes)
    if open_:
        raise UsageError(_explain(open_))
    return {s.name: shapes[s.name] for s in inputs}


def is_lengths(spec: TensorSpec) -> bool:
    """Whether an input says how long each sequence of the batch is."""
    integer = spec.dtype is not None and spec.dtype.is_integer
    return integer and bool(_LENGTHS.search(spec.name)) and len(spec.shape or ()) <= 1


def _named_sizes(
    inputs: Sequence[TensorSpec], chosen: Mapping[str, Sequence[int] | None]
) -> dict[str, int]:
    named: dict[str, int] = {}
    source: dict[str, str] = {}
    for spec in inputs:
        sizes = chosen[spec.name]
        if sizes is None or spec.shape is None:
            continue
        if len(sizes) != len(spec.shape):
            raise UsageError(
                f"the shape {list(sizes)} for input {spec.name!r} has {len(sizes)} dimensions, but "
                f"the model declares {spec}"
            )
        for dim, size in zip(spec.shape, sizes, strict=True):
            if not isinstance(dim, str) or _ANONYMOUS.match(dim):
                continue
            if named.setdefault(dim, size) != size:
                raise UsageError(
                    f"dimension {dim!r} is {named[dim]} in {source[dim]!r} and {size} in "
                    f"{spec.name!r}: give both the same size"
                )
            source.setdefault(dim, spec.name)
    return named


def _follow(spec: TensorSpec, named: Mapping[str, int], batch: int = 1) -> Sizes | None:
    if spec.shape is None:
        return None
    sizes = [_size(dim, axis, spec, named, batch) for axis, dim in enumerate(spec.shape)]
    return None if None in sizes else tuple(s for s in sizes if s is not None)


def _size(
    dim: Dim, axis: int, spec: TensorSpec, named: Mapping[str, int], batch: int = 1
) -> int | None:
    if isinstance(dim, int) and dim >= 0:
        return dim
    if isinstance(dim, str) and dim in named:
        return named[dim]
    anonymous = not isinstance(dim, str) or bool(_ANONYMOUS.match(dim))
    if isinstance(dim, str) and _BATCH.match(dim):
        return batch
    if anonymous and axis == 0 and (len(spec.shape or ()) > 1 or is_lengths(spec)):
        return batch
    return None


def _explain(inputs: Sequence[TensorSpec]) -> str:
    listed = "; ".join(map(str, inputs))
    dims = "dimensions" if len(inputs) > 1 or _dynamic(inputs[0]) > 1 else "a dimension"
    return (
        f"the model leaves {dims} open that cannot be guessed ({listed}): give the shapes, for "
        f"example --input-shapes {' '.join(_examples(inputs))}"
    )


def _examples(inputs: Sequence[TensorSpec]) -> list[str]:
    """What would be enough to say; the other inputs follow from dimensions of the same name."""
    shown: dict[str, Sizes] = {}
    for spec in inputs:
        named = _named_sizes([s for s in inputs if s.name in shown], shown)
        if _follow(spec, named) is None:
            shown[spec.name] = _example(spec, named)
    return [f"{name}:{format_shape(sizes).replace(' ', '')}" for name, sizes in shown.items()]


def _dynamic(spec: TensorSpec) -> int:
    return sum(not isinstance(d, int) for d in spec.shape or ())


def _example(spec: TensorSpec, named: Mapping[str, int]) -> Sizes:
    if spec.shape is None:
        return (1, 16)
    rank = len(spec.shape)
    usual = _EXAMPLES.get(rank, (16,) * rank)
    return tuple(
        dim if isinstance(dim, int) else _size(dim, axis, spec, named) or usual[axis]
        for axis, dim in enumerate(spec.shape)
    )
