"""One tensor judged: its error, whatever its size."""

import math

import numpy as np
import pytest

from polytool.comparators.judge import relative_l2


@pytest.mark.parametrize("size", [1.0, 1e-300, 1e200, 1e-170])
def test_the_relative_error_does_not_depend_on_the_size_of_the_values(size):
    value, reference = np.array([3.0, 4.1]) * size, np.array([3.0, 4.0]) * size
    assert relative_l2(value, reference) == pytest.approx(0.02)
    assert relative_l2(reference, reference) == 0


def test_what_is_not_finite_alike_on_both_sides_is_left_out():
    both = np.array([np.nan, np.inf, -np.inf, 2.0])
    assert relative_l2(both + np.array([0, 0, 0, 1]), both) == 0.5
    assert relative_l2(both, [np.nan, np.inf, np.inf, 2.0]) is None
    assert relative_l2([np.inf, 1.0], [1.0, 1.0]) is None


def test_an_error_against_zeros_is_infinite_and_no_error_is_none_at_all():
    assert relative_l2([0.0, 1e-30], [0.0, 0.0]) == math.inf
    assert relative_l2([0.0, 0.0], [0.0, 0.0]) == 0
    assert relative_l2(np.zeros(0), np.zeros(0)) == 0
