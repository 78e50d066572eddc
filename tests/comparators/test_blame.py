"""Which of several runs is off, in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from polytool.comparators.blame import who_is_off
from polytool.comparators.compare import compare_all
from polytool.comparators.tolerances import criteria_of
from polytool.results import Iteration, Run, RunResults

TRUTH = np.random.default_rng(0).standard_normal(100)


def sentence(**errors: float) -> str | None:
    rng = np.random.default_rng(1)
    runs = [Run("oracle", [Iteration({"y": TRUTH})])]
    for name, error in errors.items():
        noisy = TRUTH * (1 + error * rng.standard_normal(100))
        runs.append(Run(name, [Iteration({"y": noisy})]))
    criteria = criteria_of({"": 1e-4}, {"": 1e-6}, {})
    return who_is_off(compare_all(RunResults(runs), reference="oracle", criteria=criteria))


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"native": 1e-2, "onnxrt": 1e-7}, "native is off: onnxrt agrees with oracle (native "),
        ({"native": 1e-7, "onnxrt": 1e-2}, "onnxrt is off: native agrees with oracle (native "),
        ({"native": 1e-2, "onnxrt": 1e-1}, "native and onnxrt are all off, native is the nearest"),
        ({"native": 1e-2, "onnxrt": 1.1e-2}, "native and onnxrt are all off, about as far"),
        ({"native": 1e-8, "onnxrt": 1e-6}, "none is off, native is the nearest"),
        ({"native": 1e-7, "onnxrt": 1.1e-7}, "none is off (native "),
        (
            {"a": 1e-2, "b": 1e-2, "c": 1e-7, "d": 1e-7},
            "a and b are off: c and d agree with oracle",
        ),
    ],
)
def test_the_sentence_names_who_is_off(errors, said):
    assert (sentence(**errors) or "").startswith(said)


def test_one_run_alone_is_blamed_by_nobody():
    assert sentence(native=1e-2) is None
