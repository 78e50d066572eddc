"""Layers become launches without a GPU: what is recorded, and what is left to the host."""

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.cuda.buffers import View
from polytool.backends.native.cuda.fallback import host_layers
from polytool.backends.native.cuda.recorder import Recorder, storages
from polytool.backends.native.passes import fuse_norm_gemm, fuse_residual_norm
from polytool.backends.native.shapes import ShapePass
from polytool.errors import UnsupportedError
from scripts import made_models
from scripts.models import get

IDS = {"ids": np.zeros((2, 16), np.int64), "mask": np.ones((2, 16), np.int64)}


def record(model, feeds, precision: str = "fp16") -> tuple[Recorder, list[str]]:
    """The recording of a whole model, and the layers that need the host."""
    network = NativeRunner(model, precision=precision, device="cpu").engine.network
    host = {t: feeds[t.name] for t in network.inputs if t.place == "host"}
    walker = ShapePass({t: np.shape(feeds[t.name]) for t in network.inputs}, host)
    recorder = Recorder(walker, network.layers)
    for tensor in network.inputs:
        assert tensor.dtype is not None
        recorder.views[tensor] = View.new(tensor.dtype, np.shape(feeds[tensor.name]))
    refused = []
    for layer in network.layers:
        walker.run([layer])
        if all(t in walker.values for t in layer.outputs):
            continue
        try:
            recorder.lower(layer)
        except UnsupportedError as err:
            refused.append(f"{layer.kind}: {err}")
            for tensor in layer.outputs:
                if tensor in walker.shapes and tensor.dtype is not None:
                    recorder.views[tensor] = View.new(tensor.dtype, walker.shapes[tensor])
    return recorder, refused


def launches(recorder: Recorder) -> int:
    return sum(len(step.plans[0].calls) for step in recorder.steps)


def test_a_transformer_is_products_attention_and_norms():
    model = made_models.transformer()
    recorder, refused = record(model, IDS)
    assert not refused
    # 6 x (q with k and v, attention, out, norm, up, down, norm), the embedding and the mask
    assert launches(recorder) <= 6 * 7 + 5


def test_gemms_between_reshapes_take_what_follows_them():
    model = made_models.gpt2(width=128, heads=2)
    recorder, refused = record(model, {"ids": np.zeros((2, 16), np.int64)})
    assert not refused
    # 2 x (norm, qkv, attention, out, norm, up, down), the embedding and the mask, the last norm
    assert launches(recorder) <= 2 * 7 + 8


def test_gemms_of_the_same_rows_are_one_product():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2,8,64] x) => (float[2,8,64] a, float[2,8,64] b)
        <int64[2] rows = {-1, 64}, int64[3] whole = {2, 8, 64}>
        { f = Reshape(x, rows) p = Gemm<transB=1>(f, w1) q = Gemm<transB=1>(f, w2)
          r = Reshape(p, whole) s = Reshape(q, whole) a = Relu(r) b = Relu(s) }"""
    )
    for name in ("w1", "w2"):
        weight = np.random.default_rng(ord(name[1])).standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    recorder, refused = record(proto, {"x": np.zeros((2, 8, 64), np.float32)})
    assert not refused
    products = [s for s in recorder.steps if s.layer.kind == "gemm"]
    assert len(products) == 1


def test_products_of_one_input_are_one_product_with_views_of_its_columns():
    recorder, _ = record(made_models.transformer(layers=1), IDS)
    attention = next(s for s in recorder.steps if s.layer.nodes[0].op == "Attention")
    q, k, v = attention.views[:3]
    assert q.storage is k.storage is v.storage
    width = q.shape[1] * q.shape[3]
    assert sorted((q.offset, k.offset, v.offset)) == [0, width, 2 * width]


@pytest.mark.parametrize("name", ["ppocr-rec", "ppocr-cls", "khmersm", "inception_v2"])
def test_real_models_need_nothing_from_the_host(name):
    model = get(name)
    _, refused = record(str(model.path), model.feeds())
    assert not refused


def test_transposes_and_reshapes_of_attention_are_views():
    model = made_models.transformer(layers=1)
    recorder, _ = record(model, IDS)
    ops = [step.layer.nodes[0].op for step in recorder.steps]
    assert "Transpose" not in ops and "Reshape" not in ops


def test_a_chain_of_convolutions_stays_channels_last():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[1,16,8,8] x) => (float[1,16,8,8] y)
        { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w)
          d = Add(c, a) y = Relu(d) }"""
    )
    weight = np.zeros((16, 16, 3, 3), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    recorder, refused = record(proto, {"x": np.zeros((1, 16, 8, 8), np.float32)})
    assert not refused
    nhwc = [s for s in recorder.steps if s.layer.kind == "conv"]
    assert all(s.views[-1].lies_like((0, 2, 3, 1)) for s in nhwc if s.writes)


@pytest.mark.parametrize(
    ("shape", "move"),
    [
        ([3, 2, 16], "n = Transpose<perm = [1,0,2]>(q)"),
        ([2, 3, 32], "o, n = Split<axis = 2, num_outputs = 2>(q)"),
    ],
)
def test_a_residual_norm_is_one_kernel_that_reads_views(shape, move):
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float16[2,3,16] x, float16{shape} r) => (float16[2,3,16] y, float16[2,3,16] s)
        {{ q = Identity(r) {move} s = Add(x, n) y = LayerNormalization(s, w) }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(16, np.float16), "w"))
    feeds = {"x": np.zeros((2, 3, 16), np.float16), "r": np.zeros(shape, np.float16)}
    recorder, refused = record(proto, feeds)
    assert not refused
    (step,) = recorder.steps
    assert step.layer.kind == "residual_norm" and step.writes == 2
    (call,) = step.plans[0].calls
    assert "#define VEC 8" in call.kernel.source


