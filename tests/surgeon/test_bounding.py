"""Dimensions that data decides: found with their causes, bounded, and nothing else moved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from polytool.cli import main
from polytool.errors import UsageError
from polytool.model import load
from polytool.surgeon import bound_shapes, list_dds, sanitize
from polytool.surgeon.bounding import recorded
from polytool.surgeon.clamping import hit
from tests.surgeon.surgery import parse, session

pytestmark = pytest.mark.ort

I64, F32 = np.int64, np.float32


@dataclass(frozen=True)
class Case:
    """A graph in which the input `n` decides dimension `dim` of `tensor`.

    `small` and `large` are values of `n` that lie below and above the bound of 5; `rest` are the
    other inputs; `size` is what the output `y` has along `dim` when the bound is hit.
    """

    text: str
    tensor: str = "y"
    dim: int = 0
    small: Any = 3
    large: Any = 9
    rest: dict[str, Any] = field(default_factory=dict)
    opsets: tuple[int, ...] = (12, 13, 17, 18)
    size: int = 5


def n(dtype: str = "int64", shape: str = "") -> str:
    return f"{dtype}{shape} n"


X = {"x": np.arange(4, dtype=F32).reshape(1, 4)}
CASES: dict[str, Case] = {
    "Range int64": Case(
        f"g ({n()}) => (int64[k] y) <int64 z = {{0}}, int64 o = {{1}}> {{y = Range(z, n, o)}}",
        opsets=(11, 12, 18),
    ),
    "Range int32": Case(
        f"g ({n('int32')}) => (int32[k] y) <int32 z = {{0}}, int32 o = {{2}}> "
        "{y = Range(z, n, o)}",
        small=np.int32(9), large=np.int32(90), opsets=(11, 12, 18),
    ),
    "Range float": Case(
        f"g ({n('float')}) => (float[k] y) <float z = {{0.5}}, float o = {{0.5}}> "
        "{y = Range(z, n, o)}",
        small=F32(1.9), large=F32(100), opsets=(11, 18),
    ),
    "Range double": Case(
        f"g ({n('double')}) => (double[k] y) <double z = {{0}}, double o = {{1}}> "
        "{y = Range(z, n, o)}",
        small=np.float64(2), large=np.float64(100), opsets=(11, 18),
    ),
    "Range downwards": Case(
        f"g ({n()}) => (int64[k] y) <int64 z = {{0}}, int64 m = {{-1}}> {{y = Range(z, n, m)}}",
        small=-3, large=-9, opsets=(11, 12, 18),
    ),
    "Expand": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[1] f = {{4}}> "
        "{s = Concat<axis=0>(n, f) y = Expand(x, s)}",
        small=[3], large=[9], rest=X, opsets=(8, 9, 11, 12, 18),
    ),
    "ConstantOfShape": Case(
        f"g ({n('int64', '[1]')}) => (float[k,7] y) <int64[1] f = {{7}}> "
        "{s = Concat<axis=0>(n, f) y = ConstantOfShape(s)}",
        small=[3], large=[9], opsets=(9, 10, 12, 18),
    ),
    "ConstantOfShape, last": Case(
        f"g ({n('int64', '[1]')}) => (float[4096,k] y) <int64[1] f = {{4096}}> "
        "{s = Concat<axis=0>(f, n) y = ConstantOfShape(s)}",
        dim=1, small=[3], large=[9], opsets=(9, 12, 18),
    ),
    "Tile": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[1] f = {{1}}> "
        "{s = Concat<axis=0>(n, f) y = Tile(x, s)}",
        small=[3], large=[9], rest=X, opsets=(6, 7, 9, 11, 13),
    ),
    "Tile of two": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[1] f = {{1}}> "
        "{c = Concat<axis=0>(x, x) s = Concat<axis=0>(n, f) y = Tile(c, s)}",
        small=[2], large=[9], rest=X, size=4,
    ),
    "Pad": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[3] f = {{0, 0, 0}}> "
        "{s = Concat<axis=0>(n, f) y = Pad(x, s)}",
        small=[1], large=[9], rest=X, opsets=(11, 12, 18),
    ),
    "Resize by sizes": Case(
        f"g ({n('int64', '[1]')}, float[1,1,2,2] x) => (float[1,1,k,2] y) "
        "<int64[2] a = {1, 1}, int64[1] b = {2}> "
        "{s = Concat<axis=0>(a, n, b) y = Resize<mode=\"nearest\">(x, , , s)}",
        dim=2, small=[3], large=[9], rest={"x": np.ones((1, 1, 2, 2), F32)}, opsets=(13, 18),
    ),
    "Resize by scales": Case(
        f"g ({n('float', '[1]')}, float[1,1,2,2] x) => (float[1,1,k,2] y) "
        "<float[2] a = {1, 1}, float[1] b = {1}> "
        "{s = Concat<axis=0>(a, n, b) y = Resize<mode=\"nearest\">(x, , s)}",
        dim=2, small=np.array([1.5], F32), large=np.array([9], F32),
        rest={"x": np.ones((1, 1, 2, 2), F32)}, opsets=(13, 18),
    ),
    "TopK": Case(
        f"g ({n('int64', '[1]')}, float[N] x) => (float[k] y, int64[k] i) {{y, i = TopK(x, n)}}",
        small=[3], large=[9], rest={"x": np.arange(12, dtype=F32)}, opsets=(10, 11, 17),
    ),
    "OneHot": Case(
        f"g ({n('int64', '[1]')}, int64[2] x) => (float[2,k] y) <float[2] v = {{0, 1}}> "
        "{y = OneHot(x, n, v)}",
        dim=1, small=[3], large=[9], rest={"x": np.array([0, 1])}, opsets=(9, 11, 18),
    ),
    "OneHot float depth": Case(
        f"g ({n('float', '[1]')}, int64[2] x) => (float[2,k] y) <float[2] v = {{0, 1}}> "
        "{y = OneHot(x, n, v)}",
        dim=1, small=np.array([3], F32), large=np.array([9], F32),
        rest={"x": np.array([0, 1])}, opsets=(9, 18),
    ),
    "HannWindow": Case(
        f"g ({n()}) => (float[k] y) {{y = HannWindow(n)}}", opsets=(17, 18)
    ),
    "Slice": Case(
        f"g ({n('int64', '[1]')}, float[N] x) => (float[k] y) <int64[1] z = {{0}}> "
        "{y = Slice(x, z, n)}",
        small=[3], large=[9], rest={"x": np.arange(12, dtype=F32)}, opsets=(10, 13, 18),
    ),
    "NonZero": Case(
        "g (float[N] n) => (int64[1,k] y) {y = NonZero(n)}",
        dim=1, small=np.ones(3, F32), large=np.ones(9, F32), opsets=(9, 13, 18),
    ),
    "Compress": Case(
        "g (bool[N] n, float[N] x) => (float[k] y) {y = Compress(x, n)}",
        small=[True] * 3 + [False] * 9, large=[True] * 12,
        rest={"x": np.arange(12, dtype=F32)}, opsets=(9, 11, 18),
    ),
    "Unique": Case(
        "g (float[N] n) => (float[k] y) {y = Unique(n)}",
        small=np.array([1, 1, 2], F32), large=np.arange(9, dtype=F32), opsets=(11, 18),
    ),
    "Loop": Case(
        f"g ({n()}) => (int64[k] y) <bool c = {{1}}> {{y = Loop(n, c) <body = b "
        "(int64 i, bool ci) => (bool co, int64 s) {co = Identity(ci) s = Add(i, i)}>}",
        opsets=(11, 13, 18),
    ),
    "inside of a branch": Case(
        f"g ({n('int64', '[1]')}, bool c, float[1,4] x) => (float[k,4] y) <int64[1] f = {{4}}> "
        "{y = If(c) <then_branch = t () => (float[k,4] a) "
        "{s = Concat<axis=0>(n, f) a = Expand(x, s)}, "
        "else_branch = e () => (float[1,4] b) {b = Neg(x)}>}",
        tensor="a", small=[3], large=[9], rest={**X, "c": np.array(True)}, opsets=(11, 13, 18),
    ),
    "inside of a loop": Case(
        f"g ({n('int64', '[1]')}) => (float y) <int64 t = {{3}}, bool c = {{1}}, float z = {{0}}> "
        "{y = Loop(t, c, z) <body = b (int64 i, bool ci, float v) => (bool co, float w) "
        "{co = Identity(ci) o = ConstantOfShape(n) s = Size(o) f = Cast<to=1>(s) w = Add(v, f)}>}",
        tensor="o", small=[3], large=[9], opsets=(11, 13, 18), size=0,
    ),
    "Range with a computed step": Case(
        f"g ({n()}, int64 d) => (int64[k] y) <int64 z = {{0}}> {{y = Range(z, n, d)}}",
        rest={"d": np.array(1)}, opsets=(11, 12, 18),
    ),
    "Range from far away": Case(
        f"g ({n('int32')}, int32 a) => (int32[k] y) <int32 o = {{1}}> "
        "{l = Add(a, n) y = Range(a, l, o)}",
        small=3, large=9, rest={"a": np.array(2**31 - 20, np.int32)}, opsets=(11, 12, 18),
    ),
    "Range int16": Case(
        f"g ({n('int16')}) => (int16[k] y) <int16 z = {{0}}, int16 o = {{1}}> "
        "{y = Range(z, n, o)}",
        opsets=(11, 12, 18),
    ),
    "Range float in tenths": Case(
        f"g ({n('float')}) => (float[k] y) <float z = {{0.1}}, float o = {{0.1}}> "
        "{y = Range(z, n, o)}",
        small=F32(0.35), large=F32(100), opsets=(11, 18),
    ),
    "Tile of an open size": Case(
        f"g ({n('int64', '[1]')}, float[N,4] x) => (float[k,4] y) <int64[1] f = {{1}}> "
        "{s = Concat<axis=0>(n, f) y = Tile(x, s)}",
        small=[3], large=[9], rest=X, opsets=(7, 9, 13),
    ),
    "Pad before and after": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[1] f = {{0}}> "
        "{s = Concat<axis=0>(n, f, n, f) y = Pad(x, s)}",
        small=[1], large=[9], rest=X, opsets=(11, 13, 18),
    ),
    "Pad after a constant": Case(
        f"g ({n('int64', '[1]')}, float[1,4] x) => (float[k,4] y) <int64[1] f = {{0}}, "
        "int64[1] o = {1}> {s = Concat<axis=0>(o, f, n, f) y = Pad(x, s)}",
        small=[2], large=[9], rest=X, opsets=(11, 13, 18),
    ),
    "Resize before 11": Case(
        f"g ({n('float', '[1]')}, float[1,1,2,2] x) => (float[1,1,k,2] y) "
        "<float[2] a = {1, 1}, float[1] b = {1}> "
        "{s = Concat<axis=0>(a, n, b) y = Resize<mode=\"nearest\">(x, s)}",
        dim=2, small=np.array([1.5], F32), large=np.array([9], F32),
        rest={"x": np.ones((1, 1, 2, 2), F32)}, opsets=(10,),
    ),
    "Upsample": Case(
        f"g ({n('float', '[1]')}, float[1,1,3,2] x) => (float[1,1,k,2] y) "
        "<float[2] a = {1, 1}, float[1] b = {1}> "
        "{s = Concat<axis=0>(a, n, b) y = Upsample<mode=\"nearest\">(x, s)}",
        dim=2, small=np.array([1.4], F32), large=np.array([9], F32),
        rest={"x": np.ones((1, 1, 3, 2), F32)}, opsets=(9,),
    ),
    "Reshape": Case(
        f"g ({n('int64', '[1]')}, float[36] x) => (float[k,M] y) <int64[1] f = {{-1}}> "
        "{s = Concat<axis=0>(n, f) y = Reshape(x, s)}",
        small=[3], large=[9], rest={"x": np.arange(36, dtype=F32)}, opsets=(9, 13, 18),
    ),
    "Slice from the end": Case(
        f"g ({n('int32', '[1]')}, float[N] x) => (float[k] y) <int32[1] e = {{1000}}> "
        "{s = Neg(n) y = Slice(x, s, e)}",
        small=[3], large=[9], rest={"x": np.arange(12, dtype=F32)}, opsets=(10, 13, 18),
    ),
    "Split": Case(
        f"g ({n('int64', '[1]')}, float[12] x) => (float[k] y, float[m] z) <int64[1] f = {{12}}> "
        "{r = Sub(f, n) s = Concat<axis=0>(n, r) y, z = Split(x, s)}",
        small=[3], large=[9], rest={"x": np.arange(12, dtype=F32)}, opsets=(13, 17),
    ),
    "CenterCropPad": Case(
        f"g ({n('int64', '[1]')}, float[3,4] x) => (float[k,4] y) "
        "{y = CenterCropPad<axes=[0]>(x, n)}",
        small=[3], large=[9], rest={"x": np.ones((3, 4), F32)}, opsets=(18, 20),
    ),
    "NonMaxSuppression": Case(
        "g (float[1,12,4] b, float[1,1,12] n) => (int64[k,3] y) <int64 m = {20}, "
        "float i = {0.5}, float s = {0.5}> {y = NonMaxSuppression(b, n, m, i, s)}",
        small=np.r_[np.ones(3), np.zeros(9)].reshape(1, 1, 12), large=np.ones((1, 1, 12)),
        rest={"b": np.array([[[i, 0, i + 1, 1] for i in range(12)]], F32)}, opsets=(10, 11, 18),
    ),
    "Compress along an axis": Case(
        "g (bool[N] n, float[2,12] x) => (float[2,k] y) {y = Compress<axis=1>(x, n)}",
        dim=1, small=[True] * 3 + [False] * 9, large=[True] * 12,
        rest={"x": np.ones((2, 12), F32)}, opsets=(9, 11, 18),
    ),
    "Unique with everything": Case(
        "g (float[N] n) => (float[k] y, int64[k] i, int64[N] v, int64[k] c) "
        "{y, i, v, c = Unique(n)}",
        small=np.array([1, 1, 2], F32), large=np.arange(9, dtype=F32), opsets=(11, 13, 18),
    ),
    "Unique rows": Case(
        "g (float[N,2] n) => (float[k,2] y) {y = Unique<axis=0>(n)}",
        small=np.ones((3, 2), F32), large=np.arange(18, dtype=F32).reshape(9, 2), opsets=(11, 18),
    ),
    "OneHot int32 depth": Case(
        f"g ({n('int32', '[1]')}, int32[2] x) => (float[2,k] y) <float[2] v = {{0, 1}}> "
        "{y = OneHot(x, n, v)}",
        dim=1, small=[3], large=[9], rest={"x": np.array([0, 1], np.int32)}, opsets=(9, 11, 18),
    ),
    "HammingWindow int32": Case(
        f"g ({n('int32')}) => (float[k] y) {{y = HammingWindow(n)}}", opsets=(17, 18)
    ),
    "BlackmanWindow": Case(
        f"g ({n()}) => (float[k] y) {{y = BlackmanWindow(n)}}", opsets=(17, 18)
    ),
    "Loop by its condition": Case(
        f"g ({n()}) => (int64[k] y) <bool c = {{1}}, int64 o = {{1}}> "
        "{y = Loop(, c) <body = b (int64 i, bool ci) => (bool co, int64 s) "
        "{j = Add(i, o) co = Less(j, n) s = Add(i, i)}>}",
        opsets=(11, 13, 18),
    ),
    "Scan over what NonZero finds": Case(
        "g (float[N] n) => (float[k,1] q) <float[1] z = {0}> {y = NonZero(n) t = Transpose(y) "
        "f = Cast<to=1>(t) p, q = Scan<num_scan_inputs=1, body = b (float[1] a, float[1] e) => "
        "(float[1] c, float[1] d) {c = Add(a, e) d = Identity(c)}>(z, f)}",
        tensor="y", dim=1, small=np.ones(3, F32), large=np.ones(9, F32), opsets=(9, 13, 18),
    ),
}  # fmt: skip


def feeds(case: Case, value: Any, opset: int) -> dict[str, Any]:
    proto = parse(case.text, opset=opset)
    kind = {1: F32, 5: np.int16, 6: np.int32, 7: I64, 9: np.bool_, 11: np.float64}
    dtype = kind[next(i for i in proto.graph.input if i.name == "n").type.tensor_type.elem_type]
    return {"n": np.asarray(value, dtype), **case.rest}


PAIRS = [(name, opset) for name, case in CASES.items() for opset in case.opsets]


@pytest.mark.parametrize(("name", "opset"), PAIRS)
def test_bounds_hold_and_move_nothing_else(name: str, opset: int) -> None:
    case = CASES[name]
    proto = parse(case.text, opset=opset)
    (source,) = [s for s in list_dds(proto) if s.tensor == case.tensor and s.dim == case.dim]
    assert source.op in name or name.startswith("inside")
    result = bound_shapes(proto, {case.tensor: 5})
    assert not result.refused
    changed = result.model.to_proto()
    onnx.checker.check_model(changed)
    before, after = session(proto.SerializeToString()), session(changed.SerializeToString())
    small = feeds(case, case.small, opset)
    for a, b in zip(before.run(None, small), after.run(None, small), strict=True):
        np.testing.assert_array_equal(a, b)
    large = feeds(case, case.large, opset)
    output, full = (s.run(None, large)[0] for s in (after, before))
    if case.size:
        dim = next(i for i, d in enumerate(proto.graph.output[0].type.tensor_type.shape.dim)
                   if d.dim_param == "k")  # fmt: skip
        assert output.shape[dim] == case.size
        assert full.shape[dim] > case.size
    else:
        assert output == 15
    watch = recorded(result.model)
    assert any(r.tensor == case.tensor and r.bound == 5 for r in watch)


NATIVE = [(n, CASES[n].opsets[-1]) for n in CASES]


@pytest.mark.parametrize(("name", "opset"), NATIVE)
def test_the_native_engine_runs_the_result(name: str, opset: int) -> None:
    from polytool import NativeRunner

    case = CASES[name]
    model = bound_shapes(parse(case.text, opset=opset), {case.tensor: 5}).model
    large = feeds(case, case.large, opset)
    expected = session(model.serialize()).run(None, large)
    with NativeRunner(model.to_proto(), device="cpu") as runner:
        for found, value in zip(runner.infer(large).values(), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-7)


# id: (graph, {"tensor, dim": bound})
LISTED: dict[str, tuple[str, dict[str, int | None]]] = {
    "arithmetic on dimensions is no data": (
        "g (float[N,4] x) => (float[M] y) <int64[1] t = {2}, int64[1] z = {0}> "
        "{s = Shape(x) a = Mul(s, t) b = ReduceProd<keepdims=1>(a) y = ConstantOfShape(b)}",
        {},
    ),
    "elements that are not zero": (
        "g (float[3,4] x) => (int64[2,k] y) {y = NonZero(x)}",
        {"y, 1": 12},
    ),
    "of an open input": ("g (float[N,4] x) => (int64[2,k] y) {y = NonZero(x)}", {"y, 1": None}),
    "only the source is listed": (
        "g (float[3,4] x) => (float[k,2] y) "
        "{i = NonZero(x) t = Transpose(i) c = Cast<to=1>(t) y = Exp(c)}",
        {"i, 1": 12},
    ),
    "what follows from such a dimension": (
        "g (float[3,4] x) => (float[k] y) <int64[1] o = {1}, int64[1] two = {2}> "
        "{i = NonZero(x) s = Shape<start=1>(i) m = Mul(s, two) y = ConstantOfShape(m)}",
        {"i, 1": 12, "y, 0": 24},
    ),
    "k is at most the axis": (
        "g (float[7] x, int64[1] k) => (float[m] y, int64[m] i) {y, i = TopK(x, k)}",
        {"y, 0": 7, "i, 0": 7},
    ),
    "boxes": (
        "g (float[2,10,4] b, float[2,3,10] s) => (int64[k,3] y) <int64 m = {4}> "
        "{y = NonMaxSuppression(b, s, m)}",
        {"y, 0": 24},
    ),
    "clipped": (
        "g (int64[1] n) => (float[k] y) <int64 a = {0}, int64 b = {99}> "
        "{c = Clip(n, a, b) y = ConstantOfShape(c)}",
        {"y, 0": 99},
    ),
    "narrow type": (
        "g (uint8[1] n) => (float[k] y) {c = Cast<to=7>(n) y = ConstantOfShape(c)}",
        {"y, 0": 255},
    ),
    "remainder": (
        "g (int64[1] n) => (float[k] y) <int64 m = {10}> {c = Mod(n, m) y = ConstantOfShape(c)}",
        {"y, 0": 9},
    ),
    "position": (
        "g (float[6] x) => (float[k] y) {c = ArgMax<axis=0, keepdims=1>(x) y = ConstantOfShape(c)}",
        {"y, 0": 5},
    ),
    "chosen": (
        "g (bool[1] x) => (float[k] y) <int64[1] a = {3}, int64[1] b = {8}> "
        "{c = Where(x, a, b) y = ConstantOfShape(c)}",
        {"y, 0": 8},
    ),
    "branches of other sizes": (
        "g (bool c) => (float[k] y) {y = If(c) <"
        "then_branch = t () => (float[3] a) {a = RandomNormal<shape=[3]>()}, "
        "else_branch = e () => (float[8] b) {b = RandomNormal<shape=[8]>()}>}",
        {"y, 0": 8},
    ),
    "loop with a constant count": (
        "g (float x) => (float[k] y) <int64 n = {6}, bool c = {1}> {y = Loop(n, c) <body = b "
        "(int64 i, bool ci) => (bool co, float s) {co = Less(x, x) s = Neg(x)}>}",
        {"y, 0": 6},
    ),
}


@pytest.mark.parametrize("case", LISTED)
def test_dimensions_are_listed_with_their_bounds(case: str) -> None:
    text, expected = LISTED[case]
    found = list_dds(parse(text))
    assert {f"{s.tensor}, {s.dim}": s.bound for s in found} == expected


def test_a_bound_for_all_touches_only_what_has_none() -> None:
    proto = parse(
        "g (float[3] x, int64[1] n) => (int64[1,k] y, float[m] z) "
        "{y = NonZero(x) z = ConstantOfShape(n)}"
    )
    result = bound_shapes(proto, {"": 100})
    assert [r.tensor for r in result.records] == ["z"]
    assert [s.tensor for s in result.implied] == ["y"]
    assert [s.tensor for s in bound_shapes(proto).open] == ["z"]


def test_implied_bounds_are_set_on_request() -> None:
    proto = parse("g (float[7] x, int64[1] k) => (float[m] y, int64[m] i) {y, i = TopK(x, k)}")
    result = bound_shapes(proto, auto=True)
    assert {r.bound for r in result.records} == {7}
    assert [n.op_type for n in result.model.proto.graph.node] == ["Min", "TopK"]


def test_other_readers_of_a_shape_are_not_clamped() -> None:
    proto = parse("g (int64[1] n) => (float[k] y, int64[1] z) {y = ConstantOfShape(n) z = Neg(n)}")
    after = session(bound_shapes(proto, {"y": 5}).model.serialize())
    y, z = after.run(None, {"n": np.array([9])})
    assert (y.shape, z.tolist()) == ((5,), [-9])


@pytest.mark.parametrize("name", ["Range int64", "Range downwards", "Expand", "NonZero", "TopK"])
def test_whether_a_bound_was_hit_can_be_seen(name: str) -> None:
    case = CASES[name]
    model = bound_shapes(parse(case.text), {case.tensor: 5}).model
    watch = [r for r in recorded(model) if r.tensor == case.tensor]
    wanted = {t for r in watch for t in (r.watched, r.limit) if t}
    proto = model.to_proto()
    outputs = {o.name for o in proto.graph.output}
    inputs = {i.name for i in proto.graph.input}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=t) for t in sorted(wanted - outputs - inputs)
    )
    runner = session(proto.SerializeToString())
    for value, expected in ((case.small, False), (case.large, True)):
        given = feeds(case, value, 17)
        names = [o.name for o in runner.get_outputs()]
        values = dict(zip(names, runner.run(None, given), strict=True)) | given
        assert [hit(r, values) for r in watch] == [expected]


def test_a_bound_without_effect_is_refused_with_a_reason() -> None:
    proto = parse("g (float[3] n) => (int64[1,k] y) {y = NonZero(n)}")
    refused = bound_shapes(proto, {"y": 5}).refused
    assert refused == {"y, dim 1": "the graph implies at most 3 already, which is no more than 5"}


def test_wrong_bounds_are_refused() -> None:
    proto = parse(CASES["Expand"].text)
    with pytest.raises(UsageError, match="'q', which does not exist"):
        bound_shapes(proto, {"q": 5})
    with pytest.raises(UsageError, match="is negative"):
        bound_shapes(proto, {"": -1})


def test_the_result_does_not_depend_on_chance() -> None:
    case = CASES["Expand"]
    one, two = (bound_shapes(parse(case.text), {"y": 5}).model.serialize() for _ in range(2))
    assert one == two


def test_sanitize_bounds_after_it_has_simplified() -> None:
    proto = parse(CASES["Expand"].text)
    result = sanitize(proto, bounds={"": 5})
    assert "1 dimension" in result.summary()
    assert recorded(result.model)[0].bound == 5


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")
    onnx.save(parse(CASES["Expand"].text), path)
    assert main(["inspect", "model", path, "--list-unbounded-dds"]) == 0
    assert "y, dim 0: unbounded (Expand" in capsys.readouterr().out
    args = ["--set-unbounded-dds-upper-bound", "y:6"]
    assert main(["surgeon", "sanitize", path, "-o", out, *args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bounds"][0]["bound"] == 6
    assert recorded(load(out))[0].tensor == "y"
    assert main(["inspect", "model", out, "--list-unbounded-dds", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["dds"]
    assert [(s["tensor"], s["bound"]) for s in shown] == [("y", 6)]
