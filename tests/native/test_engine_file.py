"""Engine files: what is loaded is what was saved, and damage is told, not run."""

import json
import struct

import numpy as np
import onnx
import onnx.parser
import pytest
import safetensors.numpy

from polytool import Engine, NativeRunner, engine_from_onnx
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.engine_file import verify
from polytool.errors import ModelError

RNG = np.random.default_rng(0)
W = RNG.standard_normal((8, 8)).astype(np.float32)


def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[N,8] x, bool c) => (float[N,8] y, string[2] names) {
            p = MatMul(x, w)
            y = If (c) <then_branch = t () => (float[N,8] a) { a = Mul(p, half) },
                        else_branch = e () => (float[N,8] b) { b = Softmax(p) }>
            names = Identity(labels)
        }"""
    )
    proto.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(W, "w"),
            onnx.numpy_helper.from_array(np.float32(0.5), "half"),
            onnx.helper.make_tensor(
                "labels", onnx.TensorProto.STRING, [2], [b"cat", "böse".encode()]
            ),
        ]
    )
    return proto


FEEDS = {"x": RNG.standard_normal((3, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("engines") / "m.engine"
    engine_from_onnx(model(), BuilderConfig(device="cpu")).save(path)
    return path


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp64"])
def test_a_loaded_engine_computes_the_same_bits(tmp_path, branch, precision):
    feeds = {**FEEDS, "c": np.array(branch)}
    engine = engine_from_onnx(model(), BuilderConfig(precision=precision, device="cpu"))
    engine.save(tmp_path / "m.engine")
    loaded = Engine.load(tmp_path / "m.engine")
    assert loaded.config == engine.config
    expected = NativeRunner(engine).infer(feeds)
    got = NativeRunner(loaded).infer(feeds)
    assert list(got) == list(expected) == ["y", "names"]
    assert np.array_equal(got["y"], expected["y"])
    assert got["names"].tolist() == ["cat", "böse"]


def test_saving_is_reproducible(saved, tmp_path):
    engine_from_onnx(model(), BuilderConfig(device="cpu")).save(tmp_path / "again.engine")
    Engine.load(saved).save(tmp_path / "loaded.engine")
    again = (tmp_path / "again.engine").read_bytes()
    assert again == (tmp_path / "loaded.engine").read_bytes()
    assert len(again) == saved.stat().st_size


def test_it_is_a_safetensors_file_of_bytes(saved):
    parts = safetensors.numpy.load_file(saved)
    assert "plan" in parts and all(p.dtype == np.uint8 for p in parts.values())


def test_profiles_and_layer_precisions_are_kept(tmp_path):
    config = BuilderConfig.of(
        profiles=[{"x": ((1, 8), (2, 8), (4, 8))}], layer_precisions={"op:Softmax": "fp64"}
    )
    engine_from_onnx(model(), config).save(tmp_path / "m.engine")
    assert Engine.load(tmp_path / "m.engine").config == config


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 700, -1])
def test_a_truncated_file_is_told(saved, tmp_path, keep):
    content = saved.read_bytes()
    (tmp_path / "cut.engine").write_bytes(content[:keep])
    with pytest.raises(ModelError, match="cut.engine"):
        Engine.load(tmp_path / "cut.engine")


def test_every_altered_byte_is_told(saved, tmp_path):
    """Flipping any byte gives an error or, in padding and unused header space, the same engine."""
    content = saved.read_bytes()
    feeds = {**FEEDS, "c": np.array(True)}
    expected = NativeRunner(Engine.load(saved)).infer(feeds)["y"]
    path = tmp_path / "altered.engine"
    for position in RNG.choice(len(content), 300, replace=False):
        altered = bytearray(content)
        altered[position] ^= 1 << RNG.integers(8)
        path.write_bytes(altered)
        try:
            got = NativeRunner(Engine.load(path)).infer(feeds)["y"]
        except ModelError as err:
            assert "altered.engine" in str(err)
        else:
            assert np.array_equal(got, expected)


def test_an_altered_weight_is_found_by_verify(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    weight = np.float32(0.5).tobytes()
    at = bytes(content).rindex(weight)
    content[at] ^= 0xFF
    (tmp_path / "m.engine").write_bytes(content)
    assert list(verify(saved))
    with pytest.raises(ModelError, match="does not match its checksum"):
        list(verify(tmp_path / "m.engine"))


def test_another_version_says_which(saved, tmp_path):
    content = saved.read_bytes().replace(b"polytool-engine-1", b"polytool-engine-9")
    (tmp_path / "old.engine").write_bytes(content)
    with pytest.raises(ModelError, match="polytool-engine-9.*build the engine again"):
        Engine.load(tmp_path / "old.engine")


@pytest.mark.parametrize(
    "content",
    [b"", b"not an engine at all", b"\xff" * 64, struct.pack("<Q", 2) + b"{}", b"\0" * 8],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "f.engine").write_bytes(content)
    with pytest.raises(ModelError, match="f.engine"):
        Engine.load(tmp_path / "f.engine")


def test_a_hostile_header_is_refused(tmp_path):
    header = json.dumps(
        {
            "__metadata__": {"format": "polytool-engine-1", "plan_bytes": "9", "plan_crc32": "0"},
            "plan": {"dtype": "U8", "shape": [1 << 60], "data_offsets": [0, 1 << 60]},
        }
    ).encode()
    (tmp_path / "h.engine").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="missing at its end"):
        Engine.load(tmp_path / "h.engine")


def test_weights_are_mapped_not_read(tmp_path):
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[1,512] x) => (float[1,512] y) { y = MatMul(x, w) }"""
    )
    weight = RNG.standard_normal((512, 512)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    engine_from_onnx(proto).save(tmp_path / "m.engine")
    (layer,) = Engine.load(tmp_path / "m.engine").network.layers
    (constant,) = [t.constant for t in layer.constants()]
    array = constant.array()
    assert array.base is not None and not array.flags.writeable and array.flags.aligned
