"""Simplified, whole models give what they gave: the conformance suite, and real models."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import polytool
from polytool.model import load, nodes
from polytool.surgeon import Report, sanitize, simplify
from polytool.surgeon.verify import check_structure
from scripts.conformance import Case, cases
from scripts.models import MODELS, RealModel
from tests.surgeon.surgery import session

pytestmark = pytest.mark.ort

# Cases that draw: only what their outputs look like stays the same.
RANDOM = ("test_bernoulli", "test_training_dropout", "test_random")
# Gradient differentiates the graph: neither runtime does that.
NEVER_RUN = ("test_gradient_of_add", "test_gradient_of_add_and_mul")
# Nodes that are left at most, bodies counted: the fewest of polygraphy, onnxslim and onnxsim.
FEWEST = {
    "ppocr-det": 297,
    "ppocr-rec": 383,
    "ppocr-cls": 179,
    "ddddocr-det": 275,
    "silero": 152,
    "silero-ifless": 90,
    "silero-sequence": 25,
    "slanet-plus": 360,
    "t5-encoder": 646,
    "t5-decoder": 1063,
    "minimol": 700,
    "magika": 93,
    "ddddocr": 59,
    "ddddocr-old": 253,
    "khmersm": 159,
    "lac": 15,
}


def changed(case: Case) -> str | None:
    """What sanitizing a case changes, on onnxruntime, or on the native engine where it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto, data_sets = case.load()
    inputs = data_sets[0][0]
    model = sanitize(proto, verify=False).model
    for run in (infer, infer_natively):
        try:
            expected = run(proto.SerializeToString(), inputs)
        except Exception:  # one of the many that onnxruntime does not implement
            continue
        try:
            outputs = run(model.serialize(), inputs)
        except Exception as err:
            return f"the result does not run: {err}"
        if case.name.startswith(RANDOM):
            expected, outputs = map(looks, expected), map(looks, outputs)
        pairs = zip(expected, outputs, strict=True)
        return None if all(same(a, b) for a, b in pairs) else "an output differs"
    return None if case.name in NEVER_RUN else "nothing runs it"


def looks(value: Any) -> Any:
    """Type and shape of an output."""
    return str((value.dtype, value.shape))


def infer_natively(data: bytes, inputs: Any) -> list[Any]:
    with polytool.runner("native", data) as runner:
        values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        names = [spec.name for spec in runner.inputs]
        return list(runner.infer(dict(zip(names, values, strict=False))).values())


def infer(data: bytes, inputs: Any) -> list[Any]:
    runner = session(data)
    names = [i.name for i in runner.get_inputs()]
    values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    result: list[Any] = runner.run(None, dict(zip(names, values, strict=False)))
    return result


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if a is None or isinstance(a, (dict, str)):
        return bool(a == b)
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "V":  # float8 and smaller, whose NaNs are to be equal
        return a.tobytes() == b.tobytes()
    if a.dtype.kind not in "fc":
        return bool((a == b).all())
    tolerance = 2e-3 if a.dtype == np.float16 else 1e-5
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance / 2, equal_nan=True))


def sweep(chosen: list[Case]) -> None:
    failed = {c.name: text for c in chosen if (text := changed(c))}
    assert not failed, failed


def test_a_tenth_of_the_conformance_suite_gives_the_same_results() -> None:
    chosen = [case for case in cases() if case.kind != "real"]
    sweep(random.Random(4).sample(chosen, len(chosen) // 10))


@pytest.mark.slow
def test_the_conformance_suite_gives_the_same_results() -> None:
    sweep(cases())


@pytest.mark.parametrize("name", [m.name for m in MODELS if m.package != "onnx"])
def test_real_models_give_the_same_results(
    name: str, real_model: Callable[[str], RealModel]
) -> None:
    model = real_model(name)
    report = Report()
    result = simplify(model.path, report=report, weights=not model.quantized)
    assert check_structure(result) == ""
    assert sum(1 for _ in nodes(result.proto.graph.node)) <= FEWEST[name]
    again = Report()
    simplify(result, report=again, weights=not model.quantized)
    assert not again.done
    source = result.session_source()
    before = session(str(model.path))  # type: ignore[arg-type]  # a path or bytes
    after = session(source)  # type: ignore[arg-type]  # a path or bytes
    for variant in (None, *model.variants):
        feeds = model.feeds(variant=variant)
        for a, b in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            if a.dtype.kind == "f":
                scale = float(np.abs(a).max())
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale)
            else:
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["densenet121", "inception_v2", "shufflenet"])
def test_classifiers_with_weights_as_inputs_give_the_same_results(
    name: str, real_model: Callable[[str], RealModel]
) -> None:
    from scripts.models import with_random_weights

    model = real_model(name)
    proto = with_random_weights(onnx.load(model.path))
    result = sanitize(load(proto), verify=False).model
    assert len(result.proto.graph.node) < 0.8 * len(proto.graph.node)
    assert [i.name for i in result.proto.graph.input] == list(model.feeds())
    before, after = (
        infer(proto.SerializeToString(), model.feeds()),
        infer(result.serialize(), model.feeds()),
    )
    np.testing.assert_allclose(before[0], after[0], rtol=1e-3, atol=1e-4 * np.abs(before[0]).max())
