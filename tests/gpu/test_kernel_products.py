"""Products, convolutions and attention, on the host thread by thread and on the GPU."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from polytool.backends.native.cuda.normalized import normalized_by_rows
from polytool.backends.native.kernels import attention, direct, gemm, gemm_wide, row_moments
from polytool.backends.native.kernels.expr import Step, Tree
from polytool.backends.native.kernels.source import Plan
from polytool.backends.native.kernels.transpose import PackImage
from polytool.tensors import DType

H, S = DType.FLOAT16, DType.FLOAT
BIAS_RELU = gemm.Epilogue(
    Tree((S, H), (Step.of("Add", 0, 1, dtype=H), Step.of("Relu", 2, dtype=H))), ("column",)
)
BIAS_ADD_RELU = gemm.Epilogue(
    Tree(
        (S, H, H),
        (
            Step.of("Add", 0, 1, dtype=H),
            Step.of("Add", 3, 2, dtype=H),
            Step.of("Relu", 4, dtype=H),
        ),
    ),
    ("column", "full"),
)


def error(value, reference):
    reference = np.asarray(reference, np.float64)
    return np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference)


def ort_conv(x, w, op="Conv", **attributes):
    node = onnx.helper.make_node(op, ["x", "w"], ["y"], **attributes)
    values = [onnx.helper.make_tensor_value_info(n, 1, v.shape) for n, v in (("x", x), ("w", w))]
    result = [onnx.helper.make_tensor_value_info("y", 1, None)]
    opset = [onnx.helper.make_opsetid("", 19)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", values, result), opset_imports=opset, ir_version=9
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32), "w": w.astype(np.float32)})[0]


@pytest.mark.parametrize(
    ("tile", "m", "n", "k", "split"),
    [
        (gemm.Tile(64, 64, 4, 1, 6, True), 70, 72, 192, 1),
        (gemm.Tile(64, 64, 4, 1, 6, True), 33, 64, 520, 4),
        (gemm.Tile(256, 128, 8, 1, 4, True), 70, 72, 192, 1),
        (gemm.Tile(64, 256, 4, 2, 5, True), 33, 264, 136, 2),
        (gemm.Tile(64, 64, 2, 2, 4), 70, 72, 192, 1),
        (gemm.Tile(32, 32, 2, 2, 6), 33, 64, 520, 4),
        (gemm.Tile(16, 64, 1, 4, 3), 33, 64, 8, 3),
    ],
    ids=str,
)
def test_gemm_with_bias_residual_and_relu(run_plan, rng, tile, m, n, k, split):
    a, b, residual = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k), (m, n)))
    bias, out = rng.standard_normal(n).astype("f2"), np.full((m, n), np.nan, "f2")
    plan = gemm.Gemm(H, BIAS_ADD_RELU, tile).plan(gemm.Matrix(m, n, k), split)
    run_plan(plan, [a, b, bias, residual, out])
    assert error(out, np.maximum(a.astype("f8") @ b.T.astype("f8") + bias + residual, 0)) < 3e-4


@pytest.mark.parametrize(
    ("tile", "cluster", "m", "n", "k", "blocks"),
    [
        ((2, 256), 2, 300, 264, 136, 2),
        ((2, 192), 1, 130, 200, 600, 1),
        ((2, 128), 2, 520, 136, 64, 4),
        ((3, 192), 1, 200, 392, 136, 2),
        ((3, 128), 2, 420, 136, 400, 2),
    ],
    ids=str,
)
def test_wide_gemm_with_bias_residual_and_relu(run_plan, rng, tile, cluster, m, n, k, blocks):
    a, b, residual = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k), (m, n)))
    bias, out = rng.standard_normal(n).astype("f2"), np.full((m, n), np.nan, "f2")
    op = gemm_wide.WideGemm(H, BIAS_ADD_RELU, *tile, cluster)
    assert op.boxes
    run_plan(op.plan(gemm.Matrix(m, n, k), blocks), [a, b, bias, residual, out])
    assert error(out, np.maximum(a.astype("f8") @ b.T.astype("f8") + bias + residual, 0)) < 3e-4


@pytest.mark.gpu
@pytest.mark.parametrize("cluster", gemm_wide.CLUSTERS)
@pytest.mark.parametrize("tile", gemm_wide.TILES, ids=str)
@pytest.mark.parametrize("k", [64, 128, 320])
def test_wide_gemm_hurries_through_many_small_tiles(run_gpu, rng, tile, cluster, k):
    m, n = 40_000, 256
    a, b, residual = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k), (m, n)))
    bias = rng.standard_normal(n).astype("f2")
    plan = gemm_wide.WideGemm(H, BIAS_ADD_RELU, *tile, cluster).plan(gemm.Matrix(m, n, k))
    reference = np.maximum(a.astype("f4") @ b.T.astype("f4") + bias + residual, 0)
    for _ in range(3):
        out = np.full((m, n), np.nan, "f2")
        run_gpu(Plan(plan.calls * 4), [a, b, bias, residual, out])
        assert error(out, reference) < 3e-4


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", [BIAS_RELU, BIAS_ADD_RELU], ids=["bias", "residual"])
@pytest.mark.parametrize("tile", gemm_wide.TILES, ids=str)
def test_blocks_of_wide_gemm_stay_for_each_other_200_000_times(run_gpu, rng, tile, epilogue):
    m, n, k = 4096, 768, 768
    a, b, residual = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k), (m, n)))
    bias, out = rng.standard_normal(n).astype("f2"), np.full((m, n), np.nan, "f2")
    beside = [residual] if "full" in epilogue.operands else []
    op = gemm_wide.WideGemm(H, epilogue, *tile, cluster=2, constant=True)
    plan = op.plan(gemm.Matrix(m, n, k))
    run_gpu(Plan(plan.calls * 20), [a, b, bias, *beside, out], times=10_000)
    reference = np.maximum(a.astype("f4") @ b.T.astype("f4") + bias + sum(beside), 0)
    assert error(out, reference) < 3e-4


@pytest.mark.parametrize("tile", [(2, 256, 2), (3, 128, 1)], ids=str)
def test_wide_gemm_with_a_residual_of_another_type(run_plan, rng, tile):
    m, n, k = 300, 264, 136
    a, b = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k)))
    residual, out = rng.standard_normal((m, n)).astype("f4"), np.full((m, n), np.nan, "f2")
    epilogue = gemm.Epilogue(Tree((S, S), (Step.of("Add", 0, 1, dtype=H),)), ("full",))
    op = gemm_wide.WideGemm(H, epilogue, *tile)
    assert not op.boxes
    run_plan(op.plan(gemm.Matrix(m, n, k), 2), [a, b, residual, out])
    assert error(out, a.astype("f8") @ b.T.astype("f8") + residual) < 3e-4


@pytest.mark.parametrize("out", ["f2", "f4"])
@pytest.mark.parametrize(
    "tile", [(2, 256, 1), (3, 192, 1, 1, True), (2, 192, 2, 1, True), (2, 128, 1, 2)], ids=str
)
def test_wide_gemm_finishes_a_bias_in_registers(run_plan, rng, tile, out):
    m, n, k = 210, 264, 136
    a, b = rng.standard_normal((m, k)).astype("f2"), rng.standard_normal((n, k)).astype("f2")
    bias, result = rng.standard_normal(n).astype("f2"), np.full((m, n), np.nan, out)
    dtype = H if out == "f2" else S
    steps = (
        Step.of("Add", 0, 1, dtype=S),
        Step.of("Relu", 2, dtype=S),
        Step.of("Cast", 3, dtype=dtype),
    )
    epilogue = gemm.Epilogue(Tree((S, H), steps), ("column",))
    plan = gemm_wide.WideGemm(H, epilogue, *tile).plan(gemm.Matrix(m, n, k), 2)
    run_plan(plan, [a, b, bias, result])
    reference = np.maximum(a.astype("f8") @ b.T.astype("f8") + bias, 0)
    assert error(result, reference) < (3e-4 if out == "f2" else 1e-6)


def moments_of(rows):
    """As row_moments.py lays them out: [columns / 64, rows, 2]."""
    parts = rows.astype("f8").reshape(len(rows), -1, row_moments.PART).swapaxes(0, 1)
    return np.stack([parts.sum(-1), (parts**2).sum(-1)], -1)


@pytest.mark.parametrize("tile", [(2, 256, 2), (3, 128, 1), (2, 192, 1)], ids=str)
def test_wide_gemm_also_stores_the_moments_of_its_rows(run_plan, rng, tile):
    m, n, k = 300, 320, 136
    a, b, residual = (rng.standard_normal(s).astype("f2") for s in ((m, k), (n, k), (m, n)))
    bias, out = rng.standard_normal(n).astype("f2"), np.full((m, n), np.nan, "f2")
    moments = np.full((n // row_moments.PART, m, 2), np.nan, "f4")
    op = gemm_wide.WideGemm(H, BIAS_ADD_RELU, *tile, measured=True)
    run_plan(op.plan(gemm.Matrix(m, n, k), 2), [a, b, bias, residual, out, moments])
    reference = np.maximum(a.astype("f8") @ b.T.astype("f8") + bias + residual, 0)
    assert error(out, reference) < 3e-4
    assert error(moments, moments_of(reference)) < 1e-6


@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16])
def test_rows_in_memory_are_measured(run_plan, rng, dtype):
    x, moments = rng.standard_normal((9, 320)).astype(dtype), np.full((5, 9, 2), np.nan, "f4")
    call = row_moments.measuring(DType.of(x), 9, 320, 0, 1)
    run_plan(Plan((call,)), [x, moments])
    assert error(moments, moments_of(x)) < 1e-6


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("tile", [(2, 256, 2), (3, 192, 1), (2, 128, 1), None], ids=str)
def test_a_product_of_normalised_rows(run_plan, rng, tile, centred):
    m, n, k = 500, 264, 192
    x = (rng.standard_normal((m, k)) * rng.uniform(0.1, 9, (m, 1)) + 2).astype("f2")
    w = rng.standard_normal((n, k))
    w = (w - w.mean(1, keepdims=True) * centred).astype("f2")
    shift, out = rng.standard_normal(n).astype("f4"), np.full((m, n), np.nan, "f2")
    tree = Tree((S, S), (Step.of("Add", 0, 1, dtype=H), Step.of("Relu", 2, dtype=H)))
    epilogue, factor = gemm.Epilogue(tree, ("column",)), np.array([0.25], "f4")
    problem, norm = gemm.Matrix(m, n, k), row_moments.RowNorm.of(k, 1e-5, centred)
    if tile is None:
        plan = normalized_by_rows(H, epilogue, problem, norm)
    else:
        op = gemm_wide.WideGemm(H, epilogue, *tile, normalized=True)
        plan = op.plan(problem, 2, norm)
    run_plan(plan, [x, w, shift, moments_of(x).astype("f4"), factor, out])
    wide = x.astype("f8")
    deviation = np.sqrt((wide**2).mean(1) - (wide.mean(1) * centred) ** 2 + 1e-5)[:, None]
    assert error(out, np.maximum(wide @ w.T.astype("f8") * 0.25 / deviation + shift, 0)) < 3e-4


def test_odd_columns_are_stored_one_by_one(run_plan, rng):
    a, b = rng.standard_normal((9, 16)).astype("f2"), rng.standard_normal((7, 16)).astype("f2")
    bias, out = rng.standard_normal(7).astype("f2"), np.full((9, 7), np.nan, "f2")
    op = gemm.Gemm(H, BIAS_RELU, gemm.Tile(32, 32, 2, 2, 6), vector=1)
    run_plan(op.plan(gemm.Matrix(9, 7, 16)), [a, b, bias, out])
    assert error(out, np.maximum(a.astype("f8") @ b.T.astype("f8") + bias, 0)) < 3e-4


def test_batched_product_into_rows_of_a_larger_tensor(run_plan, rng):
    a, b = rng.standard_normal((3, 5, 16)).astype("f2"), rng.standard_normal((8, 16)).astype("f2")
    bias, out = np.zeros(8, "f2"), np.zeros((3, 6, 8), "f2")
    problem = gemm.Matrix(5, 8, 16, 3, batch_a=80, batch_d=48)
    run_plan(gemm.Gemm(H, BIAS_RELU, gemm.Tile(32, 32, 2, 2, 6)).plan(problem), [a, b, bias, out])
    assert error(out[:, :5], np.maximum(a.astype("f8") @ b.T.astype("f8"), 0)) < 3e-4
    assert not out[:, 5].any()


def test_int8_product_is_exact(run_plan, rng):
    a, b = (rng.integers(-128, 128, s).astype("i1") for s in ((33, 96), (40, 96)))
    out = np.zeros((33, 40), "i4")
    op = gemm.Gemm(
        DType.INT8, gemm.Epilogue(Tree((DType.INT32,))), gemm.Tile(64, 64, 4, 1, 6, True)
    )
    run_plan(op.plan(gemm.Matrix(33, 40, 96), 2), [a, b, out])
    np.testing.assert_array_equal(out, a.astype("i4") @ b.T.astype("i4"))


@pytest.mark.parametrize(
    ("geometry", "tile", "split"),
    [
        ((64, 72, 3, 1, 1, 1, 1), gemm.Tile(64, 64, 4, 1, 6, True), 1),
        ((64, 64, 3, 2, 1, 1, 1), gemm.Tile(64, 64, 4, 1, 6, True), 3),
        ((16, 24, 3, 1, 2, 2, 1), gemm.Tile(32, 32, 2, 2, 6), 2),
        ((64, 64, 3, 1, 1, 1, 4), gemm.Tile(32, 32, 2, 2, 6), 1),
        ((64, 40, 1, 2, 0, 1, 1), gemm.Tile(32, 32, 2, 2, 6), 1),
    ],
    ids=str,
)
def test_convolution_as_implicit_product(run_plan, rng, geometry, tile, split):
    c, o, k, s, p, d, g = geometry
    x = rng.standard_normal((2, c, 7, 9)).astype("f2")
    w = rng.standard_normal((o, c // g, k, k)).astype("f2")
    bias = rng.standard_normal(o).astype("f2")
    problem = gemm.Convolution(2, 7, 9, c, o, (k, k), (s, s), (p,) * 4, (d, d), g)
    out = np.full((2, *problem.output, o), np.nan, "f2")
    op = gemm.Gemm(H, BIAS_RELU, tile, problem.image(64))
    last = [np.ascontiguousarray(v.transpose(0, 2, 3, 1)) for v in (x, w)]
    run_plan(op.plan(problem, split), [*last, bias, out])
    y = ort_conv(x, w, strides=[s, s], pads=[p] * 4, dilations=[d, d], group=g)
    reference = np.maximum(y + bias.astype("f4")[:, None, None], 0)
    assert error(out.transpose(0, 3, 1, 2), reference) < 3e-4


def test_stem_reads_pairs_of_pixels(run_plan, rng):
    x = rng.standard_normal((1, 3, 20, 22)).astype("f2")
    w = rng.standard_normal((64, 3, 7, 7)).astype("f2")
    packed, pairs = np.zeros((1, 26, 28, 4), "f2"), np.zeros((64, 7, 8, 4), "f2")
    run_plan(PackImage(H, 4).plan((1, 3, 20, 22), 3, 3, (26, 28)), [x, packed])
    pairs[:, :, :7, :3] = w.transpose(0, 2, 3, 1)
    problem = gemm.Convolution(1, 26, 14, 8, 64, (7, 4), (2, 1))
    out = np.full((1, *problem.output, 64), np.nan, "f2")
    op = gemm.Gemm(H, BIAS_RELU, gemm.Tile(64, 64, 4, 1, 6, True), 1)
    run_plan(op.plan(problem), [packed, pairs, np.zeros(64, "f2"), out])
    reference = np.maximum(ort_conv(x, w, strides=[2, 2], pads=[3] * 4), 0)
    assert error(out.transpose(0, 3, 1, 2), reference) < 3e-4


def scores_mask(shape, rng, kind):
    if kind is None:
        return None
    return rng.random(shape) < 0.8 if kind == "bool" else rng.standard_normal(shape).astype("f2")


@pytest.mark.parametrize(
    ("form", "length", "head", "causal", "mask"),
    [
        ((4, 1, 64), 70, 64, False, None),
        ((2, 2, 64), 130, 32, True, None),
        ((1, 4, 128), 65, 80, False, "f2"),
        ((2, 2, 128), 140, 16, False, "bool"),
        ((2, 2, 64), 70, 64, False, "f2 rows"),
        ((2, 1, 80), 70, 64, False, "f2 rows"),
        ((3, 1, 144), 140, 32, False, None),
        ((1, 4, 192), 130, 16, True, None),
    ],
    ids=str,
)
def test_attention_of_packed_qkv(run_plan, rng, form, length, head, causal, mask):
    batch, heads = 2, 2
    qkv = rng.standard_normal((3, batch, length, heads, head)).astype("f2")
    out = np.full((batch, length, heads, head), np.nan, "f2")
    kind, rows = {"bool": ("bool", True), "f2 rows": ("f2", True)}.get(mask, (mask, False))
    extra = scores_mask((batch, 1, length if rows else 1, length), rng, kind)
    if kind == "bool":
        extra[..., 0] = True
    steps = (length * heads * head, head, heads * head)
    mask_steps = (extra.shape[2] * length, 0, length if rows else 0, 1) if mask else (0,) * 4
    layout = attention.Layout(
        batch, heads, heads, length, length, head**-0.5, steps, steps, steps, steps, mask_steps
    )
    dtype = {None: None, "f2": H, "bool": DType.BOOL}[kind]
    pairs = mask is not None and length % 2 == 0
    op = attention.Attention(H, head, dtype, causal, form, rows, pairs)
    run_plan(op.plan(layout), [*qkv, *([] if extra is None else [extra]), out])
    q, k, v = qkv.astype("f8").transpose(0, 1, 3, 2, 4)
    scores = q @ k.swapaxes(-1, -2) * head**-0.5
    if kind == "f2":
        scores = scores + extra
    if kind == "bool":
        scores = np.where(extra, scores, -np.inf)
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    reference = (p / p.sum(-1, keepdims=True)) @ v
    assert error(out.transpose(0, 2, 1, 3), reference) < 5e-4


@pytest.mark.parametrize("transposed", [False, True])
def test_generic_product_takes_any_strides_and_batches(run_plan, rng, transposed):
    a = rng.standard_normal((3, 1, 5, 20)).astype("f8")
    b = rng.standard_normal((2, 20, 70)).astype("f8")
    out = np.full((3, 2, 5, 70), np.nan, "f8")
    held = np.ascontiguousarray(b.swapaxes(-1, -2)) if transposed else b
    op = direct.Product(DType.DOUBLE, DType.DOUBLE, gemm.Epilogue(Tree((DType.DOUBLE,))))
    plan = op.plan(
        5, 70, 20, a=(20, 1), b=(1, 20) if transposed else (70, 1),
        batch=(3, 2), batch_a=(100, 0), batch_b=(0, 1400),
    )  # fmt: skip
    run_plan(plan, [a, held, out])
    assert error(out, a @ b) < 1e-14


def full_precision(dtype):
    return gemm.Epilogue(Tree((S, dtype), (Step.of("Add", 0, 1, dtype=dtype),)), ("column",))


@pytest.mark.parametrize("last", [False, True])
def test_direct_convolution_in_three_dimensions_with_groups(run_plan, rng, last):
    x = rng.standard_normal((2, 4, 5, 6, 7)).astype("f4")
    w, bias = rng.standard_normal((6, 2, 2, 3, 2)).astype("f4"), rng.standard_normal(6).astype("f4")
    reference = ort_conv(x, w, group=2, strides=[1, 2, 1], pads=[0, 1, 1, 0, 1, 0])
    geometry = direct.Geometry(
        2, 4, 6, (5, 6, 7), reference.shape[2:], (2, 3, 2), (1, 2, 1), (0, 1, 1), (1, 1, 1), 2
    )
    held = np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)) if last else x
    out = np.full((2, *reference.shape[2:], 6) if last else reference.shape, np.nan, "f4")
    run_plan(direct.Direct(S, full_precision(S), last).plan(geometry), [held, w, bias, out])
    got = out.transpose(0, 4, 1, 2, 3) if last else out
    assert error(got, reference + bias[:, None, None, None]) < 1e-6


def test_transposed_convolution(run_plan, rng):
    x, w = rng.standard_normal((1, 4, 5, 6)).astype("f4"), rng.standard_normal((4, 3, 3, 2))
    w = w.astype("f4")
    reference = ort_conv(x, w, "ConvTranspose", group=2, strides=[2, 3], pads=[1, 0, 0, 1])
    geometry = direct.Geometry(
        1, 4, 6, (5, 6), reference.shape[2:], (3, 2), (2, 3), (1, 0), (1, 1), 2
    )
    out = np.full(reference.shape, np.nan, "f4")
    op = direct.Direct(S, full_precision(S), transposed=True)
    run_plan(op.plan(geometry), [x, w, np.zeros(6, "f4"), out])
    assert error(out, reference) < 1e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_takes_channels_in_vectors(run_plan, rng, stride):
    x, w = rng.standard_normal((2, 24, 9, 8)).astype("f2"), rng.standard_normal((24, 1, 3, 3))
    w, bias = w.astype("f2"), rng.standard_normal(24).astype("f2")
    y = ort_conv(x, w, group=24, strides=[stride] * 2, pads=[1] * 4)
    geometry = direct.Geometry(
        2, 24, 24, (9, 8), y.shape[2:], (3, 3), (stride,) * 2, (1, 1), (1, 1), 24
    )
    op = direct.Direct.depthwise(H, BIAS_RELU, geometry)
    assert op.vector == 8
    out = np.full((2, *y.shape[2:], 24), np.nan, "f2")
    taps = np.ascontiguousarray(w.reshape(24, 9).T)
    run_plan(op.plan(geometry), [np.ascontiguousarray(x.transpose(0, 2, 3, 1)), taps, bias, out])
    reference = np.maximum(y + bias.astype("f4")[:, None, None], 0)
    assert error(out.transpose(0, 3, 1, 2), reference) < 3e-4
