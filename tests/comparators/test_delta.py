"""Delta debugging finds exactly what is needed, in few tests."""

import numpy as np
import pytest

from polytool.comparators.delta import ddmin, linear


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("shrink", [ddmin, linear])
def test_exactly_the_culprits_remain(seed, shrink):
    rng = np.random.default_rng(seed)
    count = 60 if shrink is linear else 700
    culprits = set(rng.choice(count, int(rng.integers(1, 5)), replace=False).tolist())
    assert set(shrink(range(count), lambda s: culprits <= set(s))) == culprits


def test_two_distant_culprits_take_few_tests():
    tests = []
    found = ddmin(range(700), lambda s: tests.append(s) or {13, 650} <= set(s))
    assert found == [13, 650] and len(tests) < 120


def test_alternatives_leave_a_minimal_set():
    def fails(subset):
        return {1, 2} <= set(subset) or {7, 8, 9} <= set(subset)

    found = ddmin(range(10), fails)
    assert fails(found) and not any(fails([i for i in found if i != one]) for one in found)


def test_one_item_stays():
    assert ddmin([5], lambda s: True) == [5]
