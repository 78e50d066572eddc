"""ai.onnx.ml: what prepares features: scaling, encoding, selecting, and maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.ml_scores import ML
from polytool.backends.native.ops.registry import Arg, Array, dtypes, op, shape
from polytool.errors import ModelError
from polytool.tensors import DType

Ints = Sequence[int]
Floats = Sequence[float]
Strings = Sequence[str]
Dims = tuple[int, ...]


@op("ArrayFeatureExtractor", since=1, domain=ML, exact=True)
def array_feature_extractor(xp: Any, x: Array, index: Array) -> Array:
    """The elements of the last axis that `index` names; a vector becomes one row."""
    picked = xp.take(x, index.reshape(-1), axis=-1)
    return picked.reshape(1, -1) if x.ndim == 1 else picked


@shape("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor_shape(x: Arg, index: Arg) -> Dims:
    """The last axis as long as the index."""
    count = int(np.prod(index.shape, dtype=np.int64))
    return (1, count) if len(x.shape) == 1 else (*x.shape[:-1], count)


@op("Binarizer", since=1, domain=ML)
def binarizer(xp: Any, x: Array, *, threshold: float = 0.0) -> Array:
    """1 above the threshold, else 0."""
    return (x > threshold).astype(x.dtype)


@op("Scaler", since=1, domain=ML)
def scaler(
    xp: Any, x: Array, *, offset: Floats | None = None, scale: Floats | None = None
) -> Array:
    """`(x - offset) * scale`, a feature each, in float32 (float64 for float64)."""
    kind = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    y = x.astype(kind)
    if offset:
        y = y - xp.asarray(np.array(offset, dtype=kind))
    return y * xp.asarray(np.array(scale, dtype=kind)) if scale else y


@op("Normalizer", since=1, domain=ML)
def normalizer(xp: Any, x: Array, *, norm: str = "MAX") -> Array:
    """Divide each row by its largest element, 1-norm or 2-norm; zero divides nothing."""
    y = x if x.dtype.kind == "f" else x.astype(np.float32)
    if norm == "MAX":
        divisor = y.max(axis=-1, keepdims=True)
    elif norm == "L1":
        divisor = xp.abs(y).sum(axis=-1, keepdims=True)
    elif norm == "L2":
        divisor = xp.sqrt((y * y).sum(axis=-1, keepdims=True))
    else:
        raise ModelError(f"Normalizer has no norm {norm!r}: MAX, L1, L2")
    return y / xp.where(divisor == 0, xp.ones_like(divisor), divisor)


@op("Imputer", since=1, domain=ML)
def imputer(
    xp: Any,
    x: Array,
    *,
    imputed_value_floats: Floats | None = None,
    imputed_value_int64s: Ints | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Array:
    """Replace one value, NaN included, by a constant a feature."""
    floats = x.dtype.kind == "f"
    values = imputed_value_floats if floats else imputed_value_int64s
    missing = x == (replaced_value_float if floats else replaced_value_int64)
    if floats and np.isnan(replaced_value_float):
        missing = xp.isnan(x)
    return xp.where(missing, xp.asarray(np.array(values, dtype=x.dtype)), x)


@shape("Binarizer", "Scaler", "Normalizer", "Imputer", "LabelEncoder", "CategoryMapper", domain=ML)
def same_shape(x: Arg, **_: Any) -> Dims:
    """Like the input."""
    return x.shape


@op("FeatureVectorizer", since=1, domain=ML)
def feature_vectorizer(xp: Any, *inputs: Array, inputdimensions: Ints | None = None) -> Array:
    """All inputs side by side in float32, each cut or filled up with zeros to its width."""
    widths = inputdimensions or [_width(x.shape) for x in inputs]
    rows = _rows(inputs[0].shape)
    parts = []
    for x, width in zip(inputs, widths, strict=True):
        part = xp.zeros((rows, width), dtype=np.float32)
        source = x.reshape(rows, _width(x.shape))[:, :width]
        part[:, : source.shape[1]] = source
        parts.append(part)
    return xp.concatenate(parts, axis=1)


def _rows(dims: Dims) -> int:
    return dims[0] if len(dims) > 1 else 1


def _width(dims: Dims) -> int:
    return int(np.prod(dims, dtype=np.int64)) // max(_rows(dims), 1)


@shape("FeatureVectorizer", domain=ML)
def feature_vectorizer_shape(*inputs: Arg, inputdimensions: Ints | None = None) -> Dims:
    """(N, sum of the widths)."""
    widths = inputdimensions or [_width(x.shape) for x in inputs]
    return (_rows(inputs[0].shape), sum(widths))


@op("OneHotEncoder", since=1, domain=ML, host=(0,))
def one_hot_encoder(
    xp: Any,
    x: Array,
    *,
    cats_int64s: Ints | None = None,
    cats_strings: Strings | None = None,
    zeros: int = 1,
) -> Array:
    """A new last axis with a one at the category."""
    if cats_strings:
        hot = x[..., None] == np.array(cats_strings, dtype=object)
    else:
        hot = x[..., None].astype(np.int64) == np.array(cats_int64s, dtype=np.int64)
    if not zeros and not hot.any(axis=-1).all():
        raise ModelError("OneHotEncoder met a value that is no category, and zeros=0 forbids that")
    return np.asarray(hot, dtype=np.float32)


@shape("OneHotEncoder", domain=ML)
def one_hot_encoder_shape(
    x: Arg, *, cats_int64s: Ints | None = None, cats_strings: Strings | None = None, **_: Any
) -> Dims:
    """One axis more."""
    return (*x.shape, len(cats_strings or cats_int64s or []))


def _lookup(x: Array, table: dict[Any, Any], default: Any, dtype: Any) -> Array:
    """Each element's value; NaN finds a NaN key."""
    nan = next((v for k, v in table.items() if k != k), default)
    flat = [nan if k != k else table.get(k, default) for k in x.reshape(-1).tolist()]
    result = np.empty(len(flat), dtype=dtype)
    result[:] = flat
    return result.reshape(x.shape)


