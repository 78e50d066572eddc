"""Polygraphy's JSON, checked against the `polygraphy` package itself."""

from __future__ import annotations

import json
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from polytool.errors import MissingDependencyError, ModelError, UsageError
from polytool.polygraphy_json import read_json, write_inputs
from polytool.results import Iteration, Run, RunResults

comparator = pytest.importorskip("polygraphy.comparator")
polygraphy_json = pytest.importorskip("polygraphy.json")

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.ones((2,), np.float16),
    "float64": np.array(0.5),
    "int8": np.array([-128, 127], np.int8),
    "int64": np.array([2**62 + 1]),
    "uint64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([True, False]),
    "complex64": np.array([1 + 2j], np.complex64),
    "empty": np.zeros((0, 3), np.int32),
    "big endian": np.arange(3, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def test_results_of_polygraphy_load_here(tmp_path):
    theirs = comparator.RunResults()
    theirs.add(
        [ARRAYS, {"float32": np.zeros(3)}], runtime=0.5, runner_name="trt-runner-N0-05/17/24"
    )
    theirs.add([{"float32": np.ones(1)}], runner_name="onnxrt")
    theirs.save(str(tmp_path / "r.json"))
    ours = RunResults.load(tmp_path / "r.json")
    assert list(ours) == ["trt-runner-N0-05/17/24", "onnxrt"]
    first = ours["trt-runner-N0-05/17/24"]
    assert len(first) == 2 and first.seconds == [0.5, 0.5]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(first[0][name], array)
        assert first[0][name].dtype == array.dtype.newbyteorder("=")
    assert list(first[0]) == list(ARRAYS)


def test_results_saved_here_load_in_polygraphy(tmp_path):
    runs = [Run("native", [Iteration(ARRAYS, 0.25), Iteration({"y": np.ones(2)})], {"a": 1})]
    RunResults([*runs, Run("b", [Iteration({"y": np.ones(2)})])]).save(tmp_path / "r.json")
    theirs = comparator.RunResults.load(str(tmp_path / "r.json"))
    assert list(theirs.keys()) == ["native", "b"]
    assert theirs["native"][0].runtime == 0.25 and theirs["native"][0].runner_name == "native"
    for name, array in theirs["native"][0].items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert theirs["native"][1].runtime is None
    assert RunResults.load(tmp_path / "r.json")["native"].settings == {"a": 1}


def test_a_directory_of_polygraphy_is_read_in_order(tmp_path):
    for index in range(12):
        one = comparator.RunResults()
        one.add([{"y": np.array([index])}], runner_name="a")
        one.add([{"y": np.array([-index])}], runner_name="b")
        one.save(str(tmp_path / f"{index:010d}.json"))
    ours = RunResults.load(tmp_path)
    assert [int(i["y"][0]) for i in ours["a"]] == list(range(12))
    assert [int(i["y"][0]) for i in ours["b"]] == [-i for i in range(12)]


def test_inputs_cross_both_ways(tmp_path):
    feeds = [OrderedDict(x=np.ones((1, 2), np.float32), n=np.array(3)), OrderedDict(x=np.zeros(1))]
    polygraphy_json.save_json(feeds, str(tmp_path / "theirs.json"))
    kind, (run,) = read_json(tmp_path / "theirs.json")
    assert kind == "inputs" and len(run) == 2
    write_inputs(tmp_path / "ours.json", run)
    back = polygraphy_json.load_json(str(tmp_path / "ours.json"))
    for mine, theirs in zip(feeds, back, strict=True):
        assert list(mine) == list(theirs)
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
            assert mine[name].dtype == theirs[name].dtype


def test_one_dict_of_inputs_is_one_iteration(tmp_path):
    polygraphy_json.save_json({"x": np.ones(2)}, str(tmp_path / "one.json"))
    _, (run,) = read_json(tmp_path / "one.json")
    assert [list(i) for i in run] == [["x"]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "int4", "uint2"])
