"""RunResults: filling them with `run`, saving and loading them in polytool's own format."""

from __future__ import annotations

import os
import struct
import weakref

import ml_dtypes
import numpy as np
import pytest

import polytool
from polytool.backends.base import Runner
from polytool.errors import ModelError, RunnerError, UsageError
from polytool.results import Iteration, Run, RunResults, run
from polytool.tensors import DType


def every_kind_of_value():
    rng = np.random.default_rng(0)
    values = {
        d.label: rng.integers(0, 2, (3, 5)).astype(d.numpy) for d in DType if d is not DType.STRING
    }
    return values | {
        "string": np.array([["a", ""], ["tail\0", "ünï"]], object),
        "empty": np.zeros((0, 4), np.float32),
        "no strings": np.zeros((0,), object),
        "scalar": np.array(2.5, np.float64),
        "fortran": np.asfortranarray(rng.random((3, 4))),
        "strided": np.arange(10, dtype=np.int32)[::2],
        "nan": np.array([np.nan, np.inf, -0.0], np.float32),
        "sequence": [np.ones(2, np.float16), np.zeros((2, 2), np.float16)],
        "nested": [[np.ones(1)], []],
        "map": {1: np.float32(0.5), "two": np.float32(1.5)},
        "absent": None,
        "odd:name[0]/{}": np.ones(1, ml_dtypes.bfloat16),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif a is None:
        assert b is None
    else:
        a = np.asarray(a)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == object:
            assert a.tolist() == b.tolist()
        else:
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


class Doubler(Runner):
    name = "doubler"
    active = 0

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def activate(self):
        Doubler.active += 1

    def deactivate(self):
        Doubler.active -= 1

    def infer(self, feeds):
        assert Doubler.active == 1
        if self.calls == self.fail_at:
            raise ValueError("out of paper")
        self.calls += 1
        return {"y": 2 * feeds["x"]}

    def last_inference_time(self):
        return 0.25

    @property
    def settings(self):
        return {"precision": "fp32", "options": {"a": [1, 2]}}


@pytest.fixture
def results():
    first = [Iteration(every_kind_of_value(), 0.5), Iteration({"y": np.arange(3)})]
    return RunResults([Run("a/b c", first, {"precision": "fp16"}), Run("other", [Iteration({})])])


@pytest.mark.parametrize("name", ["results.safetensors", "results.bin", "directory"])
def test_every_value_survives_saving(tmp_path, results, name):
    results.save(tmp_path / name)
    loaded = RunResults.load(tmp_path / name)
    assert list(loaded) == ["a/b c", "other"]
    assert loaded["a/b c"].settings == {"precision": "fp16"}
    assert loaded["a/b c"].seconds == [0.5]
    assert len(loaded["other"]) == 1 and len(loaded["a/b c"]) == 2
    for mine, theirs in zip(results["a/b c"], loaded["a/b c"], strict=True):
        assert_same(dict(mine), dict(theirs))


def test_the_file_is_a_safetensors_file_of_bytes(tmp_path, results):
    from safetensors import safe_open

    results.save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", framework="np") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"U8"}  # noqa: SIM118


def test_saving_is_reproducible(tmp_path, results):
    results.save(tmp_path / "1.bin")
    results.save(tmp_path / "2.bin")
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "2.bin").read_bytes()


def test_file_is_about_as_large_as_its_data(tmp_path):
    data = np.zeros((1000, 1000), np.float32)
    RunResults([Run("r", [Iteration({"y": data, "z": np.zeros(100_000, ml_dtypes.int4)})])]).save(
        tmp_path / "r.bin"
    )
    assert (tmp_path / "r.bin").stat().st_size < data.nbytes + 50_000 + 2000


def test_every_cut_and_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "r.bin"
    RunResults([Run("r", [Iteration({"y": np.arange(40.0), "s": np.array(["ab"], object)})])]).save(
        path
    )
    whole = path.read_bytes()
    for size in {0, 4, 8, 60, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"damaged|is empty|neither a file of polytool"):
            dict(RunResults.load(path)["r"][0])
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        try:
            loaded = RunResults.load(path)["r"][0]
        except ModelError:
            continue
        assert loaded["y"].tolist() == list(range(40)) and loaded["s"].tolist() == ["ab"], position