@op("LabelEncoder", since=2, domain=ML, host=(0,))
def label_encoder(
    xp: Any,
    x: Array,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Array | None = None,
    keys_floats: Floats | None = None,
    keys_int64s: Ints | None = None,
    keys_strings: Strings | None = None,
    keys_tensor: Array | None = None,
    values_floats: Floats | None = None,
    values_int64s: Ints | None = None,
    values_strings: Strings | None = None,
    values_tensor: Array | None = None,
) -> Array:
    """Map each element by two parallel lists; the last of equal keys wins."""
    if keys_floats is not None:
        keys: Sequence[Any] = np.array(keys_floats, dtype=np.float32).tolist()
    else:
        keys = keys_int64s or keys_strings or ([] if keys_tensor is None else keys_tensor.tolist())
    default: Any
    if values_strings is not None:
        values: Sequence[Any] = values_strings
        default, kind = default_string, np.dtype(object)
    elif values_int64s is not None:
        values, default, kind = values_int64s, default_int64, np.dtype(np.int64)
    elif values_floats is not None:
        values, default, kind = values_floats, default_float, np.dtype(np.float32)
    elif values_tensor is not None:
        values, kind = values_tensor.tolist(), values_tensor.dtype
        default = _tensor_default(kind) if default_tensor is None else default_tensor.item()
    else:
        raise ModelError("LabelEncoder has no values")
    return _lookup(x, dict(zip(keys, values, strict=True)), default, kind)


def _tensor_default(kind: Any) -> Any:
    if kind.kind == "O":
        return "_Unused"
    return -1 if kind.kind in "iu" else -0.0


@dtypes("LabelEncoder", domain=ML)
def label_encoder_dtypes(
    inputs: list[DType | None],
    *,
    classes_strings: Strings | None = None,
    values_floats: Floats | None = None,
    values_int64s: Ints | None = None,
    values_strings: Strings | None = None,
    values_tensor: Array | None = None,
    **_: Any,
) -> list[DType]:
    """That of the values; version 1 turns strings into int64 and back."""
    if classes_strings is not None:
        return [DType.INT64 if inputs[0] is DType.STRING else DType.STRING]
    if values_tensor is not None:
        return [DType.of(values_tensor)]
    if values_strings is not None:
        return [DType.STRING]
    return [DType.INT64 if values_int64s is not None else DType.FLOAT]


