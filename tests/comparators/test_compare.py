"""The verdict: every kind of value, the default rule, tolerances, metrics, iterations."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest

import polytool
from polytool.comparators.compare import compare, compare_all
from polytool.comparators.response import NOISE, Response, perturb
from polytool.comparators.tolerances import Criteria, criteria_of, floor_of
from polytool.errors import UsageError
from polytool.results import Iteration, Run, RunResults
from polytool.tensors import DType

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 64)).astype(np.float32)


def verdict(a, r, **options):
    return compare({"y": a}, {"y": r}, **options).verdict


def noisy(x, relative, seed=1):
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return (x * (1 + relative * noise)).astype(x.dtype)


def never(times):
    raise AssertionError("the response must not be measured")


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1, 1e6, 1e30])
def test_the_default_rule_does_not_see_scale(scale):
    x = (X * np.float32(scale)).astype(np.float32)
    assert verdict(noisy(x, 1e-6), x, response=never) == "agree"
    assert verdict(noisy(x, 1e-3), x) == "differ"
    assert verdict(np.zeros_like(x), x) == "differ"
    assert verdict(np.roll(x, 1), x) == "differ"


def test_a_tiny_error_beside_large_values_agrees():
    x = np.array([1e6, 2e6, 1e-3], np.float32)
    assert verdict(x + np.float32([0, 0, 1e-6]), x) == "agree"


def test_one_wrong_element_in_a_million_differs():
    x = RNG.standard_normal((1000, 1000)).astype(np.float32)
    wrong = x.copy()
    wrong[500, 500] += 1e-2
    found = compare({"y": wrong}, {"y": x}).outputs["y"]
    assert found.verdict == "differ" and found.metrics["rel_l2"] < 1e-4
    assert found.worst.errors.worst == (500, 500)


def test_a_small_channel_beside_large_ones_is_seen():
    x = np.concatenate([400 * RNG.random((1, 3000, 4)), RNG.random((1, 3000, 2))], -1)
    x = x.astype(np.float32)
    wrong = x.copy()
    wrong[..., 4] *= 1.2
    found = compare({"y": wrong}, {"y": x}).outputs["y"]
    assert found.verdict == "differ" and "slice 4 along axis 2" in found.judgement.reason


EVERY = {d: np.ones((2, 3)).astype(d.numpy) for d in DType if d is not DType.STRING}
EVERY[DType.STRING] = np.array([["a", "b", "c"]], object)


@pytest.mark.parametrize("kind", list(DType))
def test_every_element_type_agrees_with_itself_and_differs_from_another(kind):
    x = EVERY[kind]
    assert verdict(x.copy(), x) == "agree"
    other = x.copy()
    other.reshape(-1)[1] = (
        "z" if kind is DType.STRING else x.dtype.type(0.25 if "E8M0" in kind.name else 0)
    )
    found = compare({"y": other}, {"y": x}).outputs["y"]
    assert found.verdict == "differ" and found.worst.errors.mismatched == 1


@pytest.mark.parametrize(
    ("a", "r", "expected"),
    [
        (None, None, "agree"),
        (None, X, "differ"),
        ([X, X], [X, X], "agree"),
        ([X, X], [X, np.zeros_like(X)], "differ"),
        ([X], [X, X], "differ"),
        ([], [], "agree"),
        (X, [X], "differ"),
        ({1: X, "b": X}, {1: X, "b": X}, "agree"),
        ({1: X}, {2: X}, "differ"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "agree"),
        (np.zeros((0, 3)), np.zeros((0, 4)), "differ"),
        (np.float32(1.5), np.float32(1.5), "agree"),
        (np.array(1.5), np.array(1.6), "differ"),
        (1.5, 1.5, "agree"),
        (["a"], ["a"], "agree"),
        (X, X.astype(np.float64), "differ"),
        (X, X.reshape(-1), "differ"),
        (np.full(3, np.nan), np.full(3, np.nan), "not_compared"),
        (np.array([np.nan, 1]), np.array([np.nan, 1]), "agree"),
        (np.array([np.nan, 1]), np.array([0, 1.0]), "differ"),
        (np.array([np.inf]), np.array([-np.inf]), "differ"),
        (np.array([True, False]), np.array([True, True]), "differ"),
    ],
)
def test_every_kind_of_value(a, r, expected):
    assert verdict(a, r) == expected


def test_the_worst_array_of_a_sequence_is_named():
    found = compare({"y": [X, 2 * X, X]}, {"y": [X, X, X]}).outputs["y"]
    assert found.worst.path == "[1]" and found.metrics["rel_l2"] == pytest.approx(1)


@pytest.mark.parametrize(("a", "r"), [({"y": X}, {"y": X, "z": X}), ({"y": X, "z": X}, {"y": X})])
def test_an_output_that_one_side_lacks_differs(a, r):
    found = compare(a, r)
    assert found.verdict == "differ" and found.exit_code == 1 and not found.agreed
    assert "missing in" in found.outputs["z"].judgement.reason
    assert found.outputs["y"].agreed


def test_nothing_to_compare_is_not_compared():
    assert compare({}, {}).verdict == "not_compared"
    assert compare([], []).exit_code == 2


def test_a_missing_iteration_differs():
    found = compare([{"y": X}], [{"y": X}, {"y": X}])
    assert found.verdict == "differ"
    assert found.outputs["y"].judgement.reason == "a has fewer iterations"


def test_the_worst_iteration_decides():
    found = compare([{"y": X}, {"y": 2 * X}, {"y": X}], [{"y": X}] * 3).outputs["y"]
    assert (found.verdict, found.worst_iteration) == ("differ", 1)
    assert found.to_json()["iterations"] == ["agree", "differ", "agree"]


@pytest.mark.parametrize(
    ("rtol", "atol", "expected"),
    [(1e-2, None, "agree"), (1e-4, None, "differ"), (None, 1e-1, "agree"), (None, 1e-5, "differ"),
     (0, 0, "differ"), ({"y": 1e-2}, None, "agree"), ({"*": 1e-2, "y": 1e-9}, None, "differ"),
     ({"": 1e-9, "y*": 1e-2}, None, "agree")],
)  # fmt: skip
def test_given_tolerances_are_those_of_numpy(rtol, atol, expected):
    y = noisy(X, 1e-3)
    assert verdict(y, X, rtol=rtol, atol=atol) == expected
    if isinstance(rtol, float) or isinstance(atol, float):
        assert np.allclose(y, X, rtol or 0, atol or 0) == (expected == "agree")


def test_the_reference_is_the_second():
    assert verdict(np.array([1.0]), np.array([0.0]), rtol=1.0) == "differ"
    assert verdict(np.array([0.0]), np.array([1.0]), rtol=1.0) == "agree"


@pytest.mark.parametrize(
    ("statistic", "atol", "expected"),
    [("max", 0.5, "differ"), ("mean", 0.5, "agree"), ("median", 1e-9, "agree"),
     ("quantile", 1e-9, "agree"), ("mean", 0.01, "differ"), ("elemwise", 0.5, "differ")],
)  # fmt: skip
def test_statistics_of_the_error(statistic, atol, expected):
    y = np.zeros(1000)
    y[0] = 100
    options = {"quantile": {"": 0.99}} if statistic == "quantile" else {}
    criteria = criteria_of(None, atol, statistic={"": statistic}, **options)
    assert verdict(y, np.zeros(1000), criteria=criteria) == expected


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("l2", 1.0, 1e-6), ("relative_l2", 1e-2, 1e-5), ("cosine_similarity", 0.999, 1 - 1e-12),
     ("cosine", 0.999, 1 - 1e-12), ("psnr", 40, 90), ("snr", 40, 90), ("ulp", 1e6, 10)],
)  # fmt: skip
def test_metrics_by_name(name, good, bad):
    y = noisy(X, 1e-3)
    assert verdict(y, X, metrics={name: good}) == "agree"
    assert verdict(y, X, metrics={name: bad}) == "differ"
    assert verdict(y, X, metrics={name: {"": bad, "y*": good}}) == "agree"


def test_several_metrics_must_all_pass_and_simple_stays_where_it_is_asked_for():
    y = noisy(X, 1e-3)
    assert verdict(y, X, metrics=["cosine_similarity", "snr"]) == "agree"
    assert verdict(y, X, metrics={"cosine_similarity": 0.9, "snr": 300}) == "differ"
    assert verdict(y, X, metrics=["simple", "cosine_similarity"]) == "differ"
    assert verdict(y, X, metrics=["quality_metrics"]) == "agree"
    assert verdict(y, X, rtol=1e-9, metrics=["snr"]) == "differ"


def test_indices_may_be_moved_by_the_tolerance():
    a, r = np.array([[1, 0, 2]]), np.array([[0, 1, 2]])
    assert verdict(a, r, metrics={"indices": 1}) == "agree"
    assert verdict(a, r, metrics={"indices": 0}) == "differ"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["magic"]}, "no metric 'magic'; there are l2"),
        ({"rtol": -1}, "-1.0 is no rtol"),
        ({"atol": math.nan}, "nan is no atol"),
        ({"rtol": {"z": 1}}, "a relative tolerance is given for 'z', which does not exist"),
        ({"metrics": {"psnr": {"q*": 3}}}, r"a threshold for psnr is given for 'q\*'"),
    ],
)
def test_wrong_criteria_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        compare({"y": X}, {"y": X}, **options)


def test_wrong_statistics_and_combinations_are_explained():
    with pytest.raises(UsageError, match="'mode' is no error statistic"):
        Criteria(statistic={"": "mode"})
    with pytest.raises(UsageError, match="between 0 and 1"):
        Criteria(quantile={"": 99})
    with pytest.raises(UsageError, match="give --rtol or --atol too"):
        Criteria(statistic={"": "mean"})
    with pytest.raises(UsageError, match="only with --check-error-stat quantile"):
        Criteria(quantile={"": 0.9})
    with pytest.raises(UsageError, match="drop --fail-fast"):
        Criteria(average=True, fail_fast=True)
    with pytest.raises(UsageError, match="can be compared, not int"):
        compare(3, {"y": X})
    with pytest.raises(UsageError, match="cannot be compared"):
        compare({"y": object()}, {"y": X})


def test_shapes_and_types_can_be_let_pass():
    assert verdict(X.reshape(-1), X, criteria=Criteria(check_shapes=False)) == "agree"
    assert verdict(X[:2], X, criteria=Criteria(check_shapes=False)) == "differ"
    ints = np.arange(3, dtype=np.int32)
    assert verdict(ints, ints.astype(np.int64), criteria=Criteria(check_dtypes=False)) == "agree"
    assert (
        verdict(ints + 1, ints.astype(np.int64), criteria=Criteria(check_dtypes=False)) == "differ"
    )
    strings = Criteria(check_dtypes=False)
    assert verdict(np.array(["1"], object), np.array([1]), criteria=strings) == "differ"


def test_specials_can_be_forbidden():
    x = np.array([1, np.inf])
    assert verdict(x, x) == "agree"
    assert verdict(x, x, criteria=Criteria(require_finite=True)) == "differ"


def test_fail_fast_never_passes_what_it_did_not_look_at():
    found = compare({"a": X, "b": 2 * X, "c": X}, {"a": X, "b": X, "c": X},
                    criteria=Criteria(fail_fast=True))  # fmt: skip
    assert [o.verdict for o in found.outputs.values()] == ["agree", "differ", "not_compared"]


def test_an_average_smooths_over_iterations():
    a, r = [{"y": noisy(X, e)} for e in (1e-1, 1e-6)], [{"y": X}] * 2
    metrics = {"relative_l2": 0.07}
    assert compare(a, r, metrics=metrics).verdict == "differ"
    assert compare(a, r, criteria=criteria_of(metrics=metrics, average=True)).verdict == "agree"
    with pytest.raises(UsageError, match="--check-average needs metrics"):
        compare(a, r, criteria=Criteria(average=True))


# The model's own response.


def responding(change, name="y", clean=X):
    noisy_runs = [[{name: change(clean, seed)}] for seed in range(3)]
    return lambda times: Response("native fp32, 3 seeds", [{name: clean}], noisy_runs)


def test_the_response_is_measured_only_when_the_floor_fails():
    assert verdict(noisy(X, 1e-6), X, response=never) == "agree"
    with pytest.raises(AssertionError, match="must not be measured"):
        verdict(noisy(X, 1e-4), X, response=never)


def test_ten_times_the_response_is_allowed():
    response = responding(lambda x, s: noisy(x, 1e-5, s))
    found = compare({"y": noisy(X, 5e-5, 9)}, {"y": X}, response=response).outputs["y"]
    assert found.verdict == "agree" and found.judgement.reason == ""
    assert found.judgement.tolerance["source"] == "10 x response (native fp32, 3 seeds)"
    assert verdict(noisy(X, 3e-4, 9), X, response=response) == "differ"


def test_ten_times_the_noise_is_tried_where_it_may_flip_something():
    asked = []

    def response(times):
        asked.append(times)
        size = 1e-7 if times == 1 else 2e-2
        noise = [[{"y": noisy(X, size, seed)}] for seed in range(3)]
        return Response(f"{times:g} x noise", [{"y": X}], noise)

    one = compare({"y": noisy(X, 2e-2, 9)}, {"y": X}, response=response).outputs["y"]
    assert asked == [1, 10]
    assert one.agreed and one.judgement.unstable
    assert one.judgement.tolerance["source"] == "2 x response (10 x noise)"
    assert verdict(noisy(X, 0.5, 9), X, response=response) == "differ"


def test_the_response_of_each_slice_counts():
    def one_channel(x, seed):
        y = x.copy()
        y[:, 3] = noisy(x[:, 3], 1e-4, seed)
        return y

    x = RNG.standard_normal((200, 8)).astype(np.float32)
    response = responding(one_channel, clean=x)
    assert verdict(one_channel(x, 7), x, response=response) == "agree"
    elsewhere = x.copy()
    elsewhere[:, 5] = noisy(x[:, 5], 1e-4, 7)
    assert verdict(elsewhere, x, response=response) == "differ"


def test_an_unstable_model_is_said_to_be_one():
    response = responding(lambda x, s: noisy(x, 0.02, s))
    found = compare({"y": noisy(X, 0.03, 9)}, {"y": X}, response=response).outputs["y"]
    assert found.verdict == "agree" and found.judgement.unstable
    assert found.judgement.reason == "agrees within the model's own instability"
    assert found.judgement.tolerance["source"].startswith("2 x response")
    assert verdict(noisy(X, 0.5, 9), X, response=response) == "differ"


def test_integers_are_exact_unless_noise_changes_them():
    x = np.arange(100)
    y = x.copy()
    y[3] += 1
    still = responding(lambda v, s: v.copy(), clean=x)
    assert verdict(y, x, response=still) == "differ"

    def flip(v, seed):
        w = v.copy()
        w[seed] += 1
        return w

    found = compare({"y": y}, {"y": x}, response=responding(flip, clean=x)).outputs["y"]
    assert found.verdict == "agree" and found.judgement.unstable
    assert "1 of 100 values differ, within" in found.judgement.reason
    assert verdict(x + 1, x, response=responding(flip, clean=x)) == "differ"
    y[3] += 1000
    assert verdict(y, x, response=responding(flip, clean=x)) == "differ"


def test_shapes_that_noise_changes_too_are_not_compared():
    growing = responding(lambda x, s: np.concatenate([x, x[: s + 1]]))
    assert verdict(X[:3], X, response=growing) == "not_compared"
    assert verdict(X[:3], X, response=responding(lambda x, s: x)) == "differ"
    assert verdict(2 * X, X, response=growing) == "not_compared"


def test_an_output_that_the_response_lacks_has_the_unmeasured_floor():
    response = responding(lambda x, s: x, name="other")
    found = compare({"y": noisy(X, 3e-5)}, {"y": X}, response=response).outputs["y"]
    assert found.verdict == "agree" and "was not measured" in found.judgement.tolerance["source"]


def test_a_grain_allows_for_how_the_operator_rounds():
    x = np.full(100, 1e-6, np.float32)
    y = x + np.float32(1.5e-7)
    assert verdict(y, x) == "differ"
    assert verdict(y, x, grains={"y": 2.0**-22}) == "agree"
    assert verdict(2 * x, x, grains={"y": 2.0**-22}) == "differ"


def test_noise_is_relative_and_seeded():
    x = np.linspace(1, 2, 1000, dtype=np.float32)
    one, two = (perturb(x, np.random.default_rng(s)) for s in (0, 0))
    assert one.dtype == x.dtype and one.tolist() == two.tolist()
    moved = np.abs(one / x.astype(float) - 1)
    assert moved.min() > NOISE / 2 and moved.max() < 2 * NOISE
    large = perturb(np.ones((700, 700), np.float32), np.random.default_rng(0))
    assert set(np.abs(large.astype(float) - 1).ravel()) == {NOISE}
    assert abs(np.corrcoef(large[0], large[1])[0, 1]) < 0.2
    assert perturb(np.arange(3), np.random.default_rng(0)).tolist() == [0, 1, 2]
    assert perturb(np.array(["a"], object), np.random.default_rng(0))[0] == "a"


@pytest.mark.parametrize(
    ("dtypes", "precisions", "expected"),
    [
        ([DType.FLOAT], [], "float32"),
        ([DType.FLOAT, DType.FLOAT], ["fp32", "fp16"], "float16"),
        ([DType.DOUBLE, DType.DOUBLE], [], "float64"),
        ([DType.BFLOAT16, DType.FLOAT], [], "bfloat16"),
        ([DType.FLOAT8E5M2], [], "float8"),
        ([DType.COMPLEX64], [], "float32"),
        ([DType.COMPLEX128], ["unknown"], "float64"),
        ([DType.FLOAT], ["tf32"], "tf32"),
    ],
)
def test_the_floor_is_that_of_the_coarser_side(dtypes, precisions, expected):
    assert floor_of(dtypes, precisions).name == expected


# Results.


def results():
    half = Run("native", [Iteration({"y": noisy(X, 3e-3)})], {"precision": "fp16", "tf32": False})
    full = Run("onnxrt", [Iteration({"y": X})], {"precision": "fp32", "threads": 2})
    return RunResults([full, half])


def test_precision_of_a_run_decides_the_floor_and_other_settings_are_named():
    runs = results()
    found = polytool.compare(runs["native"], runs["onnxrt"])
    assert found.agreed and found.pairs[0].a == "native" and found.pairs[0].b == "onnxrt"
    assert found.outputs["y"].judgement.tolerance["source"] == "floor of float16"
    assert found.pairs[0].notes == ("precision: fp16 in native, fp32 in onnxrt",)
    assert found.to_json()["settings"]["onnxrt"]["threads"] == 2
    layers = Run("n", runs["native"], {"layer_precisions": {"*": "bf16"}})
    source = polytool.compare(layers, runs["onnxrt"]).outputs["y"].judgement.tolerance["source"]
    assert source == "floor of bfloat16"


def test_results_with_one_run_stand_for_it_and_several_must_be_chosen():
    runs = results()
    assert compare(RunResults([runs["native"]]), RunResults([runs["onnxrt"]])).agreed
    with pytest.raises(UsageError, match="hold several runs"):
        compare(runs, runs)


def test_all_runs_are_compared_with_the_first_or_the_named():
    runs = RunResults([*results().values(), Run("wrong", [Iteration({"y": -X})])])
    found = compare_all(runs)
    assert [(p.a, p.b, p.verdict) for p in found.pairs] == [
        ("native", "onnxrt", "agree"), ("wrong", "onnxrt", "differ"),
    ]  # fmt: skip
    assert found.verdict == "differ" and found.outputs["y"].verdict == "differ"
    assert [p.a for p in compare_all(runs, reference="wrong").pairs] == ["onnxrt", "native"]
    with pytest.raises(UsageError, match="one run alone"):
        compare_all(RunResults([runs["native"]]))
    with pytest.raises(UsageError, match="no run 'x'"):
        compare_all(runs, reference="x")


def test_json_is_strict_and_has_the_documented_fields():
    a = {"y": np.array([np.nan, 1.0]), "z": X, "s": np.array(["a"], object)}
    r = {"y": np.array([0.0, 1.0]), "z": X, "s": np.array(["b"], object)}
    text = json.dumps(compare(a, r).to_json(), allow_nan=False)
    (pair,) = json.loads(text)["pairs"]
    assert (pair["a"], pair["b"]) == ("a", "b")
    assert {"verdict", "max_abs", "max_rel", "tolerance"} <= set(pair["outputs"]["y"])
    assert pair["outputs"]["y"]["max_abs"] is None and pair["outputs"]["y"]["verdict"] == "differ"
    assert pair["outputs"]["s"]["worst_values"] == ["'a'", "'b'"]


def test_bfloat16_results_compare_in_their_own_floor():
    x = X.astype(ml_dtypes.bfloat16)
    y = (X * np.float32(1.01)).astype(ml_dtypes.bfloat16)
    assert verdict(y, x) == "agree" and verdict(-x, x) == "differ"
