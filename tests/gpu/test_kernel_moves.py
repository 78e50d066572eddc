"""Pointwise trees, norms, reductions and moves of elements, on the host and on the GPU."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from polytool.backends.native.kernels import gather, ordering, pool, reduce, rows, spatial
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.pointwise import Operand, Pointwise, copy
from polytool.backends.native.kernels.transpose import Transpose
from polytool.tensors import DType

H, S, I64 = DType.FLOAT16, DType.FLOAT, DType.INT64


def error(value, reference):
    reference = np.asarray(reference, np.float64)
    return np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference)


def one_node(op, inputs, version=19, **attributes):
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    kinds = [onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for v in inputs if v is not None]
    held = [v for v in inputs if v is not None]
    values = [
        onnx.helper.make_tensor_value_info(n, k, v.shape)
        for n, k, v in zip([n for n in names if n], kinds, held, strict=True)
    ]
    kind = 7 if op == "NonMaxSuppression" else kinds[0]
    result = [onnx.helper.make_tensor_value_info("y", kind, None)]
    graph = onnx.helper.make_graph([node], "g", values, result)
    opset = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([n for n in names if n], held, strict=True)))[0]


def affine(kind):
    return Tree(
        (S, kind, kind), (Step.of("Mul", 0, 1, dtype=kind), Step.of("Add", 3, 2, dtype=kind))
    )


@pytest.mark.parametrize(("count", "length"), [(7, 768), (530, 512), (3, 33), (2, 9000)])
def test_layer_norm_of_a_sum_that_is_stored_too(run_plan, rng, count, length):
    before = Tree((H, H), (Step.of("Add", 0, 1, dtype=H),))
    op = rows.RowOp("layernorm", before, ("full", "full"), affine(H), ("column", "column"), True)
    x, r = rng.standard_normal((2, count, length)).astype("f2")
    gamma, beta = rng.standard_normal((2, length)).astype("f2")
    out, sums = np.full((2, count, length), np.nan, "f2")
    run_plan(op.plan(count, length, epsilon=1e-5), [x, r, gamma, beta, out, sums])
    v = x.astype("f8") + r
    normal = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    assert error(out, normal * gamma + beta) < 3e-4
    assert error(sums, v) < 3e-4


def test_embedding_sum_and_rms_norm(run_plan, rng):
    table, place = rng.standard_normal((10, 24)).astype("f4"), rng.standard_normal((3, 24))
    place, ids = place.astype("f4"), rng.integers(0, 10, 6)
    add = Tree((S, S), (Step.of("Add", 0, 1, dtype=S),))
    op = rows.RowOp("rmsnorm", add, ("gather", "outer"), Tree((S,)))
    out = np.full((6, 24), np.nan, "f4")
    plan = op.plan(6, 24, epsilon=1e-6, outer=(2, 3), outer_strides=[(0, 24)])
    run_plan(plan, [table, place, out, ids])
    v = table[ids].astype("f8") + np.tile(place, (2, 1))
    assert error(out, v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-6)) < 1e-6


@pytest.mark.parametrize("mode", ["softmax", "logsoftmax"])
def test_softmax_with_scale_and_broadcast_mask(run_plan, rng, mode):
    x, mask = rng.standard_normal((2, 3, 5, 40)), rng.standard_normal((2, 1, 1, 40))
    x, mask, out = x.astype("f4"), mask.astype("f4"), np.full((2, 3, 5, 40), np.nan, "f4")
    tree = Tree(
        (S, S),
        (
            Step.of("Constant", dtype=S, value=0.125),
            Step.of("Mul", 0, 2, dtype=S),
            Step.of("Add", 3, 1, dtype=S),
        ),
    )
    op = rows.RowOp(mode, tree, ("full", "outer"), Tree((S,)))
    run_plan(op.plan(30, 40, outer=(2, 3, 5), outer_strides=[(40, 0, 0)]), [x, mask, out])
    v = x.astype("f8") * 0.125 + mask
    log = v - v.max(-1, keepdims=True)
    log -= np.log(np.exp(log).sum(-1, keepdims=True))
    assert error(out, np.exp(log) if mode == "softmax" else log) < 1e-6


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3, 16, 8), (16, 1), (2, 1, 1, 1)], [(4, 8)] * 3, [(2, 3, 5), (5,), ()]],
    ids=str,
)
@pytest.mark.parametrize("special", [False, True])
def test_tree_with_broadcasts_and_casts(run_plan, rng, shapes, special):
    tree = Tree(
        (H, H, S),
        (
            Step.of("Add", 0, 1, dtype=H),
            Step.of("Sigmoid", 3, dtype=H),
            Step.of("Cast", 4, dtype=S),
            Step.of("Mul", 5, 2, dtype=S),
        ),
    )
    a, b, c = (
        rng.standard_normal(s).astype(t) for s, t in zip(shapes, ("f2", "f2", "f4"), strict=True)
    )
    out, op = np.full(a.shape, np.nan, "f4"), Pointwise(tree)
    operands = [Operand(v.shape) for v in (a, b, c)]
    pattern = op.pattern(a.shape, operands) if special else None
    run_plan(op.plan(a.shape, operands, pattern=pattern), [a, b, c, out])
    assert error(out, c / (1 + np.exp(-(a.astype("f8") + b)))) < 2e-6


def test_integer_operators_wrap_and_follow_onnx(run_plan):
    a, b = np.array([-7, 7, -128, 5], "i1"), np.array([3, -3, -1, 0], "i1")
    i8 = DType.INT8
    for op, attrs, expected in (
        ("Mod", {}, [2, -2, 0, 0]),
        ("Mod", {"fmod": 1}, [-1, 1, 0, None]),
        ("Mul", {}, [-21, -21, -128, 0]),
        ("Max", {}, [3, 7, -1, 5]),
    ):
        tree = Tree((i8, i8), (Step.of(op, 0, 1, dtype=i8, **attrs),))
        out, count = np.zeros(4, "i1"), 3 if None in expected else 4
        plan = Pointwise(tree).plan((count,), [Operand((count,))] * 2)
        run_plan(plan, [a, b, out])
        assert out[:count].tolist() == expected[:count], (op, attrs)


@pytest.mark.parametrize(
    ("op", "axes", "numpy"),
    [
        ("ReduceSum", (0, 2), lambda x, a: x.sum(a)),
        ("ReduceMean", (1,), lambda x, a: x.mean(a)),
        ("ReduceMax", (2,), lambda x, a: x.max(a)),
        ("ReduceL2", (0, 1, 2), lambda x, a: np.sqrt((x * x).sum(a))),
        ("ReduceLogSumExp", (2,), lambda x, a: np.log(np.exp(x).sum(a))),
    ],
)
def test_reductions_over_rows_columns_and_both(run_plan, rng, op, axes, numpy):
    x = rng.standard_normal((3, 40, 17)).astype("f2")
    reference = np.asarray(numpy(x.astype("f8"), axes))
    out = np.full(reference.shape, np.nan, "f4")
    run_plan(reduce.Reduce(op, H, S).plan(x.shape, axes), [x, out])
    assert error(out, reference) < 1e-5


@pytest.mark.parametrize("last", [False, True])
def test_arg_max_of_ties(run_plan, rng, last):
    x, out = rng.integers(0, 5, (4, 70)).astype("i4"), np.zeros(4, "i8")
    run_plan(reduce.Reduce("ArgMax", DType.INT32, I64, last).plan((4, 70), (1,)), [x, out])
    assert out.tolist() == (69 - x[:, ::-1].argmax(1) if last else x.argmax(1)).tolist()


@pytest.mark.parametrize(
    ("op", "pads_count", "ceil", "dilation"),
    [("MaxPool", False, 1, 1), ("MaxPool", False, 0, 2), ("AveragePool", False, 1, 1),
     ("AveragePool", True, 1, 2)],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_pooling(run_plan, rng, op, pads_count, ceil, dilation, last):
    x = rng.standard_normal((2, 8, 11, 13)).astype("f4")
    options = {"count_include_pad": int(pads_count)} if op == "AveragePool" else {}
    reference = one_node(
        op, [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=ceil,
        dilations=[dilation] * 2, **options,
    )  # fmt: skip
    window = pool.Window((3, 3), (2, 2), (1,) * 4, (dilation,) * 2)
    plan = pool.Pool(op, S, last, pads_count).plan(2, 8, (11, 13), reference.shape[2:], window)
    held = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    out = np.full((2, *reference.shape[2:], 8) if last else reference.shape, np.nan, "f4")
    run_plan(plan, [held, out])
    assert error(out.transpose(0, 3, 1, 2) if last else out, reference) < 1e-6


@pytest.mark.parametrize(
    ("shape", "order"),
    [((2, 3, 40, 50), (0, 2, 3, 1)), ((2, 3, 4, 5), (3, 1, 0, 2)), ((4, 5, 6, 8), (1, 0, 2, 3))],
)
@pytest.mark.parametrize("dtype", ["i1", "f2", "i8"])
def test_transposes_move_every_element(run_plan, rng, shape, order, dtype):
    x = rng.integers(-100, 100, shape).astype(dtype)
    out = np.zeros([shape[p] for p in order], dtype)
    run_plan(Transpose(DType.of(x)).plan(shape, order), [x, out])
    np.testing.assert_array_equal(out, x.transpose(order))


def test_copy_between_strided_layouts_is_slice_and_concat(run_plan, rng):
    x, out = rng.standard_normal((4, 10)).astype("f4"), np.zeros((4, 7), "f4")
    piece = Operand((4, 4), (10, 2), offset=1)  # x[:, 1:9:2] to out[:, 3:]
    plan = copy(S).plan((4, 4), [piece], [Operand((4, 4), (7, 1), offset=3)])
    run_plan(plan, [x, out])
    np.testing.assert_array_equal(out[:, 3:], x[:, 1:9:2])
    assert not out[:, :3].any()


def test_gathers(run_plan, rng):
    x = rng.standard_normal((5, 6, 8)).astype("f4")
    index = np.array([[0, -1], [2, 3]])
    out = np.zeros((5, 2, 2, 8), "f4")
    run_plan(gather.Gather("Gather", S).plan(x.shape, index.shape, axis=1), [x, index, out])
    np.testing.assert_array_equal(out, np.take(x, index % 6, axis=1))
    elements = rng.integers(-6, 6, (5, 3, 8))
    out = np.zeros((5, 3, 8), "f4")
    op = gather.Gather("GatherElements", S)
    run_plan(op.plan(x.shape, elements.shape, axis=1), [x, elements, out])
    np.testing.assert_array_equal(out, np.take_along_axis(x, elements % 6, 1))
    points = np.array([[[0, 1], [-1, 2]]] * 5)[:, :, :]
    out = np.zeros((5, 2), "f4")
    op = gather.Gather("GatherND", S)
    run_plan(op.plan(x.shape, points.shape, batch_dims=1), [x, points, out])
    expected = one_node("GatherND", [x, points], batch_dims=1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max"])
def test_scatters_with_duplicates(run_plan, rng, reduction):
    x, updates = rng.standard_normal((5, 6)).astype("f4"), rng.standard_normal((3, 6))
    updates, index = updates.astype("f4"), rng.integers(-5, 5, (3, 6))
    if reduction == "none":
        index = np.array([np.roll(np.arange(5), i)[:3] for i in range(6)]).T
    out = x.copy()
    op = gather.Scatter("ScatterElements", S, reduction=reduction)
    run_plan(op.plan(x.shape, index.shape, axis=0), [index, updates, out])
    expected = one_node("ScatterElements", [x, index, updates], 18, axis=0, reduction=reduction)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    points = np.array([[1], [-1], [1 if reduction != "none" else 2]])
    out = x.copy()
    op = gather.Scatter("ScatterND", S, reduction=reduction)
    run_plan(op.plan(x.shape, points.shape), [points, updates, out])
    expected = one_node("ScatterND", [x, points, updates], 18, reduction=reduction)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads(run_plan, rng, mode):
    x, value = rng.standard_normal((4, 5)).astype("f4"), np.array(2.5, "f4")
    op = spatial.Pad(S, mode, valued=mode == "constant")
    out = np.zeros((4 + 3 - 1, 5 + 2 + 4), "f4")
    held = [x, value, out] if mode == "constant" else [x, out]
    run_plan(op.plan(x.shape, (3, 2), (-1, 4)), held)
    options = {"constant_values": 2.5} if mode == "constant" else {}
    padded = np.pad(x[:-1] if mode == "constant" else x, ((3, 0), (2, 4)), mode=mode, **options)
    np.testing.assert_array_equal(out, padded[:6])


def test_resize_by_tables(run_plan, rng):
    x, out = rng.standard_normal((2, 4)).astype("f4"), np.zeros((2, 8), "f4")
    at = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    low = np.floor(at).astype(int)
    linear = spatial.Table(
        np.stack([low, np.minimum(low + 1, 3)], 1), np.stack([1 - (at - low), at - low], 1)
    )
    same = spatial.Table(np.arange(2)[:, None], np.ones((2, 1)))
    where, weights = spatial.Resize.join([same, linear])
    run_plan(spatial.Resize(S).plan((2, 4), [same, linear]), [x, where, weights, out])
    none = np.array([], "f4")
    expected = one_node("Resize", [x, none, np.array([1, 2], "f4")], mode="linear")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_group_norm_with_activation(run_plan, rng, last):
    x = rng.standard_normal((2, 6, 5, 4)).astype("f4")
    scale, bias = rng.standard_normal((2, 6)).astype("f4")
    held = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    out = np.full(held.shape, np.nan, "f4")
    op = spatial.GroupNorm(S, S, last, "Relu")
    run_plan(op.plan(2, 6, 3, 20, 1e-5), [held, scale, bias, out])
    v = x.astype("f8").reshape(2, 3, -1)
    v = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
    v = np.maximum(v.reshape(x.shape) * scale[:, None, None] + bias[:, None, None], 0)
    assert error(out.transpose(0, 3, 1, 2) if last else out, v) < 1e-6


@pytest.mark.parametrize(("exclusive", "reverse"), [(False, False), (True, True)])
def test_running_sums(run_plan, rng, exclusive, reverse):
    x = rng.integers(-9, 9, (3, 300, 2)).astype("i4")
    out = np.zeros_like(x)
    op = ordering.CumSum(DType.INT32, exclusive, reverse)
    run_plan(op.plan(x.shape, 1), [x, out])
    axis = np.array(1)
    expected = one_node("CumSum", [x, axis], exclusive=int(exclusive), reverse=int(reverse))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("length", "k"), [(70, 9), (2500, 2500)])
@pytest.mark.parametrize("largest", [False, True])
def test_top_k_keeps_the_order_of_ties(run_plan, rng, length, k, largest):
    x = rng.integers(-40, 40, (2, length, 2)).astype("f2")
    values, indices = np.zeros((2, k, 2), "f2"), np.zeros((2, k, 2), "i8")
    run_plan(ordering.TopK(H, largest).plan(x.shape, 1, k), [x, values, indices])
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


def test_positions_of_what_is_not_zero(run_plan, rng):
    x = rng.random(1000) < 0.3
    positions, count = np.full(1000, -1, "i8"), np.zeros(1, "i8")
    run_plan(ordering.NonZero(DType.BOOL).plan(1000), [x, positions, count])
    assert count[0] == x.sum()
    np.testing.assert_array_equal(positions[: count[0]], np.flatnonzero(x))


@pytest.mark.parametrize("center", [0, 1])
def test_non_max_suppression(run_plan, rng, center):
    boxes = rng.random((2, 60, 4)).astype("f4")
    scores = rng.integers(0, 9, (2, 3, 60)).astype("f4") / 9
    expected = one_node(
        "NonMaxSuppression",
        [boxes, scores, np.array([7]), np.array([0.3], "f4"), np.array([0.2], "f4")],
        center_point_box=center,
    )
    found, count = np.zeros((2 * 3 * 7, 3), "i8"), np.zeros(1, "i8")
    op = ordering.NonMaxSuppression(bool(center))
    run_plan(op.plan(2, 3, 60, 7, overlap=0.3, score=0.2), [boxes, scores, found, count])
    np.testing.assert_array_equal(found[: count[0]], expected)


def test_gelu_for_16_bits_errs_far_below_their_rounding(run_plan):
    x = np.concatenate((np.linspace(-18, 18, 4093), [np.inf, -np.inf, np.nan])).astype("f4")
    exact = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x[:-3].tolist()])
    out = np.full(x.shape, np.nan, "f2")
    op = Pointwise(Tree((S,), (Step.of("Gelu", 0, dtype=H),)))
    kernel, operands = op.kernel(op.pattern(x.shape, [Operand(x.shape)])), [Operand(x.shape)]
    assert "gelu_erf_fast" in kernel.source
    run_plan(op.plan(x.shape, operands), [x, out])
    rounded = exact.astype("f2").astype("f8")
    off = np.abs(out[:-3] - exact) - np.abs(rounded - exact)
    assert (off <= 4e-5 * np.maximum(np.abs(exact), 1e-2)).all()
    assert out[-3] == np.inf and out[-2] == 0 and np.isnan(out[-1])


@pytest.mark.parametrize("length", [96, 768, 1100])
def test_blocks_take_several_rows_in_turn(run_plan, rng, monkeypatch, length):
    monkeypatch.setattr(rows, "_MULTIPROCESSORS", 2)
    monkeypatch.setattr(rows, "_RESIDENT", 128)
    x, y = (rng.standard_normal((37, length)).astype("f2") for _ in range(2))
    gamma = rng.standard_normal(length).astype("f2")
    out, sums = np.full((37, length), np.nan, "f2"), np.full((37, length), np.nan, "f2")
    before = Tree((H, H), (Step.of("Add", 0, 1, dtype=H),))
    after = Tree((S, H), (Step.of("Mul", 0, 1, dtype=H),))
    op = rows.RowOp("rmsnorm", before, ("full", "full"), after, ("column",), True)
    plan = op.plan(37, length, epsilon=1e-5)
    assert plan.calls[0].grid[0] < 37 / 4
    run_plan(plan, [x, y, gamma, out, sums])
    total = x.astype("f8") + y
    expected = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * gamma
    assert error(out, expected) < 3e-4
    np.testing.assert_array_equal(sums, total.astype("f2"))
