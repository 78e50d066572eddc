"""Loading and saving input data: arrays, JSON, own format, ONNX test data, scripts."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from polytool.errors import ModelError, RunnerError, UsageError
from polytool.feeds import load_feeds, make_feeds, save_feeds
from polytool.results import Iteration, Run, RunResults
from polytool.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT, (None, 2))
N = TensorSpec("n:0", DType.INT64, (2,))
FEEDS = [
    {"x": np.full((1, 2), i, np.float32), "n:0": np.array([i, -i])} for i in range(3)
]  # fmt: skip


def same(loaded, expected):
    loaded = list(loaded)
    assert len(loaded) == len(expected)
    for a, b in zip(loaded, expected, strict=True):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize("name", ["in.safetensors", "in.json", "in.bin", "directory"])
def test_saved_inputs_load_again(tmp_path, name):
    save_feeds(FEEDS, tmp_path / name)
    loaded = load_feeds([tmp_path / name], [X, N])
    same(loaded, FEEDS)
    same(loaded, FEEDS)
    assert loaded.notes == ()


def test_a_directory_is_read_one_iteration_at_a_time(tmp_path):
    save_feeds(FEEDS, tmp_path / "in")
    stream = iter(load_feeds([tmp_path / "in"], [X, N]))
    next(stream)
    for file in sorted(os.listdir(tmp_path / "in"))[1:]:
        os.unlink(tmp_path / "in" / file)
    with pytest.raises(ModelError, match="0000000001"):
        next(stream)


def test_paths_are_chained_whatever_their_kind(tmp_path):
    save_feeds(FEEDS[:1], tmp_path / "a.npz")
    save_feeds(FEEDS[1:2], tmp_path / "b.json")
    save_feeds(FEEDS[2:], tmp_path / "c")
    same(load_feeds([tmp_path / n for n in ("a.npz", "b.json", "c")], [X, N]), FEEDS)


def test_npz_files_in_a_directory_are_iterations_in_natural_order(tmp_path):
    for i in range(12):
        np.savez(tmp_path / f"{i}.npz", x=np.full((1, 2), i, np.float32))
    values = [int(f["x"][0, 0]) for f in load_feeds([tmp_path], [X])]
    assert values == list(range(12))


def test_npy_files_are_one_iteration_when_they_name_different_inputs(tmp_path):
    for i, feed in enumerate(FEEDS):
        for name, array in feed.items():
            np.save(tmp_path / f"{name.replace(':', '_')}{'' if i == 0 else i}.npy", array)
    same(load_feeds([tmp_path / "x.npy", tmp_path / "n_0.npy"], [X, N]), FEEDS[:1])
    same(load_feeds([tmp_path / "x.npy", tmp_path / "x1.npy"], [X]),
         [{"x": f["x"]} for f in FEEDS[:2]])  # fmt: skip
    with pytest.raises(UsageError, match="named like none of the inputs x, n:0"):
        load_feeds([tmp_path / "x1.npy"], [X, N])


def test_a_fortran_ordered_array_keeps_its_meaning(tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    np.save(tmp_path / "x.npy", array)
    same(load_feeds([tmp_path / "x.npy"], [X]), [{"x": array}])


def test_test_data_sets_of_onnx_are_read_in_order(tmp_path):
    for i in range(11):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        x = np.full((1, 2), i, np.float32)
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
        n = numpy_helper.from_array(np.array([i, i]), "n:0")
        (folder / "input_1.pb").write_bytes(n.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"not looked at")
    loaded = list(load_feeds([tmp_path], [X, N]))
    assert [int(f["x"][0, 0]) for f in loaded] == list(range(11))
    (third,) = load_feeds([tmp_path / "test_data_set_3"], [X, N])
    assert third["n:0"].tolist() == [3, 3]
    with pytest.raises(UsageError, match="input_1.pb' is for input 1, but the model has 1 inputs"):
        load_feeds([tmp_path], [X])


@pytest.mark.parametrize("kind", ["sequence", "optional", "optional sequence"])
def test_sequences_and_optionals_in_test_data(tmp_path, kind):
    arrays = [np.arange(3.0, dtype=np.float32), np.zeros((2, 2), np.float32)]
    sequence = numpy_helper.from_list(arrays)
    if kind == "sequence":
        proto, expected = sequence, arrays
    elif kind == "optional":
        proto, expected = numpy_helper.from_optional(arrays[0]), arrays[0]
    else:
        proto = onnx.OptionalProto(elem_type=onnx.OptionalProto.SEQUENCE, sequence_value=sequence)
        expected = arrays
    (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
    container = kind.split()[0]
    (feed,) = load_feeds([tmp_path], [TensorSpec("s", DType.FLOAT, None, container)])
    if isinstance(expected, list):
        assert [a.tolist() for a in feed["s"]] == [a.tolist() for a in expected]
    else:
        assert feed["s"].tolist() == expected.tolist()


def test_a_broken_proto_is_named(tmp_path):
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelError, match="input_0.pb' is no serialized tensor"):
        load_feeds([tmp_path], [X])


def test_types_are_cast_where_that_is_meant_and_it_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", **{"x": np.ones((1, 2)), "n:0": np.array([1, 2], np.int32)})
    loaded = load_feeds([tmp_path / "a.npz"], [X, N])
    assert [a.dtype for a in next(iter(loaded)).values()] == [np.float32, np.int64]
    assert loaded.notes == (
        "x: float64 in the file, cast to float32",
        "n:0: int32 in the file, cast to int64",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n:0", np.array([0.5, 1])),
        ("n:0", np.array([2**63, 0], np.uint64)),
        ("n:0", np.array(["a", "b"])),
        ("x", np.array([[1e300, 0]])),
        ("x", np.array([[2**24 + 1, 0]])),
    ],
)
def test_a_cast_that_loses_values_is_refused(tmp_path, name, value):
    np.savez(tmp_path / "a.npz", **(FEEDS[0] | {name: value}))
    with pytest.raises(UsageError, match=f"{name}.*which cannot hold its values"):
        load_feeds([tmp_path / "a.npz"], [X, N])


def test_npy_regains_the_types_that_it_forgets(tmp_path):
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", y=array)
    (feed,) = load_feeds([tmp_path / "a.npz"], [TensorSpec("y", DType.BFLOAT16, (2,))])
    assert feed["y"].dtype == array.dtype and feed["y"].tolist() == [1.5, -2]


def test_missing_inputs_are_named_and_others_ignored_aloud(tmp_path):
    np.savez(tmp_path / "a.npz", x=FEEDS[0]["x"], extra=np.ones(1))
    with pytest.raises(UsageError, match="lack 'n:0': they hold 'x', 'extra'"):
        load_feeds([tmp_path / "a.npz"], [X, N])
    assert load_feeds([tmp_path / "a.npz"], [X]).notes == (
        "not an input of the model, ignored: 'extra'",
    )


def test_results_are_not_inputs(tmp_path):
    RunResults([Run("r", [Iteration(FEEDS[0])])]).save(tmp_path / "r.bin")
    with pytest.raises(ModelError, match=r"holds results, not inputs.*data to-input"):
        load_feeds([tmp_path / "r.bin"], [X, N])


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.savez(tmp_path / "p.npz", x=np.array([object()], object))
    for name, message in (
        ("empty", "holds no inputs"),
        ("a.npz", "is damaged"),
        ("x.npy", "is cut short"),
        ("p.npz", "pickled Python objects"),
        ("absent.npz", "does not exist"),
        ("absent.json", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=message):
            load_feeds([tmp_path / name], [X])


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }"


@pytest.mark.parametrize(
    "header",
    [
        HEADER.replace(b"}", b"}}"),
        HEADER.replace(b"(1, 2)", b"(-1, 2)"),
        HEADER.replace(b"(1, 2)", b"(True, 2)"),
        HEADER.replace(b"(1, 2)", b"[" * 200),
        HEADER.replace(b"<f4", b"<q9"),
        HEADER.replace(b"'<f4'", b"[('a', '|O')]"),
        HEADER.replace(b"'shape'", b"'form'"),
        HEADER.replace(b"<f4", b"<U2"),
        b"3",
        b"\xff",
    ],
)
def test_a_broken_header_is_refused(tmp_path, header):
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\xff" * 16
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.npy"):
        load_feeds([tmp_path / "x.npy"], [X])


def test_an_archive_that_is_cut_inside_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((1, 2), np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[28] ^= 0xFF  # the length of an extra field: the data then lie behind the end
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        load_feeds([tmp_path / "a.npz"], [X])


def test_an_npz_holds_one_iteration_of_plain_types(tmp_path):
    with pytest.raises(UsageError, match="one iteration, and there are 3"):
        save_feeds(FEEDS, tmp_path / "a.npz")
    with pytest.raises(UsageError, match="cannot hold s, b"):
        save_feeds(
            [{"s": np.array(["a"], object), "b": np.ones(1, ml_dtypes.bfloat16)}],
            tmp_path / "a.npz",
        )
    assert not list(tmp_path.iterdir())


def test_a_script_gives_the_data_and_is_called_once(tmp_path):
    script = tmp_path / "my.py"
    script.write_text(
        "import numpy as np\n"
        "rng = np.random.default_rng()\n"
        "def load_data():\n"
        "    for i in range(2):\n"
        "        yield {'x': rng.random((1, 2), dtype=np.float32)}\n"
        "def one():\n    return {'x': np.ones((1, 2), np.float32)}\n"
        "def bad():\n    return [3]\n"
        "def fails():\n    raise KeyError('k')\n"
    )
    feeds = make_feeds(inputs=[X], script=str(script))
    assert [f["x"].tolist() for f in feeds] == [f["x"].tolist() for f in feeds]
    assert feeds.count == 2
    assert len(list(make_feeds(inputs=[X], script=f"{script}:one"))) == 1
    with pytest.raises(UsageError, match="iteration 0 of .*:bad is no dict"):
        make_feeds(inputs=[X], script=f"{script}:bad")
    with pytest.raises(RunnerError, match="fails failed: KeyError"):
        make_feeds(inputs=[X], script=f"{script}:fails")
    with pytest.raises(UsageError, match="defines no function 'nothing'"):
        make_feeds(inputs=[X], script=f"{script}:nothing")