def test_types_that_npy_lacks_keep_value_there_and_type_here(tmp_path, dtype):
    array = np.array([0, 1, 1], getattr(ml_dtypes, dtype))
    RunResults([Run("r", [Iteration({"y": array})])]).save(tmp_path / "r.json")
    theirs = comparator.RunResults.load(str(tmp_path / "r.json"))["r"][0]["y"]
    np.testing.assert_array_equal(theirs, [0, 1, 1])
    back = RunResults.load(tmp_path / "r.json")["r"][0]["y"]
    assert back.dtype == array.dtype and back.tolist() == array.tolist()


def test_strings_sequences_and_none_cross(tmp_path):
    outputs = {
        "s": np.array([["a", "bcd"]], object),
        "none": None,
        "list": [np.ones(1), np.zeros((2, 0))],
    }
    RunResults([Run("r", [Iteration(outputs)])]).save(tmp_path / "r.json")
    theirs = comparator.RunResults.load(str(tmp_path / "r.json"))["r"][0]
    assert theirs["s"].tolist() == [["a", "bcd"]]
    assert [a.shape for a in theirs["list"]] == [(1,), (2, 0)]
    back = RunResults.load(tmp_path / "r.json")["r"][0]
    assert back["s"].dtype == object and back["s"].tolist() == [["a", "bcd"]]
    assert [a.shape for a in back["list"]] == [(1,), (2, 0)] and back["none"] is None


@pytest.mark.parametrize("value", [{1: np.ones(1)}, np.array(["tail\0"], object)])
def test_what_their_format_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(UsageError, match="Polygraphy's JSON cannot hold"):
        RunResults([Run("r", [Iteration({"y": value})])]).save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_a_legacy_file_is_read(tmp_path):
    array = polygraphy_json.to_json(np.arange(3))
    data = json.loads(array)["array"]
    marker = "polygraphy_serialized_json_type"
    legacy = {
        "__polygraphy_encoded_RunResults": marker,
        "lst": [
            [
                "r",
                [
                    {
                        "__polygraphy_encoded_IterationResult": marker,
                        "runtime": 1.0,
                        "runner_name": "r",
                        "outputs": {
                            "y": {
                                "__polygraphy_encoded_LazyNumpyArray": marker,
                                "values": {"__polygraphy_encoded_ndarray": marker, "array": data},
                            }
                        },
                    }
                ],
            ]
        ],
    }
    (tmp_path / "old.json").write_text(json.dumps(legacy))
    assert RunResults.load(tmp_path / "old.json")["r"][0]["y"].tolist() == [0, 1, 2]


def test_a_name_that_appears_twice_stays_apart(tmp_path):
    theirs = comparator.RunResults()
    for value in (1, 2):
        theirs.append(("r", [comparator.IterationResult({"y": np.array([value])}, 0.1, "r")]))
    theirs.save(str(tmp_path / "r.json"))
    ours = RunResults.load(tmp_path / "r.json")
    assert [int(ours[n][0]["y"][0]) for n in ("r", "r#2")] == [1, 2]


def test_their_comparison_results_are_no_results(tmp_path):
    theirs = comparator.RunResults()
    for name in ("a", "b"):
        theirs.add([{"y": np.ones(2)}], runner_name=name)
    comparator.Comparator.compare_accuracy(theirs).save(str(tmp_path / "accuracy.json"))
    with pytest.raises(ModelError, match="are not inputs or results"):
        RunResults.load(tmp_path / "accuracy.json")


def test_a_torch_tensor_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "t.json").write_text('{"y": {"tensor": "AAAA", "polygraphy_class": "Tensor"}}')
    with pytest.raises(MissingDependencyError, match="needs torch"):
        RunResults.load(tmp_path / "t.json")


def test_a_hostile_array_is_refused_without_allocating_it(tmp_path):
    import base64

    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"12345678"
    data = base64.b64encode(npy).decode()
    (tmp_path / "t.json").write_text(
        f'{{"y": {{"array": "{data}", "polygraphy_class": "ndarray"}}}}'
    )
    with pytest.raises(ModelError, match=r"cut short: it claims shape \[1000000000000\]"):
        RunResults.load(tmp_path / "t.json")
