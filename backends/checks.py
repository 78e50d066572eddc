"""What a runner does with its feeds before it runs: find what does not fit, and say it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polytool.backends.base import Feeds
from polytool.errors import UsageError
from polytool.tensors import DType, TensorSpec, as_numpy, format_shape


def check_feeds(
    specs: Sequence[TensorSpec],
    feeds: Feeds,
    *,
    optional: Sequence[TensorSpec] = (),
    who: str = "the model",
    one_size: bool = False,
) -> dict[str, Any]:
    """The feeds in the order of `specs`, as the model wants them.

    NumPy arrays, numbers and lists become arrays in native byte order; arrays of other libraries
    (CuPy, torch, anything with DLPack) are checked and left as they are.

    Args:
        specs: what the model needs.
        feeds: what the caller gave.
        optional: further inputs that may be left out.
        who: what expects them, for messages.
        one_size: whether dimensions of one name must have one size.

    Raises:
        UsageError: a name, dtype, rank or dimension does not fit; names every wrong name.
    """
    known = {spec.name: spec for spec in (*specs, *optional)}
    _check_names(specs, known, feeds, who)
    ready = {
        name: _convert(spec, feeds.get(name), who)
        for name, spec in known.items()
        if _given(spec, feeds)
    }
    if one_size:
        _check_one_size(known, ready, who)
    return ready


def _given(spec: TensorSpec, feeds: Feeds) -> bool:
    return spec.name in feeds or spec.container == "optional"


def _check_names(specs: Sequence[TensorSpec], known: Iterable[str], feeds: Feeds, who: str) -> None:
    known = list(known)
    missing = [s.name for s in specs if not _given(s, feeds)]
    unknown = [name for name in feeds if name not in known]
    wrong = [f"input {name!r} is missing" for name in missing]
    for name in unknown:
        close = difflib.get_close_matches(name, missing or known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        wrong.append(f"{name!r} is not an input{hint}")
    if wrong:
        expected = ", ".join(str(s) for s in specs) or "no inputs"
        raise UsageError(f"{'; '.join(wrong)}; {who} expects {expected}")


def _check_one_size(specs: Mapping[str, TensorSpec], feeds: Feeds, who: str) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in feeds.items():
        spec = specs[name]
        if spec.container != "tensor":
            continue
        for dim, size in zip(spec.shape or (), value.shape, strict=False):  # None has no names
            if not isinstance(dim, str):
                continue
            known, where = sizes.setdefault(dim, (size, name))
            if known != size:
                raise UsageError(
                    f"dimension {dim!r} of {who} is {known} in {where!r} but {size} in {name!r}; "
                    "the model gives it one name, so it must have one size"
                )


def _convert(spec: TensorSpec, value: Any, who: str) -> Any:
    if spec.container == "optional" and value is None:
        return None
    if spec.container == "optional" and isinstance(value, list):
        return [_array(spec, v, who, f"[{i}]") for i, v in enumerate(value)]
    if spec.container == "sequence":
        if not isinstance(value, (list, tuple)):
            raise UsageError(
                f"input {spec.name!r} is a sequence: it takes a list of arrays, "
                f"not a {type(value).__name__}"
            )
        return [_array(spec, v, who, f"[{i}]") for i, v in enumerate(value)]
    if spec.container == "map":
        return value
    return _array(spec, value, who)


def _array(spec: TensorSpec, value: Any, who: str, where: str = "") -> Any:
    """`value` as an array that fits `spec`; `where` is its place in a sequence."""
    what = f"input {spec.name + where!r}"
    if on_device(value):
        dtype, shape = device_dtype(value), tuple(value.shape)
    else:
        value = _host_array(spec, value, what, who)
        dtype, shape = DType.of(value), value.shape
    if spec.dtype is not None and dtype is not spec.dtype:
        raise UsageError(
            f"{what} is {dtype.label if dtype else 'of an unknown type'}, "
            f"but {who} expects {spec.dtype.label}{format_shape(spec.shape)}"
        )
    if spec.shape is not None:
        _check_shape(what, who, spec.shape, shape)
    return value


def _host_array(spec: TensorSpec, value: Any, what: str, who: str) -> Any:
    if value is None:
        raise UsageError(f"{what} is None, but {who} expects {spec}")
    try:
        if not isinstance(value, np.ndarray | np.generic) and spec.dtype not in (
            None,
            DType.STRING,
        ):
            array = np.asarray(value)  # Python numbers and lists have no element type of their own
            if array.dtype.kind in "biufc" and _lossless(array, spec.dtype):
                return array.astype(spec.dtype.numpy)
        return as_numpy(value)
    except (UsageError, ValueError, TypeError, OverflowError) as err:
        raise UsageError(f"{what} cannot be read as an array: {err}") from err


def _lossless(array: Any, dtype: DType) -> bool:
    """Whether Python numbers mean the same in `dtype`; floats may be rounded, never truncated."""
    if array.dtype.kind == "b":
        return dtype is DType.BOOL or dtype.is_integer or dtype.is_float
    if array.dtype.kind == "f":
        return dtype.is_float
    if array.dtype.kind in "iu" and dtype.is_integer:
        return bool((array.astype(dtype.numpy).astype(array.dtype) == array).all())
    return array.dtype.kind in "iu" and dtype.is_float


def _check_shape(what: str, who: str, expected: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    if len(expected) != len(shape):
        raise UsageError(
            f"{what} has {len(shape)} dimensions, shape {list(shape)}, but {who} expects "
            f"{len(expected)}: {format_shape(expected)}"
        )
    wrong = [
        f"dimension {axis} is {size}, not {dim}"
        for axis, (size, dim) in enumerate(zip(shape, expected, strict=True))
        if isinstance(dim, int) and size != dim
    ]
    if wrong:
        raise UsageError(
            f"{what} has shape {list(shape)}, but {who} expects {format_shape(expected)}: "
            + ", ".join(wrong)
        )


def on_device(value: Any) -> bool:
    """Whether `value` is an array of another library than NumPy that speaks DLPack."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | np.generic)


def device_dtype(value: Any) -> DType | None:
    """The element type of an array of another library; None when its name says nothing."""
    if isinstance(value.dtype, DType):
        return value.dtype
    name = str(value.dtype).rpartition(".")[2].replace("float8_", "float8")
    try:
        return DType.of(name)
    except UsageError:
        return None