@op("LabelEncoder", since=1, domain=ML, host=(0,))
def label_encoder_1(
    xp: Any,
    x: Array,
    *,
    classes_strings: Strings,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    """Strings to their index in the list, or back."""
    if x.dtype == object:
        table: dict[Any, Any] = {label: i for i, label in enumerate(classes_strings)}
        return _lookup(x, table, default_int64, np.int64)
    return _lookup(x, dict(enumerate(classes_strings)), default_string, object)


@op("CategoryMapper", since=1, domain=ML, host=(0,))
def category_mapper(
    xp: Any,
    x: Array,
    *,
    cats_int64s: Ints,
    cats_strings: Strings,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    """Strings to integers by two parallel lists, or back."""
    if x.dtype == object:
        return _lookup(
            x, dict(zip(cats_strings, cats_int64s, strict=True)), default_int64, np.int64
        )
    return _lookup(x, dict(zip(cats_int64s, cats_strings, strict=True)), default_string, object)


@dtypes("CategoryMapper", domain=ML)
def category_mapper_dtypes(inputs: list[DType | None], **_: Any) -> list[DType]:
    """The other of string and int64."""
    return [DType.INT64 if inputs[0] is DType.STRING else DType.STRING]


_CASTS = {"TO_FLOAT": DType.FLOAT, "TO_STRING": DType.STRING, "TO_INT64": DType.INT64}


@op("CastMap", since=1, domain=ML, host=(0,))
def cast_map(
    xp: Any,
    x: dict[int, Any],
    *,
    cast_to: str = "TO_FLOAT",
    map_form: str = "DENSE",
    max_map: int = 1,
) -> Array:
    """A map's values in the order of its keys, as one row; SPARSE puts each at its key.

    Numbers as text, and the text where a key is missing, are those of ONNX Runtime.
    """
    kind = _CASTS[cast_to].numpy
    casts: dict[str, Callable[[Any], Any]] = {"TO_FLOAT": float, "TO_STRING": _as_text}
    convert = casts.get(cast_to, int)
    values = {key: convert(x[key]) for key in sorted(x)}
    if map_form == "DENSE":
        row = np.empty(len(values), dtype=kind)
        row[:] = list(values.values())
        return row[None]
    row = np.full(max_map, "0.f" if cast_to == "TO_STRING" else 0, dtype=kind)
    for key, value in values.items():
        if not 0 <= key < max_map:
            raise ModelError(f"CastMap met the key {key}, which max_map={max_map} does not hold")
        row[key] = value
    return row[None]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:f}"


@dtypes("CastMap", domain=ML)
def cast_map_dtypes(_: list[DType | None], *, cast_to: str = "TO_FLOAT", **__: Any) -> list[DType]:
    """What the attribute names."""
    if cast_to not in _CASTS:
        raise ModelError(f"CastMap has no cast_to {cast_to!r}, only {', '.join(_CASTS)}")
    return [_CASTS[cast_to]]


@op("DictVectorizer", since=1, domain=ML, host=(0,))
def dict_vectorizer(
    xp: Any,
    x: dict[Any, Any],
    *,
    int64_vocabulary: Ints | None = None,
    string_vocabulary: Strings | None = None,
) -> Array:
    """A map's values at the places of their keys in the vocabulary, as one row."""
    vocabulary: Sequence[Any] = string_vocabulary or int64_vocabulary or []
    values = list(x.values())
    if values and isinstance(values[0], str):
        row = np.array([x.get(key, "") for key in vocabulary], dtype=object)
    else:
        integral = bool(values) and isinstance(values[0], int)
        kind = getattr(values[0], "dtype", np.int64 if integral else np.float32) if values else None
        row = np.array([x.get(key, 0) for key in vocabulary], dtype=kind or np.float32)
    return row[None]


@dtypes("DictVectorizer", domain=ML)
def dict_vectorizer_dtypes(_: list[DType | None], **__: Any) -> list[None]:
    """The map's values decide."""
    return [None]


@shape("CastMap", "DictVectorizer", "ZipMap", domain=ML)
def map_shape(*_: Any, **__: Any) -> None:
    """None: maps have no shape."""


@op("ZipMap", since=1, domain=ML, host=(0,))
def zip_map(
    xp: Any,
    x: Array,
    *,
    classlabels_int64s: Ints | None = None,
    classlabels_strings: Strings | None = None,
) -> list[dict[Any, Any]]:
    """One map from label to value for each row."""
    labels: Sequence[Any] = classlabels_strings or classlabels_int64s or []
    rows = x if x.ndim > 1 else x[None]
    return [dict(zip(labels, row, strict=True)) for row in rows.tolist()]