def test_a_product_measures_the_rows_that_the_next_one_normalises(monkeypatch):
    monkeypatch.setattr(fuse_norm_gemm, "LARGE", 0)
    monkeypatch.setattr(fuse_residual_norm, "LARGE", 0)
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float16[4,128,192] x, float16[4,128,192] r)
            => (float16[4,128,192] y, float16[4,128,192] z)
        { n = LayerNormalization(x, v) a = MatMul(n, w) s = Add(a, r) m = LayerNormalization(s, v)
          b = MatMul(m, w) y = Relu(b) z = Neg(s) }"""
    )
    weights = {"v": np.ones(192, np.float16), "w": np.zeros((192, 192), np.float16)}
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = {name: np.zeros((4, 128, 192), np.float16) for name in "xr"}
    recorder, refused = record(proto, feeds)
    assert not refused
    found = [(s.layer.kind, s.plans[-1].name.split()[0], s.writes) for s in recorder.steps]
    # with an addend of its own the first product stays apart from its normalisation
    assert found[0][0] == "LayerNormalization"
    assert [f for f in found if f[0] != "Neg"][1:] == [
        ("gemm", "gemm", 2),
        ("norm_gemm", "rows,", 1),
    ]
    for step in recorder.steps[1:3]:
        assert len(step.plans[-1].calls) == 2  # for a GPU without Hopper's matrix units
        assert all(p.name.startswith("gemm_wide") for p in step.plans[:-1])
    moments = recorder.steps[1].views[-1]
    assert moments.shape == (3, 512, 2) and moments in recorder.steps[2].views


def test_every_buffer_that_is_read_was_written_before():
    recorder, _ = record(made_models.transformer(layers=2), IDS)
    given = {v.storage for t, v in recorder.views.items() if t.name in IDS}
    written = set(given)
    for step in recorder.steps:
        reads = step.views[: len(step.views) - step.writes]
        for view in reads:
            assert view.storage in written or view.storage.make is not None
        written.update(v.storage for v in step.views[len(reads) :])
    assert set(storages(recorder.steps)) <= written | {
        v.storage for s in recorder.steps for v in s.views if v.storage.make is not None
    }


def test_what_has_no_kernel_is_refused_with_its_reason():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,3] y)
        { y = RandomNormalLike (x) }"""
    )
    _, refused = record(proto, {"x": np.zeros((2, 3), np.float32)})
    assert refused == ["RandomNormalLike: RandomNormalLike has no GPU kernel"]


def test_layers_for_the_host_are_known_without_a_device():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2,3] x) => (string[2,3] y, int64[1,N] z)
        { h = Softmax(x) y = Cast<to=8>(h) g = NonZero(x) z = Gather(g, i) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "i"))
    network = NativeRunner(proto, device="cpu").engine.network
    assert host_layers(network) == {"y": "strings and sequences live on the host"}
