"""Tuned attention equals the operator in float64."""

import numpy as np
import pytest

from tests.tactics.tuned import check, model

RNG = np.random.default_rng(23)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def attention(given, attributes=""):
    attributes = f"<{attributes}>" if attributes else ""
    return model(
        f"y = Attention{attributes}({given})",
        "float[B,H,Q,D] q, float[B,G,K,D] k, float[B,G,K,E] v"
        + (", float[M,N,Q,K] m" if " m" in given else ""),
        "float[B,H,Q,E] y",
        {},
        opset=23,
    )


@pytest.mark.parametrize(
    "sizes", [(1, 6, 9, 21, 64, 64), (2, 3, 150, 130, 16, 8), (1, 1, 1, 1, 4, 4)]
)
@pytest.mark.parametrize("attributes", ["", "scale=1.0"])
@pytest.mark.parametrize("masked", [False, True])
def test_heads(sizes, attributes, masked):
    b, h, queries, keys, d, e = sizes
    feeds = {"q": normal(b, h, queries, d), "k": normal(b, h, keys, d), "v": normal(b, h, keys, e)}
    if masked:
        feeds["m"] = normal(1, h, queries, keys)
        feeds["m"][0, 0, 0, 1:] = -np.inf
    proto = attention(f"q, k, v{', m' if masked else ''}", attributes)
    check(proto, feeds, tactic="numpy.attention", tolerance=4e-6)


def test_queries_that_attend_nothing():
    feeds = {name: normal(1, 2, 5, 8) for name in "qkv"} | {"m": normal(1, 2, 5, 5)}
    feeds["m"][0, 1, 3] = -np.inf
    check(attention("q, k, v, m"), feeds, tactic="numpy.attention", tolerance=4e-6)


def test_keys_shared_by_groups_of_queries_take_the_operator():
    feeds = {"q": normal(1, 4, 5, 8), "k": normal(1, 2, 6, 8), "v": normal(1, 2, 6, 8)}
    check(attention("q, k, v"), feeds, tactic="numpy.attention", tolerance=4e-6)


def test_heads_that_are_transposed_views():
    proto = model(
        "q = Transpose<perm=[0,2,1,3]>(x) k = Transpose<perm=[0,2,1,3]>(z)"
        " v = Transpose<perm=[0,2,1,3]>(w) y = Attention(q, k, v)",
        "float[1,9,4,16] x, float[1,11,4,16] z, float[1,11,4,16] w",
        "float[1,4,9,16] y",
        {},
        opset=23,
    )
    feeds = {"x": normal(1, 9, 4, 16), "z": normal(1, 11, 4, 16), "w": normal(1, 11, 4, 16)}
    check(proto, feeds, tactic="numpy.attention", tolerance=4e-6)
