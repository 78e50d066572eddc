"""Bad input through the real command: the right exit code, one sentence with object, cause and
remedy, within seconds, and nothing half written."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.parser import parse_model

pytestmark = pytest.mark.ort

HEADER = '<ir_version: 9, opset_import: ["": 18]> agraph '
SECONDS = 20  # on a loaded machine; each takes about one
BOTH = ["--native", "--onnxrt"]
DAMAGED = "is not an ONNX model, or is damaged or cut short: download or export it again"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def polytool(*args, **env):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "polytool", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, **env},
    )
    assert time.monotonic() - start < SECONDS
    return done


def refused(*args, **env):
    """The one sentence on stderr of a command that must end with exit code 2."""
    done = polytool(*args, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    lines = [x for x in done.stderr.splitlines() if x.startswith("polytool: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0].removeprefix("polytool: ")


def save(text, name="m.onnx", weights=()):
    model = parse_model(HEADER + text) if isinstance(text, str) else text
    model.graph.initializer.extend(weights)
    onnx.save(model, name)
    return name


def sound(name="m.onnx", size=64):
    weight = np.arange(3 * size, dtype=np.float32).reshape(3, size)
    return save(
        "(float[n,3] x) => (float[n,m] y) { y = MatMul(x, w) }",
        name,
        [onnx.numpy_helper.from_array(weight, "w")],
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "'m.onnx' does not exist"),
        ("directory", "'m.onnx' is a directory; name the file in it"),
        (b"", "'m.onnx' is empty: download or export it again"),
        (
            b"Hello, this is no model.\n" * 40,
            "'m.onnx' is a text file, not an ONNX model: name the .onnx file",
        ),
        (os.urandom(3000), f"'m.onnx' {DAMAGED}"),
        ("truncated", f"'m.onnx' {DAMAGED}"),
    ],
    ids=["missing", "directory", "empty", "text", "noise", "truncated"],
)
def test_a_file_that_is_no_model(tmp_path, content, sentence):
    path = tmp_path / "m.onnx"
    if content == "directory":
        path.mkdir()
    elif content == "truncated":
        sound(size=1000)
        path.write_bytes(path.read_bytes()[:5000])
    elif content is not None:
        path.write_bytes(content)
    assert refused("run", *BOTH, "m.onnx") == sentence
    if content != "directory":  # one of these is enough to see that the commands are alike
        return
    assert refused("convert", "m.onnx", "-o", "e") == sentence
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("runner", ["--native", "--onnxrt"])
def test_every_unknown_operator_is_named_at_once(runner):
    save("""(float[n] x) => (float[n] y)
        { a = Foo(x)  [second] b = Bar(a)  [third] c = my.Baz(b)  y = Neg(c) }""")
    model = onnx.load("m.onnx")
    model.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(model, "m.onnx")
    sentence = refused("run", "m.onnx", runner, "--input-shapes", "x:[3]")
    for word in ("m.onnx", "Foo:a", "second", "third"):
        assert word in sentence


@pytest.mark.parametrize("runner", ["--native", "--onnxrt"])
def test_an_opset_of_the_future(runner):
    save(parse_model('<ir_version: 9, opset_import: ["": 999]> g (float[3] x) => (float[3] y) '
                     "{ y = Neg(x) }"))  # fmt: skip
    sentence = refused("run", "m.onnx", runner)
    assert "opset 999" in sentence
    assert "m.onnx" in sentence


@pytest.mark.parametrize("runner", ["--native", "--onnxrt"])
def test_a_cyclic_graph(runner):
    save("(float[3] x) => (float[3] y) { a = Add(x, b)  [back] b = Neg(a)  y = Neg(b) }")
    sentence = refused("run", "m.onnx", runner)
    assert "has a cycle through node" in sentence
    assert "back" in sentence or "Add:a" in sentence


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"wrong": np.zeros((2, 3), np.float32)}, ["'x'", "'wrong'"]),
        ({"x": np.array([["a", "b", "c"]])}, ["'x'", "float32"]),
        ({"x": np.zeros(3, np.float32)}, ["'x'", "[3]", "[n, 3]"]),
        ({"x": np.zeros((2, 4), np.float32)}, ["'x'", "[2, 4]", "[n, 3]"]),
    ],
    ids=["name", "dtype", "rank", "dim"],
)
def test_inputs_that_do_not_fit(feeds, words):
    sound()
    np.savez("in.npz", **feeds)
    sentence = refused("run", "m.onnx", *BOTH, "--load-inputs", "in.npz")
    assert [w for w in words if w not in sentence] == []


def test_a_shape_for_an_input_that_does_not_exist():
    sound()
    sentence = refused("run", "m.onnx", *BOTH, "--input-shapes", "q:[1,3]")
    assert "'q'" in sentence
    assert "x" in sentence


def test_a_shape_that_cannot_be_guessed_is_asked_for_with_the_flag_to_give():
    save("(float[1,3,h,w] x) => (float[1,3,h,w] y) { y = Relu(x) }")
    sentence = refused("run", "m.onnx", *BOTH)
    assert "--input-shapes x:[1,3," in sentence


@pytest.fixture
def external(tmp_path):
    """A model whose weight lies in m.data."""
    model = parse_model(HEADER + "(float[n,3] x) => (float[n,m] y) { y = MatMul(x, w) }")
    weight = np.arange(3072, dtype=np.float32).reshape(3, 1024)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data")
    return tmp_path


def test_external_data_that_are_missing(external):
    (external / "m.data").unlink()
    sentence = refused("run", *BOTH, "m.onnx")
    assert "m.data" in sentence
    assert "does not exist" in sentence


def test_external_data_that_are_too_short(external):
    (external / "m.data").write_bytes(b"\0" * 100)
    sentence = refused("convert", "m.onnx", "-o", "m.engine")
    assert "'w'" in sentence
    assert "m.data" in sentence
    assert "100" in sentence


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link"])
def test_external_data_outside_of_the_directory_are_refused(external, location):
    (external / "sub").mkdir()
    secret = external / "secret"
    secret.write_bytes(b"\0" * 100_000)
    (external / "sub" / "link").symlink_to(secret)
    model = onnx.load("m.onnx", load_external_data=False)
    entries = model.graph.initializer[0].external_data
    next(e for e in entries if e.key == "location").value = location
    onnx.save(model, "sub/m.onnx")
    sentence = refused("run", "sub/m.onnx", *BOTH)
    assert "lies outside the model's directory" in sentence
    assert repr(location) in sentence


def test_weights_that_are_ignored_are_missed_by_name(external):
    sentence = refused("run", "m.onnx", *BOTH, "--ignore-external-data")
    assert "tensor 'w' has no value, because external data is ignored" in sentence


@pytest.mark.parametrize("runner", ["--native", "--onnxrt"])
def test_an_initializer_that_claims_more_memory_than_there_is(runner):
    tensor = TensorProto(name="w", data_type=1, dims=[3, 1 << 50], raw_data=b"\0" * 100)
    save("(float[n,3] x) => (float[n,m] y) { y = MatMul(x, w) }", weights=[tensor])
    sentence = refused("run", "m.onnx", runner)
    assert "'w'" in sentence
    assert "bytes" in sentence


@pytest.mark.parametrize("runner", ["--native", "--onnxrt"])
def test_an_output_that_claims_more_memory_than_there_is(runner):
    sizes = onnx.numpy_helper.from_array(np.array([1 << 25, 1 << 25]), "s")
    save("(float[1] x) => (float[a,b] y) { y = Expand(x, s) }", weights=[sizes])
    sentence = refused("run", "m.onnx", runner)
    assert any(word in sentence.lower() for word in ("memory", "allocate", "overflow"))


def test_a_model_above_2_gb_runs(tmp_path):
    size = (2 << 30) + 4096
    header = parse_model(HEADER + "(int64[k] i) => (uint8[k] y) { y = Gather(w, i) }")
    tensor = TensorProto(name="w", data_type=2, dims=[size])
    raw = tensor.SerializeToString() + field(9, size)
    head = header.graph.SerializeToString() + field(5, len(raw) + size)
    header.ClearField("graph")
    start = header.SerializeToString() + field(7, len(head) + len(raw) + size) + head + raw
    with open("m.onnx", "wb") as file:  # sparse: takes no room on disk
        file.write(start)
        file.truncate(len(start) + size)
    np.savez("in.npz", i=np.array([0, size - 1]))
    done = polytool("run", "m.onnx", *BOTH, "--load-inputs", "in.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "agree"


def field(number, length):
    out = bytearray()
    for value in (number << 3 | 2, length):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


@pytest.fixture
def engine():
    sound()
    assert polytool("convert", "m.onnx", "-o", "m.engine").returncode == 0
    return "m.engine"


def test_an_engine_of_another_version(engine, tmp_path):
    data = (tmp_path / engine).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    versions = [k for k in header["__metadata__"] if "format" in k or "version" in k]
    header["__metadata__"].update(dict.fromkeys(versions, "99999"))
    changed = json.dumps(header).encode()
    (tmp_path / engine).write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])
    assert "build the engine again" in refused("run", engine, "--native")


@pytest.mark.parametrize("place", ["plan", "cut", "foreign"])
def test_an_engine_that_was_tampered_with(engine, tmp_path, place):
    path = tmp_path / engine
    data = bytearray(path.read_bytes())
    if place == "cut":
        data = data[: len(data) // 2]
    elif place == "foreign":
        data = bytearray(b"not an engine at all" * 100)
    else:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        start = 8 + length + header["plan"]["data_offsets"][0]
        data[start + 10] ^= 1
    path.write_bytes(data)
    assert "m.engine" in refused("run", engine, "--native")


@pytest.mark.parametrize("other", ["m.onnx", "text", "none"])
@pytest.mark.parametrize("command", [["run"], ["debug", "locate"], ["bench"]], ids=str)
def test_an_engine_to_load_that_is_none(command, other):
    sound()
    with open("text", "w") as file:
        file.write("no engine\n" * 50)
    sentence = refused(*command, "m.onnx", "--native", "--load-engine", other)
    assert sentence.startswith(repr(other))
    assert "does not exist" in sentence or "is not a polytool engine" in sentence


def test_an_engine_is_known_by_its_content(engine, tmp_path):
    (tmp_path / engine).rename(tmp_path / "plan")
    feeds = ["--input-shapes", "x:[2,3]"]
    for args in (
        ["run", "plan", "--native", *feeds],
        ["run", "m.onnx", "--oracle", "--native", "--load-engine", "plan", *feeds],
        ["inspect", "model", "plan"],
    ):
        done = polytool(*args)
        assert done.returncode == 0, done.stderr


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    sound()
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    assert polytool("convert", "m.onnx", "-o", "pipe").returncode == 0
    content, _ = reader.communicate(timeout=SECONDS)
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert b"polytool-engine" in content[:200]
    assert polytool("convert", "m.onnx", "-o", os.devnull).returncode == 0
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (["bench", "m.onnx", "--saveEngine", "none/e"], "none/e"),
        (["bench", "m.onnx", "--exportTimes", "none/t.json"], "none/t.json"),
        (["convert", "m.onnx", "-o", "none/m.engine"], "none/m.engine"),
        (["convert", "m.onnx", "-o", "."], "."),
        (["run", "m.onnx", "--native", "--save-outputs", "none/o.json"], "none/o.json"),
        (["run", "m.onnx", "--native", "--save-inputs", "none/i.npz"], "none/i.npz"),
        (["run", "m.onnx", "--native", "--save-engine", "none/e"], "none/e"),
        (["run", "m.onnx", *BOTH, "--save-accuracy-results", "none/a.json"], "none/a.json"),
    ],
    ids=str,
)
def test_an_output_path_that_cannot_be_written(args, path):
    sound()
    assert refused(*args).startswith(f"{path!r} cannot be written: ")


def test_no_runner_is_chosen():
    sound()
    sentence = refused("run", "m.onnx")
    assert "no runner was chosen: give --native, --onnxrt, --oracle or --runner" in sentence


def test_no_onnxruntime_is_installed(tmp_path):
    sound()
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "onnxruntime.py").write_text("raise ImportError('not installed')\n")
    sentence = refused("run", "m.onnx", *BOTH, PYTHONPATH=str(tmp_path / "shadow"))
    assert "pip install 'polytool[cpu]'" in sentence


def test_a_gpu_that_is_not_there():
    sound()
    sentence = refused("run", "--native", "m.onnx", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert "GPU" in sentence
    assert "--device cpu" in sentence


def test_an_interrupted_write_leaves_no_half_file(engine, tmp_path):
    before = (tmp_path / engine).read_bytes()
    code = (
        "import os, sys\n"
        "from polytool.cli import main\n"
        "write = os.write\n"
        "def full(fd, data):\n"
        "    if fd > 2:\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return write(fd, data)\n"
        "os.write = full\n"
        "sys.exit(main(['convert', 'm.onnx', '-o', 'm.engine', '--fp16']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert (tmp_path / engine).read_bytes() == before
    assert sorted(os.listdir()) == ["m.engine", "m.onnx"]
