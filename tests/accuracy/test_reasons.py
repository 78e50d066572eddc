"""Every cause that `locate` can name, planted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.ops import registry
from polytool.backends.native.oracle import NativeOracle
from polytool.comparators.findings import CAUSES, Finding, Location
from polytool.comparators.locate import locate
from polytool.debugging import locate as locate_model
from polytool.diagnosis import show
from tests.accuracy.planted.tactic_faults import accumulated_in_fp16

RNG = np.random.default_rng(0)
Feeds = dict[str, np.ndarray[Any, Any]]
Spoil = Callable[[Callable[..., Any], tuple[Any, ...]], Any]


def model(
    body: str, shape: str = "4,64", result: str = "float", **weights: np.ndarray[Any, Any]
) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g (float[{shape}] x) => ({result}[M,N] y)'
        f" {{ {body} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return proto


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def located(
    proto: onnx.ModelProto, feeds: Feeds, precision: str = "fp32", **spoils: Spoil
) -> Location:
    """What is found of an engine whose layers of these names are spoiled."""
    runner = NativeRunner(proto, precision=precision, optimize=False, device="cpu")
    steps = {s.layer.name: s for s in runner.engine.program._steps}
    for name, spoil in spoils.items():
        steps[name].launch = _spoiled(steps[name].launch, spoil)
    return locate(runner, NativeOracle(proto), [feeds])


def _spoiled(launch: Callable[..., Any], spoil: Spoil) -> Callable[..., Sequence[Any]]:
    return lambda *arguments: (spoil(launch, arguments),)


def result_of(change: Callable[[Any], Any]) -> Spoil:
    return lambda launch, arguments: change(np.array(launch(*arguments)[0]))


def cause(found: Location, layer: str) -> Finding:
    (finding,) = [f for f in found.findings if f.layer == layer]
    return finding


def test_overflow():
    proto, x = model("h = Relu(x) y = Mul(h, h)"), normal(4, 64)
    x[0, 3] = 300
    first = located(proto, {"x": x}, "fp16").first_broken
    assert first is not None and first.cause == "overflow" and first.layer == "y"


def test_overflow_on_the_way():
    spoil = result_of(lambda v: np.where(np.abs(v) > 2, np.inf, v).astype(np.float32))
    first = located(model("y = Neg(x)"), {"x": normal(4, 64)}, y=spoil).first_broken
    assert first is not None and first.cause == "overflow" and "inside the layer" in first.reason


def test_underflow():
    proto = model("y = Mul(x, small)", small=np.float32([[1e-7]]))
    first = located(proto, {"x": normal(4, 64)}, "fp16").first_broken
    assert first is not None and first.cause == "underflow" and first.range.subnormal > 0.9


def test_not_finite():
    spoil = result_of(lambda v: np.where(v == v.max(), np.nan, v))
    first = located(model("y = Neg(x)"), {"x": normal(4, 64)}, y=spoil).first_broken
    assert first is not None and first.cause == "not finite"


def test_cancellation_is_told_though_nobody_is_to_blame():
    half = normal(32, 8)
    weight = np.concatenate([half, -half + 1e-4 * normal(32, 8)])
    found = located(model("y = MatMul(x, w)", w=weight), {"x": np.ones((4, 64), "f")}, "fp16")
    finding = cause(found, "y")
    assert finding.cause == "cancellation" and finding.condition > 50
    assert finding.verdict == "expected" and finding.own_error is not None
    assert finding.own_error > 0.05


def test_where_the_error_of_sound_layers_grows_is_told():
    proto = model("a = Mul(x, c) b = Sub(a, x) y = Neg(b)", c=np.float32([[1.01]]))
    found = located(proto, {"x": np.abs(normal(4, 64)) + 1}, "fp16")
    assert found.verdict == "expected"
    assert "the error grows most at Sub:b" in click.unstyle(show(found))


def test_operands():
    def spoil(launch: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        (x,) = arguments
        coarse = (x.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)
        return launch(coarse)[0]

    found = located(model("y = MatMul(x, w)", w=normal(64, 64)), {"x": normal(4, 64)}, y=spoil)
    assert cause(found, "y").cause == "operands"
    assert "bfloat16" in cause(found, "y").reason and found.verdict == "broken"


def test_accumulation():
    def spoil(launch: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return accumulated_in_fp16(launch(*arguments)[0], launch, arguments, None)

    found = located(model("y = MatMul(x, w)", w=normal(64, 64)), {"x": normal(4, 64)}, y=spoil)
    assert cause(found, "y").cause == "accumulation" and found.verdict == "broken"


def test_quantisation():
    body = "y = QuantizeLinear(x, scale, zero)"
    proto = model(body, result="uint8", scale=np.float32(0.05), zero=np.uint8(128))
    assert located(proto, {"x": normal(4, 64)}).verdict == "expected"
    spoil = result_of(lambda v: np.minimum(v, 250) + np.uint8(3))
    first = located(proto, {"x": normal(4, 64)}, y=spoil).first_broken
    assert first is not None and first.cause == "quantisation" and "3 steps" in first.reason


def test_decision():
    proto = model("y = ArgMax<axis=1>(x)", result="int64")
    first = located(proto, {"x": normal(4, 64)}, y=result_of(lambda v: v + 1)).first_broken
    assert first is not None and first.cause == "decision" and first.flips == 4


def test_wrong_kernel():
    spoil = result_of(lambda v: v[:, ::-1].copy())
    first = located(model("y = Exp(x)"), {"x": normal(4, 64)}, y=spoil).first_broken
    assert first is not None and first.cause == "wrong kernel"


def test_a_race_names_the_layer_that_changes_from_run_to_run():
    calls = iter(range(1, 1000))
    proto = model("a = Neg(x) b = Exp(a) c = Tanh(b) y = Neg(c)")
    spoil = result_of(lambda v: v + np.float32(next(calls) * 1e-3))
    found = located(proto, {"x": normal(4, 64)}, b=spoil)
    assert found.verdict == "race" and found.first_broken is not None
    assert found.first_broken.layer == "b" and found.first_broken.cause == "race"


@pytest.fixture
def wrong_softsign(monkeypatch):
    """The operator itself is wrong, in the engine and in the native oracle alike."""
    right = registry.find("", "Softsign", 1)
    wrong = registry.Operator("Softsign", "", 1, lambda xp, x: x / (1.25 + xp.abs(x)))
    assert right is not None
    monkeypatch.setitem(registry._operators, ("", "Softsign"), {1: wrong})
    return right.function


@pytest.mark.ort
def test_an_operator_that_differs_from_onnx_runtime(wrong_softsign):
    proto, feeds = model("a = Neg(x) y = Softsign(a)"), [{"x": normal(4, 64)}]
    options = {"optimize": False, "device": "cpu"}
    assert locate_model(proto, feeds, **options).verdict == "expected"  # they share the operator
    first = locate_model(proto, feeds, against="onnxrt", **options).first_broken
    assert first is not None and first.cause == "operator", first
    assert "Softsign of ONNX Runtime and of polytool" in first.reason
    assert "nearer to polytool" in first.reason


@pytest.mark.ort
def test_a_wrong_operator_of_the_oracle_alone(wrong_softsign, monkeypatch):
    proto, feeds = model("a = Neg(x) y = Softsign(a)"), [{"x": normal(4, 64)}]
    runner = NativeRunner(proto, optimize=False, device="cpu")
    steps = {s.layer.name: s for s in runner.engine.program._steps}
    steps["y"].launch = lambda x: (wrong_softsign(np, x),)
    first = locate_model(proto, feeds, engine=runner.engine).first_broken
    assert first is not None and first.cause == "operator"
    assert "nearer to ONNX Runtime" in first.reason


@pytest.mark.ort
def test_a_wrong_engine_is_no_difference_of_operators():
    proto, feeds = model("y = Softsign(x)"), [{"x": normal(4, 64)}]
    runner = NativeRunner(proto, optimize=False, device="cpu")
    (step,) = runner.engine.program._steps
    step.launch = lambda x: (x / (1.25 + np.abs(x)),)
    first = locate_model(proto, feeds, engine=runner.engine).first_broken
    assert first is not None and first.cause == "wrong kernel"


def test_every_cause_has_a_test():
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    missing = [cause for cause in CAUSES if f'cause == "{cause}"' not in text]
    assert not missing
