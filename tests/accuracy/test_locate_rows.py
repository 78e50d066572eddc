"""Layers of which the engine computes one row only are judged and named like all others."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import pytest

from polytool import NativeRunner
from polytool.backends.native.oracle import NativeOracle
from polytool.backends.onnxrt.oracle import OnnxrtOracle
from polytool.cli import main
from polytool.comparators.golden import record
from polytool.comparators.locate import locate
from polytool.reproducers import command, with_reproducer
from scripts import made_models
from tests.accuracy.test_locate import one_channel, with_fault

pytestmark = pytest.mark.ort

RNG = np.random.default_rng(0)
IMAGES = {"x": RNG.standard_normal((3, 3, 32, 32)).astype(np.float32)}
PRODUCTS = 11  # of a model of two blocks: five a block, Attention among them, and the head
LAST_TOKEN = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,S,8] x, float[1,S,8] places) => (float[N,8] y)
<float[8] s = {1, 1, 2, 1, 1, 1, 3, 1}, float[8] b = {0, 0, 1, 0, 0, 0, 0, -1}> {
    a = Add(x, places) n = LayerNormalization<axis=-1>(a, s, b) kt = Transpose<perm=[0, 2, 1]>(n)
    sc = MatMul(n, kt) p = Softmax<axis=-1>(sc) m = MatMul(p, n) r = Add(a, m)
    h = LayerNormalization<axis=-1>(r, s, b) sizes = Shape(x) flat = Reshape(h, sizes)
    u = MatMul(flat, wide) t = Tanh(u) d = MatMul(t, back) r2 = Add(r, d)
    last = Constant<value = int64 {-1}>() y = Gather<axis=1>(r2, last) }"""


@pytest.fixture(scope="module")
def images() -> onnx.ModelProto:
    return made_models.vit(2, 64, 4, 32, 8, 10)


def last_token() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A model of any length, and samples of two lengths."""
    proto = onnx.parser.parse_model(LAST_TOKEN)
    for name, shape in (("wide", (8, 16)), ("back", (16, 8))):
        value = RNG.standard_normal(shape).astype(np.float32) / 3
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = []
    for length in (5, 9):
        sizes = {"x": (2, length, 8), "places": (1, length, 8)}
        values = {n: RNG.standard_normal(s).astype(np.float32) for n, s in sizes.items()}
        feeds.append(values)
    return proto, feeds


@pytest.mark.parametrize("judge", [NativeOracle, OnnxrtOracle])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_layer_of_a_sound_engine_is_blamed(images, judge, precision):
    runner = NativeRunner(images, precision=precision, device="cpu")
    found = locate(runner, judge(images), [IMAGES])
    judged = {name for f in found.findings for name in f.tensors}
    assert found.verdict == "expected" and not found.not_checked
    assert {tap.tensor for tap in runner.taps() if tap.rows} <= judged


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("number", range(5, PRODUCTS))
def test_a_planted_fault_is_named_first_and_why(images, precision, number):
    runner, layer = with_fault(images, number, one_channel, precision)
    found = locate(
        runner, NativeOracle(images), [IMAGES],
        second=lambda: (OnnxrtOracle(images), ("polytool", "ONNX Runtime")),
    )  # fmt: skip
    top = found.ranking[0]
    assert top.layer == layer.name and top.verdict == "broken" and "slices along" in top.reason
    assert found.first_broken is top and 0 < (top.contribution or 0) < 10
    tap = next(t for t in runner.taps() if t.tensor == top.tensors[0])
    assert bool(tap.rows) == (6 <= number < PRODUCTS - 1)


@pytest.mark.parametrize("order", [1, -1])
def test_samples_of_several_lengths(order):
    proto, feeds = last_token()
    runner = NativeRunner(proto, device="cpu")
    assert {t.tensor for t in runner.taps() if t.rows == ((1, -1),)} >= {"t", "r2"}
    found = locate(runner, NativeOracle(proto), feeds[::order], everywhere=True, contributions=9)
    assert found.verdict == "expected" and not found.not_checked
    runner, layer = with_fault(proto, -1, one_channel, "fp32")
    found = locate(runner, NativeOracle(proto), feeds[::order])
    assert found.first_broken is not None and found.first_broken.layer == layer.name
    assert 0 < (found.first_broken.contribution or 0) < 10


def test_the_layer_alone_fails_in_the_same_way(images, tmp_path, capfd):
    faulty = onnx.ModelProto()
    faulty.CopyFrom(images)
    (weight,) = (t for t in faulty.graph.initializer if t.name == "blocks.1.up.w")
    array = onnx.numpy_helper.to_array(weight)[::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    runner = NativeRunner(faulty, device="cpu")
    found = locate(runner, NativeOracle(images), [IMAGES])
    saved = with_reproducer(found, images, runner, [IMAGES], tmp_path).first_broken
    assert saved is not None and saved.reproducer is not None and ":row" in saved.layer
    capfd.readouterr()
    assert main([*command(saved).split()[1:], "--json"]) == 0  # the sound model's layer is sound
    assert json.loads(capfd.readouterr().out)["verdict"] == "expected"


def test_recorded_layers_tell_rows_from_whole_tensors(images):
    few = record(NativeRunner(images, device="cpu"), [IMAGES])
    all_ = record(NativeRunner(images, device="cpu", optimize=False), [IMAGES])
    assert few.roundoff and not few.moved_layers(all_)
