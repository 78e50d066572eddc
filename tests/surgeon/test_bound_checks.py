"""Whether a run has hit a bound, in the main graph and inside of bodies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from polytool.bounds import check_bounds
from polytool.cli import main
from polytool.errors import ModelError
from polytool.surgeon import bound_shapes
from tests.surgeon.surgery import parse
from tests.surgeon.test_bounding import CASES, feeds


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("large", [False, True])
def test_a_hit_is_seen(name: str, large: bool) -> None:
    case = CASES[name]
    opset = case.opsets[-1]
    model = bound_shapes(parse(case.text, opset=opset), {case.tensor: 5}).model
    given = feeds(case, case.large if large else case.small, opset)
    found = check_bounds(model, [given])
    assert [c.hit for c in found if c.record.tensor == case.tensor] == [large]


def test_one_of_several_inputs_is_enough() -> None:
    case = CASES["ConstantOfShape"]
    model = bound_shapes(parse(case.text), {"y": 5}).model
    given = [feeds(case, value, 17) for value in ([3], [9], [2])]
    (found,) = check_bounds(model, given)
    assert found.hit
    assert str(found) == "y, dim 0: the bound of 5 was hit"


def _rewritten(proto: onnx.ModelProto, **changes: Any) -> onnx.ModelProto:
    (row,) = json.loads(proto.metadata_props[0].value)
    proto.metadata_props[0].value = json.dumps([row | changes])
    return proto


@pytest.mark.parametrize("text", ["", "[3]", "{}[", '[{"tensor": "y"}]', "[" * 100_000])
def test_metadata_that_holds_no_bounds_is_refused(text: str) -> None:
    case = CASES["ConstantOfShape"]
    proto = bound_shapes(parse(case.text), {"y": 5}).model.to_proto()
    proto.metadata_props[0].value = text
    with pytest.raises(ModelError, match="'polytool.bounds' does not say which bounds"):
        check_bounds(proto, [feeds(case, [3], 17)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "0"}, "dim is no int"),
        ({"watched": 4}, "watched is no str"),
        ({"limits": [9, 9, 9]}, "a bound that does not fit it"),
        ({"kind": "dim", "dim": 9}, "a bound that does not fit it"),
    ],
)
def test_metadata_that_fits_no_tensor_is_refused(changes: dict[str, Any], message: str) -> None:
    case = CASES["ConstantOfShape"]
    proto = _rewritten(bound_shapes(parse(case.text), {"y": 5}).model.to_proto(), **changes)
    with pytest.raises(ModelError, match=message):
        check_bounds(proto, [feeds(case, [3], 17)])


def test_a_model_without_bounds_has_nothing_to_check() -> None:
    proto = parse("g (float[2] x) => (float[2] y) {y = Exp(x)}")
    assert check_bounds(proto, [{"x": np.ones(2, np.float32)}]) == []


@pytest.mark.parametrize(("value", "said"), [([3], "was not hit"), ([9], "was hit")])
def test_the_command(
    value: list[int], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["ConstantOfShape"]
    path, data = str(tmp_path / "m.onnx"), str(tmp_path / "x.npz")
    bound_shapes(parse(case.text), {"y": 5}).model.save(path)
    np.savez(data, **feeds(case, value, 17))
    args: list[Any] = ["run", path, "--native", "--load-inputs", data, "--check-bounds", "--json"]
    assert main(args) == 0
    shown = capsys.readouterr()
    assert said in shown.err
    assert json.loads(shown.out)["bounds"] == [
        {"tensor": "y", "dim": 0, "bound": 5, "hit": said == "was hit"}
    ]
    assert onnx.load(path).metadata_props
