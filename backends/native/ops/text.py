"""Operators on strings: object arrays of `str`, always on the host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from polytool.backends.native.ops.registry import Arg, Array, dtypes, limits, op, shape
from polytool.tensors import DType

Dims = tuple[int, ...]


def _strings(texts: Sequence[str], dims: Dims) -> Array:
    result = np.empty(len(texts), np.object_)
    result[:] = texts
    return result.reshape(dims)


@op("StringConcat", since=20, pointwise=True, exact=True)
def string_concat(xp: Any, x: Array, y: Array) -> Array:
    """The strings of `y` appended to those of `x`."""
    return np.asarray(x + y, np.object_)


@op("StringSplit", since=20, exact=True)
def string_split(
    xp: Any, x: Array, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[Array, Array]:
    """The parts of each string along a new last axis, filled up with "", and how many they are."""
    limit = -1 if maxsplit is None else maxsplit
    parts = [text.split(delimiter or None, limit) for text in x.reshape(-1).tolist()]
    counts = np.array([len(p) for p in parts], np.int64).reshape(x.shape)
    width = max(map(len, parts), default=0)
    padded = [part for p in parts for part in [*p, *[""] * (width - len(p))]]
    return _strings(padded, (*x.shape, width)), counts


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("\\z", "\\Z"), re.ASCII)


@limits("RegexFullMatch")
def regex_limits(given: Sequence[bool], *, pattern: str) -> str | None:
    """What Python's regular expressions lack."""
    try:
        _compiled(pattern)
    except re.error as err:
        return (
            f"it cannot use the pattern {pattern!r}: {err}; "
            f"rewrite it in the syntax that RE2 and Python share"
        )
    return None


@op("RegexFullMatch", since=20, exact=True)
def regex_full_match(xp: Any, x: Array, *, pattern: str) -> Array:
    """Where the whole string matches the pattern (RE2 syntax, whose classes are ASCII)."""
    matcher = _compiled(pattern)
    matches = [matcher.fullmatch(text) is not None for text in x.reshape(-1).tolist()]
    return np.array(matches, np.bool_).reshape(x.shape)


@shape("RegexFullMatch")
def regex_full_match_shape(x: Arg, *, pattern: str) -> Dims:
    """The shape of the input."""
    return x.shape


@op("StringNormalizer", since=10, exact=True)
def string_normalizer(
    xp: Any,
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,
    stopwords: Sequence[str] | None = None,
) -> Array:
    """The strings without stop words, in another case; one empty string where none is left."""
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(case_change_action, str)
    fold = str if is_case_sensitive else str.lower
    stops = {fold(word) for word in stopwords or ()}
    kept = [change(text) for text in x.reshape(-1).tolist() if fold(text) not in stops] or [""]
    return _strings(kept, (1, len(kept)) if x.ndim == 2 else (len(kept),))


@shape("StringSplit", "StringNormalizer")
def data_dependent_shape(*_: Arg, **__: Any) -> None:
    """Only the strings decide."""


@op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    xp: Any,
    x: Array,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Array:
    """How often each n-gram of the pool occurs in each row, as counts or weights."""
    pool: list[Any] = list(pool_int64s or pool_strings or ())
    column = dict(zip(_pool_grams(pool, ngram_counts), ngram_indexes, strict=True))
    scale = np.ones(max(ngram_indexes) + 1, np.float32)
    if weights is not None:
        scale[list(ngram_indexes)] = weights
    rows = x.reshape(-1, x.shape[-1]).tolist()
    counts = np.zeros((len(rows), scale.size), np.float32)
    for row, tokens in enumerate(rows):
        for gram in _grams(tokens, min_gram_length, max_gram_length, max_skip_count):
            if gram in column:
                counts[row, column[gram]] += 1
    if mode == "IDF":
        counts = np.minimum(counts, np.float32(1))
    if mode != "TF":
        counts *= scale
    return counts.reshape(*x.shape[:-1], scale.size)


def _pool_grams(pool: Sequence[Any], starts: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for i, start in enumerate(starts):
        end = starts[i + 1] if i + 1 < len(starts) else len(pool)
        for place in range(start, end, i + 1):
            yield tuple(pool[place : place + i + 1])


def _grams(
    tokens: Sequence[Any], shortest: int, longest: int, skips: int
) -> Iterator[tuple[Any, ...]]:
    """Every n-gram, its tokens `skip + 1` apart; single tokens have no distance between them."""
    count = len(tokens)
    for length in range(max(shortest, 1), min(longest, count) + 1):
        for step in range(1, 2 if length == 1 else min(skips + 2, count)):
            for start in range(count - (length - 1) * step):
                yield tuple(tokens[start : start + (length - 1) * step + 1 : step])


@shape("TfIdfVectorizer")
def tf_idf_vectorizer_shape(x: Arg, *, ngram_indexes: Sequence[int], **_: Any) -> Dims:
    """One column an n-gram."""
    return (*x.shape[:-1], max(ngram_indexes) + 1)


@dtypes("TfIdfVectorizer")
def tf_idf_vectorizer_dtypes(inputs: list[DType | None], **_: Any) -> list[DType]:
    """float32."""
    return [DType.FLOAT]
