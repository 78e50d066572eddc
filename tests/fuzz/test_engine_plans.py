"""Engine files whose plan was changed, with checksums that fit: refused, or still sound."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from polytool.backends.native.builder import engine_from_onnx
from polytool.backends.native.config import BuilderConfig
from polytool.backends.native.engine import Engine
from polytool.backends.native.engine_file import verify
from polytool.backends.native.runner import NativeRunner
from polytool.errors import ModelError, RunnerError

MODEL = """<ir_version: 9, opset_import: ["" : 20]>
g (float[2,2] x, bool c) => (float[N,2] y, float[M] z) <float[2,2] w = {1, 2, 3, 4}> {
    h = MatMul(x, w)
    r = Relu(h)
    y = If (c) <
        then_branch = t () => (float[2,2] a) { a = Neg(r) },
        else_branch = e () => (float[2,2] b) { b = Identity(x) }
    >
    z = ReduceSum<keepdims = 0>(y)
}"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "sound.engine"
    engine_from_onnx(onnx.parser.parse_model(MODEL), BuilderConfig(device="cpu")).save(path)
    return path


def rewritten(sound: Path, target: Path, change: Any) -> Path:
    """The engine with `change(plan)` done to its plan, and the checksum of the result."""
    content = sound.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    start, end = header["plan"]["data_offsets"]
    size = int(header["__metadata__"]["plan_bytes"])
    plan = json.loads(data[start : start + size])
    change(plan)
    text = json.dumps(plan).encode()
    text += b" " * (-len(text) % 64)
    header["__metadata__"] |= {"plan_bytes": str(len(text)), "plan_crc32": str(zlib.crc32(text))}
    grown = len(text) - (end - start)
    for name, row in header.items():
        if name != "__metadata__":
            first, last = row["data_offsets"]
            moved = [first, last + grown] if name == "plan" else [first + grown, last + grown]
            row |= {"data_offsets": moved, "shape": [moved[1] - moved[0]]}
    head = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(head)) + head + text + data[end:])
    return target


def test_an_unchanged_plan_loads(sound: Path, tmp_path: Path) -> None:
    assert list(verify(rewritten(sound, tmp_path / "m.engine", lambda plan: None)))


def layer(plan: Any, index: int) -> Any:
    return plan["network"]["layers"][index]


