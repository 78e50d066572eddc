"""The fix search against exhaustive search."""

import itertools

import numpy as np
import pytest

from polytool.comparators.search import find_fix


def smallest(names, accepts) -> int | None:
    for size in range(len(names) + 1):
        if any(accepts(frozenset(c)) for c in itertools.combinations(names, size)):
            return size
    return None


@pytest.mark.parametrize("seed", range(40))
def test_errors_that_add_up_are_fixed_with_the_fewest_layers(seed):
    """Independent errors in random order of magnitude, estimated to within a factor of two."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(10, 15))
    names = [f"layer{i}" for i in range(count)]
    power = dict(zip(names, rng.lognormal(0, 2, count), strict=True))
    bound = sum(sorted(power.values())[: count - int(rng.integers(1, 6))]) * 1.01

    def accepts(kept):
        return sum(p for n, p in power.items() if n not in kept) <= bound

    guess = sorted(names, key=lambda n: -power[n] * rng.uniform(0.5, 2))
    fix = find_fix(guess, accepts)
    best = smallest(names, accepts)
    assert fix.kept is not None and best is not None
    assert accepts(frozenset(fix.kept)) and len(fix.kept) <= 1.5 * best
    for one in fix.kept:
        assert not accepts(frozenset(fix.kept) - {one})


@pytest.mark.parametrize("seed", range(20))
def test_layers_that_are_only_needed_together(seed):
    """Two or three culprits anywhere in the order: each alone does not help."""
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(30)]
    needed = frozenset(rng.choice(names, int(rng.integers(2, 4)), replace=False).tolist())
    fix = find_fix(names, lambda kept: needed <= kept)
    assert fix.kept is not None and frozenset(fix.kept) == needed and fix.minimal


def test_nothing_is_kept_when_the_target_is_met():
    assert find_fix(["a", "b"], lambda kept: True).kept == ()


def test_no_set_is_said_so():
    assert find_fix(["a", "b"], lambda kept: False).kept is None


def test_the_number_of_runs_is_bounded():
    names = [f"layer{i}" for i in range(300)]
    runs = []
    fix = find_fix(names, lambda kept: runs.append(kept) or len(kept) >= 150, most_runs=50)
    assert fix.kept is not None and len(runs) <= 60 and len(fix.kept) >= 150


def test_a_set_that_no_order_suggests_is_found_with_extra_runs():
    names = [f"layer{i}" for i in range(11)]
    lucky = {"layer0", "layer6", "layer9"}

    def accepts(kept):
        return lucky == kept or len(kept) >= 8

    assert len(find_fix(names, accepts).kept or ()) == 8
    assert set(find_fix(names, accepts, extra_runs=1000).kept or ()) == lucky
