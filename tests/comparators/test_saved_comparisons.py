"""Saved comparisons: judged again by other criteria, without the arrays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from polytool.comparators.compare import compare
from polytool.comparators.comparison import Comparison
from polytool.comparators.tolerances import Criteria, criteria_of
from polytool.errors import ModelError, UsageError

X = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


def noisy(x, relative, seed=1):
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return (x * (1 + relative * noise)).astype(x.dtype)


@pytest.fixture
def saved(tmp_path):
    a = [{"y": noisy(X, 1e-3, s), "z": X, "gone": X, "nan": np.array([np.nan, 1])} for s in (1, 2)]
    r = [{"y": X, "z": X, "nan": np.array([0.0, 1])}] * 2
    comparison = compare(a, r, criteria=Criteria(full=True))
    comparison.save(tmp_path / "c.json")
    return comparison, tmp_path / "c.json"


def test_a_saved_comparison_says_the_same(saved):
    comparison, path = saved
    loaded = Comparison.load(path)
    assert loaded.to_json() == comparison.to_json()
    assert loaded.outputs["z"].metrics["snr"] == math.inf
    json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(c))


@pytest.mark.parametrize("rtol", [0, 1e-4, 2e-3, 5e-3, 1e-2])
@pytest.mark.parametrize("atol", [0, 1e-4, 1e-3, 1e-1])
def test_other_tolerances_are_decided_without_the_arrays(saved, rtol, atol):
    comparison = Comparison.load(saved[1])
    found = comparison.recheck(criteria_of({"y": rtol}, {"y": atol}))
    expected = all(np.allclose(noisy(X, 1e-3, s), X, rtol, atol) for s in (1, 2))
    assert found.outputs["y"].agreed == expected
    assert found.outputs["z"].agreed and found.outputs["gone"].verdict == "differ"


def test_other_metrics_and_statistics_are_decided_without_the_arrays(saved):
    comparison = Comparison.load(saved[1])
    assert comparison.recheck(criteria_of(metrics={"cosine_similarity": 0.99})).outputs["y"].agreed
    assert not comparison.recheck(criteria_of(metrics={"snr": 100})).outputs["y"].agreed
    assert not comparison.recheck(criteria_of(metrics={"snr": 1})).outputs["nan"].agreed
    for statistic in ("max", "mean", "median", "quantile"):
        criteria = criteria_of(0.1, None, statistic={"": statistic})
        assert comparison.recheck(criteria).outputs["y"].agreed
    average = criteria_of(metrics={"relative_l2": 1e-2}, average=True)
    assert comparison.recheck(average).outputs["y"].agreed


def test_what_was_not_gathered_cannot_be_asked(tmp_path):
    compare({"y": noisy(X, 1e-3)}, {"y": X}, metrics=["snr"]).save(tmp_path / "c.json")
    comparison = Comparison.load(tmp_path / "c.json")
    for criteria in (criteria_of(1.0, statistic={"": "median"}), criteria_of(metrics=["ulp"])):
        with pytest.raises(UsageError, match="compare again from saved outputs"):
            comparison.recheck(criteria)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cut short"), ("{}", "no saved comparison"), ("[1]", "no saved comparison"),
     ('{"format": "polytool.comparison", "version": 7}', "another version"),
     ('{"format": "polytool.comparison", "version": 1, "pairs": 3}', "no saved comparison")],
)  # fmt: skip
def test_unusable_comparisons_are_named(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        Comparison.load(tmp_path / "c.json")
    with pytest.raises(ModelError, match="cannot be read"):
        Comparison.load(tmp_path / "absent.json")