CHANGES = {
    "a name that is a number": lambda p: p["tensors"][0].update(name=7),
    "a negative size": lambda p: p["tensors"][0].update(shape=[-1, 2]),
    "a size that is a fraction": lambda p: p["tensors"][0].update(shape=[1.5, 2]),
    "an unknown container": lambda p: p["tensors"][0].update(container="bag"),
    "a constant of another shape": lambda p: next(
        t for t in p["tensors"] if "constant" in t
    ).update(shape=[4]),
    "a tensor index that is true": lambda p: p["network"].update(outputs=[True, 1]),
    "a configuration that names a file": lambda p: p["config"].update(timing_cache="/etc/passwd"),
    "tactics from a file": lambda p: p["config"].update(tactics="/etc/passwd"),
    "an unknown tactic source": lambda p: p["config"].update(tactic_sources="nvrtc"),
    "a workspace limit that is a text": lambda p: p["config"].update(workspace_limit="1G"),
    "a level that is none": lambda p: p["config"].update(builder_optimization_level=9),
    "devices that are no list": lambda p: p.update(devices=5),
    "a device without kernels": lambda p: p.update(devices=[{"stamp": {"device": "a"}}]),
    "a layer without nodes": lambda p: layer(p, 0).update(nodes=[]),
    "a layer that stores an input": lambda p: layer(p, 0).update(outputs=[0]),
    "layers in the wrong order": lambda p: p["network"]["layers"].reverse(),
    "a layer less": lambda p: p["network"]["layers"].pop(0),
    "an operator that nobody has": lambda p: layer(p, 0)["nodes"][0].update(op="Nonsense"),
    "an operator with one input less": lambda p: layer(p, 0)["nodes"][0]["inputs"].pop(),
    "an operator without its input": lambda p: layer(p, 0)["nodes"][0]["inputs"].__setitem__(0, -1),
    "an operator that makes a tensor twice": lambda p: layer(p, 2)["nodes"][0].update(
        outputs=layer(p, 2)["nodes"][0]["outputs"] * 2
    ),
    "an operator with an output more": lambda p: layer(p, 2)["nodes"][0]["outputs"].append(-1),
    "a tensor that two layers make": lambda p: p["network"]["layers"].append(layer(p, 2)),
    "a version that is a text": lambda p: layer(p, 0)["nodes"][0].update(version="13"),
    "an unknown precision": lambda p: layer(p, 0)["nodes"][0].update(precision="fp7"),
    "an If with one branch": lambda p: layer(p, 1)["nodes"][0]["bodies"].pop("else_branch"),
    "a branch that returns nothing": lambda p: layer(p, 1)["nodes"][0]["bodies"][
        "then_branch"
    ].update(outputs=[], output_names=[]),
    "an output without a name": lambda p: p["network"]["output_names"].pop(),
    "precisions in a file elsewhere": lambda p: p["config"].update(layer_precisions="/etc/passwd"),
    "an input that is a sequence": lambda p: p["tensors"][
        layer(p, 0)["nodes"][0]["inputs"][0]
    ].update(container="sequence"),
    "a weight without a checksum": lambda p: p["parts"][0].pop("crc32"),
    "a result without its element type": lambda p: [t.pop("dtype", 0) for t in p["tensors"]],
    "a weight of no element type": lambda p: p["parts"][0].update(dtype=0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_plan_that_cannot_be_is_refused(sound: Path, tmp_path: Path, name: str) -> None:
    path = rewritten(sound, tmp_path / "m.engine", CHANGES[name])
    with pytest.raises(ModelError, match=r"m\.engine' is damaged: its plan cannot be read"):
        Engine.load(path, device="cpu")


@pytest.mark.parametrize(
    ("op", "attrs", "why"),
    [
        ("Conv", {"strides": 7}, "its attribute 'strides' is no Ints"),
        ("Conv", {"strides": [1.5, 1]}, "its attribute 'strides' is no Ints"),
        ("Conv", {"auto_pad": 7}, "its attribute 'auto_pad' is no str"),
    ],
)
def test_attributes_of_another_type_are_told(
    sound: Path, tmp_path: Path, op: str, attrs: Any, why: str
) -> None:
    def change(plan: Any) -> None:
        layer(plan, 0)["nodes"][0].update(op=op, attrs=attrs)

    with pytest.raises(ModelError, match=why):
        Engine.load(rewritten(sound, tmp_path / "m.engine", change), device="cpu")


def test_splitting_counts_no_parts_that_nobody_takes(tmp_path: Path) -> None:
    split = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[6] x) => (float[3] y, float[3] z) { y, z = Split <num_outputs: int = 2> (x) }"""
    path = tmp_path / "split.engine"
    engine_from_onnx(onnx.parser.parse_model(split), BuilderConfig(device="cpu")).save(path)

    def change(plan: Any) -> None:
        layer(plan, 0)["nodes"][0]["attrs"]["num_outputs"] = 10**9

    with NativeRunner(
        Engine.load(rewritten(path, tmp_path / "m.engine", change), device="cpu")
    ) as runner:
        made = runner.infer({"x": np.zeros(6, np.float32)})
    assert made["y"].shape == (1,)


def test_a_branch_that_gives_a_sequence_is_told_where_a_tensor_is_needed() -> None:
    model = """<ir_version: 9, opset_import: ["" : 20]>
    g (bool c, float[2] x) => (float[M] z) {
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Neg(x) },
            else_branch = e () => (seq(float[2]) b) { b = SequenceConstruct(x) }
        >
        z = Softmax(y)
    }"""
    engine = engine_from_onnx(onnx.parser.parse_model(model), BuilderConfig(device="cpu"))
    feeds = {"c": np.array(False), "x": np.zeros(2, np.float32)}
    with NativeRunner(engine) as runner, pytest.raises(RunnerError, match="takes no sequence"):
        runner.infer(feeds)


def test_a_scan_whose_body_takes_less_is_refused(tmp_path: Path) -> None:
    scan = """<ir_version: 9, opset_import: ["" : 20]>
    g (float[2] s, float[3,2] x) => (float[2] y, float[3,2] z) {
        y, z = Scan <num_scan_inputs: int = 1, body: graph = b (float[2] a, float[2] n)
            => (float[2] m, float[2] o) { m = Add(a, n) o = Neg(m) }> (s, x)
    }"""
    path = tmp_path / "scan.engine"
    engine_from_onnx(onnx.parser.parse_model(scan), BuilderConfig(device="cpu")).save(path)
    changed = rewritten(
        path, tmp_path / "m.engine", lambda p: layer(p, 0)["nodes"][0]["inputs"].pop(0)
    )
    with pytest.raises(ModelError, match="the bodies of a node Scan do not fit"):
        Engine.load(changed, device="cpu")
