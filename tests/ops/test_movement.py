"""Shapes and order: Reshape's zeros, uneven splits, broadcasts, pads, products by labels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from polytool.errors import PolytoolError

Call = Any


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("old", "new", "allowzero", "expected"),
    [
        ((2, 3, 4), (0, -1), 0, (2, 12)),
        ((2, 3, 4), (0, 0, 2, -1), 0, (2, 3, 2, 2)),
        ((0, 3), (3, 0), 1, (3, 0)),
        ((0, 3), (0, -1), 0, (0, 3)),
        ((0, 3), (-1, 3), 0, (0, 3)),
        ((1,), (), 0, ()),
        ((), (1, 1), 0, (1, 1)),
    ],
)
def test_reshape(call: Call, old: Any, new: Any, allowzero: int, expected: Any) -> None:
    assert call("Reshape", np.zeros(old), ints(*new), allowzero=allowzero).shape == expected


@pytest.mark.parametrize(
    ("axis", "expected"), [(0, (1, 24)), (1, (2, 12)), (-1, (6, 4)), (3, (24, 1)), (-3, (1, 24))]
)
def test_flatten(call: Call, axis: int, expected: Any) -> None:
    assert call("Flatten", np.zeros((2, 3, 4)), axis=axis).shape == expected
    assert call("Flatten", np.zeros(()), axis=0).shape == (1, 1)


def test_squeeze_names_axes_that_are_too_long(call: Call) -> None:
    x = np.zeros((1, 3, 1))
    assert call("Squeeze", x).shape == (3,)
    assert call("Squeeze", x, ints(-1)).shape == (1, 3)
    with pytest.raises(PolytoolError, match=r"axes \[1\] of shape \[1, 3, 1\]"):
        call("Squeeze", x, ints(0, 1))


def test_unsqueeze_counts_axes_in_the_result(call: Call) -> None:
    assert call("Unsqueeze", np.zeros((3, 4)), ints(-1, 0)).shape == (1, 3, 4, 1)
    assert call("Unsqueeze", np.zeros(()), ints(0, 1)).shape == (1, 1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((3, 1), (2, 1, 6), (2, 3, 6)),
        ((3, 4), (1,), (3, 4)),
        ((1,), (0,), (0,)),
        ((0, 1), (1, 5), (0, 5)),
        ((), (2, 2), (2, 2)),
        ((100, 1), (100, 100), (100, 100)),
    ],
)
def test_expand(call: Call, old: Any, new: Any, expected: Any) -> None:
    x = np.arange(np.prod(old, dtype=int)).reshape(old)
    result = call("Expand", x, ints(*new))
    np.testing.assert_array_equal(result, np.broadcast_to(x, expected))


def test_expand_refuses_what_does_not_broadcast(call: Call) -> None:
    with pytest.raises(PolytoolError, match=r"\[3\] with \[2, 4\]"):
        call("Expand", np.zeros(3), ints(2, 4))


def test_split(call: Call) -> None:
    x = np.arange(14).reshape(2, 7)
    uneven = call("Split", x, axis=1, num_outputs=3, n_outputs=3)
    assert [p.shape for p in uneven] == [(2, 3), (2, 3), (2, 1)]
    given = call("Split", x, ints(0, 7), axis=-1, n_outputs=2)
    assert [p.shape for p in given] == [(2, 0), (2, 7)]
    first = call("Split", x, axis=1, num_outputs=7, n_outputs=1)
    assert [p.shape for p in first] == [(2, 1)]
    with pytest.raises(PolytoolError, match="axis of 7 into 2 parts"):
        call("Split", x, ints(3, 3), axis=1, n_outputs=2)


def test_blocks_move_there_and_back(call: Call) -> None:
    x = np.random.default_rng(0).standard_normal((2, 12, 4, 6))
    for mode in ("DCR", "CRD"):
        deep = call("DepthToSpace", x, blocksize=2, mode=mode)
        assert deep.shape == (2, 3, 8, 12)
        np.testing.assert_array_equal(call("SpaceToDepth", deep, blocksize=2, mode=mode), x)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("widths", [((1, 2), (0, 3)), ((5, 7), (9, 11)), ((0, 0), (2, 0))])
def test_pad_as_numpy_does(call: Call, mode: str, widths: Any) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    pads = ints(*(w[0] for w in widths), *(w[1] for w in widths))
    np.testing.assert_array_equal(call("Pad", x, pads, mode=mode), np.pad(x, widths, mode))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_negative_pads_cut_before_the_others_are_filled(call: Call, mode: str) -> None:
    x = np.arange(20).reshape(4, 5)
    result = call("Pad", x, ints(-1, 2, 0, -2), mode=mode)
    np.testing.assert_array_equal(result, np.pad(x[1:, :3], ((0, 0), (2, 0)), mode))


def test_pad_of_some_axes_and_of_one_element(call: Call) -> None:
    x = np.ones((2, 1, 3), np.int8)
    result = call("Pad", x, ints(1, 2), np.array(9, np.int8), ints(-2))
    assert result.dtype == np.int8
    assert result[0, :, 0].tolist() == [9, 1, 9, 9]
    assert call("Pad", x, ints(2, 1), None, ints(1), mode="reflect")[0, :, 0].tolist() == [1] * 4


def test_center_crop_pad_rounds_as_specified(call: Call) -> None:
    x = np.arange(1, 6)
    assert call("CenterCropPad", x, ints(2)).tolist() == [2, 3]
    assert call("CenterCropPad", x, ints(8)).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert call("CenterCropPad", np.ones((3, 4)), ints(6), axes=[-1]).shape == (3, 6)


EQUATIONS = [
    *("ij,jk->ik", "bij,bjk->bik", "bhqd,bhkd->bhqk", "i,j->ij", "i,i->", "ij,ij->ij"),
    *("...ij,...jk->...ik", "ij,kj->ki", "abc,cd->dab", "bij,kj->bki", "ii->i", "ii", "ij->ji"),
    *("ij->", "ij,jk", "ba", "iji,j->i", "ij,jk,kl->il", "a...,...->a...", "ij,k->i", "b i , i j"),
    *("...,...->...", "bn,anm,bm->ba", "Ab,bC->CA"),
]


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("kind", [np.float64, np.int32])
def test_einsum_as_numpy_does(call: Call, equation: str, kind: Any) -> None:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {c: 2 + i for i, c in enumerate("ijklabchqdnmAC")}
    generator = np.random.default_rng(1)
    inputs = []
    for term in terms:
        dots = (3, 1) if "..." in term else ()
        dims = [*dots, *(sizes[c] for c in term.replace("...", ""))]
        inputs.append(generator.integers(-4, 5, dims).astype(kind))
    result = call("Einsum", *inputs, equation=equation)
    assert isinstance(result, np.ndarray)
    assert result.dtype == kind
    np.testing.assert_allclose(result, np.einsum(equation, *inputs))


def test_einsum_broadcasts_lengths_of_one(call: Call) -> None:
    a, b = np.ones((4, 1)), np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(call("Einsum", a, b, equation="ij,jk->ik"), [[6, 9]] * 4)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.int64])
def test_products_of_every_type(call: Call, kind: Any) -> None:
    generator = np.random.default_rng(0)
    a = generator.integers(0, 5, (2, 1, 3, 4)).astype(kind)
    b = generator.integers(0, 5, (3, 4, 2)).astype(kind)
    result = call("MatMul", a, b)
    assert result.dtype == kind
    np.testing.assert_array_equal(result, np.matmul(a, b))
    for left, right in itertools.product((a[0, 0, 0], a[0, 0]), (b[0, :, 0], b[0])):
        np.testing.assert_array_equal(call("MatMul", left, right), left @ right)
    c = generator.integers(0, 5, (1, 2)).astype(kind)
    y = call("Gemm", a[0, 0].T, b[0].T, c, alpha=2.0, beta=3.0, transA=1, transB=1)
    assert y.dtype == kind
    np.testing.assert_array_equal(y, 2 * (a[0, 0] @ b[0]) + 3 * c)


def test_products_over_nothing_are_zero(call: Call) -> None:
    assert call("MatMul", np.zeros((2, 0)), np.zeros((0, 3))).tolist() == [[0] * 3] * 2
    assert call("Gemm", np.zeros((2, 0)), np.zeros((0, 3)), np.ones(3)).tolist() == [[1] * 3] * 2


def test_determinants_of_batches(call: Call) -> None:
    x = np.float32([[[1, 2], [3, 4]], [[2, 0], [0, 2]]])
    np.testing.assert_allclose(call("Det", x), [-2, 4], 1e-6)
    assert isinstance(call("Det", x[0]), np.ndarray)
    assert call("Det", x).dtype == np.float32
