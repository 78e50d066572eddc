"""Every operator whose sizes data decides, at every opset, in branches, loops and functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, helper

from polytool import NativeRunner
from polytool.bounds import check_bounds
from polytool.model import nodes
from polytool.surgeon import bound_shapes, list_dds
from tests.surgeon.surgery import parse, session
from tests.surgeon.test_bounding import CASES, Case, feeds

pytestmark = pytest.mark.ort

NEWEST = 26  # that onnxruntime 1.32 runs
OPSETS = (9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, NEWEST)
LAST = {"Upsample": 9, "Resize before 11": 10, "Split": 17, "Scan over what NonZero finds": NEWEST}


def in_main(model: ModelProto) -> ModelProto:
    return model


def in_branch(model: ModelProto) -> ModelProto:
    """The graph in the branch of an If that is taken; the other one has the same, renamed."""
    graph, outer = model.graph, ModelProto()
    outer.CopyFrom(model)
    outer.graph.ClearField("node")
    outer.graph.ClearField("initializer")
    outer.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    branches = [body(graph, prefix) for prefix in ("", "other_")]
    outer.graph.node.append(helper.make_node(
        "If", ["flag"], [f"{o.name}_if" for o in graph.output],
        then_branch=branches[0], else_branch=branches[1],
    ))  # fmt: skip
    for output in outer.graph.output:
        output.name += "_if"
    return outer


def in_loop(model: ModelProto) -> ModelProto:
    """The graph in the body of a Loop, which adds up how many elements its output has."""
    graph, outer = model.graph, ModelProto()
    outer.CopyFrom(model)
    for name in ("node", "initializer", "output"):
        outer.graph.ClearField(name)
    inner = body(graph, "")
    inner.ClearField("output")
    for name, kind in (("iteration", 7), ("go", 9), ("sum", 7)):
        inner.input.append(helper.make_tensor_value_info(name, kind, []))
    inner.node.extend([
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Size", [graph.output[0].name], ["elements"]),
        helper.make_node("Cast", ["elements"], ["elements_f"], to=1),
        helper.make_node("Cast", ["sum"], ["sum_f"], to=1),
        helper.make_node("Add", ["sum_f", "elements_f"], ["more_f"]),
        helper.make_node("Cast", ["more_f"], ["more"], to=7),
    ])  # fmt: skip
    for name, kind in (("go_on", 9), ("more", 7)):
        inner.output.append(helper.make_tensor_value_info(name, kind, []))
    for name, value in (("trips", np.int64(2)), ("true", np.bool_(1)), ("zero", np.int64(0))):
        outer.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    outer.graph.node.append(
        helper.make_node("Loop", ["trips", "true", "zero"], ["total"], body=inner)
    )
    outer.graph.output.append(helper.make_tensor_value_info("total", 7, []))
    return outer


def in_function(model: ModelProto) -> ModelProto:
    """The graph in a local function."""
    graph, outer = model.graph, ModelProto()
    outer.CopyFrom(model)
    outer.graph.ClearField("node")
    outer.graph.ClearField("initializer")
    inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    function = FunctionProto(name="f", domain="local", input=inputs, output=outputs)
    function.opset_import.extend(model.opset_import)
    function.node.extend(
        helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer
    )
    function.node.extend(graph.node)
    outer.functions.append(function)
    outer.opset_import.append(helper.make_opsetid("local", 1))
    outer.graph.node.append(helper.make_node("f", inputs, outputs, domain="local"))
    return outer


def body(graph: GraphProto, prefix: str) -> GraphProto:
    """`graph` without inputs, which it captures; what it makes has `prefix` before its names."""
    inner = GraphProto(name=f"{prefix}body")
    inner.initializer.extend(graph.initializer)
    inner.node.extend(graph.node)
    inner.output.extend(graph.output)
    made = {t.name for t in graph.initializer}
    made |= {o for n in graph.node for o in n.output}
    rename(inner, {name: prefix + name for name in made if name})
    return inner


def rename(graph: GraphProto, names: dict[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for info in graph.output:
        info.name = names.get(info.name, info.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                rename(attribute.g, names)


PLACES: dict[str, Callable[[ModelProto], ModelProto]] = {
    "main": in_main,
    "branch": in_branch,
    "loop": in_loop,
    "function": in_function,
}


def opsets(name: str) -> list[int]:
    first, last = min(CASES[name].opsets), LAST.get(name, NEWEST)
    return [o for o in OPSETS if max(first, 9) <= o <= last]


def placed() -> list[Any]:
    """Every case in every place at every opset; a tenth of them in the ordinary run."""
    rng = np.random.default_rng(3)
    found = []
    for name, place in itertools.product(CASES, PLACES):
        if CASES[name].size == 0 or name.startswith("inside"):
            continue  # these are about a body already
        chosen = int(rng.integers(len(opsets(name))))
        for index, opset in enumerate(opsets(name)):
            marks = [] if index == chosen else [pytest.mark.slow]
            found.append(pytest.param(name, place, opset, marks=marks))
    return found


def outputs(model: ModelProto, given: dict[str, Any]) -> dict[str, Any]:
    runner = session(model.SerializeToString())
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(None, given), strict=True))


def largest(case: Case, plain: ModelProto) -> int:
    """Elements of the first output when the bound of 5 is hit."""
    shape = [d.dim_value or case.size for d in plain.graph.output[0].type.tensor_type.shape.dim]
    return int(np.prod(shape))


@pytest.mark.parametrize(("name", "place", "opset"), placed())
def test_a_bound_holds_and_moves_nothing_else(name: str, place: str, opset: int) -> None:
    case = CASES[name]
    plain = parse(case.text, opset=opset, ir=10)
    model = PLACES[place](plain)
    onnx.checker.check_model(model)
    found = {s.tensor: s for s in list_dds(model) if s.op != "If"}
    wanted = [t for t in found if t.removeprefix("other_").split("/")[-1] == case.tensor]
    assert wanted, found
    result = bound_shapes(model, dict.fromkeys(wanted, 5))
    changed = result.model.to_proto()
    onnx.checker.check_model(changed, full_check=True)

    extra = {"flag": np.array(True)} if place == "branch" else {}
    small = feeds(case, case.small, opset) | extra
    large = feeds(case, case.large, opset) | extra
    assert_equal(outputs(model, small), outputs(changed, small))
    bounded, free = outputs(changed, large), outputs(model, large)
    first = next(iter(free))
    if place == "loop":
        assert free[first] > bounded[first]
        if name != "Reshape":  # what is left of its other dimension depends on the data
            assert bounded[first] == 2 * largest(case, plain)
    else:
        dim = [d.dim_param for d in plain.graph.output[0].type.tensor_type.shape.dim].index("k")
        assert free[first].shape[dim] > bounded[first].shape[dim] == case.size
    assert sum(n.op_type == "If" for n in nodes(changed.graph.node)) == (place == "branch")
    with NativeRunner(changed, device="cpu") as runner:
        assert_equal(bounded, runner.infer(large))
        assert_equal(outputs(changed, small), runner.infer(small))
    for given, expected in ((small, False), (large, True)):
        taken = [c.hit for c in check_bounds(changed, [given]) if c.record.tensor[:6] != "other_"]
        assert set(taken) == {expected}


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-7)


def test_enough_is_tried() -> None:
    assert len(placed()) >= 400
    ops = {
        s.op for name in CASES for s in list_dds(parse(CASES[name].text, opset=opsets(name)[-1]))
    }
    listed = {"NonZero", "Unique", "Compress", "Range", "TopK", "NonMaxSuppression", "OneHot",
              "ConstantOfShape", "Expand", "Tile", "Pad", "Resize", "Slice", "Reshape",
              "Loop"}  # fmt: skip
    assert listed <= ops
