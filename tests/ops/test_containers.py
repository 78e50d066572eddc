"""Sequences, optionals and strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polytool.backends.native.ops.text import regex_limits
from polytool.errors import PolytoolError

Call = Any


def words(*texts: str) -> Any:
    return np.array(texts, object)


def test_sequences_are_not_changed_in_place(call: Call) -> None:
    a, b, c = (np.full(2, v) for v in (1, 2, 3))
    first = call("SequenceConstruct", a, b)
    longer = call("SequenceInsert", first, c, np.array(-1))
    assert [int(v[0]) for v in longer] == [1, 3, 2]
    assert [int(v[0]) for v in call("SequenceInsert", first, c)] == [1, 2, 3]
    shorter = call("SequenceErase", longer, np.array(0))
    assert [int(v[0]) for v in shorter] == [3, 2]
    assert [int(v[0]) for v in call("SequenceErase", longer)] == [1, 3]
    assert (len(first), len(longer)) == (2, 3)
    assert call("SequenceAt", longer, np.array(-1)) is b
    assert call("SequenceLength", longer).item() == 3


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("SequenceAt", ([], np.array(0))),
        ("SequenceAt", ([np.zeros(1)], np.array(1))),
        ("SequenceInsert", ([], np.zeros(1), np.array(2))),
        ("SequenceErase", ([],)),
        ("SequenceErase", ([np.zeros(1)], np.array(-2))),
    ],
)
def test_positions_outside_a_sequence_are_errors(call: Call, op: str, arguments: Any) -> None:
    with pytest.raises(PolytoolError, match="outside a sequence"):
        call(op, *arguments)


def test_tensors_are_cut_into_sequences_and_joined(call: Call) -> None:
    x = np.arange(10).reshape(5, 2)
    assert [p.shape for p in call("SplitToSequence", x)] == [(1, 2)] * 5
    assert [p.shape for p in call("SplitToSequence", x, keepdims=0)] == [(2,)] * 5
    assert [p.shape for p in call("SplitToSequence", x, np.array(2))] == [(2, 2), (2, 2), (1, 2)]
    parts = call("SplitToSequence", x, np.array([1, 4]), keepdims=0)
    assert [p.shape for p in parts] == [(1, 2), (4, 2)]
    np.testing.assert_array_equal(call("ConcatFromSequence", parts, axis=0), x)
    stacked = call("ConcatFromSequence", [x, x], axis=-1, new_axis=1)
    assert stacked.shape == (5, 2, 2)


def test_optionals(call: Call) -> None:
    x = np.zeros(2)
    assert call("Optional", x) is x
    assert call("OptionalHasElement", x).item() is True
    assert call("OptionalHasElement", None).item() is False
    assert call("OptionalHasElement").item() is False
    assert call("OptionalGetElement", x) is x
    with pytest.raises(PolytoolError, match="empty optional"):
        call("OptionalGetElement", None)


def test_strings_are_joined_and_split(call: Call) -> None:
    joined = call("StringConcat", words("a", "b"), np.array("!", object))
    assert joined.tolist() == ["a!", "b!"]
    assert call("StringConcat", np.array("a", object), np.array("b", object)).item() == "ab"
    parts, counts = call("StringSplit", words("a  b c", "", "d"))
    assert parts.tolist() == [["a", "b", "c"], ["", "", ""], ["d", "", ""]]
    assert counts.tolist() == [3, 0, 1]
    parts, counts = call("StringSplit", words("a--b-", "-"), delimiter="-", maxsplit=1)
    assert parts.tolist() == [["a", "-b-"], ["", ""]]
    assert counts.tolist() == [2, 2]
    assert call("StringSplit", np.zeros((0, 2), object))[0].shape == (0, 2, 0)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"www\.[\w.-]+\.\bcom\b", "www.google.com", True),
        (r"www\.[\w.-]+\.\bcom\b", "www.google.com/x", False),
        (r"\d+", "12", True),
        (r"\d+", "\u0661", False),  # RE2's classes are ASCII
        (r"(?i)stra\u00dfe", "STRASSE", False),
        (r"a.c", "a\nc", False),
        (r"(?P<x>a)+\z", "aa", True),
        ("", "", True),
    ],
)
def test_regular_expressions(call: Call, pattern: str, text: str, matches: bool) -> None:
    assert call("RegexFullMatch", words(text), pattern=pattern).tolist() == [matches]


def test_a_pattern_that_python_lacks_is_refused() -> None:
    assert regex_limits([True], pattern="a+") is None
    assert "rewrite it" in str(regex_limits([True], pattern=r"\pN"))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ["Monday", "tuesday", "MONDAY"]),
        ({"case_change_action": "UPPER"}, ["MONDAY", "TUESDAY", "MONDAY"]),
        ({"stopwords": ["monday"]}, ["tuesday"]),
        ({"stopwords": ["Monday"], "is_case_sensitive": 1}, ["tuesday", "MONDAY"]),
        ({"stopwords": ["monday", "TUESDAY"]}, [""]),
    ],
)
def test_strings_are_normalised(call: Call, attributes: Any, expected: list[str]) -> None:
    x = words("Monday", "tuesday", "MONDAY")
    assert call("StringNormalizer", x, **attributes).tolist() == expected
    assert call("StringNormalizer", x[None], **attributes).tolist() == [expected]


def test_n_grams_are_counted_and_weighted(call: Call) -> None:
    x = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]])
    options = {
        "min_gram_length": 2,
        "max_gram_length": 2,
        "ngram_counts": [0, 4],
        "ngram_indexes": [0, 1, 2, 3, 4, 5, 6],
        "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
    }
    plain = call("TfIdfVectorizer", x, mode="TF", max_skip_count=0, **options)
    assert plain.tolist() == [[0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1]]
    skipping = call("TfIdfVectorizer", x, mode="TF", max_skip_count=5, **options)
    assert skipping[1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    weights = [1.0, 1.0, 1.0, 1.0, 0.5, 2.0, 3.0]
    weighted = call(
        "TfIdfVectorizer", x[1], mode="TFIDF", max_skip_count=5, weights=weights, **options
    )
    assert weighted.tolist() == [0, 0, 0, 0, 0.5, 2, 3]
    assert weighted.dtype == np.float32
