"""Engine files with a section for a GPU: what is there is used, and damage is told."""

import numpy as np
import pytest

from polytool import BuilderConfig, Engine, NativeRunner, engine_from_onnx
from polytool.backends.native.cuda import timing
from polytool.backends.native.engine_file import verify
from polytool.backends.native.kernels import compiler, driver
from polytool.errors import ModelError, RunnerError
from polytool.tactic_files import load_decisions
from tests.gpu.test_tuning_software import model

X = np.ones((32, 64), np.float32)


@pytest.fixture(autouse=True)
def quick(software_gpu):
    software_gpu.kernels = False
    return software_gpu


@pytest.fixture
def saved(tmp_path, quick):
    engine = engine_from_onnx(model(), BuilderConfig(precision="fp16", device="cuda"))
    engine.save(tmp_path / "m.engine")
    compiler._cubins.clear()  # as in another process
    return tmp_path / "m.engine"


def forbid(monkeypatch, *, compiling: bool = True) -> None:
    """Neither timing nor compiling from here on."""
    monkeypatch.setattr(timing._Bench, "time_all", None)
    if compiling:
        monkeypatch.setattr(compiler, "_compile", None)
        monkeypatch.setattr(compiler, "version", None)


def another_driver(monkeypatch) -> None:
    device = driver.device()
    other = driver.Device(0, device.name, 132, (9, 0), device.l2, 14000)
    monkeypatch.setattr(driver, "device", lambda ordinal=0: other)


def test_loading_on_the_same_gpu_neither_times_nor_compiles(saved, monkeypatch):
    forbid(monkeypatch)
    engine = Engine.load(saved, device="cuda")
    assert engine.notes == ()
    assert NativeRunner(engine).infer({"x": X})["y"].shape == (32, 64)
    assert engine.tactics().choices == load_decisions(saved)[0].choices != ()


def test_a_loaded_engine_saves_the_same_file(saved, tmp_path):
    engine = Engine.load(saved, device="cuda")
    engine.save(tmp_path / "unused.engine")
    NativeRunner(engine).infer({"x": X})
    engine.save(tmp_path / "used.engine")
    Engine.load(saved, device="cpu").save(tmp_path / "cpu.engine")
    for name in ("unused", "used", "cpu"):
        assert (tmp_path / f"{name}.engine").read_bytes() == saved.read_bytes()


def test_without_kernels_they_are_compiled_here(saved, monkeypatch, quick):
    forbid(monkeypatch, compiling=False)
    compiled = len(quick.compiled)
    engine = Engine.load(saved, device="cuda", kernels=False)
    NativeRunner(engine).infer({"x": X})
    assert len(quick.compiled) > compiled


def test_elsewhere_it_says_so_and_chooses_again(saved, monkeypatch):
    another_driver(monkeypatch)
    engine = Engine.load(saved, device="cuda")
    (note,) = engine.notes
    assert "was built for emulated H100, not for this emulated H100 with this driver" in note
    NativeRunner(engine).infer({"x": X})
    assert len(engine.tactics().choices) == 2


def test_elsewhere_it_refuses_when_asked_to(saved, monkeypatch):
    Engine.load(saved, device="cuda", retune=False)
    another_driver(monkeypatch)
    with pytest.raises(RunnerError, match="was built for emulated H100.*allow tactics"):
        Engine.load(saved, device="cuda", retune=False)


def test_a_file_holds_sections_of_several_devices(saved, monkeypatch):
    another_driver(monkeypatch)
    engine = Engine.load(saved, device="cuda")
    NativeRunner(engine).infer({"x": X})
    engine.save(saved)
    both = Engine.load(saved, device="cuda", retune=False)
    assert [s.stamp["driver"] for s in both.sections] == [13000, 14000]
    assert list(verify(saved))[:2] == ["kernels/0", "kernels/1"]


def test_altered_kernels_are_told_and_not_run(saved):
    content = bytearray(saved.read_bytes())
    content[bytes(content).rindex(b"nothing\0nothing")] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ModelError, match="kernels for a GPU do not match their checksum"):
        Engine.load(saved, device="cuda")
    with pytest.raises(ModelError, match="kernels for a GPU do not match their checksum"):
        list(verify(saved))
    NativeRunner(Engine.load(saved, device="cuda", kernels=False)).infer({"x": X})


def test_every_altered_byte_is_told(saved, tmp_path):
    """Flipping any byte gives an error or, in padding and unused header space, the same engine."""
    content, rng = saved.read_bytes(), np.random.default_rng(0)
    expected = load_decisions(saved)
    path = tmp_path / "altered.engine"
    for position in rng.choice(len(content), 200, replace=False):
        altered = bytearray(content)
        altered[position] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        try:
            list(verify(path))
            assert load_decisions(path) == expected
            Engine.load(path, device="cuda")
        except ModelError as err:
            assert "altered.engine" in str(err)
