"""Shapes of made data: static, given, following from names, and refused."""

from __future__ import annotations

import pytest

from polytool.errors import UsageError
from polytool.feed_shapes import parse_shapes, resolve_shapes
from polytool.tensors import DType, TensorSpec


def spec(name, *shape, dtype=DType.FLOAT):
    return TensorSpec(name, dtype, shape)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("a:0:[2, 5]", {"a:0": (2, 5)}),
        ("ids*:16", {"ids*": (16,)}),
        ("sr:[]", {"sr": ()}),
    ],
)
def test_shapes_are_read_in_both_spellings(text, expected):
    assert parse_shapes([text]) == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["[1,3]"], "names no tensor"),
        (["x:[1,a]"], "is not a shape such as"),
        (["x:"], "is not a shape such as"),
        (["x:[-1,3]"], "is not a shape such as"),
        (["x:[1]", "x:[2]"], "second value for 'x'"),
    ],
)
def test_unreadable_shapes_are_refused(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_shapes(texts)


def test_a_batch_is_one_and_static_dimensions_stay():
    inputs = [spec("x", "batch", 3, 8), spec("y", None, 4), spec("z", "unk__7", 2)]
    inputs += [spec("state", 2, "batch_size", 4), spec("s"), spec("w", "p2o.DynamicDimension.0", 1)]
    assert list(resolve_shapes(inputs).values()) == [
        (1, 3, 8), (1, 4), (1, 2), (2, 1, 4), (), (1, 1),
    ]  # fmt: skip


def test_a_dimension_follows_its_name():
    inputs = [spec("ids", "batch", "seq"), spec("mask", "batch", "seq"), spec("h", "seq", 4)]
    shapes = resolve_shapes(inputs, {"ids": (3, 7)})
    assert shapes == {"ids": (3, 7), "mask": (3, 7), "h": (7, 4)}


def test_a_name_that_exporters_invent_means_nothing():
    inputs = [spec("x", "?", 3, "?", "?"), spec("y", 1, "?")]
    with pytest.raises(UsageError, match=r"open that cannot be guessed \(y: float32\[1, \?\]\)"):
        resolve_shapes(inputs, {"x": (2, 3, 8, 9)})


def test_a_pattern_gives_many_shapes_and_an_exact_name_wins():
    inputs = [spec(n, "n", "m") for n in ("past.0", "past.1", "past[2]")]
    shapes = resolve_shapes(inputs[:2], {"past.*": (1, 4)})
    assert set(shapes.values()) == {(1, 4)}
    shapes = resolve_shapes([spec("past.0", None, None), spec("past[2]", None, None)],
                            {"past[2]": (2, 2), "past*": (1, 4)})  # fmt: skip
    assert shapes == {"past.0": (1, 4), "past[2]": (2, 2)}


def test_a_static_dimension_can_be_overridden():
    assert resolve_shapes([spec("x", 1, 3)], {"x": (4, 3)}) == {"x": (4, 3)}


def test_every_open_input_is_named_and_the_example_is_enough():
    inputs = [
        spec("image", "batch", 3, "height", "width"),
        spec("ids", "batch", "seq", dtype=DType.INT64),
        spec("mask", "batch", "seq", dtype=DType.BOOL),
        spec("nodes", "num_nodes", 85),
        spec("fine", "batch", 2),
    ]
    with pytest.raises(UsageError) as caught:
        resolve_shapes(inputs)
    message = str(caught.value)
    assert "image: float32[batch, 3, height, width]" in message and "fine" not in message
    example = message.partition("--input-shapes ")[2].split()
    assert example == ["image:[1,3,224,224]", "ids:[1,16]", "nodes:[16,85]"]
    assert set(resolve_shapes(inputs, parse_shapes(example))) == {s.name for s in inputs}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": (1, 2)}, "given for 'y', which does not exist; there are x, mask"),
        ({"mas": (1, 2)}, "did you mean 'mask'"),
        ({"x": (1, 2, 3)}, "has 3 dimensions, but the model declares x: float32"),
        ({"x": (1, 2), "mask": (1, 3)}, "dimension 'seq' is 2 in 'x' and 3 in 'mask'"),
    ],
)
def test_shapes_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        resolve_shapes([spec("x", 1, "seq"), spec("mask", 1, "seq")], given)


def test_lengths_have_one_entry_a_sequence():
    inputs = [
        TensorSpec("ids", DType.INT64, ("d0", "d1")),
        TensorSpec("length", DType.INT64, ("DynamicDimension.2",)),
    ]
    assert resolve_shapes(inputs, {"ids": (1, 17)})["length"] == (1,)


def test_an_unknown_rank_needs_a_shape():
    inputs = [TensorSpec("x", DType.FLOAT, None)]
    with pytest.raises(UsageError, match=r"x: float32\[\?\.\.\.\]"):
        resolve_shapes(inputs)
    assert resolve_shapes(inputs, {"x": (2, 2)}) == {"x": (2, 2)}
