"""Tensors that live at the same time never overlap, and little is wasted."""

import numpy as np
import pytest

from polytool.backends.native.memory import ALIGNMENT, Lifetime, lower_bound, plan_arena


def random_lifetimes(seed: int) -> list[Lifetime]:
    """Like a network: each is written at its step and read a few steps on, some much later."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 200))
    reads = rng.geometric(0.4, count) + rng.integers(0, 30, count) * (rng.random(count) < 0.1)
    sizes = rng.integers(0, 1 << int(rng.integers(4, 24)), count)
    return [Lifetime(int(sizes[i]), i, i + int(reads[i])) for i in range(count)]


@pytest.mark.parametrize("seed", range(50))
def test_live_tensors_do_not_overlap_and_the_arena_is_small(seed):
    tensors = random_lifetimes(seed)
    arena = plan_arena(tensors)
    for i, (a, at) in enumerate(zip(tensors, arena.offsets, strict=True)):
        assert at % ALIGNMENT == 0 and at + a.size <= arena.size
        for b, other in zip(tensors[:i], arena.offsets[:i], strict=True):
            together = a.first <= b.last and b.first <= a.last
            assert not together or at + a.size <= other or other + b.size <= at
    assert lower_bound(tensors) <= arena.size <= 1.3 * lower_bound(tensors)


def test_nothing_takes_nothing():
    assert plan_arena([]).size == 0


def test_neighbours_in_time_share_memory():
    chain = [Lifetime(1000, i, i + 1) for i in range(20)]
    assert plan_arena(chain).size == 2 * 1024