def test_a_file_of_a_later_version_is_refused(tmp_path, results):
    path = tmp_path / "r.bin"
    results.save(path)
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(ModelError, match=r"values 9, but this polytool reads polytool\.values 1"):
        RunResults.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"\x08\x07onnx", "neither a file of polytool nor JSON"),
        (b"{", "not a JSON file of inputs or results, or is cut short"),
        (b'{"a": 1}', "but other JSON"),
        (b"[]", "holds inputs, not results"),
        (struct.pack("<Q", 1 << 60) + b'{"__metadata__":{"format":"polytool.values"', "damaged"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        RunResults.load(path)
    assert "file.json" in str(caught.value)


def test_an_output_that_cannot_be_stored_leaves_no_file(tmp_path):
    bad = RunResults([Run("r", [Iteration({"y": np.ones(3), "z": np.array(["2020"], "M8[s]")})])])
    (tmp_path / "r.bin").write_bytes(b"before")
    with pytest.raises(UsageError, match="'z' cannot be saved"):
        bad.save(tmp_path / "r.bin")
    with pytest.raises(UsageError, match="'z' cannot be saved"):
        bad.save(tmp_path / "r.json")
    assert (tmp_path / "r.bin").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["r.bin"]


def test_an_occupied_directory_is_left_alone(tmp_path, results):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        results.save(tmp_path / "out")


def test_run_activates_one_runner_at_a_time():
    feeds = [{"x": np.full(2, i)} for i in range(3)]
    seen = []
    results = run(None, [Doubler(), Doubler()], feeds, on_iteration=lambda *a: seen.append(a[:2]))
    assert list(results) == ["doubler", "doubler#2"]
    assert seen == [(n, i) for n in results for i in range(3)]
    assert [i["y"].tolist() for i in results["doubler#2"]] == [[0, 0], [2, 2], [4, 4]]
    assert results["doubler"].seconds == [0.25] * 3
    assert Doubler.active == 0


def test_a_runner_that_nobody_else_holds_is_freed_before_the_next_one_starts():
    class Second(Doubler):
        def activate(self):
            assert first() is None
            super().activate()

    runners = [Doubler(), Second()]
    first = weakref.ref(runners[0])
    run(None, (runners.pop(0) for _ in range(2)), {"x": np.ones(2)})


def test_every_runner_gets_the_same_feeds_from_a_generator():
    results = run(None, [Doubler(), Doubler()], ({"x": np.arange(i)} for i in range(4)))
    assert [len(r) for r in results.values()] == [4, 4]


def test_warm_up_runs_are_not_kept():
    runner = Doubler()
    assert len(run(None, runner, {"x": np.ones(1)}, warm_up=3)["doubler"]) == 1
    assert runner.calls == 4


def test_run_into_a_directory_streams(tmp_path):
    written = []

    def look(*_):
        written.append(len(os.listdir(tmp_path / "out")))

    feeds = [{"x": np.full(2, i)} for i in range(3)]
    results = run(None, [Doubler(), Doubler()], feeds, save=tmp_path / "out", on_iteration=look)
    assert written == [1, 2, 3, 4, 5, 6]
    assert [i["y"].tolist() for i in results["doubler#2"]] == [[0, 0], [2, 2], [4, 4]]
    assert results["doubler"].settings["options"] == {"a": [1, 2]}


def test_a_failing_runner_is_named_and_released():
    with pytest.raises(RunnerError, match="'doubler' failed in iteration 1: out of paper"):
        run(None, Doubler(fail_at=1), [{"x": np.ones(1)}] * 2)
    assert Doubler.active == 0


@pytest.mark.parametrize(
    ("runners", "feeds", "message"),
    [
        ([], {}, "no runner was chosen"),
        ([Doubler()], [], "there are no input data"),
        ([Doubler()], None, "a model is needed"),
        (["native"], {}, "a model is needed"),
        ([Doubler()], 3, "inputs"),
    ],
)
def test_wrong_use_of_run_is_explained(runners, feeds, message):
    with pytest.raises(UsageError, match=message):
        run(None, runners, feeds)


def test_concat_joins_iterations_by_runner():
    one = RunResults([Run("a", [Iteration({"y": 1})], {"s": 1}), Run("b", [Iteration({"y": 2})])])
    two = RunResults([Run("a", [Iteration({"y": 3}), Iteration({"y": 4})])])
    joined = RunResults.concat([one, two])
    assert [i["y"] for i in joined["a"]] == [1, 3, 4]
    assert [i["y"] for i in joined["a"][-2:]] == [3, 4]
    assert joined["a"][-1]["y"] == 4 and joined["a"].settings == {"s": 1}
    assert len(joined["b"]) == 1
    with pytest.raises(IndexError):
        joined["a"][3]


def test_an_unknown_runner_lists_the_known(results):
    with pytest.raises(KeyError, match=r"no runner 'native'.*'a/b c', 'other'"):
        results["native"]
    assert polytool.RunResults is RunResults
