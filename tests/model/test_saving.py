"""What saving promises: reproducible bytes, 2 GB, few copies, links."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from onnx import numpy_helper

from polytool import saving
from polytool.errors import ModelError
from polytool.model import load

TEXT = (
    "g (float[N,64] x) => (float[N,64] y) <float[64] k = {"
    + ", ".join(["1.5"] * 64)
    + "}> {e = Exp(k) i = Identity(x) a = Add(i, e) b = Add(i, e) c = Mul(a, b) "
    "s = Shape(c) d = Expand(c, s) y = Neg(d)}"
)


def product(rows: int = 64) -> onnx.ModelProto:
    """y = x w, with w of `rows` x 64 float32."""
    w = numpy_helper.from_array(np.arange(rows * 64, dtype=np.float32).reshape(rows, 64), "w")
    x, y = (oh.make_tensor_value_info(n, 1, [None, d]) for n, d in (("x", rows), ("y", 64)))
    graph = oh.make_graph([oh.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def run(*command: str, seed: str = "0") -> str:
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    return done.stdout


@pytest.mark.ort
def test_the_hash_seed_changes_no_byte(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {TEXT}')
    onnx.save(proto, tmp_path / "m.onnx")
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        arguments = ["surgeon", "sanitize", str(tmp_path / "m.onnx"), "-o"]
        arguments += [str(tmp_path / seed / "o.onnx"), "--save-external-data"]
        run("-m", "polytool", *arguments, "--external-data-size-threshold", "16", seed=seed)
    for name in ("o.onnx", "o.onnx.data"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_model_that_would_pass_the_limit_gets_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LIMIT", 10_000)
    model = load(product())
    model.save(tmp_path / "o.onnx")
    assert sorted(os.listdir(tmp_path)) == ["o.onnx", "o.onnx.data"]
    onnx.checker.check_model(tmp_path / "o.onnx")
    with pytest.raises(ModelError, match="protobuf allows 10000: save its weights as external"):
        model.save(tmp_path / "p.onnx", external_data=False)
    assert not (tmp_path / "p.onnx").exists()


MEASURE = """
import resource, sys
from polytool.model import load
from polytool.surgeon import simplify
simplify(sys.argv[1]).save(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in bytes elsewhere")
def test_the_weights_of_one_large_protobuf_are_not_read(tmp_path: Path) -> None:
    """They go from file to file; loading with onnx alone would take them twice."""
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    onnx.save(product(), small)
    onnx.save(product(1 << 19), large)  # 128 MB
    base = int(run("-c", MEASURE, str(small), str(tmp_path / "o.onnx")))
    peak = int(run("-c", MEASURE, str(large), str(tmp_path / "o.onnx")))
    assert peak < base + large.stat().st_size // 4
    assert (tmp_path / "o.onnx").stat().st_size >= large.stat().st_size


def linked(folder: Path) -> Path:
    """A model in `folder` with its weights in w.bin."""
    folder.mkdir()
    onnx.save(product(), folder / "m.onnx", save_as_external_data=True, location="w.bin")
    return folder / "m.onnx"


def test_a_link_inside_of_the_directory_is_followed(tmp_path: Path) -> None:
    path = linked(tmp_path / "d")
    os.rename(tmp_path / "d" / "w.bin", tmp_path / "d" / "real.bin")
    os.symlink("real.bin", tmp_path / "d" / "w.bin")
    model = load(path)
    assert model.array(model.proto.graph.initializer[0])[0, 1] == 1
    model.save(tmp_path / "out.onnx")  # onnx refuses links: the copy is none
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx.data").is_symlink()


def test_a_hard_link_is_read_and_not_written(tmp_path: Path) -> None:
    path = linked(tmp_path / "d")
    os.link(tmp_path / "d" / "w.bin", tmp_path / "other.bin")
    with pytest.raises(onnx.checker.ValidationError, match="hard link"):
        onnx.checker.check_model(path)
    model = load(path)
    model.save(path)
    onnx.checker.check_model(path)
    assert (tmp_path / "other.bin").stat().st_nlink == 1


def test_a_cache_of_links_is_read(tmp_path: Path) -> None:
    linked(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("m.onnx", "w.bin"):
        os.symlink(f"../blobs/{name}", tmp_path / "snapshot" / name)
    model = load(tmp_path / "snapshot" / "m.onnx")
    assert model.array(model.proto.graph.initializer[0])[0, 1] == 1


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = linked(tmp_path / "d")
    os.rename(tmp_path / "d" / "w.bin", tmp_path / "secret")
    os.symlink(tmp_path / "secret", tmp_path / "d" / "w.bin")
    with pytest.raises(ModelError, match="lies outside"):
        load(path)
    os.rename(path, tmp_path / "d" / "real.onnx")
    os.symlink("real.onnx", path)
    with pytest.raises(ModelError, match="lies outside"):
        load(path)
