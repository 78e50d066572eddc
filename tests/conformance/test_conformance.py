"""The native engine passes the ONNX conformance suite but for what is listed with a reason."""

from __future__ import annotations

import random
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest

from scripts.conformance import Case, Result, cases, compare, main, maker, run

LISTED: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("expected_failures.toml").read_text(encoding="utf-8")
)
EXPECTED = LISTED["native"] | LISTED["random"]
EXPECTED_FP64 = LISTED["fp64"] | LISTED["random"]


def failures(chosen: list[Case], **options: object) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [run(case, maker("native", dict(options))) for case in chosen]
    return {r.name: r.reason for r in results if r.reason is not None}


def tenth(chosen: list[Case], seed: int) -> list[Case]:
    return random.Random(seed).sample(chosen, len(chosen) // 10)


def without(listed: dict[str, str]) -> list[Case]:
    return [case for case in cases() if case.name not in listed]


def assert_none(failed: dict[str, str]) -> None:
    assert not failed, "\n".join(f"{name}: {reason}" for name, reason in failed.items())


def test_a_tenth_of_the_suite_passes() -> None:
    assert_none(failures(tenth(without(EXPECTED), 1)))


def test_a_tenth_of_the_suite_passes_unfused_in_float64() -> None:
    chosen = tenth(without(EXPECTED_FP64), 2)
    assert_none(failures(chosen, precision="fp64", optimize=False))


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [True, False])
def test_the_suite_passes(optimize: bool) -> None:
    assert_none(failures(without(EXPECTED), optimize=optimize))


@pytest.mark.slow
def test_the_suite_passes_unfused_in_float64() -> None:
    assert_none(failures(without(EXPECTED_FP64), precision="fp64", optimize=False))


@pytest.mark.parametrize(
    ("table", "options"), [("native", {}), ("fp64", {"precision": "fp64", "optimize": False})]
)
def test_every_expected_failure_still_fails(table: str, options: dict[str, object]) -> None:
    listed = [case for case in cases() if case.name in LISTED[table]]
    assert sorted(case.name for case in listed) == sorted(LISTED[table])
    passing = set(LISTED[table]) - set(failures(listed, **options))
    assert passing == set(), "remove them from expected_failures.toml"


def test_failures_stay_below_the_mark() -> None:
    assert len(cases()) == 2033
    assert len(EXPECTED) <= 2033 - 2022


@pytest.mark.ort
def test_the_tool_runs_other_runners(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runner", "onnxrt", "--kind", "node", "--filter", "^test_abs$"]) == 0
    assert main(["--runner", "reference", "--kind", "node", "--filter", "^test_abs$"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1 of     1 pass") == 4


def test_the_tool_names_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", "simple", "--filter", "gradient_of_add$"]) == 1
    assert "test_gradient_of_add (simple): UnsupportedError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("got", "want", "message"),
    [
        (np.float32([1, 2]), np.float32([1, 3]), "first at (1,): 2.0 instead of 3.0"),
        (np.float32([1]), np.float64([1]), "is float32, not float64"),
        (np.float32([[1]]), np.float32([1]), "has shape (1, 1), not (1,)"),
        (np.float32([np.nan]), np.float32([1]), "differs in 1 of 1"),
        (np.array(["a"], object), np.array(["b"], object), "differs in 1 strings"),
        (None, np.float32([1]), "is nothing instead of ndarray"),
        ([np.float32([1])], [], "has 1 elements, not 0"),
        ([np.float32([1])], [np.float32([2])], "'y[0]' differs"),
    ],
)
def test_a_difference_is_an_error(got: object, want: object, message: str) -> None:
    with pytest.raises(AssertionError) as err:
        compare("y", got, want, 1e-3, 1e-7)
    assert message in str(err.value)


def test_a_result_says_where_the_case_comes_from() -> None:
    case = next(c for c in cases(["simple"]) if c.name == "test_gradient_of_add")
    result = run(case, maker("native", {}))
    assert isinstance(result, Result)
    assert result.kind == "simple"
