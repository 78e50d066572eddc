"""Old versions of operators give what ONNX Runtime or the specification gives."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable

import pytest

import polytool
from polytool.errors import PolytoolError
from scripts.conformance import compare
from scripts.version_cases import (
    VersionCase,
    downgraded,
    handmade,
    suite_versions,
    versions,
)

pytestmark = pytest.mark.ort

RANDOM = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
}
# Suite cases that mean something else at an older version, which accepts them all the same.
OTHER_MEANING = {
    "test_bernoulli": "random",
    "test_dropout_default_old-1": "without is_test it trains",
    "test_dropout_default_old-6": "without is_test it trains",
    "test_dropout_random_old-1": "without is_test it trains",
    "test_dropout_random_old-6": "without is_test it trains",
    "test_prelu_broadcast-1": "the slope belongs to axis 1",
    "test_prelu_broadcast-6": "the slope belongs to axis 1",
    "test_group_normalization": "one scale a group, not a channel",
}
NOT_ONNXRUNTIME = {
    "Dropout-7": "its mask says that everything was dropped",
    "Dropout-10": "its mask says that everything was dropped",
    "test_maxunpool_export_with_output_shape": "it ignores output_shape",
    "test_resize_downsample_scales_cubic_align_corners": "it scales by the rounded size",
    "test_resize_downsample_scales_linear_align_corners": "it scales by the rounded size",
    "test_cast_": "it returns float8 as uint8",
}


def problems(cases: Iterable[VersionCase]) -> list[str]:
    found = []
    for case in cases:
        if case.name.startswith(tuple(OTHER_MEANING)):
            continue
        want = None if case.name.startswith(tuple(NOT_ONNXRUNTIME)) else onnxruntime(case)
        want = want if want is not None else case.expected
        if want is None:
            found.append(f"{case.name}: nothing to compare with")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with polytool.runner("native", case.model) as runner:
                    got = runner.infer(case.feeds)
            for name, value in want.items():
                compare(name, got[name], value, case.rtol, case.atol)
        except (PolytoolError, AssertionError) as err:
            found.append(f"{case.name}: {err}")
    return found


def onnxruntime(case: VersionCase) -> dict[str, object] | None:
    """Its outputs; None where it has no kernel for this version or these types."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(case.model.SerializeToString(), options)
        results = session.run(None, case.feeds)
    except Exception:  # it raises types of its own; whatever it says, it is no reference here
        return None
    return dict(zip((o.name for o in session.get_outputs()), results, strict=True))


def test_changed_versions() -> None:
    wrong = problems(handmade())
    assert not wrong, "\n".join(wrong)


def test_a_tenth_of_the_suite_at_older_versions() -> None:
    cases = list(downgraded())
    wrong = problems(random.Random(1).sample(cases, len(cases) // 10))
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_suite_at_older_versions() -> None:
    wrong = problems(downgraded())
    assert not wrong, "\n".join(wrong)


def test_every_old_version_has_a_case() -> None:
    have = {(c.op, c.version) for c in (*handmade(), *downgraded())} | suite_versions()
    all_versions = {(op, v) for (domain, op), vs in versions().items() if not domain for v in vs}
    newest = {(op, max(vs)) for (domain, op), vs in versions().items() if not domain}
    missing = all_versions - newest - have
    assert {(op, v) for op, v in missing if op not in RANDOM} == set()
